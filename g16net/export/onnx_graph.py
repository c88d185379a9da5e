"""ONNX, written from the folded steps with the package `onnx` alone: no converter comes between.

Opset 17. Input `images` uint8 [batch, height, width, 3], 0..255, any batch and size, resized and cropped already;
outputs `logits` and `probabilities`, float32 [batch, classes]. Inside, tensors are [batch, channels, height, width],
and every convolution is one `Conv` with its `group` attribute. The class names and the preprocessing are JSON in the
file's metadata: `class_names`, `preprocessing`.
"""

import json
from typing import Any, Dict, List, Sequence

import numpy as np

from g16net.export import folding

OPSET = 17


def convert(steps: List[Any], class_names: Sequence[str], preprocessing: Dict[str, Any], fuses: bool = False) -> bytes:
    """The bytes of the ONNX file; the first arguments are as in `tflite.convert`.

    fuses: whether the runtime turns a chain of element-wise operations into one pass, as OpenVINO does. Norms are then
    such chains. ONNX Runtime's CPU does each by itself, and is faster with its instance norm, by which OpenVINO loses
    the layout of its convolutions.
    """
    import onnx

    graph = _Graph(onnx.helper, fuses)
    # Channels first while the images are bytes: less to move, and the mean's planes are each in one piece.
    kept, x = None, graph.op("Transpose", ["images"], perm=[0, 3, 1, 2])
    x = graph.op("Cast", [x], to=onnx.TensorProto.FLOAT)
    for step in steps:
        if isinstance(step, folding.Keep):
            kept = x
        elif isinstance(step, folding.Add):
            x = graph.op("Add", [x, kept], name=step.name)
        else:
            x = WRITERS[type(step)](graph, step, x)
    graph.op("Identity", [x], output="logits")
    graph.op("Softmax", [x], output="probabilities", axis=-1)
    helper, classes = onnx.helper, len(class_names)
    image = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["batch", "height", "width", 3])
    results = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", classes])
        for name in ("logits", "probabilities")
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "g16net", [image], results, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,  # of that opset
        producer_name="g16net",
    )
    helper.set_model_props(
        model, {"class_names": json.dumps(list(class_names)), "preprocessing": json.dumps(preprocessing)}
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


class _Graph:
    """The nodes and the constants written so far."""

    def __init__(self, helper, fuses):
        self.helper, self.fuses, self.nodes, self.initializers = helper, fuses, [], []

    def op(self, kind, inputs, output=None, name=None, **attributes):
        """Adds a node; arrays among its inputs become constants. Returns the name of its output."""
        output = output or f"{name or kind}_{len(self.nodes)}"
        inputs = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(self.helper.make_node(kind, inputs, [output], name=name or output, **attributes))
        return output

    def constant(self, array):
        import onnx.numpy_helper

        name = f"constant_{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name


def _channels(array):
    """An array [channels] as [channels, 1, 1]."""
    return np.reshape(array, [-1, 1, 1])


def _normalize(graph, step, x):
    x = graph.op("Sub", [x, _channels(step.mean)], name="normalize")
    return graph.op("Mul", [x, _channels(step.inv_std)]) if (step.inv_std != 1).any() else x


def _conv(graph, step, x):
    kernel = step.kernel.transpose(3, 2, 0, 1)
    bias = [] if step.bias is None else [step.bias]
    return graph.op(
        "Conv",
        [x, kernel, *bias],
        name=step.name,
        group=step.groups,
        kernel_shape=list(kernel.shape[2:]),
        strides=[step.stride, step.stride],
        auto_pad="SAME_UPPER",  # the padding depends on the size of the image, as 'SAME' of TensorFlow
    )


def _activation(graph, name, x):
    if name == "swish":
        return graph.op("Mul", [x, graph.op("Sigmoid", [x])])
    if name == "relu6":
        return graph.op("Clip", [x, np.float32(0), np.float32(6)])
    return graph.op("Relu", [x])


def _norm(graph, step, x):
    if graph.fuses:
        x = _chain(graph, step, x)
    elif step.strided and step.groups > 1:
        x = _strided(graph, step, x)
    else:
        x = _grouped(graph, step, x)
    x = _activation(graph, step.activation, x) if step.activation else x
    x = x if step.centre is None else graph.op("Sub", [x, _channels(step.centre)])
    return x if step.scale is None else graph.op("Mul", [x, _channels(step.scale)])


def _grouped(graph, step, x):
    """Each group as one channel of an instance norm, then gamma and beta in one pass by a batch norm."""
    ones, zeros = np.ones(step.groups, np.float32), np.zeros(step.groups, np.float32)
    rows = graph.op("Reshape", [x, np.array([0, step.groups, -1], np.int64)])
    rows = graph.op("InstanceNormalization", [rows, ones, zeros], name=step.name, epsilon=step.epsilon)
    x = graph.op("Reshape", [rows, graph.op("Shape", [x])])
    least = 1e-5  # of epsilon: cuDNN takes none below, and ONNX Runtime on a GPU would raise it
    mean, variance = np.zeros_like(step.gamma), np.full_like(step.gamma, 1 - least)
    return graph.op("BatchNormalization", [x, step.gamma, step.beta, mean, variance], epsilon=least)


def _strided(graph, step, x):
    x = graph.op("Sub", [x, _means(graph, step, x)], name=step.name)
    variance = _means(graph, step, graph.op("Mul", [x, x]))
    factor = graph.op("Mul", [_inverse_root(graph, step, variance), _channels(step.gamma)])
    return graph.op("Add", [graph.op("Mul", [x, factor]), _channels(step.beta)])


def _chain(graph, step, x):
    """x * factor + offset, each [batch, channels, 1, 1]: the pass of the activation can do that too."""
    mean = _means(graph, step, x)
    variance = _means(graph, step, graph.op("Pow", [graph.op("Sub", [x, mean]), np.float32(2)]))
    factor = graph.op("Mul", [_inverse_root(graph, step, variance), _channels(step.gamma)])
    offset = graph.op("Sub", [_channels(step.beta), graph.op("Mul", [mean, factor])])
    return graph.op("Add", [graph.op("Mul", [x, factor], name=step.name), offset])


def _inverse_root(graph, step, variance):
    deviation = graph.op("Sqrt", [graph.op("Add", [variance, np.float32(step.epsilon)])])
    return graph.op("Reciprocal", [deviation])


def _means(graph, step, x):
    """Means over the pixels and channels of each group, for each channel [batch, channels, 1, 1]; over all with one
    group [batch, 1, 1, 1]. Channels of a group are averaged by a matrix."""
    if step.groups == 1:
        return graph.op("ReduceMean", [x], axes=[1, 2, 3], keepdims=1)
    channels = np.arange(len(step.gamma))
    group = channels % step.groups if step.strided else channels // (len(channels) // step.groups)
    matrix = (group[:, None] == group) * (step.groups / len(channels))
    means = graph.op("ReduceMean", [x], axes=[2, 3], keepdims=0)
    means = graph.op("MatMul", [means, matrix.astype(np.float32)])
    return graph.op("Unsqueeze", [means, np.array([2, 3], np.int64)])


def _gate(graph, step, x):
    means = graph.op("ReduceMean", [x], axes=[2, 3], keepdims=0)
    reduced = graph.op("Gemm", [means, step.reduce_kernel, step.reduce_bias], name=step.name)
    gate = graph.op("Gemm", [_activation(graph, step.activation, reduced), step.expand_kernel, step.expand_bias])
    gate = graph.op("Sigmoid", [gate])
    gate = gate if step.scale is None else graph.op("Mul", [gate, step.scale])
    return graph.op("Mul", [x, graph.op("Unsqueeze", [gate, np.array([2, 3], np.int64)])])


def _dense(graph, step, x):
    means = graph.op("ReduceMean", [x], name="top_pool", axes=[2, 3], keepdims=0)
    return graph.op("Gemm", [means, step.kernel, step.bias], name=step.name)


WRITERS = {
    folding.Normalize: _normalize,
    folding.Conv: _conv,
    folding.Norm: _norm,
    folding.Activation: lambda graph, step, x: _activation(graph, step.activation, x),
    folding.Gate: _gate,
    folding.Dense: _dense,
}

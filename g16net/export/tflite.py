"""TFLite: a folded network as one file for the LiteRT runtime (`ai-edge-litert`, or `tf.lite`).

Input `images` uint8 [1, 32, 32, 3] by default; `resize_tensor_input` takes it to any batch, height and width. Outputs
`logits` and `probabilities`, float32. `labels.txt` (a class name per line) and `model.json` (preprocessing and
precision) are a zip at the end of the file, as TFLite's metadata has its associated files: any unzip reads them.

Precisions: "float32"; "float16" (weights, half the size; computed in float32 on a CPU); "int8" (weights and inputs of
convolutions, a scale per filter, ranges of inputs from images). What lies between convolutions stays in float32 under
int8: measured on the demo's network, all of it in 8 bits doubles the mean error of a logit (0.048 for 0.021) and takes
3.5 times as long, for 13 % less bytes; with matrix products in 8 bits XNNPACK refuses some networks.
"""

import io
import json
import warnings
import zipfile
from typing import Any, Dict, List, Optional, Sequence

import tensorflow as tf

from g16net.export import tf_graph

PRECISIONS = ("float32", "float16", "int8")
IN_FLOAT = [
    "FULLY_CONNECTED",
    "MEAN",
    "SQUARED_DIFFERENCE",
    "RSQRT",
    "MUL",
    "ADD",
    "SUB",
    "LOGISTIC",
    "SOFTMAX",
    "RESHAPE",
    "RELU",
    "RELU6",
]


def convert(
    steps: List[Any],
    class_names: Sequence[str],
    preprocessing: Dict[str, Any],
    precision: str = "float16",
    images: Optional[List[Any]] = None,
) -> bytes:
    """The bytes of the TFLite file.

    Args:
        steps: what `folding.fold` returns.
        class_names: one name per logit.
        preprocessing: JSON values that say how images become the input.
        precision: one of `PRECISIONS`.
        images: for "int8": uint8 arrays [batch, height, width, 3], from whose activations the ranges are taken.
    """
    network = tf_graph.Network(steps, lowering="native", matmul_sums=False)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def serve(images):
        logits = network(images)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}

    module = tf.Module()
    module.kernels, module.serve = network.variables, serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        model = _int8(converter, images)
    else:
        model = converter.convert()
    return bytes(model) + _labels(class_names, {**preprocessing, "precision": precision})


def _int8(converter, images):
    """The quantised model but for the operations `IN_FLOAT`, which only the debugger of the converter can leave out."""
    converter.representative_dataset = lambda: ([array] for array in images)
    debug = tf.lite.experimental
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's interpreter says that LiteRT's is the newer
        options = debug.QuantizationDebugOptions(denylisted_ops=IN_FLOAT)
        debugger = debug.QuantizationDebugger(
            converter=converter, debug_dataset=lambda: ([array] for array in images[:1]), debug_options=options
        )
    return debugger.get_nondebug_quantized_model()


def _labels(class_names, preprocessing):
    """A zip of `labels.txt` and `model.json`."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("labels.txt", "".join(f"{name}\n" for name in class_names))
        archive.writestr("model.json", json.dumps(preprocessing))
    return data.getvalue()

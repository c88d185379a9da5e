"""Exported networks in their own runtimes, ours and peers', inference alone.

Options: `format`, `folder` for the files, `threads`, `num_classes`, and `config`, the path of a saved config of ours,
or `peer` ("timm", "keras") and `model`, with `multiply_adds` at a size as a dict. All have random weights. A peer's
file is made as its users make it: timm's by `torch.onnx.export`, which OpenVINO reads too; those of keras.applications
as a SavedModel, and from that by the converter of the runtime.
"""

import functools
import json
import os
import sys
import tempfile

import numpy as np

from g16net.benchmark import contenders
from g16net.run.allocator import keep_memory


def main(options):
    threads, kind = options["threads"], options["format"]
    if options.get("peer") == "timm":  # its process has torch
        keep_memory()
    else:
        from g16net.run.start import start_tensorflow

        start_tensorflow()
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    folder = tempfile.mkdtemp(dir=options["folder"])

    @functools.lru_cache(maxsize=None)
    def file(size):
        """`(path, multiply-adds of an image)`."""
        path = os.path.join(folder, str(size) + ENDINGS.get(kind, ".tflite"))
        if "peer" in options:
            PEERS[options["peer"]](options, path, size)
            return path, options["multiply_adds"][str(size)]
        return path, ours(options, path, size)

    def make(task, size, batch):
        path, macs = file(size)
        images = np.random.RandomState(0).randint(0, 256, (batch, size, size, 3)).astype(np.uint8)
        step = RUNTIMES[kind](path, images, threads)
        return contenders.Work(step, batch, {"multiply_adds": macs, "bytes": bytes_of(path)})

    contenders.serve(make)


def ours(options, path, size):
    """Writes our network with initial weights. Returns its multiply-adds."""
    from g16net import compat, config
    from g16net.export import folding, onnx_graph, openvino_ir, saved_model, tflite
    from g16net.run import assemble
    from g16net.training.evaluate import multiply_adds

    settings = config.load(options["config"])
    classes = options["num_classes"]
    with compat.policy("float32"):
        steps = folding.fold(assemble.model(settings, classes, size))
    names, kind = [str(number) for number in range(classes)], options["format"].partition(":")[0]
    if kind == "saved_model":
        saved_model.save(path, steps, names, {"size": size})
    elif kind == "openvino":
        openvino_ir.save(path, steps, names, {})
    else:
        noise = [np.random.RandomState(i).randint(0, 256, (1, size, size, 3)).astype(np.uint8) for i in range(8)]
        precision = options["format"].partition(":")[2] or "float32"
        onnx = kind == "onnx"
        data = onnx_graph.convert(steps, names, {}) if onnx else tflite.convert(steps, names, {}, precision, noise)
        with open(path, "wb") as file:
            file.write(data)
    return multiply_adds(settings, size, classes)


def timm(options, path, size):
    import timm
    import torch

    model = timm.create_model(options["model"], num_classes=options["num_classes"]).eval()
    onnx = path if options["format"] == "onnx" else f"{path}.onnx"
    torch.onnx.export(
        model, torch.zeros(1, 3, size, size), onnx, opset_version=17, dynamo=False,
        input_names=["images"], dynamic_axes={"images": {0: "batch"}},
    )  # fmt: skip
    if options["format"] == "openvino":
        _save_openvino(onnx, path)


def keras(options, path, size):
    import tensorflow as tf
    from tensorflow import keras

    model = getattr(keras.applications, options["model"])(
        weights=None, classes=options["num_classes"], input_shape=(size, size, 3), classifier_activation=None
    )
    serve = tf.function(
        lambda images: {"logits": model(images, training=False)},
        input_signature=[tf.TensorSpec([None, size, size, 3], tf.float32, name="images")],
    )
    if options["format"] == "tflite":
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], model)
        with open(path, "wb") as file:
            file.write(converter.convert())
        return
    saved = path if options["format"] == "saved_model" else f"{path}.saved_model"
    module = tf.Module()
    module.model, module.serve = model, serve
    tf.saved_model.save(module, saved, signatures={"serving_default": serve})
    if options["format"] == "openvino":
        _save_openvino(saved, path)


def _save_openvino(model, path):
    import openvino

    openvino.save_model(openvino.convert_model(model), os.path.join(path, "model.xml"), compress_to_fp16=False)


PEERS = {"timm": timm, "keras": keras}


def in_tensorflow(path, images, threads):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    images = tf.cast(images, serve.structured_input_signature[1]["images"].dtype)
    return lambda _loaded=loaded: serve(images=images)["logits"].numpy()  # the signature keeps no variables alive


def in_onnx_runtime(path, images, threads):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    if given.type != "tensor(uint8)":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    return lambda: session.run(None, {given.name: images})


def in_litert(path, images, threads):
    from g16net.export import runners

    interpreter = runners.tflite_interpreter()(model_path=path, num_threads=threads)
    (given,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    images = images.astype(given["dtype"])
    outputs = [output["index"] for output in interpreter.get_output_details()]

    def step():
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return step


def in_openvino(path, images, threads):
    import openvino

    core = openvino.Core()
    model = core.compile_model(
        os.path.join(path, "model.xml"), "CPU",
        {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )  # fmt: skip
    (given,), request = model.inputs, model.create_infer_request()
    if given.partial_shape[1] == 3:
        images = images.transpose(0, 3, 1, 2)
    images = np.ascontiguousarray(images, given.element_type.to_dtype())
    return lambda: request.infer([images])


RUNTIMES = {
    "saved_model": in_tensorflow,
    "onnx": in_onnx_runtime,
    "openvino": in_openvino,
    "tflite": in_litert,
    "tflite:float16": in_litert,
    "tflite:int8": in_litert,
}
ENDINGS = {"saved_model": "", "onnx": ".onnx", "openvino": ""}


def bytes_of(path):
    from g16net.export.formats import size_of

    return size_of(path)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

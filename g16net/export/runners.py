"""Runs an exported file in its own runtime: one function a format.

Each takes the path and returns `images -> logits`, uint8 [batch, height, width, 3] to float32 [batch, classes], and the
class names in the file (None where it has none).
"""

import json
import os
import warnings
import zipfile
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from g16net import extras


def saved_model(path: str) -> Tuple[Callable, Optional[List[str]]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]

    def run(images, _loaded=loaded):  # its signatures do not keep its variables alive
        return serve(images=tf.constant(images))["logits"].numpy()

    names = getattr(loaded, "class_names", None)
    return run, None if names is None else [name.decode() for name in names.numpy()]


def tflite_interpreter() -> Any:
    """The class `Interpreter` of LiteRT's package where it is installed, else TensorFlow's own."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tensorflow.lite.python.interpreter import Interpreter
        except ImportError:
            Interpreter = extras.need("ai_edge_litert.interpreter", "export", "TFLite").Interpreter
    return Interpreter


def tflite(path: str) -> Tuple[Callable, Optional[List[str]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's interpreter says that LiteRT's is the newer
        serve = tflite_interpreter()(model_path=path).get_signature_runner()
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.read("labels.txt").decode().split("\n")[:-1]
    except (zipfile.BadZipFile, KeyError):
        names = None
    return lambda images: np.array(serve(images=images)["logits"]), names


def onnx(path: str) -> Tuple[Callable, Optional[List[str]]]:
    session = extras.need("onnxruntime", "export", "ONNX").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = session.get_modelmeta().custom_metadata_map.get("class_names")
    return lambda images: session.run(["logits"], {"images": images})[0], names and json.loads(names)


def openvino(path: str) -> Tuple[Callable, Optional[List[str]]]:
    core = extras.need("openvino", "openvino", "OpenVINO").Core()
    model = core.read_model(os.path.join(path, "model.xml"))
    names = None
    if model.has_rt_info(["g16net", "class_names"]):
        names = json.loads(model.get_rt_info(["g16net", "class_names"]).astype(str))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: np.array(compiled([images])["logits"]), names


def keras(path: str) -> Tuple[Callable, Optional[List[str]]]:
    from tensorflow import keras

    from g16net.models import efficientnet, portable  # noqa: F401  registers the layers

    model = keras.models.load_model(path)  # safe_mode, Keras' default, runs no code of the file
    run = lambda images: np.asarray(model(images.astype(np.float32), training=False))  # noqa: E731
    return run, portable.class_names(path)

"""Runs an exported file in its own runtime: from a path to a function of uint8 images that returns logits."""

import json
import os
import warnings
import zipfile

import numpy as np

from g16net import extras
from g16net.errors import UserError


def load(path):
    """`images -> logits` of the export at `path`: uint8 [batch, height, width, 3] to float32 [batch, classes].

    Its attribute `class_names` has the names in the file, one a logit; None where the format keeps none (Keras').

    Raises:
        UserError: where there is no export of a known format, or its runtime is missing.
    """
    check(path)
    run, class_names = _saved_model(path) if os.path.isdir(path) else LOADERS[os.path.splitext(path)[1]](path)
    run.class_names = class_names
    return run


def check(path):
    """UserError where there is no export at `path`, by its name."""
    if not os.path.exists(path):
        raise UserError(f"no exported file at {path!r}; write one with --mode=export --format=FORMAT")
    if os.path.isdir(path):
        if not os.path.exists(os.path.join(path, "saved_model.pb")):
            raise UserError(f"{path!r} is a folder without saved_model.pb; name a SavedModel, or a file of {ENDINGS}")
        return
    ending = os.path.splitext(path)[1]
    if ending not in LOADERS:
        raise UserError(f"{path!r} is no export of a known format; its name should end with {ENDINGS}")


def _saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]

    def run(images, _loaded=loaded):  # its signatures do not keep its variables alive
        return serve(images=tf.constant(images))["logits"].numpy()

    names = getattr(loaded, "class_names", None)
    return run, None if names is None else [name.decode() for name in names.numpy()]


def tflite_interpreter():
    """The class `Interpreter` of LiteRT's package where it is installed, else TensorFlow's own."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tensorflow.lite.python.interpreter import Interpreter
        except ImportError:
            Interpreter = extras.need("ai_edge_litert.interpreter", "export", "TFLite").Interpreter
    return Interpreter


def _tflite(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's interpreter says that LiteRT's is the newer
        serve = tflite_interpreter()(model_path=path).get_signature_runner()
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.read("labels.txt").decode().split("\n")[:-1]
    except (zipfile.BadZipFile, KeyError):
        names = None
    return lambda images: np.array(serve(images=images)["logits"]), names


def _onnx(path):
    session = extras.need("onnxruntime", "export", "ONNX").InferenceSession(path, providers=["CPUExecutionProvider"])
    names = session.get_modelmeta().custom_metadata_map.get("class_names")
    return lambda images: session.run(["logits"], {"images": images})[0], names and json.loads(names)


def _keras(path):
    from tensorflow import keras

    from g16net.models import efficientnet  # noqa: F401  registers the layers

    model = keras.models.load_model(path)  # safe_mode, Keras' default, runs no code of the file
    return lambda images: np.asarray(model(images.astype(np.float32), training=False)), None


LOADERS = {".tflite": _tflite, ".onnx": _onnx, ".keras": _keras}
ENDINGS = ", ".join(LOADERS)

"""Which TensorFlow and which Keras are here."""

import json
import os

try:
    import tensorflow as tf
    from tensorflow import keras
except ImportError as error:
    raise ImportError(
        f"g16net's layers, models, optimizer and losses need TensorFlow, which cannot be imported ({error}): "
        "pip install tensorflow tf-keras. Costs (g16net.costs.counts) and reports work without it"
    ) from error


def _keras_version():
    """The version of TensorFlow's Keras; ImportError where it computes with another backend than TensorFlow."""
    try:
        version = getattr(keras, "__version__", None)  # loads it
        backend = keras.backend.backend() if version and int(version.split(".")[0]) >= 3 else "tensorflow"
        cause = None
    except ImportError as error:  # such as a backend that is not installed
        backend, cause = _chosen_backend(), error
        if backend == "tensorflow":
            raise
    if backend != "tensorflow":
        raise ImportError(
            f"g16net needs Keras with TensorFlow below it, and Keras' backend is set to {backend!r}. Set "
            'KERAS_BACKEND=tensorflow in the environment before Python imports Keras (or "backend": "tensorflow" in '
            "~/.keras/keras.json), or take tf-keras with TF_USE_LEGACY_KERAS=1"
        ) from cause
    if version is None:  # tf-keras does not pass its version on to `tf.keras`
        import tf_keras

        version = tf_keras.__version__
    return version


def _chosen_backend():
    """The backend that Keras 3 would take, which reads its environment variable and then its file."""
    folder = os.environ.get("KERAS_HOME", os.path.join(os.path.expanduser("~"), ".keras"))
    chosen = os.environ.get("KERAS_BACKEND")
    try:
        with open(os.path.join(folder, "keras.json"), encoding="utf-8") as file:
            return chosen or json.load(file).get("backend", "tensorflow")
    except (OSError, ValueError):
        return chosen or "tensorflow"


KERAS_VERSION = _keras_version()

KERAS3 = int(KERAS_VERSION.split(".")[0]) >= 3

TF_VERSION = tuple(int(part) for part in tf.__version__.split(".")[:2])

"""Which Keras is here, and what computes below it: TensorFlow, or with Keras 3 JAX or PyTorch.

`keras` is the Keras in use, `tf` TensorFlow, or None where Keras computes with another backend: nothing imports
TensorFlow then, and it need not be installed.
"""

import importlib.util
import json
import os
import sys
from typing import Any

BACKENDS = "tensorflow", "jax", "torch"


def _chosen_backend():
    """The backend that Keras would take: of Keras 3 if it is imported already, else of its variable or its file.

    `TF_USE_LEGACY_KERAS=1` chooses tf-keras, and so TensorFlow, before any of these.
    """
    legacy = os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true")
    if legacy and importlib.util.find_spec("tensorflow") is not None:
        return "tensorflow"
    imported = sys.modules.get("keras")
    if hasattr(imported, "config"):  # Keras 3
        return imported.config.backend()
    folder = os.environ.get("KERAS_HOME", os.path.join(os.path.expanduser("~"), ".keras"))
    chosen = os.environ.get("KERAS_BACKEND")
    try:
        with open(os.path.join(folder, "keras.json"), encoding="utf-8") as file:
            return chosen or json.load(file).get("backend", "tensorflow")
    except (OSError, ValueError):
        return chosen or "tensorflow"


def _import_tensorflow():
    """`(tf, its keras)`."""
    try:
        import tensorflow
        from tensorflow import keras as its_keras
    except ImportError as error:
        raise ImportError(
            "g16net's layers, models, optimizer and losses need TensorFlow, or Keras 3 with JAX or PyTorch, and "
            f"TensorFlow cannot be imported ({error}): pip install tensorflow tf-keras, or pip install keras jax and "
            "set KERAS_BACKEND=jax (or torch). Costs (g16net.costs.counts) and reports work without any"
        ) from error
    return tensorflow, its_keras


def _import_keras(backend):
    """Keras 3 on a backend that is not TensorFlow."""
    remedy = (
        "Set KERAS_BACKEND=tensorflow in the environment before Python imports Keras (or "
        '"backend": "tensorflow" in ~/.keras/keras.json), or take tf-keras with TF_USE_LEGACY_KERAS=1'
    )
    if backend not in BACKENDS:
        raise ImportError(
            f"g16net works with Keras on {', '.join(BACKENDS)}, and Keras' backend is set to {backend!r}. {remedy}"
        )
    try:
        import keras as keras3
    except ImportError as error:
        raise ImportError(
            f"Keras' backend is set to {backend!r}, with which it cannot be imported ({error}): pip install "
            f"keras {backend}. {remedy}"
        ) from error
    return keras3


tf: Any
keras: Any
BACKEND = _chosen_backend()
if BACKEND != "tensorflow":
    keras = _import_keras(BACKEND)
    if int(keras.__version__.split(".")[0]) < 3:  # which reads the variable, and computes with TensorFlow
        BACKEND = "tensorflow"
if BACKEND == "tensorflow":
    tf, keras = _import_tensorflow()
    TF_VERSION = tuple(int(part) for part in tf.__version__.split(".")[:2])
else:
    tf, TF_VERSION = None, ()

KERAS_VERSION = getattr(keras, "__version__", None)
if KERAS_VERSION is None:  # tf-keras does not pass its version on to `tf.keras`
    import tf_keras

    KERAS_VERSION = tf_keras.__version__

KERAS3 = int(KERAS_VERSION.split(".")[0]) >= 3


def need_tensorflow(purpose: str) -> None:
    """ImportError where Keras computes with another backend than TensorFlow, which `purpose` needs."""
    if BACKEND != "tensorflow":
        raise ImportError(
            f"{purpose} need TensorFlow below Keras, and Keras' backend is {BACKEND!r}: there layers, models, losses, "
            "metrics and the optimizer work. Set KERAS_BACKEND=tensorflow before Python imports Keras, or take "
            "tf-keras with TF_USE_LEGACY_KERAS=1"
        )

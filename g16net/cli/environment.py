"""What TensorFlow reads from the environment as it is imported: set here, before anything imports it.

Keras 3 cannot `fit` under MultiWorkerMirroredStrategy (keras-team/keras#20585), so the command line runs on tf-keras.
TensorFlow takes oneDNN's kernels by itself only on CPUs with AVX-512 VNNI; on others too they train faster, and have
the gradient of grouped convolutions, which its own lack. Before 2.9 they are an experiment: in 2.6 a grouped
convolution ends the process by SIGFPE.
"""

import os
import platform
import sys
from importlib import metadata


def onednn_is_mature():
    """Whether the installed TensorFlow has oneDNN's kernels for good, which no import may find out here."""
    for name in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
        try:
            return tuple(int(part) for part in metadata.version(name).split(".")[:2]) >= (2, 9)
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return sys.version_info >= (3, 9)  # the IPU SDK's Python is 3.8, its TensorFlow 2.6


os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if platform.machine() in ("x86_64", "AMD64") and onednn_is_mature():
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

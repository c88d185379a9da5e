"""What is loaded from outside cannot run code: no pickle, safe modes, limits before memory is asked for."""

import ast
import os
import zipfile

import pytest
from tensorflow import keras

from g16net import compat
from g16net.export import runners

PACKAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "g16net")
# Modules and calls that make objects or run commands of what they read. Experiment files are the user's own Python.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
TORCH_PEER = os.path.join("contenders", "timm.py")  # times torch's networks in a process of its own, and loads nothing
UNSAFE_CALLS = {"eval", "exec", "load_weights_unsafe", "enable_unsafe_deserialization", "extractall", "unpack_archive"}


def files():
    for folder, _, names in os.walk(PACKAGE):
        for name in names:
            if name.endswith(".py"):
                yield os.path.join(folder, name)


@pytest.mark.parametrize("path", [os.path.relpath(path, PACKAGE) for path in files()])
def test_nothing_unpickles_or_evaluates(path):
    with open(os.path.join(PACKAGE, path), encoding="utf-8") as file:
        tree = ast.parse(file.read())
    unsafe = UNSAFE_MODULES - {"torch"} if path == TORCH_PEER else UNSAFE_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & unsafe
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] not in unsafe
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert name not in UNSAFE_CALLS and not (path == TORCH_PEER and name in ("load", "load_state_dict"))
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                assert not (keyword.arg == "allow_pickle" and value is not False)
                assert not (keyword.arg == "safe_mode" and value is not True)
                assert not (keyword.arg == "shell" and value is not False)


@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_a_keras_file_with_code_in_it_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])
    path = str(tmp_path / "code.keras")
    model.save(path)
    assert zipfile.is_zipfile(path)
    with pytest.raises((ValueError, TypeError), match="(?i)lambda|unsafe|safe_mode"):
        runners.load(path)

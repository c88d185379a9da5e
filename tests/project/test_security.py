"""What is loaded from outside cannot run code. That the package unpickles and evaluates nothing is held by the linter:
see `ruff.toml`."""

import os
import pickle
import zipfile

import numpy as np
import pytest
from tensorflow import keras

from g16net import compat
from g16net.data import cache
from g16net.data.sources import open_source
from g16net.export import formats


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_a_keras_file_with_code_in_it_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])
    path = str(tmp_path / "code.keras")
    model.save(path)
    assert zipfile.is_zipfile(path)
    with pytest.raises((ValueError, TypeError), match="(?i)lambda|unsafe|safe_mode"):
        formats.load(path)


@pytest.mark.once
def test_a_pickle_in_the_place_of_a_caches_labels_is_not_unpickled(tmp_path):
    source = open_source("synthetic", "train", num_examples=8, num_classes=2, size=8)
    cache.on_disk(source, 4, str(tmp_path / "cache"))
    (labels,) = (tmp_path / "cache").glob("*.labels.npy")
    np.save(str(labels), np.array([Evil(tmp_path / "ran")] * 8), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle|pickled"):
        cache.on_disk(source, 4, str(tmp_path / "cache"))
    labels.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(ValueError, match="allow_pickle|pickled"):
        cache.on_disk(source, 4, str(tmp_path / "cache"))
    assert not (tmp_path / "ran").exists()

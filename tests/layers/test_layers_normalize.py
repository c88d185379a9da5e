import numpy as np
import pytest
import tensorflow as tf
from layer_check import check_layer
from tensorflow import keras

from g16net.layers import Normalize

MEAN, STD = (123.68, 116.78, 103.94), (58.4, 57.1, 57.4)
IMAGES = np.random.RandomState(0).randint(0, 256, [2, 4, 4, 3]).astype("float32")


def test_layer(tmp_path):
    check_layer(Normalize, dict(mean=MEAN, std=STD), IMAGES, tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_by_hand(dtype):
    y = Normalize(MEAN, STD)(tf.constant(IMAGES.astype(dtype)))
    np.testing.assert_allclose(y, (IMAGES - MEAN) / STD, rtol=1e-5, atol=1e-5)


def test_subtracts_before_it_rounds():
    layer = Normalize(MEAN, (1, 1, 1), dtype="mixed_bfloat16")
    y = tf.cast(layer(tf.constant(IMAGES)), tf.float32)
    np.testing.assert_array_equal(y, tf.cast(tf.cast(IMAGES - np.float32(MEAN), tf.bfloat16), tf.float32))


def test_takes_arrays_and_writes_lists():
    config = Normalize(np.array(MEAN), np.array(STD)).get_config()
    assert config["mean"] == list(MEAN) and config["std"] == list(STD)


def test_refuses():
    with pytest.raises(ValueError, match="one number each channel"):
        Normalize(MEAN, (1,))
    with pytest.raises(ValueError, match="every std must be above 0"):
        Normalize(MEAN, (1, 0, 1))
    with pytest.raises(ValueError, match="mean has 3 channels, the images have 1"):
        keras.Sequential([keras.Input((4, 4, 1)), Normalize(MEAN, STD)])

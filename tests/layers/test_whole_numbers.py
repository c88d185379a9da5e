"""Images of whole numbers, as files hold them, are computed with in the layer's dtype."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from g16net import compat, layers, native

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 16))
LAYERS = {
    "layer norm": lambda: layers.LayerNorm(activation="swish"),
    "batch norm": lambda: layers.BatchNorm(activation="swish"),
    "proxy norm": lambda: layers.ProxyNormActivation(groups=1),
    "convolution": lambda: layers.GroupConv2D(3, group_size=16),
    "squeeze-and-excite": lambda: layers.SqueezeExcite(4),
    "dropout": lambda: layers.Dropout(0.25, seed=1),
}


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_whole_numbers_are_cast_to_the_compute_dtype(name, policy):
    results = []
    with compat.policy(policy):
        for dtype in (tf.float32, tf.uint8):
            layer = LAYERS[name]()
            layer.build(IMAGES.shape)
            weights = np.random.default_rng(1)
            layer.set_weights([
                weights.uniform(0.5, 1, w.shape) if "float" in str(w.dtype) else w for w in layer.get_weights()
            ])  # fmt: skip
            symbol = layer(keras.Input(IMAGES.shape[1:], dtype=dtype.name))
            with native.disabled():  # for the forms of TensorFlow's operations
                y = layer(tf.constant(IMAGES, dtype), training=True) if name == "dropout" else layer(
                    tf.constant(IMAGES, dtype))  # fmt: skip
            results += [y, layer(tf.constant(IMAGES, dtype))] if name != "dropout" else [y]
            assert {tf.as_dtype(t.dtype) for t in (y, symbol)} == {compat.compute_dtype(layer)}
    for one, other in zip(results[: len(results) // 2], results[len(results) // 2 :]):
        np.testing.assert_array_equal(np.array(one, np.float32), np.array(other, np.float32))

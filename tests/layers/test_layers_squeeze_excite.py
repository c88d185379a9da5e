import numpy as np
import pytest
import tensorflow as tf
from layer_check import check_layer, values

from g16net.layers import SqueezeExcite

RANDOM = np.random.RandomState(0)
X = RANDOM.randn(2, 4, 5, 8).astype("float32")
INV_STD = RANDOM.uniform(0.5, 3, 8).astype("float32")


@pytest.mark.parametrize("delayed", [False, True])
def test_layer(tmp_path, delayed):
    inputs = [X, INV_STD] if delayed else X
    check_layer(SqueezeExcite, dict(reduced=2), inputs, tmp_path, trainable=4, changes=False)  # 2 units may all be off


def by_hand(layer, x, activation):
    reduce_kernel, reduce_bias, expand_kernel, expand_bias = values(layer.weights)
    hidden = x.mean((1, 2)) @ reduce_kernel[0, 0] + reduce_bias
    hidden = hidden / (1 + np.exp(-hidden)) if activation == "swish" else np.maximum(hidden, 0)
    gate = 1 / (1 + np.exp(-(hidden @ expand_kernel[0, 0] + expand_bias)))
    return gate[:, None, None, :]


@pytest.mark.parametrize("activation", ["swish", "relu"])
def test_by_hand(activation):
    layer = SqueezeExcite(3, activation)
    y = layer(tf.constant(X))
    assert [tuple(w.shape) for w in layer.weights] == [(1, 1, 8, 3), (3,), (1, 1, 3, 8), (8,)]
    np.testing.assert_allclose(y, X * by_hand(layer, X, activation), rtol=1e-5, atol=1e-6)


def test_delayed_scale_enters_through_the_gate():
    layer = SqueezeExcite(3)
    y = layer([tf.constant(X), tf.constant(INV_STD)])
    np.testing.assert_allclose(y, X * by_hand(layer, X, "swish") * INV_STD, rtol=1e-5, atol=1e-6)


def test_channel_means_may_be_given():
    x, scale, means = tf.constant(X), tf.constant(INV_STD), tf.constant(X.mean((1, 2)))
    layer, given = SqueezeExcite(3, seed=1), SqueezeExcite(3, pooled=True, seed=1)
    np.testing.assert_allclose(given([x, means]), layer(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(given([x, scale, means]), layer([x, scale]), rtol=1e-5, atol=1e-6)
    assert np.abs(given([x, 2 * means]) - layer(x)).max() > 1e-3


def test_refuses():
    with pytest.raises(ValueError, match="reduced must be a positive integer.*got 0"):
        SqueezeExcite(0)
    with pytest.raises(ValueError, match="got 'tanh'"):
        SqueezeExcite(4, "tanh")

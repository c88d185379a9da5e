import numpy as np
import pytest
import tensorflow as tf
from layer_check import check_layer, gradients
from tensorflow import keras

from g16net import native
from g16net.layers import PointwiseConv2D


@pytest.fixture(params=[False, True], ids=["convolution", "product"])
def multiplied(request, monkeypatch):
    """Both ways of computing, whatever this machine's CPU."""
    monkeypatch.setattr(native, "multiplies", lambda x: request.param and x.dtype == tf.float32)
    return request.param


def image(channels, height=5, width=7, batch=3):
    return np.random.RandomState(0).randn(batch, height, width, channels).astype("float32")


def test_layer(tmp_path, multiplied):
    check_layer(PointwiseConv2D, dict(filters=6), image(4), tmp_path, trainable=2, output_shape=(3, 5, 7, 6))


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"activation": "relu"}])
def test_equals_a_convolution(multiplied, options):
    layer, plain = PointwiseConv2D(6, **options), keras.layers.Conv2D(6, 1, **options)
    x = tf.constant(image(4))
    layer(x), plain(x)
    plain.set_weights(layer.get_weights())
    expected = gradients(lambda x: tf.reduce_sum(plain(x, training=True) ** 3), [x], plain.weights)
    found = gradients(lambda x: tf.reduce_sum(layer(x, training=True) ** 3), [x], layer.weights)
    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer(x), plain(x), rtol=1e-5, atol=1e-5)


def test_a_size_that_is_known_later(multiplied):
    image_input = keras.Input((None, None, 4))
    model = keras.Model(image_input, PointwiseConv2D(6)(image_input))
    assert tuple(model.output.shape) == (None, None, None, 6)
    for height, width in ((3, 4), (5, 2)):
        assert model(image(4, height, width), training=True).shape == (3, height, width, 6)


@pytest.mark.parametrize("training", [True, False])
def test_is_a_product_in_training_alone(multiplied, training):
    layer = PointwiseConv2D(6)
    traced = tf.function(lambda x: layer(x, training=training)).get_concrete_function(tf.TensorSpec([2, 5, 7, 4]))
    types = {operation.type for operation in traced.graph.get_operations()}
    assert ("MatMul" in types, "Conv2D" in types) == ((True, False) if multiplied and training else (False, True))


@pytest.mark.parametrize("option", [{"kernel_size": 3}, {"strides": 2}, {"groups": 2}])
def test_refuses_another_convolution(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} of a PointwiseConv2D must be"):
        PointwiseConv2D(6, **option)

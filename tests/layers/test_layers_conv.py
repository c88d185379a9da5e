import numpy as np
import pytest
import tensorflow as tf
from layer_check import check_layer, gradients
from tensorflow import keras

from g16net import compat, native
from g16net.layers import Conv2D


@pytest.fixture(params=[False, True], ids=["convolution", "product"])
def multiplied(request, monkeypatch):
    """Both ways of computing, whatever this machine's CPU."""
    monkeypatch.setattr(native, "multiplies", lambda x: request.param and x.dtype == tf.float32)
    return request.param


def image(channels, height=5, width=7, batch=3):
    return np.random.RandomState(0).randn(batch, height, width, channels).astype("float32")


def test_layer(tmp_path, multiplied):
    check_layer(Conv2D, dict(filters=6, kernel_size=1), image(4), tmp_path, trainable=2, output_shape=(3, 5, 7, 6))


@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"activation": "relu"}])
def test_equals_a_convolution(multiplied, options):
    layer, plain = Conv2D(6, 1, **options), keras.layers.Conv2D(6, 1, **options)
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
    model = keras.Model(image_input, Conv2D(6, 1)(image_input))
    assert tuple(model.output.shape) == (None, None, None, 6)
    for height, width in ((3, 4), (5, 2)):
        assert model(image(4, height, width), training=True).shape == (3, height, width, 6)


@pytest.mark.parametrize("training", [True, False])
def test_is_a_product_in_training_alone(multiplied, training):
    layer = Conv2D(6, 1)
    traced = tf.function(lambda x: layer(x, training=training)).get_concrete_function(tf.TensorSpec([2, 5, 7, 4]))
    types = {operation.type for operation in traced.graph.get_operations()}
    assert ("MatMul" in types, "Conv2D" in types) == ((True, False) if multiplied and training else (False, True))


@pytest.mark.parametrize("options", [{"kernel_size": 3}, {"strides": 2}, {"groups": 2}])
def test_other_kernels_are_convolved(multiplied, options):
    options = {"filters": 6, "kernel_size": 1, **options}
    layer, plain = Conv2D(**options), keras.layers.Conv2D(**options)
    x = tf.constant(image(4))
    shape = plain(x).shape
    assert layer(x, training=True).shape == shape
    plain.set_weights(layer.get_weights())
    np.testing.assert_allclose(layer(x, training=True), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(compat.KERAS3, reason="Keras 3 has no such convolution")
def test_several_axes_of_images(multiplied):
    x = tf.constant(image(4, batch=6).reshape(2, 3, 5, 7, 4))
    assert Conv2D(6, 1)(x, training=True).shape == (2, 3, 5, 7, 6)


def test_files_are_those_of_keras(tmp_path, multiplied):
    """Weights and models saved when networks had Keras' own layer, and the other way round."""

    def network(cls):
        image_input = keras.Input((5, 7, 4))
        x = cls(6, 1, name="first")(cls(8, 3, name="stem")(image_input))
        return keras.Model(image_input, cls(6, 1, name="second")(x))

    x = image(4)
    ours, plain = network(Conv2D), network(keras.layers.Conv2D)
    expected = plain.predict(x, verbose=0)
    for ending in (".weights.h5",) if compat.KERAS3 else (".weights.h5", ".h5"):
        plain.save_weights(str(tmp_path / f"plain{ending}"))
        ours.load_weights(str(tmp_path / f"plain{ending}"))
        np.testing.assert_allclose(ours.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
        ours.save_weights(str(tmp_path / f"ours{ending}"))
        network(keras.layers.Conv2D).load_weights(str(tmp_path / f"ours{ending}"))
    for ending in (".keras", ".h5"):
        ours.save(str(tmp_path / f"model{ending}"))
        loaded = keras.models.load_model(str(tmp_path / f"model{ending}"))
        assert type(loaded.get_layer("first")) is Conv2D
        np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-5)
        plain.save(str(tmp_path / f"plain_model{ending}"))
        assert type(keras.models.load_model(str(tmp_path / f"plain_model{ending}")).get_layer("first")) is not Conv2D

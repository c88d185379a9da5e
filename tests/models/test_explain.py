"""Grad-CAM: what the maps add up to, for every norm and precision."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import pairs, pixels
from layer_check import POLICIES
from tensorflow import keras

from g16net import compat
from g16net.models import efficientnet, explain, norms


@pytest.mark.parametrize("norm, precision", pairs(list(norms.NORMS), POLICIES))
def test_the_map_is_where_the_logit_is_from(norm, precision):
    """Behind the map come a mean over pixels and a dense layer, so a class' gradient is its column of the kernel."""
    with compat.policy(precision):
        model = efficientnet.build("NANO", norm=norm, num_classes=5, seed=2)
    images, classes = pixels(4, 48), np.array([4, 0, 2, 2])
    explain.grad_cam(model)  # leaves the model as it is
    logits, maps = explain.grad_cam(model)(images, classes)
    features = tf.cast(keras.Model(model.input, model.get_layer("top_pool").input)(images), tf.float32).numpy()
    kernel, bias = model.get_layer("predictions").get_weights()
    spoken = np.einsum("nhwc,nc->nhw", features, kernel[:, classes].T) / features[0, ..., 0].size
    tolerance = {"float32": 1e-4, "mixed_float16": 1e-2, "mixed_bfloat16": 8e-2}[precision] * np.abs(spoken).max()
    np.testing.assert_allclose(maps, np.maximum(spoken, 0), atol=tolerance)
    assert np.any(maps.numpy() > 0) and np.any(maps.numpy() == 0)
    chosen = logits.numpy()[np.arange(4), classes]
    np.testing.assert_allclose(spoken.sum((1, 2)) + bias[classes], chosen, atol=10 * tolerance)


def test_without_classes_the_map_is_of_the_likeliest_one():
    model = efficientnet.build("NANO", norm="ln_pn", num_classes=5, seed=2)
    model.trainable = False
    cam, images = explain.grad_cam(model), pixels(3, 32)
    logits, maps = cam(images)
    np.testing.assert_array_equal(maps, cam(images, np.argmax(logits, -1))[1])
    np.testing.assert_allclose(logits, model(images), atol=1e-5)
    assert np.abs(maps - cam(images, np.argmin(logits, -1))[1]).max() > 1e-4


def test_a_layer_without_a_feature_map_is_refused():
    model = efficientnet.build("NANO", num_classes=5)
    with pytest.raises(ValueError, match="in front of 'predictions' .* no feature map"):
        explain.grad_cam(model, layer="predictions")

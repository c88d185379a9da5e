"""Mixing on the device: the host sends plain uint8 images with the draws, the model's input mixes them.

Saves the host the passes over float images. The draws, and so the result up to rounding, are those of mixing on the
host. For one device a process: replicas that share a process's batch would each need partners of their own.
"""

from typing import Any, Optional

import tensorflow as tf
from tensorflow import keras

from g16net import compat
from g16net.data import mixing


class MixImages(keras.layers.Layer):
    """Images [batch, height, width, 3], m float32 [batch] and box int32 [batch, 4] (rows equal) to mixed images."""

    @compat.as_written
    def call(self, inputs):
        images, m, box = inputs
        labels = tf.zeros([tf.shape(images)[0]], tf.int32)  # targets are mixed on the host
        return mixing.mix(images, labels, m, box[0])[0]

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def training_model(network: keras.Model) -> keras.Model:
    """`network` behind a `MixImages`, with the inputs that `draws` makes; its weights are the network's."""
    image = keras.Input(network.input_shape[1:], dtype="float32", name="image")
    m = keras.Input((), dtype="float32", name="m")
    box = keras.Input((4,), dtype="int32", name="box")
    mixed = MixImages(name="mix", dtype="float32")([image, m, box])
    return keras.Model([image, m, box], network(mixed), name=f"{network.name}_mixing")


def draws(images: Any, labels: Any, seed: int, alpha: float, cutmix: Optional[int], lam: float) -> Any:
    """One batch for `training_model`: ((images, m, box), targets).

    Without mixup m is 1, without CutMix the box is empty.
    """
    batch, height, width = images.shape[:3]
    m, box = mixing.draw(batch, height, width, seed, alpha, cutmix, lam)
    _, targets = mixing.mix(images, labels, m, box)
    m = tf.ones([batch]) if m is None else m
    box = tf.zeros([4], tf.int32) if box is None else box
    return (images, m, tf.tile(box[tf.newaxis], [batch, 1])), targets

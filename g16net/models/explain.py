"""Where in an image a network sees a class: Grad-CAM (arXiv 1610.02391)."""

from typing import Any, Callable, Optional

import tensorflow as tf
from tensorflow import keras

from g16net import compat


def grad_cam(model: keras.Model, layer: str = "top_pool") -> Callable:
    """A function that classifies images and says what spoke for a class of each.

    `(images [batch, height, width, 3], classes int [batch] or None) -> (logits, maps)`: the model's output, and float32
    [batch, map height, map width], 0 and above: the last feature map's channels, each weighted with the mean over
    pixels of the class' gradient, summed, negative sums cut off. Without `classes` the class is the likeliest. A map of
    zeros says that no place spoke for the class: the others spoke less for theirs.

    Maps have the logit's units and may be compared between images of one model. The centred, unscaled activation in
    which a network with proxy norm ends is no exception: a channel's scale in the map cancels in its gradient.

    Args:
        model: of `efficientnet.build`, with logits as its output; it is left as it is, under every precision.
        layer: in front of which the feature map lies; by default the pooling at the top.

    Raises:
        ValueError: the model has no such layer, or there is no feature map in front of it.
    """
    features = model.get_layer(layer).input
    if isinstance(features, (list, tuple)) or len(features.shape) != 4:
        raise ValueError(f"in front of {layer!r} of {model.name} is no feature map; name a layer that has one")
    both = keras.Model(model.input, [features, model.output])

    @compat.as_written
    def function(images: Any, classes: Optional[Any] = None) -> Any:
        with tf.GradientTape() as tape:
            images = tf.cast(images, tf.float32)
            tape.watch(images)  # also where no weight is trainable
            maps, logits = both(images, training=False)
            classes = tf.argmax(logits, axis=-1) if classes is None else classes
            scores = tf.gather(logits, classes, axis=1, batch_dims=1)
        weights = tf.reduce_mean(tf.cast(tape.gradient(scores, maps), tf.float32), axis=(1, 2), keepdims=True)
        return logits, tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1))

    return tf.function(function, autograph=False)

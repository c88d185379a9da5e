"""Cross-entropy with the recipe's label smoothing, and top-1 and top-5, for plain and for mixed labels.

Targets take one of two forms, both small enough to travel through every stage of a pipeline:

    class ids         [batch] or [batch, 1]
    mixed labels      [batch, 2 * terms] floats: `terms` class ids, then their weights, which sum to 1

A mixed image of mixup has two terms, one of mixup and CutMix four. Dense rows of classes exist nowhere but in
`targets`, which is for inspection and tests.
"""

import tensorflow as tf
from tensorflow import keras

from g16net import compat


def split_terms(y_true):
    """Class ids `[batch, terms]` (int32) and their weights `[batch, terms]` (float32) of either form of targets.

    Raises:
        ValueError: where the columns are neither one nor an even number.
    """
    y_true = tf.convert_to_tensor(y_true)
    if y_true.shape.rank == 1:
        y_true = y_true[:, tf.newaxis]
    columns = y_true.shape[-1] if y_true.shape.rank == 2 else None
    if columns == 1:
        return tf.cast(y_true, tf.int32), tf.ones_like(y_true, tf.float32)
    if columns is None or columns % 2:
        raise ValueError(
            "targets must be class ids [batch] or [batch, 1], or [batch, 2 * terms] with ids and then weights; got the "
            f"shape {y_true.shape}"
        )
    ids, weights = tf.split(y_true, 2, axis=-1)
    return tf.cast(ids, tf.int32), tf.cast(weights, tf.float32)


def smoothed_values(num_classes, label_smoothing):
    """Target of the right class and of each other one: 1 - s and s / (classes - 1), the reference's form.

    Keras' own smoothing gives 1 - s + s / classes and s / classes instead.
    """
    return 1.0 - label_smoothing, label_smoothing / (num_classes - 1)


def targets(y_true, num_classes, label_smoothing=0.1):
    """Dense target rows `[batch, num_classes]`, float32, that the loss compares with; for inspection and tests."""
    ids, weights = split_terms(y_true)
    positive, negative = smoothed_values(num_classes, label_smoothing)
    rows = tf.one_hot(ids, num_classes, on_value=positive, off_value=negative)
    return tf.reduce_sum(weights[..., tf.newaxis] * rows, axis=1)


@compat.register
class SmoothedCrossEntropy(keras.losses.Loss):
    """Softmax cross-entropy of logits `[batch, num_classes]`, in float32 whatever their dtype.

    Args:
        num_classes: columns of the logits, at least 2.
        label_smoothing: s, in [0, 1): target 1 - s of the right class, s / (num_classes - 1) of the others.
        **kwargs: `reduction` and `name` as in Keras. The loss is per sample before it is reduced, so that
            `sample_weight` can mask samples.

    Raises:
        ValueError: for values out of range and for logits with another number of classes.
    """

    def __init__(self, num_classes, label_smoothing=0.1, name="cross_entropy", **kwargs):
        super().__init__(name=name, **kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}; the recipe has 0.1")
        self.num_classes = int(num_classes)
        self.label_smoothing = float(label_smoothing)

    def call(self, y_true, y_pred):
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"the loss was made for num_classes={self.num_classes}, but the logits have the shape {y_pred.shape}; "
                "give the loss and the model the same number of classes"
            )
        ids, weights = split_terms(y_true)
        positive, negative = smoothed_values(self.num_classes, self.label_smoothing)
        log_probs = tf.nn.log_softmax(tf.cast(y_pred, tf.float32))
        # The target row is `negative` everywhere and `positive - negative` more at each term's class.
        right = tf.reduce_sum(weights * tf.gather(log_probs, ids, batch_dims=1), axis=-1)
        spread = tf.reduce_sum(weights, axis=-1) * tf.reduce_sum(log_probs, axis=-1) if negative else 0.0
        return (negative - positive) * right - negative * spread

    def get_config(self):
        config = super().get_config()
        config.update(num_classes=self.num_classes, label_smoothing=self.label_smoothing)
        return config


def main_class(y_true):
    """The class `[batch]` (int32) with the largest weight over all its terms; of equal ones the first term's."""
    ids, weights = split_terms(y_true)
    if ids.shape[-1] == 1:
        return ids[:, 0]
    same = tf.cast(tf.equal(ids[:, :, tf.newaxis], ids[:, tf.newaxis, :]), tf.float32)
    totals = tf.reduce_sum(same * weights[:, tf.newaxis, :], axis=-1)
    return tf.gather(ids, tf.argmax(totals, axis=-1, output_type=tf.int32), batch_dims=1)


def in_top(y_true, y_pred, k):
    """1 where the main class is among the `k` largest logits, else 0: `[batch]`, float32.

    Of equal logits the lower class comes first, so that a network whose logits are all equal has no accuracy for free.
    """
    k = min(k, y_pred.shape[-1])
    best = tf.math.top_k(tf.cast(y_pred, tf.float32), k).indices
    return tf.cast(tf.reduce_any(tf.equal(best, main_class(y_true)[:, tf.newaxis]), axis=-1), tf.float32)


class TopK(keras.metrics.Mean):
    """Mean of `in_top` over the samples, weighted by `sample_weight`; at most all classes count."""

    k = None

    @compat.as_written
    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(in_top(y_true, y_pred, self.k), sample_weight=sample_weight)


@compat.register
class Top1(TopK):
    """Share of samples whose main class has the largest logit."""

    k = 1

    def __init__(self, name="top1", dtype=None):
        super().__init__(name=name, dtype=dtype)


@compat.register
class Top5(TopK):
    """Share of samples whose main class is among the five largest logits."""

    k = 5

    def __init__(self, name="top5", dtype=None):
        super().__init__(name=name, dtype=dtype)

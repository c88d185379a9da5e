"""Cross-entropy with the recipe's label smoothing, and top-1 and top-5, for every form in which labels come.

Of logits [batch, classes] with two classes or more, the targets are

    class ids         [batch] or [batch, 1], of any numeric type
    label rows        [batch, classes], one-hot or soft, of any numeric type or bool, as Keras' categorical losses take
    mixed labels      [batch, terms, 2], float32: a class id and its weight each; a sample's weights sum to 1

No two of these have the same shape, whatever the numbers of classes and terms. A mixed image of mixup has two terms,
one of mixup and CutMix four: `g16net.data.mixing` makes such targets, small enough to travel through every stage of a
pipeline. `targets` makes dense rows of all forms, for inspection and tests.
"""

from typing import Any, Tuple

from g16net import compat
from g16net.compat import keras, ops, tf


def split_terms(y_true: Any) -> Tuple[Any, Any]:
    """Class ids `[batch, terms]` (int32) and their weights `[batch, terms]` (float32) of class ids or mixed labels.

    Raises:
        ValueError: for targets of another shape.
    """
    y_true = ops.convert_to_tensor(y_true)
    rank = ops.rank(y_true)
    if rank == 1:
        y_true = y_true[:, None]
    if rank == 1 or rank == 2 and y_true.shape[-1] == 1:
        return ops.cast(y_true, "int32"), ops.ones_like(y_true, "float32")
    if rank == 3 and y_true.shape[-1] == 2 and _is_float(y_true):
        return ops.cast(y_true[..., 0], "int32"), ops.cast(y_true[..., 1], "float32")
    raise ValueError(
        "targets must be class ids [batch] or [batch, 1], or mixed labels [batch, terms, 2] of class ids and weights "
        f"as floats; got {ops.dtype_name(y_true.dtype)} of the shape {y_true.shape}"
    )


def _is_float(tensor):
    return "float" in ops.dtype_name(tensor.dtype)


def label_rows(y_true: Any, num_classes: int) -> Any:
    """One-hot and soft labels as `[batch, num_classes]`, float32; None where `y_true` are class ids or mixed labels.

    Where the number of columns is known only when the program runs, as with generators, class ids become rows too, of
    NaN for an id that is no class.

    Raises:
        ValueError: for targets that have none of the forms.
    """
    y_true = ops.convert_to_tensor(y_true)
    rank = ops.rank(y_true)
    columns = y_true.shape[-1] if rank else None
    forms = (
        "class ids are [batch] or [batch, 1], one-hot and soft labels [batch, classes], and mixed labels "
        "[batch, terms, 2] as floats"
    )
    if rank is None:
        raise ValueError(f"the targets' rank is unknown; give them a shape with tf.ensure_shape: {forms}")
    if not (rank == 2 and columns == num_classes):
        _check_exact(y_true, num_classes)
    if rank == 2 and columns is None:
        some = tf.shape(y_true)[1]
        fits = tf.debugging.Assert(
            (some == 1) | (some == num_classes),
            [f"the targets' columns must be 1 or the logits' {num_classes} classes ({forms}), got", some],
        )
        with tf.control_dependencies([fits]):
            y_true = tf.identity(y_true)
        return tf.cond(
            some == 1,
            lambda: _one_hot(tf.cast(y_true[:, 0], tf.int32), num_classes),
            lambda: tf.ensure_shape(tf.cast(y_true, tf.float32), [None, num_classes]),
        )
    if rank == 2 and columns == num_classes:
        return ops.cast(y_true, "float32")
    if rank == 1 or rank == 2 and columns == 1 or rank == 3 and columns == 2 and _is_float(y_true):
        return None
    raise ValueError(
        f"targets of the shape {y_true.shape} ({ops.dtype_name(y_true.dtype)}) do not fit logits of {num_classes} "
        f"classes: {forms}. Give the data, the model and the loss the same number of classes"
    )


def _one_hot(ids, num_classes):
    """Float32 rows for class ids, of NaN for what is none: a row of zeros would be a sample without a loss."""
    inside = (ids >= 0) & (ids < num_classes)
    return ops.where(inside[..., None], ops.one_hot(ids, num_classes), float("nan"))


def _check_exact(y_true, num_classes):
    """ValueError where class ids come in floats that cannot tell so many apart: bfloat16 has 257 as 256.

    tf-keras brings targets of floats to the dtype of the logits before a loss or a metric sees them.
    """
    if _is_float(y_true):
        name = ops.dtype_name(y_true.dtype)
        exact = {"bfloat16": 2**8, "float16": 2**11}.get(name, num_classes)
        if num_classes > exact + 1:
            raise ValueError(
                f"ids of {num_classes} classes came as {name}, which has whole numbers up to {exact}: "
                'give class ids as integers, or make the logits float32 (the last layer with dtype="float32")'
            )


def check_logits(y_pred: Any) -> None:
    """ValueError where `y_pred` is not [batch, classes] of two classes or more."""
    if ops.rank(y_pred) != 2 or (y_pred.shape[-1] or 0) < 2:
        raise ValueError(
            f"logits must be [batch, classes] with two classes or more, got the shape {y_pred.shape}; for two classes "
            "give the last layer two units, without an activation"
        )


def smoothed_values(num_classes: int, label_smoothing: float) -> Tuple[float, float]:
    """Target of the right class and of each other one: 1 - s and s / (classes - 1), the reference's form.

    Keras' own smoothing gives 1 - s + s / classes and s / classes instead.
    """
    return 1.0 - label_smoothing, label_smoothing / (num_classes - 1)


def targets(y_true: Any, num_classes: int, label_smoothing: float = 0.1) -> Any:
    """Dense target rows `[batch, num_classes]`, float32, that the loss compares with; for inspection and tests."""
    positive, negative = smoothed_values(num_classes, label_smoothing)
    rows = label_rows(y_true, num_classes)
    if rows is None:
        ids, weights = split_terms(y_true)
        rows = ops.sum(weights[..., None] * _one_hot(ids, num_classes), axis=1)
    return negative * ops.sum(rows, axis=-1, keepdims=True) + (positive - negative) * rows


@compat.register
class SmoothedCrossEntropy(keras.losses.Loss):
    """Softmax cross-entropy of logits `[batch, num_classes]`, in float32 whatever their dtype.

    Args:
        num_classes: columns of the logits, at least 2.
        label_smoothing: s, in [0, 1): target 1 - s of the right class, s / (num_classes - 1) of the others.
        **kwargs: `reduction` and `name` as in Keras. The loss is per sample before it is reduced, so that
            `sample_weight` can mask samples.

    Raises:
        ValueError: for values out of range, and for logits or targets with another number of classes.
    """

    def __init__(
        self, num_classes: int, label_smoothing: float = 0.1, name: str = "cross_entropy", **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}; the recipe has 0.1")
        self.num_classes = int(num_classes)
        self.label_smoothing = float(label_smoothing)

    def call(self, y_true, y_pred):
        y_pred = ops.convert_to_tensor(y_pred)
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"the loss was made for num_classes={self.num_classes}, but the logits have the shape {y_pred.shape}; "
                "give the loss and the model the same number of classes"
            )
        check_logits(y_pred)
        positive, negative = smoothed_values(self.num_classes, self.label_smoothing)
        log_probs = ops.log_softmax(ops.cast(y_pred, "float32"))
        # The target row is `negative` everywhere and `positive - negative` more at each term's class.
        rows = label_rows(y_true, self.num_classes)
        if rows is None:
            ids, weights = split_terms(y_true)
            right = ops.sum(weights * ops.of_each_row(log_probs, ids), axis=-1)
            # CPUs raise for ids out of range, but XLA takes the nearest class and GPUs take a logarithm of 0.
            inside = ops.all((ids >= 0) & (ids < self.num_classes), axis=-1)
            right = ops.where(inside, right, float("nan"))
        else:
            weights = rows
            right = ops.sum(rows * log_probs, axis=-1)
        spread = ops.sum(weights, axis=-1) * ops.sum(log_probs, axis=-1) if negative else 0.0
        return (negative - positive) * right - negative * spread

    def get_config(self):
        config = super().get_config()
        config.update(num_classes=self.num_classes, label_smoothing=self.label_smoothing)
        return config


def main_class(y_true: Any, num_classes: int) -> Any:
    """The class `[batch]` (int32) with the largest weight; of equal ones the first term's, or of rows the lowest.

    Ids out of range stay what they are, or become -1: no logit is theirs.
    """
    rows = label_rows(y_true, num_classes)
    if rows is not None:
        numbers = ops.all(ops.equal(rows, rows), axis=-1)  # NaN equals nothing
        return ops.where(numbers, ops.argmax(rows, axis=-1), -1)
    ids, weights = split_terms(y_true)
    if ids.shape[-1] == 1:
        return ids[:, 0]
    same = ops.cast(ops.equal(ids[:, :, None], ids[:, None, :]), "float32")
    totals = ops.sum(same * weights[:, None, :], axis=-1)
    return ops.of_each_row(ids, ops.argmax(totals, axis=-1))


def in_top(y_true: Any, y_pred: Any, k: int) -> Any:
    """1 where the main class is among the `k` largest logits, else 0: `[batch]`, float32.

    Of equal logits the lower class comes first, so that a network whose logits are all equal has no accuracy for free.
    """
    y_pred = ops.convert_to_tensor(y_pred)
    check_logits(y_pred)
    k, main = min(k, y_pred.shape[-1]), main_class(y_true, y_pred.shape[-1])
    best = ops.top_indices(ops.cast(y_pred, "float32"), k)
    return ops.cast(ops.any(ops.equal(best, main[:, None]), axis=-1), "float32")


compat.follow_directions()


class TopK(keras.metrics.Mean):
    """Mean of `in_top` over the samples, weighted by `sample_weight`; at most all classes count."""

    k: int
    _direction = (
        "up"  # the way to better for callbacks of mode="auto"; older generations: see `compat.follow_directions`
    )

    @compat.as_written
    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(in_top(y_true, y_pred, self.k), sample_weight=sample_weight)


@compat.register
class Top1(TopK):
    """Share of samples whose main class has the largest logit."""

    k = 1

    def __init__(self, name: str = "top1", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)


@compat.register
class Top5(TopK):
    """Share of samples whose main class is among the five largest logits."""

    k = 5

    def __init__(self, name: str = "top5", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

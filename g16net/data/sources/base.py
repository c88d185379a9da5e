"""What a source is, and the engine of sources that read any example by its index."""

from typing import Any, Callable, NamedTuple, Optional, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from g16net.config import UserError
from g16net.data import order as orders

TRAIN, VALIDATION = "train", "validation"


class Source(NamedTuple):
    """One split of a data set: how many examples of which classes, and streams of them in any order.

    Attributes:
        name, split: as opened.
        num_examples, num_classes, class_names: counts, and one name a class.
        encoded: whether images are encoded bytes (scalar strings) rather than uint8 [height, width, channels].
        stream: `Order` -> tf.data.Dataset of rows {"epoch", "position", "id", ...}, vectors of equal length that say
            which examples come next, at most one step's (`Order.local_batch`) at a time. Cheap: pixels are not read.
        read: one row (scalars) -> record {"image", "label": int32, "id": int64} and, where the data has them, "boxes":
            float32 [objects, 4] (ymin, xmin, ymax, xmax in 0..1). Raises on what cannot be read.
        locate: ids (int64) -> strings that say where a person finds these examples.
        example_bytes: mean stored bytes an image.
        labels: int32 [num_examples] in the order of ids, where they are known without reading the images.
        part: for sources of several files: `(index, count)` -> the Source of the files index::count, else None.
        held_bytes: memory that a stream holds besides the batches.
        fault: `(row, judge) -> (why, large)` for a row that `read` raises on, as `pipeline.fault`, where the encoded
            bytes are no longer at hand.
    """

    name: str
    split: str
    num_examples: int
    num_classes: int
    class_names: Sequence[str]
    encoded: bool
    stream: Callable[[orders.Order], tf.data.Dataset]
    read: Callable[[dict], dict]
    locate: Callable[[Any], Any]
    example_bytes: float
    labels: Optional[np.ndarray] = None
    part: Optional[Callable[[int, int], "Source"]] = None
    held_bytes: float = 0.0
    fault: Optional[Callable] = None


def indexed(name, split, num_examples, class_names, read, locate, encoded, example_bytes, labels=None, held_bytes=0.0):
    """A source whose `read` finds any example by its id: each epoch's order is one permutation of all ids."""

    def stream(order):
        steps = -(-order.stop // order.batch)
        first = order.start_epoch * steps + order.start // order.batch
        last = tf.int64.max if order.epochs is None else order.epochs * steps

        def rows(unit):
            epoch, step = unit // steps, unit % steps
            begin = step * order.batch + order.index * order.local_batch
            position = tf.range(begin, tf.minimum(begin + order.local_batch, order.stop))
            ids = position
            if order.seed is not None:
                ids = orders.permuted(position, num_examples, orders.key(order.seed, orders.EXAMPLES, epoch))
            return {"epoch": tf.fill(tf.shape(position), epoch), "position": position, "id": ids}

        return tf.data.Dataset.range(first, last).map(rows)

    return Source(
        name, split, num_examples, len(class_names), tuple(class_names), encoded, stream, read, locate,
        float(example_bytes), labels, None, float(held_bytes),
    )  # fmt: skip


def arrays(name, split, images, labels, class_names):
    """A source of uint8 arrays [examples, height, width, channels] in memory, with int labels [examples]."""
    labels = np.asarray(labels, np.int32)
    check_labels(labels, len(class_names), f"{name}, split {split}", class_names if split == TRAIN else None)
    images, all_labels = tf.constant(images), tf.constant(labels)

    def read(row):
        return {"image": images[row["id"]], "label": all_labels[row["id"]], "id": row["id"]}

    def locate(ids):
        return tf.strings.join([f"{name}/{split}[", tf.strings.as_string(ids), "]"])

    size = images.nbytes if hasattr(images, "nbytes") else images.numpy().nbytes
    return indexed(
        name, split, len(labels), class_names, read, locate, False, size / len(labels), labels, held_bytes=size
    )


def choose_split(split, available, where):
    """The name in `available` that `split` means: itself, or another usual name of the same part.

    UserError where there is none.
    """
    usual = [("train", "training"), ("validation", "val", "valid", "test", "eval")]
    same = next((names for names in usual if split in names), ())
    for name in (split,) + same:
        if name in available:
            if name not in (split, "val"):
                logging.info("%s: split %r stands for %r", where, name, split)
            return name
    raise UserError(f"{where}: no split {split!r}; there is {', '.join(map(repr, sorted(available))) or 'none'}")


def held_out(labels, fraction, seed=0):
    """Boolean [examples]: a stratified choice, round(fraction * examples) of each class, the same in every run."""
    labels = np.asarray(labels)
    chosen = np.zeros(len(labels), bool)
    random = np.random.RandomState(seed)  # its stream is frozen over versions of NumPy
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen[random.permutation(members)[: int(round(fraction * len(members)))]] = True
    return chosen


def check_labels(labels, num_classes, where, class_names=None, remedy=""):
    """UserError unless labels lie in 0..num_classes-1 and, where `class_names` are given, every class has one."""
    if not len(labels):
        raise UserError(f"{where}: no images; looked for them in this place, check the path and the split's name")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        outside = int(((labels < 0) | (labels >= num_classes)).sum())
        raise UserError(
            f"{where}: {outside} of {len(labels)} labels lie outside 0..{num_classes - 1} (they go from {low} to "
            f"{high}). {remedy or 'Give num_classes as the data has it.'}"
        )
    if class_names is not None:
        empty = np.flatnonzero(np.bincount(labels, minlength=num_classes) == 0)
        if len(empty):
            raise UserError(
                f"{where}: {len(empty)} of {num_classes} classes have no image: "
                f"{listed(class_names[i] for i in empty)}. Add images or take the class out"
            )


def listed(names, most=5):
    """The first few of `names` in words."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

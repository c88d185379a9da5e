"""What a source is, and the engine of sources that read any example by its index."""

import functools
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import tensorflow as tf

from g16net.data import identity, splits
from g16net.data import order as orders
from g16net.data.splits import TRAIN, VALIDATION
from g16net.data.walk import listed
from g16net.errors import UserError

__all__ = ["TRAIN", "VALIDATION", "Source", "arrays", "check_labels", "held_out", "indexed", "listed"]


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
        shape: (height, width) of all images, where they are arrays of one size and of three channels.
        undivided: whether the data has no splits, so that this one is a share of it, or all of it (`splits.share`).
        read_many: with `shape`: rows (vectors) -> (uint8 [rows, height, width, 3], labels int32 [rows]), what `read`
            gives of each; where that would raise the label is -1.
        locate: ids (int64) -> strings that say where a person finds these examples.
        example_bytes: mean stored bytes per image.
        labels: int32 [num_examples] in the order of ids, where they are known without reading the images.
        part: for sources of several files: `(index, count)` -> the Source of the files index::count, else None.
        held_bytes: memory that a stream holds besides the batches.
        contents: () -> the facts of `identity` that tell this split from another one.
        fault: `(row, judge) -> (why, large)` for a row that `read` raises on, as `pipeline.fault`, where the encoded
            bytes are no longer at hand.
        files: () -> the paths of the files that hold the examples, where there are some.
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
    contents: Optional[Callable[[], dict]] = None
    fault: Optional[Callable] = None
    files: Optional[Callable[[], Sequence[str]]] = None
    shape: Optional[Tuple[int, int]] = None
    read_many: Optional[Callable[[dict], tuple]] = None
    undivided: bool = False


def indexed(
    name: str,
    split: str,
    num_examples: int,
    class_names: Sequence[str],
    read: Callable,
    locate: Callable,
    encoded: bool,
    example_bytes: float,
    labels: Any = None,
    held_bytes: float = 0.0,
    contents: Optional[Callable] = None,
    files: Any = None,
) -> Source:
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
        float(example_bytes), labels, None, float(held_bytes), once(contents), files=files,
    )  # fmt: skip


def once(contents: Any) -> Any:
    """`contents` that computes only at its first call, or None."""
    return contents and functools.lru_cache(maxsize=None)(contents)


def relabelled(source: "Source", class_names: Sequence[str]) -> "Source":
    """`source` with labels that are places in `class_names`, found by name: its classes in another order, or fewer.

    UserError where it has a class that is none of `class_names`, or names do not tell the classes apart.
    """
    if tuple(source.class_names) == tuple(class_names):
        return source
    place = {identity.plain(name): label for label, name in enumerate(class_names)}
    unknown = [name for name in source.class_names if identity.plain(name) not in place]
    own = {identity.plain(name) for name in source.class_names}
    if unknown or len(place) < len(class_names) or len(own) < source.num_classes:
        why = f"{identity.quoted(unknown)} unknown" if unknown else "a name stands for several classes"
        raise UserError(f"{source.name}, split {source.split}: its classes cannot be matched by name: {why}")
    places = np.array([place[identity.plain(name)] for name in source.class_names], np.int32)
    table = tf.constant(np.append(places, np.int32(-1)))  # the last for labels that are out of range, which stay so

    def placed(label):
        known = (label >= 0) & (label < source.num_classes)
        return tf.gather(table, tf.where(known, label, source.num_classes))

    def read(row):
        record = source.read(row)
        return dict(record, label=placed(record["label"]))

    def read_many(rows):
        images, labels = source.read_many(rows)
        found = placed(labels)  # of these, -1 is an image that cannot be read, and no label out of range
        return images, tf.where((found < 0) & (labels >= 0), len(class_names), found)

    def part(index, count):
        return relabelled(source.part(index, count), class_names)

    def contents():
        return identity.reordered(source.contents(), class_names)

    same = len(places) == len(class_names)
    return source._replace(
        num_classes=len(class_names),
        class_names=tuple(class_names),
        read=read,
        read_many=source.read_many and read_many,
        labels=None if source.labels is None else places[source.labels],
        part=source.part and part,
        contents=once(contents) if same and source.contents else None,
    )


def arrays(name: str, split: str, images: Any, labels: Any, class_names: Sequence[str], remedy: str = "") -> Source:
    """A source of uint8 arrays [examples, height, width, channels] in memory, with int labels [examples]. `remedy`: of
    `check_labels`."""
    labels = np.asarray(labels, np.int32)
    training = splits.role(split) == TRAIN
    check_labels(labels, len(class_names), f"{name}, split {split}", class_names if training else None, remedy)
    images, all_labels = tf.constant(images), tf.constant(labels)

    def read(row):
        return {"image": images[row["id"]], "label": all_labels[row["id"]], "id": row["id"]}

    def read_many(rows):
        return tf.gather(images, rows["id"]), tf.gather(all_labels, rows["id"])

    def locate(ids):
        return tf.strings.join([f"{name}/{split}[", tf.strings.as_string(ids), "]"])

    size = images.nbytes if hasattr(images, "nbytes") else images.numpy().nbytes
    source = indexed(
        name, split, len(labels), class_names, read, locate, False, size / len(labels), labels, held_bytes=size,
        contents=lambda: identity.of_arrays(class_names, images, labels),
    )  # fmt: skip
    return source._replace(shape=tuple(images.shape[1:3]), read_many=read_many) if images.shape[-1] == 3 else source


def held_out(labels: Any, fraction: float, seed: int = 0) -> Any:
    """Boolean [examples]: a stratified choice, round(fraction * examples) of each class, the same in every run."""
    labels = np.asarray(labels)
    chosen = np.zeros(len(labels), bool)
    random = np.random.RandomState(seed)  # its stream is frozen over versions of NumPy
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        chosen[random.permutation(members)[: int(round(fraction * len(members)))]] = True
    return chosen


def check_labels(
    labels: Any, num_classes: int, where: str, class_names: Optional[Sequence[str]] = None, remedy: str = ""
) -> None:
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
                f"{listed(class_names[int(i)] for i in empty)}. Add images or take the class out"
                f"{'. ' if remedy else ''}{remedy.rstrip('.')}"
            )


def counted_from_1(stored: Any, offset: int) -> str:
    """What to do where the `stored` numbers, of which `offset` is subtracted, seem to count from 1; else empty."""
    seems = not offset and len(stored) and min(stored) == 1
    return "The labels seem to count from 1: give --config.data.label_offset=1." if seems else ""

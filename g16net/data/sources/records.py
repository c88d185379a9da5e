"""The engine of sources of record files (TFRecord, TFDS) and of the row groups of Parquet files.

An epoch's order: the files are permuted and taken in groups of `cycle`; the records of a group's files alternate (one
of each in turn until all are through); windows of `window` such records are permuted. Every permutation is a function
of (seed, epoch, place), and the records before a place follow from the files' counts. So a stream that starts in
mid-epoch opens only the group it starts in and passes over the records before it by their lengths.
"""

import functools
import os
from typing import Any, Callable, NamedTuple, Optional, Sequence

import numpy as np
import tensorflow as tf

from g16net.data import order as orders
from g16net.data.sources.base import Source, once
from g16net.errors import UserError

CYCLE = 16
WINDOW = 2048
BUFFER_BYTES = 1 << 18  # read at once from a file


class Shards(NamedTuple):
    """Record files, and which records of each are used.

    Attributes:
        paths: of the files, or other names that the source's `opened` knows.
        skips, counts: int64 [files]; the records skip..skip+count-1 of the file are used.
        first_ids: int64 [files]; id of the first used record, so that ids do not depend on which files are taken.
        sizes: bytes of the files together.
    """

    paths: Sequence[str]
    skips: np.ndarray
    counts: np.ndarray
    first_ids: np.ndarray
    sizes: int

    @classmethod
    def of(cls, paths: Any, counts: Any, sizes: Any, skips: Any = None) -> Any:
        counts = np.asarray(counts, np.int64)
        skips = np.zeros_like(counts) if skips is None else np.asarray(skips, np.int64)
        return cls(list(paths), skips, counts, np.cumsum(counts) - counts, int(sizes))

    def part(self, index: int, count: int) -> Any:
        if len(self.paths) < count:
            raise UserError(
                f"{len(self.paths)} record files cannot be shared by {count} workers; write more files, or use "
                'shard_by="position"'
            )
        mine = slice(index, None, count)
        share = self.counts[mine].sum() / max(self.counts.sum(), 1)
        return Shards(
            self.paths[mine], self.skips[mine], self.counts[mine], self.first_ids[mine], int(self.sizes * share)
        )


def tfrecords(path: Any) -> Any:
    """The records of a TFRecord file."""
    return tf.data.TFRecordDataset(path, buffer_size=BUFFER_BYTES)


def sharded(
    name: str,
    split: str,
    shards: Any,
    class_names: Sequence[str],
    parse: Callable,
    cycle: int = CYCLE,
    window: int = WINDOW,
    contents: Optional[Callable] = None,
    opened: Callable = tfrecords,
    labels: Any = None,
    files: Any = None,
) -> Source:
    """A source that streams record files. Memory: up to three windows of records.

    Args:
        shards: `Shards`.
        parse: serialised record (scalar string), id -> {"image", "label"} and perhaps "boxes".
        cycle: files read side by side.
        window: records that are permuted together.
        contents, labels, files: of the `Source`; files: None: the shards' paths.
        opened: one of the shards' paths (scalar string) -> Dataset of its records (scalar strings).
    """
    num_examples = int(shards.counts.sum())

    def read(row):
        return dict(parse(row["record"], row["id"]), id=row["id"])

    def locate(ids):
        ids = tf.convert_to_tensor(ids, tf.int64)
        file = tf.searchsorted(tf.constant(shards.first_ids), tf.reshape(ids, [-1]), side="right") - 1
        file = tf.reshape(file, tf.shape(ids))
        record = ids - tf.gather(shards.first_ids, file) + tf.gather(shards.skips, file)
        return tf.strings.join([tf.gather(_names(shards), file), " record ", tf.strings.as_string(record)])

    def part(index, count):
        return sharded(name, split, shards.part(index, count), class_names, parse, cycle, window, opened=opened)

    return Source(
        name=name,
        split=split,
        num_examples=num_examples,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        encoded=True,
        stream=functools.partial(_stream, shards, cycle, window, opened),
        read=read,
        locate=locate,
        example_bytes=shards.sizes / max(num_examples, 1),
        labels=labels,
        part=part,
        held_bytes=3.0 * min(window, num_examples) * shards.sizes / max(num_examples, 1),
        contents=once(contents),
        files=files or (lambda: list(shards.paths)),
    )


def _stream(shards, cycle, window, opened, order):
    """Rows {"epoch", "position", "id", "record"} in the order of their positions, at most one step's at a time."""
    files = len(shards.paths)
    groups = -(-files // cycle)
    paths, skips, counts, first_ids = (tf.constant(column) for column in (_names(shards), *shards[1:4]))

    def key(*place):
        return orders.key(order.seed, *place)

    def shuffled(n, key):
        positions = tf.range(tf.cast(n, tf.int64))
        return (
            positions if order.seed is None else orders.permuted(positions, tf.maximum(tf.cast(n, tf.int64), 1), key())
        )

    def group(unit):
        epoch, number = unit // groups, unit % groups
        chosen = shuffled(files, lambda: key(orders.SHARDS, epoch))
        sizes = tf.gather(counts, chosen)
        base = tf.reduce_sum(sizes[: number * cycle])  # position of the group's first record
        chosen, sizes = (column[number * cycle : (number + 1) * cycle] for column in (chosen, sizes))

        start = tf.where(epoch == order.start_epoch, tf.constant(order.start, tf.int64), 0)
        windows = _ceil(tf.reduce_sum(sizes), window)
        first = tf.clip_by_value((start - base) // window, 0, windows)
        last = tf.clip_by_value(_ceil(order.stop - base, window), 0, windows)
        rounds, rest = _rounds(sizes, first * window)
        open_now = tf.boolean_mask(chosen, tf.logical_and(sizes > rounds, first < last))

        def records(file):
            end = first_ids[file] + counts[file]
            data = opened(paths[file]).skip(skips[file] + rounds)
            data = data.concatenate(tf.data.Dataset.from_tensors(paths[file]).map(_short))
            return tf.data.Dataset.zip((tf.data.Dataset.range(first_ids[file] + rounds, end), data))

        def permuted(place, ids, data):
            rank = shuffled(tf.size(ids), lambda: key(orders.WINDOWS, epoch, number, place))
            position = base + place * window + tf.range(tf.size(ids, tf.int64))
            slot = position % order.batch - order.index * order.local_batch
            mine = (position >= start) & (position < order.stop) & (slot >= 0) & (slot < order.local_batch)
            position, rank = tf.boolean_mask(position, mine), tf.boolean_mask(rank, mine)
            return {
                "epoch": tf.fill(tf.shape(position), epoch),
                "position": position,
                "id": tf.gather(ids, rank),
                "record": tf.gather(data, rank),
            }

        alternating = tf.data.Dataset.from_tensor_slices(open_now).interleave(
            records, cycle_length=cycle, block_length=1, num_parallel_calls=min(cycle, CYCLE), deterministic=True
        )
        alternating = alternating.skip(rest).batch(window).take(last - first)
        places = tf.data.Dataset.range(first, last)
        return tf.data.Dataset.zip((places, alternating)).map(lambda place, pair: permuted(place, *pair))

    first = order.start_epoch * groups
    last = tf.int64.max if order.epochs is None else order.epochs * groups
    # The next window is read while one is used, over the borders of groups and epochs too.
    ready = tf.data.Dataset.range(first, last).flat_map(group).prefetch(1)
    return ready.unbatch().batch(order.local_batch)


def _names(shards):
    """The paths as the bytes that they are: TensorFlow takes no str that is no UTF-8."""
    return [os.fsencode(path) for path in shards.paths]


def _short(path):
    """What comes after a file's last record, and is reached only where the file has fewer than counted."""
    with tf.control_dependencies([tf.debugging.Assert(False, ["fewer records than counted in", path])]):
        return tf.identity(path)


def _ceil(a, b):
    return -(-a // b)


def _rounds(sizes, passed):
    """`(rounds, rest)`: after `passed` records, taken from the files in turn, each file has given `rounds` (or all
    of its own), and `rest` more records have been taken."""
    ends = tf.sort(sizes)  # a file drops out when so many rounds are through
    starts = tf.concat([[tf.constant(0, tf.int64)], ends[:-1]], 0)
    alive = tf.range(tf.size(sizes, tf.int64), 0, -1)
    records = (ends - starts) * alive  # between one file's end and the next
    passed = tf.minimum(passed, tf.reduce_sum(sizes) - 1)
    phase = tf.searchsorted(tf.cumsum(records), passed[tf.newaxis], side="right")[0]
    beyond = passed - tf.reduce_sum(records[:phase])
    return starts[phase] + beyond // alive[phase], beyond % alive[phase]

"""Order and seeds of examples as pure functions of (seed, epoch, position), in graph operations.

A permutation here is not a shuffled list but a keyed bijection that gives the element at any position at once. So an
epoch starts anywhere at no cost, no epoch border waits for a sort, and workers agree without talking. All arithmetic is
on integers: the same seed gives the same order on every version of TensorFlow.
"""

from typing import Any, NamedTuple, Optional

import tensorflow as tf

# What a key is for, so that one seed gives unrelated draws to each purpose.
EXAMPLES, SHARDS, WINDOWS, TRANSFORM, MIXING = range(5)

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, as a signed 64-bit integer
ROUNDS = 6  # of the Feistel network; four suffice in theory (Luby and Rackoff 1988)


class Order(NamedTuple):
    """Which examples a stream gives and in which order.

    Positions count the examples of an epoch, 0..stop-1, over all workers. Step s holds the positions
    [s * batch, (s + 1) * batch), of which worker `index` of `count` takes one contiguous slice.

    Args:
        stop: positions of an epoch that are used (at most the source's examples).
        batch: examples in a step over all workers; a multiple of `count`.
        seed: non-negative integer; None gives the canonical order.
        start_epoch, start: the stream starts at position `start` (a multiple of `batch`) of `start_epoch`.
        epochs: epoch before which the stream ends, None for an endless one.
        index, count: this worker and the number of workers.
    """

    stop: int
    batch: int
    seed: Optional[int] = None
    start_epoch: int = 0
    start: int = 0
    epochs: Optional[int] = None
    index: int = 0  # type: ignore[assignment]  # tuples have methods of these names
    count: int = 1  # type: ignore[assignment]

    @property
    def local_batch(self) -> int:
        return self.batch // self.count


def scramble(x: Any) -> Any:
    """A bijection of int64 without visible structure (the finaliser of splitmix64), elementwise."""
    x = tf.cast(x, tf.int64)
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x, bits):
    """Logical right shift; TensorFlow's keeps the sign."""
    return tf.bitwise.right_shift(x, tf.constant(bits, tf.int64)) & ((1 << (64 - bits)) - 1)


def key(*parts: Any) -> Any:
    """int64 hash of integers (Python's, or int64 tensors that broadcast)."""
    result = tf.constant(0, tf.int64)
    for part in parts:
        result = scramble((result ^ tf.cast(part, tf.int64)) + GOLDEN)
    return result


def permuted(position: Any, n: Any, key: Any) -> Any:
    """The element at each position of a permutation of range(n): int64, of `position`'s shape.

    A Feistel network on the cells of a table of about sqrt(n) columns with at least n cells; a result past n is sent
    through again until it falls inside (Black and Rogaway 2002), so that range(n) maps onto itself.

    Args:
        position: integers in [0, n), any shape.
        n: positive integer or scalar tensor.
        key: int64 scalar; each gives its own permutation.
    """
    position = tf.cast(position, tf.int64)
    return tf.ensure_shape(_permuted(position, tf.cast(n, tf.int64), key), position.shape)


@tf.function(
    input_signature=[tf.TensorSpec(None, tf.int64), tf.TensorSpec([], tf.int64), tf.TensorSpec([], tf.int64)],
    autograph=False,
)
def _permuted(position, n, key):
    columns = tf.cast(tf.math.ceil(tf.sqrt(tf.cast(n, tf.float64))), tf.int64)
    rows = (n + columns - 1) // columns
    keys = scramble(key + GOLDEN * tf.range(1, 2 * ROUNDS + 1, dtype=tf.int64))

    def walk(x):
        column, row = x % columns, x // columns
        for i in range(ROUNDS):
            column = (column + scramble(row + keys[2 * i])) % columns
            row = (row + scramble(column + keys[2 * i + 1])) % rows
        return row * columns + column

    def outside(x):
        return tf.reduce_any(x >= n)

    def again(x):
        return [tf.where(x >= n, walk(x), x)]

    return tf.while_loop(outside, again, [walk(position)])[0]


def seeds(purpose: int, seed: int, epoch: Any, position: Any) -> Any:
    """Stateless seeds, int32 [..., 2], one for each of `position` (int64, [...])."""
    mixed = key(seed, purpose, epoch, position)
    return tf.cast(tf.stack([mixed & 0x7FFFFFFF, _shift(mixed, 33)], axis=-1), tf.int32)

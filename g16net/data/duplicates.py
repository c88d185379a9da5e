"""Images that are in a data set twice: test images that were trained on, and one image under two labels.

The same bytes are found by their hash, the same picture in other bytes (stored again, scaled, of another format) by
small grey thumbnails that agree in their levels and in their edges. Mirrored, cropped and recoloured copies are not
found, nor pictures of less than SIDE pixels, in which different digits look alike.

The limits: of CIFAR-10's test images 95 are found in its training images, and looked right; shirts photographed on
one carpet correlate as highly, but not in their edges.
"""

from typing import Any, Dict, NamedTuple

import numpy as np
import tensorflow as tf

from g16net.data import transforms
from g16net.data.each import each
from g16net.data.order import Order
from g16net.data.sources.base import Source

SIDE = 32  # of a thumbnail
CORRELATION, EDGES, LEVELS = 0.96, 0.7, 16.0  # least of halved thumbnails and of their edges; most levels of 255 apart
FLAT = 3.0  # levels of deviation below which a thumbnail shows nothing to compare
BLOCK = 512  # images compared with all others at a time


class Seen(NamedTuple):
    """What was looked at of the images of one source.

    Attributes:
        ids, labels: int64 [images].
        contents: bytes [images], equal for equal bytes.
        thumbnails: uint8 [images, SIDE, SIDE], grey; all 0 where the image is smaller.
    """

    ids: np.ndarray
    labels: np.ndarray
    contents: np.ndarray
    thumbnails: np.ndarray


class Pair(NamedTuple):
    """Two images that are one: their places in two `Seen`, and whether their bytes are the same."""

    first: int
    second: int
    same: bool


def look(source: Source, most: int) -> Any:
    """`Seen` of up to `most` images spread over the source; those that cannot be read are left out."""
    count = min(most, source.num_examples)
    order = Order(stop=count, batch=BLOCK, seed=None if count == source.num_examples else 0, epochs=1)

    def one(row):
        record = source.read(row)
        image = record["image"]
        data = image if source.encoded else tf.io.serialize_tensor(image)
        hashes = [tf.strings.to_hash_bucket_strong(data, 2**62, key) for key in ([16, 1], [16, 2])]
        small = transforms.eval_image(image, 2 * SIDE, fit="resize")
        small = tf.reduce_mean(tf.reshape(tf.cast(small, tf.float32), [SIDE, 2, SIDE, 2, 3]), [1, 3, 4])
        small *= tf.cast(tf.reduce_min(transforms.image_extent(image)) >= SIDE, tf.float32)
        return record["id"], tf.cast(record["label"], tf.int64), tf.stack(hashes), tf.cast(small + 0.5, tf.uint8)

    data = each(source.stream(order).unbatch(), one)
    columns = list(zip(*data.batch(BLOCK).prefetch(1).as_numpy_iterator()))
    if not columns:
        empty = np.zeros([0], np.int64)
        return Seen(empty, empty, np.zeros([0], "S16"), np.zeros([0, SIDE, SIDE], np.uint8))
    ids, labels, hashes, thumbnails = map(np.concatenate, columns)
    return Seen(ids, labels, np.array([row.tobytes() for row in hashes], object), thumbnails)


def between(first: Any, second: Any) -> Any:
    """[Pair] of each image of `first` that is in `second` too, with one image there."""
    place = {content: i for i, content in reversed(list(enumerate(second.contents)))}
    pairs = {i: Pair(i, place[content], True) for i, content in enumerate(first.contents) if content in place}
    for i, j in _alike(first, second):
        pairs.setdefault(i, Pair(i, j, False))
    return [pairs[i] for i in sorted(pairs)]


def across_classes(seen: Any) -> Any:
    """[Pair] of each image of which an earlier one of another class is the same."""
    pairs: Dict[Any, Any] = {}
    places: Dict[Any, Any] = {}
    for i, content in enumerate(seen.contents):
        for j in places.get(content, ()):
            if seen.labels[i] != seen.labels[j]:
                pairs.setdefault(i, Pair(i, j, True))
        places.setdefault(content, []).append(i)
    for i, j in _alike(seen, seen, within=True):
        pairs.setdefault(i, Pair(i, j, False))
    return [pairs[i] for i in sorted(pairs)]


def repeated(seen: Any) -> Any:
    """How many images have the bytes of an earlier one."""
    return len(seen.contents) - len(set(seen.contents))


def _alike(first, second, within=False):
    """`(i, j)` for each i of `first` whose likest j in `second` shows the same; `within`: an earlier one of another
    class."""
    mine, clear = _normalised(first.thumbnails)
    others, other_clear = (mine, clear) if within else _normalised(second.thumbnails)
    for begin in range(0, len(mine), BLOCK):
        rows = slice(begin, begin + BLOCK)
        end = min(begin + BLOCK, len(mine)) if within else len(others)
        if not end:
            return
        likeness = mine[rows] @ others[:end].T
        likeness[:, ~other_clear[:end]] = -1
        if within:
            likeness[first.labels[rows, np.newaxis] == first.labels[np.newaxis, :end]] = -1
            likeness[np.arange(end)[np.newaxis] >= np.arange(begin, end)[:, np.newaxis]] = -1
        best = likeness.argmax(1)
        for i in np.flatnonzero((likeness[np.arange(len(best)), best] >= CORRELATION) & clear[rows]):
            j = int(best[i])
            pair = first.thumbnails[begin + i].astype(np.float32), second.thumbnails[j].astype(np.float32)
            if np.abs(pair[0] - pair[1]).mean() <= LEVELS and _correlation(*map(_edges, pair)) >= EDGES:
                yield int(begin + i), j


def _normalised(thumbnails):
    """`(halved, clear)`: float32 [images, (SIDE / 2)^2] of mean 0 and length 1, and whether each shows anything."""
    grey = thumbnails.reshape(len(thumbnails), SIDE // 2, 2, SIDE // 2, 2).mean((2, 4), dtype=np.float32)
    grey = grey.reshape(len(thumbnails), -1)
    grey -= grey.mean(1, keepdims=True)
    clear = grey.std(1) >= FLAT
    return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-6), clear


def _edges(image):
    return np.concatenate([np.diff(image, axis=0).ravel(), np.diff(image, axis=1).ravel()])


def _correlation(a, b):
    return float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-6)

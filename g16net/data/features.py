"""A source whose images are replaced by what a fixed function makes of them, computed once and kept in memory.

For the frozen part of a network under fine-tuning: test preprocessing draws nothing, so that its feature maps are the
same in every epoch. Order, labels and the treatment of corrupt images stay the source's own.
"""

import time
from typing import Any, Callable

import numpy as np
import tensorflow as tf
from absl import logging

from g16net.data import order as orders
from g16net.data import pipeline
from g16net.data.each import each
from g16net.data.sources.base import Source


def needed_bytes(source: Source, shape: Any, dtype: Any) -> int:
    """Bytes that `kept` will hold: one array of `shape` an example."""
    return source.num_examples * int(np.prod(shape)) * tf.as_dtype(dtype).size


def kept(source: Source, transform: Callable, compute: Callable, shape: Any, dtype: Any, batch: int) -> Source:
    """`source` with `compute(images)` in the place of each image, to be batched without a further transform.

    Args:
        transform: `(record, seed) -> {"image", "label"}` of graph operations that draw nothing.
        compute: images uint8 [batch, size, size, 3] -> [batch, *shape] of `dtype`; the last batch is smaller.
        batch: images in a call of `compute`.

    Returns:
        A `Source`. Its `read` raises for images that could not be read, as that of `source` would.
    """
    started = time.time()
    needed = needed_bytes(source, shape, dtype)
    logging.info(
        "%s, split %s: keeps %s features of %d images in memory, %.1f MB",
        source.name, source.split, "x".join(map(str, shape)), source.num_examples, needed / 1e6,
    )  # fmt: skip

    def example(row):
        done = transform(source.read(row), tf.zeros([2], tf.int32))
        return row["id"], tf.cast(done["label"], tf.int32), done["image"]

    rows = source.stream(orders.Order(stop=source.num_examples, batch=batch, epochs=1)).unbatch()
    store = tf.Variable(tf.zeros([source.num_examples, *shape], dtype), trainable=False)  # filled in place
    labels = np.full(source.num_examples, -1, np.int32)  # -1: could not be read
    for ids, some_labels, images in each(rows, example).batch(batch).prefetch(2):
        store.scatter_update(tf.IndexedSlices(compute(images), ids))
        labels[ids.numpy()] = some_labels.numpy()
    features, labels = store.read_value(), tf.constant(labels)
    logging.info("%s, split %s: features computed in %.1f s", source.name, source.split, time.time() - started)

    def read(row):
        label = labels[row["id"]]
        sound = tf.debugging.Assert(label >= 0, ["the image was corrupt when its features were computed"])
        with tf.control_dependencies([sound]):
            return {"image": features[row["id"]], "label": label, "id": row["id"]}

    def fault(row, judge):
        return pipeline.fault(source, row, judge)

    return source._replace(read=read, encoded=False, held_bytes=source.held_bytes + needed, fault=fault)

"""The engine of sources whose images lie inside larger files (tar shards, Arrow tables), each found by its place.

TensorFlow has no operation that reads from the middle of a file, so Python does: all images of a step in one call, a
few steps side by side. As with folders, an epoch's order is one permutation of all examples.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional, Sequence

import numpy as np
import tensorflow as tf

from g16net import compat
from g16net.data.sources.base import Source, indexed

STEPS = 2  # read side by side
THREADS = 8  # that read one step: a disk behind a network answers late, but many at a time


def fetched(
    name: str,
    split: str,
    fetch: Callable[[Sequence[int]], Sequence[bytes]],
    labels: np.ndarray,
    class_names: Sequence[str],
    locate: Callable,
    sizes: np.ndarray,
    contents: Callable,
    files: Optional[Callable] = None,
) -> Source:
    """A source of encoded images.

    Args:
        fetch: ids -> the images' bytes, b"" for one that cannot be read, which then counts as corrupt. Called from
            several threads.
        labels: int32 [examples].
        sizes: int [examples], bytes.
        The others: as in `Source`.
    """
    all_labels = tf.constant(labels)
    pool = ThreadPoolExecutor(THREADS)

    def read(row):
        return {"image": row["record"], "label": all_labels[row["id"]], "id": row["id"]}

    plain = indexed(
        name, split, len(labels), class_names, read, locate, True, float(np.mean(sizes)), labels,
        contents=contents, files=files,
    )  # fmt: skip

    def records(ids):
        parts = [part.tolist() for part in np.array_split(ids, THREADS) if len(part)]
        found = [record for some in pool.map(fetch, parts) for record in some]
        column = np.empty(len(found), object)  # NumPy's own strings would lose zero bytes at the end
        column[:] = found
        return column

    def with_records(rows):
        record = compat.numpy_function(records, [rows["id"]], tf.string)
        record.set_shape([None])
        return dict(rows, record=record)

    def stream(order):
        return plain.stream(order).map(with_records, num_parallel_calls=STEPS, deterministic=True)

    return plain._replace(stream=stream)

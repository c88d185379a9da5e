"""Parquet shards as the Hugging Face hub has them.

In Parquet a row group is what can be read (100 images in ImageNet's files): groups are what `records.sharded` permutes,
reads side by side and shuffles in windows.
"""

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Optional

import numpy as np
import tensorflow as tf
from absl import logging

from g16net import compat
from g16net.data import identity, walk
from g16net.data.shards import check_complete, shard_files
from g16net.data.sources.base import Source
from g16net.data.sources.labels import ask, used
from g16net.data.sources.records import WINDOW, Shards, sharded
from g16net.data.sources.tables import check_bytes, columns_of, image_bytes, pyarrow
from g16net.errors import UserError

SMALL = 2**28  # bytes of a split that is shuffled as one
HELD = 2**29  # bytes of the row groups that are read side by side, at most
CYCLE = 32  # row groups read side by side, at most


def open_parquet(
    split: str,
    data_dir: Optional[str] = None,
    holdout: float = 0.2,
    train_split: str = "",
    input_key: str = "",
    target_key: str = "",
    label_offset: Optional[int] = None,
) -> Source:
    """Parquet shards as the Hugging Face hub has them: data/train-00000-of-00294.parquet and the like in `data_dir`.

    Args:
        holdout: share of each class that is held out where there is one split only.
        train_split: name of the training split where it is no usual one.
        input_key, target_key: columns of the image and of the label; empty: the only ones that can be.
        label_offset: subtracted from labels that are numbers; None: 0.
    """
    parquet = pyarrow("parquet")
    if not data_dir:
        raise UserError("parquet needs a folder: data_dir=FOLDER with train-00000-of-00294.parquet and the like")
    found = shard_files(data_dir, ".parquet")
    if not found:
        raise UserError(f"{data_dir}: no .parquet files in it")
    for paths in found.values():
        check_complete(paths)
    asked = ask(split, found, data_dir, train_split)
    paths = found[asked.name]
    metas = [_meta(parquet, path) for path in paths]
    columns = columns_of(paths, [meta.schema.to_arrow_schema() for meta in metas], input_key, target_key)
    stored = _labels(parquet, paths, columns.label)

    def training():
        if asked.trained in (None, asked.name):
            return stored
        return _labels(parquet, found[asked.trained], columns.label)

    some = used(asked, stored, columns.class_names, training, data_dir, holdout, label_offset)
    field = f"{columns.image}.bytes" if columns.inner else columns.image
    groups = [(file, group) for file, meta in enumerate(metas) for group in range(meta.num_row_groups)]
    rows = np.array([metas[file].row_group(group).num_rows for file, group in groups], np.int64)
    sizes = np.array([metas[file].row_group(group).total_byte_size for file, group in groups], np.int64)
    ends = np.searchsorted(some.places, np.cumsum(rows))
    counts = np.diff(ends, prepend=0)
    names = [f"{paths[file]} row group {group}" for file, group in groups]
    units = {
        os.fsencode(name): (file, group, some.places[end - count : end] - first)
        for name, (file, group), end, count, first in zip(names, groups, ends, counts, np.cumsum(rows) - rows)
    }

    def read_group(name):
        file, group, wanted = units[name]
        column = np.empty(len(wanted), object)
        column[:] = b""
        try:
            with parquet.ParquetFile(paths[file], metadata=metas[file]) as opened:
                table = opened.read_row_group(group, columns=[field], use_threads=False)
            column[:] = _images(table.column(0), columns.inner, wanted)
        except (OSError, ValueError) as error:  # what pyarrow raises; these images then count as corrupt
            walk.once(logging.WARNING, f"{walk.shown(os.fsdecode(name))} cannot be read: {error}")
        return column

    def opened(name):
        data = compat.numpy_function(read_group, [name], tf.string)
        data.set_shape([None])
        return tf.data.Dataset.from_tensor_slices(data)

    check_bytes(read_group(os.fsencode(names[int(np.argmax(counts > 0))]))[:64], paths[0])
    labels = tf.constant(some.labels)
    share = sizes * counts / np.maximum(rows, 1)
    small = share.sum() <= SMALL
    cycle = len(names) if small else int(np.clip(HELD * len(names) // sizes.sum(), 1, CYCLE))
    window = len(some.labels) if small else WINDOW
    _warn_of_order(some, counts, cycle, window, f"{data_dir}, split {asked.shown}")
    shards = Shards.of(names, counts, share.sum())

    def contents():
        prints = [zlib.crc32(some.labels[end - count : end].tobytes()) for end, count in zip(ends, counts)]
        kept = [os.path.basename(name) for name in names]
        facts = identity.of_records(some.class_names, kept, counts, sizes, prints)
        # what else is told is the same for every column
        return {**facts, "input_key": input_key} if input_key else facts

    return sharded(
        "parquet", asked.shown, shards, some.class_names, lambda record, i: {"image": record, "label": labels[i]},
        cycle, window, contents, opened, some.labels, lambda: list(paths),
    )._replace(
        undivided=asked.undivided,
        held_bytes=float(share.sum() * 3 if small else 3 * window * share.sum() / len(some.labels) +
                         cycle * sizes.mean()),
    )  # fmt: skip


def _meta(parquet, path):
    try:
        with parquet.ParquetFile(path) as file:
            return file.metadata
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cut off, or no Parquet file ({error}); fetch or write it again") from error


def _labels(parquet, paths, column):
    def read(path):
        with parquet.ParquetFile(path) as file:
            return file.read(columns=[column], use_threads=False).column(0).to_pylist()

    try:
        with ThreadPoolExecutor(8) as pool:
            return [value for some in pool.map(read, paths) for value in some]
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{paths[0]} and the like: the column {column!r} cannot be read ({error})") from error


def _images(column, inner, wanted):
    found = [one for chunk in column.chunks for one in image_bytes(chunk, inner).to_pylist()]
    return [found[i] or b"" for i in wanted.tolist()]


def _warn_of_order(some, counts, cycle, window, where):
    """A warning where windows of the shuffle would hold few classes: rows sorted by class in large row groups."""
    counts = counts[counts > 0]
    if len(counts) <= cycle and window >= len(some.labels):
        return
    ends = np.cumsum(counts)
    sample = np.unique(np.linspace(0, len(counts) - 1, 64).astype(int))
    each = np.mean([len(np.unique(some.labels[ends[i] - counts[i] : ends[i]][:window])) for i in sample])
    together, classes = each * min(cycle, len(counts)), len(some.class_names)
    if together < 0.5 * min(classes, window):
        logging.warning(
            "%s: the rows are sorted by class, or nearly: about %.0f of %d classes are shuffled together. Batches will "
            "be of few classes, and training suffers; write the files again after dataset.shuffle(seed=0), or keep the "
            "images in memory, where all are shuffled: --config.data.cache=encoded",
            where, together, classes,
        )  # fmt: skip

"""Arrow files as `datasets` writes them, by `save_to_disk` or into its cache: mapped into memory, any row at once."""

import os
from typing import Optional

import numpy as np
import tensorflow as tf

from g16net.data import identity
from g16net.data.shards import arrow_files
from g16net.data.sources.base import Source
from g16net.data.sources.fetched import fetched
from g16net.data.sources.labels import ask, used
from g16net.data.sources.tables import check_bytes, columns_of, image_bytes, pyarrow
from g16net.errors import UserError


def open_arrow(
    split: str,
    data_dir: Optional[str] = None,
    holdout: float = 0.2,
    train_split: str = "",
    input_key: str = "",
    target_key: str = "",
    label_offset: Optional[int] = None,
) -> Source:
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` of `datasets` wrote, or one of its cache.

    Args: as of `open_parquet`.
    """
    library = pyarrow()
    if not data_dir:
        raise UserError("arrow needs a folder: data_dir=FOLDER that save_to_disk wrote")
    found = arrow_files(data_dir)
    if not found:
        raise UserError(f"{data_dir}: nothing that save_to_disk of the package 'datasets' wrote")
    asked = ask(split, found, data_dir, train_split)
    paths = found[asked.name]
    table = _table(library, paths)
    columns = columns_of(paths, [table.schema], input_key, target_key)
    stored = table.column(columns.label).to_pylist()

    def training():
        if asked.trained in (None, asked.name):
            return stored
        return _table(library, found[asked.trained]).column(columns.label).to_pylist()

    some = used(asked, stored, columns.class_names, training, data_dir, holdout, label_offset)
    chunks = [image_bytes(chunk, columns.inner) for chunk in table.column(columns.image).chunks if len(chunk)]
    ends = np.cumsum([len(chunk) for chunk in chunks])
    sizes = np.concatenate([_lengths(chunk) for chunk in chunks])[some.places]
    places = some.places

    def fetch(ids):
        rows = places[ids]
        inside = np.searchsorted(ends, rows, side="right")
        return [
            chunks[chunk][int(row - ends[chunk] + len(chunks[chunk]))].as_py() or b""
            for chunk, row in zip(inside.tolist(), rows)
        ]

    check_bytes(fetch(list(range(min(64, len(places))))), paths[0])

    def locate(ids):
        where = os.fsencode(f"{data_dir} {asked.name} row ")
        return tf.strings.join([where, tf.strings.as_string(tf.gather(places, ids))])

    return fetched(
        "arrow", asked.shown, fetch, some.labels, some.class_names, locate, sizes,
        contents=lambda: identity.of_files(some.class_names, list(map(str, places.tolist())), some.labels, sizes),
        files=lambda: list(paths),
    )._replace(undivided=asked.undivided)  # fmt: skip


def _table(library, paths):
    tables = []
    for path in paths:
        try:
            try:
                tables.append(library.ipc.open_stream(library.memory_map(path)).read_all())
            except library.ArrowInvalid:
                tables.append(library.ipc.open_file(library.memory_map(path)).read_all())
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cut off, or no Arrow file ({error}); write it again") from error
    return library.concat_tables(tables)


def _lengths(chunk):
    """Bytes of each image, from the offsets alone."""
    lengths = pyarrow("compute").binary_length(chunk)
    return lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)

"""TFRecords as the classic ImageNet conversion writes them, and the counting of records in files."""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional, Sequence

import numpy as np
import tensorflow as tf

from g16net import compat
from g16net.data import identity
from g16net.data.remembered import remembered
from g16net.data.shards import check_complete
from g16net.data.sources.base import TRAIN, Source, check_labels
from g16net.data.sources.records import CYCLE, WINDOW, Shards, sharded
from g16net.data.splits import choose, record_file, role
from g16net.data.walk import junk
from g16net.errors import UserError

_FIELDS = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/class/label": tf.io.FixedLenFeature([], tf.int64),
}
_SIDES = ("ymin", "xmin", "ymax", "xmax")


def open_tfrecord(
    split: str,
    data_dir: Optional[str] = None,
    num_classes: Optional[int] = None,
    class_names: Optional[Sequence[str]] = None,
    label_offset: Optional[int] = None,
    cycle: int = CYCLE,
    window: int = WINDOW,
) -> Source:
    """TFRecords as the classic ImageNet conversion writes them: train-00000-of-01024, validation-00000-of-00128.

    Keys: image/encoded, image/class/label, and where present image/object/bbox/{ymin,xmin,ymax,xmax}. The files lie in
    `data_dir` or in a folder of the split's name in it. Their records are counted once, from the 12-byte headers, and
    the counts are kept in the user's cache folder.

    Args:
        num_classes, class_names: None: the lines of labels.txt (or classes.txt) in `data_dir`, or 1,000 where the
            split has 1,024 or 128 files.
        label_offset: subtracted from stored labels; None: 1, as the classic files count from 1.
        cycle, window: see `sharded`.
    """
    if not data_dir:
        raise UserError("tfrecord needs a folder: data_dir=FOLDER with train-00000-of-01024 and the like")
    if not tf.io.gfile.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder (looked at {os.path.abspath(data_dir)})")
    found = _record_files(data_dir)
    split = choose(split, found, data_dir)
    paths = found[split]
    check_complete(paths)
    counts, sizes = count_records(paths)
    if not sum(counts):
        raise UserError(f"{data_dir}, split {split}: {len(paths)} files, but no records in them")
    shards = Shards.of(paths, counts, sum(sizes))
    class_names = _class_names(data_dir, num_classes, class_names, len(paths))
    label_offset = 1 if label_offset is None else label_offset
    _check_sample(shards, len(class_names), label_offset, f"{data_dir}, split {split}", role(split) == TRAIN)

    def parse(record, _):
        boxes = {f"image/object/bbox/{side}": tf.io.VarLenFeature(tf.float32) for side in _SIDES}
        fields = tf.io.parse_single_example(record, dict(_FIELDS, **boxes))
        return {
            "image": fields["image/encoded"],
            "label": tf.cast(fields["image/class/label"] - label_offset, tf.int32),
            "boxes": tf.stack([tf.sparse.to_dense(fields[f"image/object/bbox/{side}"]) for side in _SIDES], axis=1),
        }

    def contents():
        facts = identity.of_records(class_names, map(os.path.basename, paths), counts, sizes)
        return {**facts, "label_offset": label_offset}

    return sharded("tfrecord", split, shards, class_names, parse, cycle, window, contents)


def _record_files(folder):
    """{split: sorted paths} of the record files in `folder` and in the folders in it.

    Files whose names say no split (`train/part-00000-of-00010`) belong to the one that their folder's name says.
    """
    found = {}
    for parent, _, files in tf.io.gfile.walk(folder):
        below = parent.rstrip("/")[len(folder.rstrip("/")) :]
        if below.count("/") > 1 or (below and junk(os.path.basename(parent.rstrip("/")))):
            continue
        for name in files:
            match = None if junk(name) else record_file(name)
            if match:
                upper = os.path.basename(parent.rstrip("/")) if below else ""
                split = upper if role(upper) and not role(match) else match
                found.setdefault(split, []).append(os.path.join(parent, name))
    return {split: sorted(paths) for split, paths in found.items()}


def _class_names(folder, num_classes, class_names, files):
    if class_names is None:
        for name in ("labels.txt", "classes.txt"):
            path = os.path.join(folder, name)
            if tf.io.gfile.exists(path):
                with tf.io.gfile.GFile(path) as file:
                    class_names = [line.strip() for line in file if line.strip()]
                break
    if class_names is None:
        if num_classes is None and files in (1024, 128):
            num_classes = 1000
        if num_classes is None:
            raise UserError(f"{folder}: how many classes? Write their names, one a line, into labels.txt there")
        class_names = [f"class {i}" for i in range(num_classes)]
    if num_classes is not None and num_classes != len(class_names):
        raise UserError(f"{folder}: num_classes={num_classes}, but there are {len(class_names)} class names")
    return class_names


def _check_sample(shards, num_classes, offset, where, training, most=2048):
    """Reads labels spread over the files and checks them: off by one, out of range and, if all were read, empty."""
    every = shards.counts.sum() <= most
    files = np.unique(np.linspace(0, len(shards.paths) - 1, 64).astype(int))
    paths = shards.paths if every else [shards.paths[i] for i in files]
    each = -1 if every else most // len(files)
    keys = {"image/class/label": _FIELDS["image/class/label"]}
    data = tf.data.Dataset.from_tensor_slices(paths).flat_map(lambda path: tf.data.TFRecordDataset(path).take(each))
    data = data.batch(128).map(lambda some: tf.io.parse_example(some, keys)["image/class/label"])
    try:
        stored = np.concatenate(list(data.as_numpy_iterator()))
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:  # the latter: a message with a damaged key
        raise UserError(f"{where}: records without the key image/class/label; not the classic layout") from error
    except tf.errors.DataLossError as error:
        raise UserError(f"{where}: a damaged file ({compat.reason(error)}); fetch or write it again") from error
    remedy = f"Stored labels go from {stored.min()} to {stored.max()}, of which label_offset={offset} is subtracted. "
    for other in (0, 1):
        if other != offset and stored.min() >= other and stored.max() < num_classes + other:
            remedy += f"They seem off by one: give --config.data.label_offset={other}."
    check_labels(
        stored - offset,
        num_classes,
        f"{where} ({len(stored)} labels read)",
        [f"class {i}" for i in range(num_classes)] if training and every else None,
        remedy,
    )


def count_records(paths: Sequence[str]) -> Any:
    """`(counts, sizes)`: records and bytes of each TFRecord file, by its headers; remembered by name, size and time.

    UserError names a file that is cut off or is no TFRecord file.
    """

    def find():
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(_count, paths))

    return remembered("records", paths, find), [tf.io.gfile.stat(path).length for path in paths]


def _count(path):
    size, place, count = tf.io.gfile.stat(path).length, 0, 0
    local = "://" not in path
    with open(path, "rb", buffering=0) if local else tf.io.gfile.GFile(path, "rb") as file:
        while place < size:
            file.seek(place)
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            place += 16 + length  # length, its checksum, the data, their checksum
            if place > size:
                raise UserError(
                    f"{path}: cut off, or no (uncompressed) TFRecord file: record {count} ends past the file's "
                    f"{size} bytes. Fetch or write it again"
                )
            count += 1
    return count

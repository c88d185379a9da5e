"""CIFAR-10 and CIFAR-100 as their authors' "binary version" has them: pixels in planes, one file or five."""

import os
from typing import Optional

import numpy as np

from g16net.data.shards import cifar_pickles, cifar_version
from g16net.data.sources.base import Source, arrays, listed
from g16net.data.splits import choose
from g16net.errors import UserError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
# Labels before the pixels of a record, and the file of each one's names.
CIFAR10 = {"label": "batches.meta.txt"}
CIFAR100 = {"coarse_label": "coarse_label_names.txt", "fine_label": "fine_label_names.txt"}


def open_cifar(split: str, data_dir: Optional[str] = None, target_key: str = "") -> Source:
    """The folder cifar-10-batches-bin or cifar-100-binary: images uint8 [32, 32, 3] in memory.

    Args:
        target_key: CIFAR-100: "fine_label" (default, 100 classes) or "coarse_label" (20).
    """
    if not data_dir or not os.path.isdir(data_dir):
        raise UserError(f"cifar needs a folder: data_dir={data_dir!r} is none")
    kind = cifar_version(os.listdir(data_dir))
    if kind == "pickle":
        raise UserError(cifar_pickles(data_dir))
    if not kind:
        raise UserError(f"{data_dir}: neither data_batch_1.bin to data_batch_5.bin nor train.bin with its label names")
    columns = CIFAR10 if kind == "cifar10" else CIFAR100
    target = target_key or list(columns)[-1]
    if target not in columns:
        raise UserError(f"{data_dir}: no label {target_key!r}; --config.data.target_key={' or '.join(columns)}")
    found = {"train": BATCHES, "test": ("test_batch.bin",)}
    if kind == "cifar100":
        found = {"train": ("train.bin",), "test": ("test.bin",)}
    here = set(os.listdir(data_dir))
    found = {name: files for name, files in found.items() if here & set(files)}
    split = choose(split, found, data_dir)
    missing = [file for file in found[split] if file not in here]
    if missing:
        raise UserError(f"{data_dir}: {listed(missing)} of the split {split!r} missing; unpack the archive again")
    names = os.path.join(data_dir, columns[target])
    if not os.path.exists(names):
        raise UserError(f"{names}: not there, so that the classes have no names; unpack the archive again")
    with open(names, encoding="utf-8") as file:
        class_names = [line.strip() for line in file if line.strip()]
    records = [_records(os.path.join(data_dir, file), len(columns)) for file in found[split]]
    if len({len(some) for some in records}) > 1:
        counts = ", ".join(f"{file} {len(some):,}" for file, some in zip(found[split], records))
        raise UserError(f"{data_dir}: files of one length in the archive hold {counts} images here; unpack it again")
    data = np.concatenate(records)
    images = data[:, len(columns) :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    labels = data[:, list(columns).index(target)].astype(np.int32)
    return arrays(kind, split, np.ascontiguousarray(images), labels, class_names)


def _records(path, labels):
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % (labels + PIXELS):
        raise UserError(
            f"{path}: {len(data):,} bytes are no whole number of images of {labels + PIXELS:,}: cut off, or another "
            "file; unpack the archive again"
        )
    return data.reshape(-1, labels + PIXELS)

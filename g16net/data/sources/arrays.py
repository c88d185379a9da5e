"""Sources that hold their images in memory: scikit-learn's digits, IDX files (MNIST, Fashion-MNIST), synthetic."""

import gzip
import os
import re
import zlib
from typing import Any, Optional, Sequence

import numpy as np
import tensorflow as tf

from g16net.data import identity
from g16net.data.sources.base import TRAIN, VALIDATION, Source, arrays, counted_from_1, held_out, indexed, listed
from g16net.data.splits import choose, role
from g16net.errors import UserError

HELD_OUT = 0.2  # of each class of digits


def open_digits(split: str, data_dir: Optional[str] = None) -> Source:
    """scikit-learn's 1,797 scanned digits, uint8 [8, 8, 1], ten classes; needs neither files nor network.

    The split is stratified and fixed: 20 % of each class (359 images) are `validation`, drawn with seed 0; `train`
    has the other 1,438. Grey values 0..16 become 0..255.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(f"the digits come with scikit-learn: pip install scikit-learn ({error})") from error
    split = choose(split, (TRAIN, VALIDATION), "digits")
    data = load_digits()
    chosen = held_out(data.target, HELD_OUT) == (split == VALIDATION)
    images = np.rint(data.images[chosen] * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    return arrays("digits", split, images, data.target[chosen], [str(i) for i in range(10)])


def open_idx(
    split: str,
    data_dir: Optional[str] = None,
    class_names: Optional[Sequence[str]] = None,
    label_offset: Optional[int] = None,
) -> Source:
    """IDX files as MNIST has them, plain or .gz: train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-*.

    Debian's package dataset-fashion-mnist puts such files into /usr/share/datasets/fashion-mnist.

    Args:
        class_names: one a class; None: "0", "1", ... up to the training split's largest label.
        label_offset: subtracted from stored labels; None: 0. EMNIST's letters count from 1.
    """
    offset = label_offset or 0
    if not data_dir:
        raise UserError("idx needs a folder: data_dir=FOLDER with train-images-idx3-ubyte and the like (.gz or not)")
    found = _idx_files(data_dir)
    split = choose(split, found, data_dir)
    images_file, labels_file = found[split]
    images = read_idx(images_file, 3)[..., np.newaxis]
    labels = read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise UserError(f"{data_dir}: {len(images)} images in {images_file} but {len(labels)} labels in {labels_file}")
    if class_names is None:
        named = [name for name in found if role(name) == TRAIN]  # of several sets in a folder that of this split
        training = max(named, key=lambda name: len(os.path.commonprefix([name, split])), default=split)
        known = read_idx(found[training][1], 1)
        class_names = [str(i) for i in range(offset, int(known.max(initial=0)) + 1)]
    remedy = counted_from_1(labels, offset)
    return arrays("idx", split, images, labels.astype(np.int32) - offset, class_names, remedy)


def _idx_files(folder):
    """{split: (images file, labels file)} of the folder."""
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder (looked at {os.path.abspath(folder)})")
    parts = {}
    for name in sorted(os.listdir(folder)):
        match = re.match(r"([^.].*?)-(images|labels)[-.]idx[13]-ubyte(\.gz)?$", name, re.IGNORECASE)
        if match:
            split = "test" if match.group(1).lower() == "t10k" else match.group(1)
            parts.setdefault(split, {})[match.group(2).lower()] = os.path.join(folder, name)
    whole = {split: (p["images"], p["labels"]) for split, p in parts.items() if len(p) == 2}
    broken = [f"{split} has only {next(iter(p))}" for split, p in parts.items() if len(p) == 1]
    if broken:
        raise UserError(f"{folder}: IDX files come in pairs, images and labels; {listed(broken)}")
    if not whole:
        raise UserError(f"{folder}: no IDX files (train-images-idx3-ubyte, train-labels-idx1-ubyte, .gz or not)")
    return whole


def read_idx(path: str, rank: int) -> Any:
    """The uint8 array [.., ..] of an IDX file with `rank` axes. UserError where the file is no such thing or cut."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            header = file.read(4 + 4 * rank)
            if len(header) < 4 + 4 * rank or header[:4] != bytes([0, 0, 8, rank]):
                raise UserError(f"{path}: not an IDX file of unsigned bytes with {rank} axes (starts {header[:4]!r})")
            shape = np.frombuffer(header, ">u4", rank, 4).astype(np.int64)
            expected = int(np.prod(shape.astype(object)))
            # Read in pieces, so that a header that lies about its size allocates nothing.
            pieces, got = [], 0
            while got <= expected:
                piece = file.read(min(1 << 24, expected + 1 - got))
                if not piece:
                    break
                pieces.append(piece)
                got += len(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from error
    if got != expected:
        more = "more" if got > expected else f"{got}"
        raise UserError(
            f"{path}: its header says {expected} bytes of data {tuple(shape)}, it has {more}; fetch it again"
        )
    return np.frombuffer(b"".join(pieces), np.uint8).reshape(shape)


def open_synthetic(
    split: str,
    data_dir: Optional[str] = None,
    num_examples: int = 10000,
    num_classes: int = 1000,
    size: int = 224,
    encoded: bool = False,
) -> Source:
    """Smooth random pictures, the same in every run; the class decides the picture.

    A class shares its picture with those that equal it modulo 64, which bounds the memory.

    Args:
        size: pixels, or (height, width).
        encoded: JPEGs of quality 90 instead of uint8 [height, width, 3].
    """
    split = choose(split, (TRAIN, VALIDATION), "synthetic")
    if num_examples < 1 or num_classes < 2:
        raise UserError(f"synthetic: num_examples={num_examples}, num_classes={num_classes}; at least 1 and 2")
    height, width = (size, size) if isinstance(size, int) else size
    pool = min(num_classes, 64)
    noise = tf.random.stateless_uniform([pool, 8, 8, 3], seed=[20, 26], maxval=255.0)
    pictures = tf.cast(tf.image.resize(noise, [height, width], "bicubic") + 0.5, tf.float32)
    pictures = tf.cast(tf.clip_by_value(pictures, 0, 255), tf.uint8)
    if encoded:
        pictures = tf.stack([tf.io.encode_jpeg(picture, quality=90) for picture in pictures])
        held = sum(len(picture) for picture in pictures.numpy())
    else:
        held = pool * height * width * 3

    def read(row):
        label = tf.cast(row["id"] % num_classes, tf.int32)
        return {"image": pictures[label % pool], "label": label, "id": row["id"]}

    def locate(ids):
        return tf.strings.join([f"synthetic/{split}[", tf.strings.as_string(ids), "]"])

    names = [f"class {i}" for i in range(num_classes)]
    labels = (np.arange(num_examples) % num_classes).astype(np.int32)
    return indexed(
        "synthetic", split, num_examples, names, read, locate, encoded, held / pool, labels, held_bytes=held,
        contents=lambda: identity.of_labels(names, labels, "synthetic"),
    )  # fmt: skip

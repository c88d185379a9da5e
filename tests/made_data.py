"""Small data sets of every kind, and what reads and compares them, for the tests of the data."""

import gzip
import os
import struct

import numpy as np
import tensorflow as tf

from g16net.data import pipeline
from g16net.data.sources import open_source


def jpeg(value=0, height=6, width=8):
    return tf.io.encode_jpeg(np.full((height, width, 3), value, np.uint8)).numpy()


def class_folders(root, counts, split=None):
    """Writes counts[name] JPEGs for each class name."""
    for name, count in counts.items():
        folder = os.path.join(root, split, name) if split else os.path.join(root, name)
        os.makedirs(folder, exist_ok=True)
        for i in range(count):
            with open(os.path.join(folder, f"{i:03d}.jpg"), "wb") as file:
                file.write(jpeg(i))


def example(label, image=b"", boxes=(), **more):
    def feature(**kind):
        return tf.train.Feature(**kind)

    features = {
        "image/encoded": feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/label": feature(int64_list=tf.train.Int64List(value=[label])),
    }
    for i, side in enumerate(("ymin", "xmin", "ymax", "xmax")):
        features[f"image/object/bbox/{side}"] = feature(float_list=tf.train.FloatList(value=[box[i] for box in boxes]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def record_files(folder, counts, split="train", label=lambda i: 1 + i % 3, image=lambda i: b"%d" % i):
    """Writes a TFRecord file with each count of records; record i over all files has image b"i"."""
    os.makedirs(folder, exist_ok=True)
    number = 0
    for file, count in enumerate(counts):
        with tf.io.TFRecordWriter(os.path.join(folder, f"{split}-{file:05d}-of-{len(counts):05d}")) as writer:
            for _ in range(count):
                writer.write(example(label(number), image(number)))
                number += 1
    return str(folder)


def idx_file(path, array):
    data = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    with (gzip.open if path.endswith(".gz") else open)(path, "wb") as file:
        file.write(data)


def idx_folder(folder, train=30, test=10, suffix=""):
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("t10k", test)):
        images = random.randint(0, 256, (count, 5, 4)).astype(np.uint8)
        idx_file(os.path.join(str(folder), f"{split}-images-idx3-ubyte{suffix}"), images)
        idx_file(
            os.path.join(str(folder), f"{split}-labels-idx1-ubyte{suffix}"), (np.arange(count) % 3).astype(np.uint8)
        )
    return str(folder)


def transform(record, seed):
    """A stand-in: decodes, scales to 6 pixels and adds a random number."""
    image = record["image"]
    if image.dtype == tf.string:
        image = tf.io.decode_image(image, channels=3, expand_animations=False)
    image = tf.cast(tf.image.resize(image, [6, 6]), tf.uint8) + tf.zeros([1, 1, 3], tf.uint8)
    noise = tf.cast(tf.random.stateless_uniform([6, 6, 1], seed, maxval=100, dtype=tf.int32), tf.uint8)
    return {"image": tf.ensure_shape(image // 2 + noise, [6, 6, 3]), "label": record["label"], "id": record["id"]}


def mark(record, seed):
    """A transform whose pixels hold the example's id, modulo 256; raises for what is no image."""
    image = tf.cast(tf.fill([2, 2, 3], record["id"]), tf.uint8)
    if record["image"].dtype == tf.string:
        image += 0 * tf.io.decode_image(record["image"], channels=3, expand_animations=False)[0, 0]
    return {"image": image, "label": record["label"]}


def batches(*args, **kwargs):
    return list(pipeline.train_batches(*args, **kwargs).as_numpy_iterator())


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others):
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a, b)


def open_kind(kind, folder):
    """A small source of each kind."""
    if kind == "digits":
        return open_source("digits", "validation")
    if kind == "idx":
        return open_source("idx", "train", idx_folder(folder))
    if kind in ("synthetic", "encoded"):
        return open_source("synthetic", num_examples=50, num_classes=4, size=8, encoded=kind == "encoded")
    if kind == "folder":
        class_folders(folder, {"ant": 20, "bee": 17}, "train")
        return open_source("folder", "train", str(folder))
    folder = record_files(folder, [7, 0, 12, 3, 9, 11, 5], image=jpeg)
    return open_source("tfrecord", "train", folder, num_classes=3, cycle=3, window=8)

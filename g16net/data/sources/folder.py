"""Class folders: DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, or DIR/CLASS/IMAGE with a stated split."""

import os

import numpy as np
import tensorflow as tf
from absl import logging

from g16net.config import UserError
from g16net.data.sources.base import TRAIN, VALIDATION, check_labels, choose_split, held_out, indexed, listed

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what TensorFlow decodes on every version
SPLIT_FOLDERS = ("train", "training", "val", "validation", "valid", "test")


def open_folder(split, data_dir=None, holdout=0.2, max_file_bytes=2**30):
    """Images in one folder a class; the classes are the folders' names, sorted.

    With a folder `train` in `data_dir` the splits are its folders (`train`; `val`, `validation`, `valid` or `test`).
    Otherwise the class folders lie in `data_dir` itself, and `holdout` of each class, drawn with seed 0 from the sorted
    file names, is the validation split. Folders below a class folder are searched too.

    Args:
        max_file_bytes: a larger file counts as corrupt and is never read.
    """
    if not data_dir or not os.path.isdir(data_dir):
        raise UserError(
            f"folder needs a folder: data_dir={data_dir!r} is none (looked at {os.path.abspath(data_dir or '')})"
        )
    inside = _folders(data_dir)
    splits = [name for name in inside if name in SPLIT_FOLDERS]
    if any(name in splits for name in ("train", "training")):
        if len(splits) < len(inside):
            logging.info(
                "%s: beside the splits, these are no part of the data: %s", data_dir, listed(set(inside) - set(splits))
            )
        chosen = choose_split(split, splits, data_dir)
        class_names = _folders(os.path.join(data_dir, choose_split(TRAIN, splits, data_dir)))
        root = os.path.join(data_dir, chosen)
        unknown = sorted(set(_folders(root)) - set(class_names))
        if unknown:
            raise UserError(f"{root}: {len(unknown)} class folders that the training split lacks: {listed(unknown)}")
    elif splits:
        raise UserError(f"{data_dir}: {listed(splits)} but no train; name the training split's folder 'train'")
    else:
        chosen, class_names, root = choose_split(split, (TRAIN, VALIDATION), data_dir), inside, data_dir
    if not class_names:
        raise UserError(f"{root}: no class folders; images must lie as {root}/CLASS/IMAGE.jpg")

    paths, sizes, labels = _files(root, class_names)
    training = chosen in ("train", "training")
    if root == data_dir:
        check_labels(labels, len(class_names), root, class_names)
        keep = held_out(labels, holdout) != training
        if not keep.any():
            raise UserError(
                f"{root}: holding out {holdout:g} of each class leaves no image for {chosen}; the largest class has "
                f"{np.bincount(labels).max()}. Add images, set --config.data.holdout=0.5, or lay them out as "
                "train/CLASS and val/CLASS"
            )
        paths, sizes, labels = [p for p, k in zip(paths, keep) if k], sizes[keep], labels[keep]
        logging.info(
            "%s: %g of each class is the validation split; %s has %d images", root, holdout, chosen, len(labels)
        )
    check_labels(labels, len(class_names), f"{root}, split {chosen}", class_names if training else None)

    names, all_sizes, all_labels = tf.constant(paths), tf.constant(sizes), tf.constant(labels)

    def locate(ids):
        return tf.strings.join([root + os.sep, tf.gather(names, ids)])

    def read(row):
        within = tf.debugging.assert_less_equal(
            all_sizes[row["id"]], tf.constant(max_file_bytes, tf.int64), "the file is larger than max_file_bytes"
        )
        with tf.control_dependencies([] if within is None else [within]):
            image = tf.io.read_file(locate(row["id"]))
        return {"image": image, "label": all_labels[row["id"]], "id": row["id"]}

    return indexed("folder", chosen, len(labels), class_names, read, locate, True, sizes.mean(), labels)


def _folders(folder):
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _files(root, class_names):
    """Paths below `root`, their sizes in bytes and their classes, sorted by class, then path."""
    paths, sizes, labels, others = [], [], [], []
    for label, name in enumerate(class_names):
        found = []
        for parent, _, files in os.walk(os.path.join(root, name)):
            for file in files:
                path = os.path.join(parent, file)
                if file.lower().endswith(EXTENSIONS) and not file.startswith("."):
                    found.append((os.path.relpath(path, root), os.stat(path).st_size))
                else:
                    others.append(path)
        found.sort()
        paths += [path for path, _ in found]
        sizes += [size for _, size in found]
        labels += [label] * len(found)
    if others:
        logging.warning(
            "%s: %d files are no images by name and are left out (%s count): %s",
            root, len(others), " ".join(EXTENSIONS), listed(others),
        )  # fmt: skip
    return paths, np.array(sizes, np.int64), np.array(labels, np.int32)

"""Class folders: DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, or DIR/CLASS/IMAGE with a part held out."""

import hashlib
import os
import unicodedata
from typing import Any, Dict, NamedTuple, Optional, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from g16net.data import identity, walk
from g16net.data import layout as layouts
from g16net.data.sources.base import Source, check_labels, indexed, listed
from g16net.data.splits import ALL, TRAIN, choose, role, share
from g16net.errors import UserError

HOLDOUT = 0.2


class Listing(NamedTuple):
    """The images of one split.

    Attributes:
        root: the folder that holds the class folders.
        split: its name.
        class_names: sorted; those of the training split.
        paths: of the images below `root`, sorted by class, then path; str, with surrogates where it is no UTF-8.
        labels: int32 [images].
        sizes: int64 [images], bytes.
        undivided: whether there are no splits, so that the images are a share of all, or all of them.
    """

    root: str
    split: str
    class_names: Sequence[str]
    paths: Sequence[str]
    labels: np.ndarray
    sizes: np.ndarray
    undivided: bool

    @property
    def names(self) -> Any:
        """The paths below the class folders: what stays when the set is moved or a class renamed."""
        return [path.partition(os.sep)[2] for path in self.paths]


def open_folder(
    split: str,
    data_dir: Optional[str] = None,
    holdout: float = HOLDOUT,
    train_split: str = "",
    layout: str = "auto",
    max_file_bytes: int = 2**30,
) -> Source:
    """Images in one folder a class; the classes are the folders' names, sorted. For the rest see `list_images`.

    Args:
        max_file_bytes: a larger file counts as corrupt and is never read.
    """
    listing = list_images(split, data_dir, holdout, train_split, layout)
    root, paths, sizes, labels = listing.root, listing.paths, listing.sizes, listing.labels
    names = tf.constant([os.fsencode(path) for path in paths])  # bytes, whatever their encoding
    all_sizes, all_labels, above = tf.constant(sizes), tf.constant(labels), os.fsencode(os.path.join(root, ""))

    def locate(ids):
        return tf.strings.join([above, tf.gather(names, ids)])

    def read(row):
        within = tf.debugging.assert_less_equal(
            all_sizes[row["id"]], tf.constant(max_file_bytes, tf.int64), "the file is larger than max_file_bytes"
        )
        with tf.control_dependencies([] if within is None else [within]):
            image = tf.io.read_file(locate(row["id"]))
        return {"image": image, "label": all_labels[row["id"]], "id": row["id"]}

    def begin(place):
        try:
            with open(os.path.join(root, paths[place]), "rb") as file:
                return file.read(2**20)
        except OSError:
            return b""

    return indexed(
        "folder", listing.split, len(labels), listing.class_names, read, locate, True, sizes.mean(), labels,
        contents=lambda: identity.of_files(listing.class_names, listing.names, labels, sizes, begin),
        files=lambda: [os.path.join(root, path) for path in paths],
    )._replace(undivided=listing.undivided)  # fmt: skip


def list_images(
    split: str, data_dir: Optional[str] = None, holdout: float = HOLDOUT, train_split: str = "", layout: str = "auto"
) -> "Listing":
    """The `Listing` of a split of class folders, see `layout` for what is understood, and `walk` for what counts.

    With split folders in `data_dir` the splits are those; asked for validation, a validation split comes before a test
    split. Otherwise the class folders lie in `data_dir` itself, the split VALIDATION is `held_out_by_name`, and ALL has
    every image. Folders below a class folder are searched too. Labels go by the names of the training split's class
    folders.

    Args:
        holdout: share of each class that is held out.
        train_split: name of the training split's folder where it is no usual one.
        layout: "auto", or "classes": the folders in `data_dir` are the classes, whatever their names.

    Raises:
        UserError: nothing there, a layout that is none or may be several, an unknown split, fewer than two classes, a
            class without an image, an evaluation split with classes of its own.
    """
    if not data_dir or not os.path.isdir(data_dir):
        raise UserError(
            f"folder needs a folder: data_dir={data_dir!r} is none (looked at {os.path.abspath(data_dir or '')})"
        )
    found = layouts.understand(data_dir, split, train_split, layout)
    passed: Dict[str, Any] = {}
    if split.lower() in map(str.lower, found.unlabelled):
        raise UserError(
            f"{walk.shown(data_dir)}: the images of the split {split!r} lie in no class folders, so that they have no "
            f"labels; they must lie as {split}/CLASS/IMAGE.jpg"
        )
    if found.splits:
        chosen = choose(split, found.splits, walk.shown(data_dir), _remedy(found, data_dir))
        trained = choose(train_split or TRAIN, found.splits, walk.shown(data_dir))
        root, training = found.splits[chosen], chosen == trained
        unused = sorted(name for name in found.splits if role(name) == TRAIN and name not in (trained, chosen))
        if unused:
            walk.once(
                logging.WARNING,
                f"{walk.shown(data_dir)}: {trained!r} is the training split; {listed(map(repr, unused))} by its name "
                f"holds training images too and is not read; --config.data.train_split={unused[0]} names it",
            )
        own = layouts.class_folders(root, passed)
        class_names = list(own if training else layouts.class_folders(found.splits[trained]))
        if not training:
            _check_classes(root, own, class_names)
    else:
        chosen, root = share(split, train_split, walk.shown(data_dir)), found.root
        own, training = layouts.class_folders(root, passed), chosen == TRAIN
        class_names = list(own)
    if not class_names:
        raise UserError(f"{walk.shown(root)}: no class folders; images must lie as {walk.shown(root)}/CLASS/IMAGE.jpg")

    paths, sizes, labels = _files(root, own, class_names, passed)
    walk.tell(root, passed)
    if training:
        for name in sorted(set(found.splits) - {chosen}) if np.unique(labels).size == 1 else ():  # it rather lacks some
            _check_classes(found.splits[name], layouts.class_folders(found.splits[name]), class_names)
    if training or not found.splits:
        _check_training(root, own, class_names, labels, data_dir)
        layouts.warn_of_alike(class_names, root)
    if not found.splits and chosen != ALL:
        held = held_out_by_name([path.partition(os.sep)[2] for path in paths], labels, holdout)
        keep = held != training
        if not keep.any():
            raise UserError(
                f"{walk.shown(root)}: holding out {holdout:g} of each class leaves no image for {chosen}; the largest "
                f"class has {np.bincount(labels).max()}. Add images, set --config.data.holdout=0.5, or lay them out as "
                "train/CLASS and val/CLASS"
            )
        walk.once(
            logging.INFO,
            f"{walk.shown(root)}: {holdout:g} of each class, chosen by the files' names, is the validation split: "
            f"{held.sum()} of {len(held)} images",
        )
        paths, sizes, labels = [path for path, k in zip(paths, keep) if k], sizes[keep], labels[keep]
    check_labels(labels, len(class_names), f"{walk.shown(root)}, split {chosen}")
    return Listing(root, chosen, tuple(class_names), paths, labels, sizes, not found.splits)


def held_out_by_name(names: Sequence[str], labels: Any, fraction: float) -> Any:
    """Boolean [images]: about `fraction` of each class, by a hash of each image's own name.

    Whether an image is held out depends on nothing else, so that it stays on its side when others are added or removed,
    when the folder is moved or the class renamed. A class of two or more has one on each side all the same: where no
    name of it falls below `fraction`, the lowest is held out, and where all do, the highest is not. Only such an
    image, of a class of few, can change sides: when another one of its class comes or goes.

    Args:
        names: of the images, below their class folders.
        labels: int [images].
    """
    places = np.array([_place(name) for name in names], np.float64)
    held = places < fraction
    if 0 < fraction < 1:
        order = np.lexsort((places, labels))
        groups = np.split(order, np.flatnonzero(np.diff(np.asarray(labels)[order])) + 1) if len(order) else []
        for members in groups:  # each in order of the places
            if held[members].all():
                held[members[-1]] = False
            elif not held[members].any() and len(members) > 1:
                held[members[0]] = True
    return held


def _place(name):
    """Where in [0, 1) the name falls: the same on every machine, and for both forms in which Unicode is stored."""
    name = unicodedata.normalize("NFC", name).replace(os.sep, "/")
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2.0**48


def _files(root, own, class_names, passed):
    """Paths below `root`, their sizes in bytes and their classes, sorted by class, then path."""
    paths, sizes, labels = [], [], []
    for label, name in enumerate(class_names):
        if name in own:
            found = walk.images(os.path.join(root, own[name]), passed, own[name])
            paths += [os.path.join(own[name], path) for path, _ in found]
            sizes += [size for _, size in found]
            labels += [label] * len(found)
    return paths, np.array(sizes, np.int64), np.array(labels, np.int32)


def _check_training(root, own, class_names, labels, data_dir):
    """UserError unless there are two classes or more, and each has an image."""
    counts = np.bincount(labels, minlength=len(class_names))
    full = [name for name, count in zip(class_names, counts) if count]
    empty = len(full) < len(class_names)
    # images/ beside labels/ is no class beside another one
    if len(full) == 1 and (not empty or full[0].lower() in layouts.GENERIC):
        raise layouts.one_class(root, full[0], counts.max(), data_dir)
    check_labels(labels, len(class_names), walk.shown(root), class_names)


def _check_classes(root, own, class_names):
    """UserError where an evaluation split holds classes that the training split lacks."""
    unknown = [name for name in own if name not in class_names and walk.holds_images(os.path.join(root, own[name]))]
    missing = [name for name in class_names if name not in own]
    if unknown:
        lacks = f"; it has no folder of {listed(missing)}, which that has" if missing else ""
        lower = {name.strip().lower(): name for name in missing}
        alike = [f"{name!r} for {lower[n]!r}" for name in unknown for n in [name.strip().lower()] if n in lower]
        raise UserError(
            f"{walk.shown(root)}: {len(unknown)} class folders that the training split lacks: "
            f"{listed(unknown)}{lacks}. Classes go by the folders' names: give them the same "
            f"ones{' (' + listed(alike) + '?)' if alike else ''}, or move what is not trained on out of the way"
        )
    if missing:
        walk.once(
            logging.INFO,
            f"{walk.shown(root)}: no images here of {len(missing)} of {len(class_names)} classes: {listed(missing)}",
        )


def _remedy(found, data_dir):
    """What to do where a split is not there."""
    text = ""
    if found.unlabelled:
        text = (
            f"The images of {listed(map(repr, found.unlabelled))} lie in no class folders, so that they have no "
            "labels. "
        )
    training = [path for name, path in found.splits.items() if role(name) == TRAIN]
    if len(found.splits) == 1 and training:
        text += f"--data={walk.shown(training[0])} holds out a part of each class of these instead"
    else:
        text += "Name the folders of other names: --config.data.train_split=NAME --config.data.eval_split=NAME"
    return text + f"; if the folders in {walk.shown(data_dir)} are the classes: --config.data.layout=classes"

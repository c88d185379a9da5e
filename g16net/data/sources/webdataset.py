"""WebDataset: tar shards whose members of one key make one example, `0001.jpg` with `0001.cls` or `0001.json`.

The shards' headers are read once, in the first run; the places of the images in them are kept in the user's cache
folder. Reading then is as from folders: any image by one seek, each epoch in one permutation of all.
"""

import json
import os
import re
import tarfile
from typing import Optional

import numpy as np
import tensorflow as tf
from absl import logging

from g16net.data import identity, walk
from g16net.data.remembered import remembered
from g16net.data.shards import check_complete, shard_files
from g16net.data.sources.base import Source, listed
from g16net.data.sources.fetched import fetched
from g16net.data.sources.labels import ask, listed_classes, used
from g16net.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
LONGEST = 2**20  # bytes of a label
LARGEST = 2**30  # bytes; a larger image counts as corrupt and is never read


def open_webdataset(
    split: str,
    data_dir: Optional[str] = None,
    holdout: float = 0.2,
    train_split: str = "",
    input_key: str = "",
    target_key: str = "",
    label_offset: Optional[int] = None,
) -> Source:
    """Tar shards in `data_dir`, `train-0000.tar` and the like, or in a folder of the split's name in it.

    Class names: `classes.txt` (or labels.txt) there, one a line; else the labels themselves, numbers or sorted words.
    timm's `_info.json` says, where it is there, which shards make a split and how many examples they hold.

    Args:
        holdout: share of each class that is held out where there is one split only.
        train_split: name of the training split where it is no usual one.
        input_key: ending of the image's member; empty: the one image that an example has.
        target_key: ending of the label's member, or key in the `.json`; empty: `cls`, or else `label` in the `.json`.
        label_offset: subtracted from labels that are numbers; None: 0.
    """
    if not data_dir:
        raise UserError("wds needs a folder: data_dir=FOLDER with train-0000.tar and the like")
    found, counts = _splits(data_dir)
    asked = ask(split, found, data_dir, train_split)

    def samples(name):
        return _samples(found[name], counts.get(name), input_key, target_key, data_dir)

    rows = samples(asked.name)

    def training():
        return [target for *_, target in (rows if asked.trained in (None, asked.name) else samples(asked.trained))]

    names = listed_classes(data_dir)
    places, labels, class_names = used(
        asked, [row[4] for row in rows], names, training, data_dir, holdout, label_offset
    )
    rows, paths = [rows[i] for i in places], found[asked.name]
    files, offsets, sizes = (np.array([row[i] for row in rows], np.int64) for i in range(3))

    def fetch(ids):
        images = []
        for i in ids:
            with open(paths[files[i]], "rb", buffering=0) as file:
                file.seek(offsets[i])
                images.append(file.read(sizes[i]) if sizes[i] <= LARGEST else b"")
        return images

    shown = tf.constant([os.fsencode(f"{paths[row[0]]}/{row[3]}") for row in rows])  # in any encoding

    return fetched(
        "wds", asked.shown, fetch, labels, class_names, lambda ids: tf.gather(shown, ids), sizes,
        # The order is part of it: the same examples in other shards are another stream.
        contents=lambda: identity.of_files(
            class_names, [f"{i} {row[3]}" for i, row in enumerate(rows)], labels, sizes
        ),
        files=lambda: list(paths),
    )._replace(undivided=asked.undivided)  # fmt: skip


def _splits(folder):
    """`({split: paths}, {split: examples})`: by timm's _info.json, without counts by the shards' names."""
    found = shard_files(folder, ".tar")
    counts = {}
    for name in ("_info.json", "info.json"):
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        try:
            with open(path, encoding="utf-8") as file:
                stated = json.load(file)["splits"]
            stated = {split: (facts["filenames"], facts.get("num_samples")) for split, facts in stated.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: not as timm writes it, {{splits: {{NAME: {{filenames}}}}}} ({error!r})"
            ) from error
        found = {split: [os.path.join(folder, name) for name in names] for split, (names, _) in stated.items()}
        counts = {split: count for split, (_, count) in stated.items()}
        missing = [path for paths in found.values() for path in paths if not os.path.exists(path)]
        if missing:
            raise UserError(f"{path}: {len(missing)} of its shards are missing: {listed(missing)}; fetch them again")
        break
    if not found:
        compressed = [name for name in sorted(os.listdir(folder)) if name.lower().endswith((".tar.gz", ".tgz"))]
        hint = f"; {listed(compressed)} must be unpacked with gunzip first" if compressed else ""
        raise UserError(f"{folder}: no tar shards (train-0000.tar) in it{hint}")
    for paths in found.values():
        check_complete(paths)
    return found, counts


def _samples(paths, count, input_key, target_key, folder):
    """[[shard, offset, size, key, target]] of all samples that have an image."""

    def find():
        logging.info("%s: reads the headers of %d shards, once", folder, len(paths))
        return [_index(path, input_key.lstrip("."), target_key.lstrip(".")) for path in paths]

    found = remembered("tars", paths, find, input_key=input_key, target_key=target_key, version=1)
    samples = [[shard, *sample] for shard, some in enumerate(found) for sample in some]
    if not samples:
        raise UserError(
            f"{paths[0]}: no examples in it: members must be KEY.jpg (or {', '.join(IMAGES[1:])}) beside KEY.cls or "
            "KEY.json; other endings are named by --config.data.input_key and --config.data.target_key"
        )
    if all(sample[4] is None for sample in samples):
        raise UserError(
            f"{folder}: no example has a label, such as {samples[0][3]}: wanted is a member .{target_key or 'cls'}, or "
            f"{target_key or 'label'!r} in its .json; --config.data.target_key=NAME names another"
        )
    if count is not None and count != len(samples):
        raise UserError(
            f"{folder}: its info says {count:,} examples, {len(paths)} shards hold {len(samples):,}; fetch them again"
        )
    return samples


def _index(path, input_key, target_key):
    """[[offset, size, name, target]] of a shard's samples; UserError where it is damaged or holds one twice."""
    samples = {}  # type: ignore[var-annotated]
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in iter(tar.next, None):
                tar.members = []  # else it keeps all
                folder, name = os.path.split(member.name)
                if not member.isreg() or walk.junk(name) or "." not in name:
                    continue
                stem, _, ending = name.partition(".")
                ending, sample = ending.lower(), samples.setdefault(os.path.join(folder, stem), {})
                if ending in sample:
                    raise UserError(f"{path}: holds {member.name} twice; write the shard again")
                text = ending in ("json", "cls", target_key) and member.size <= LONGEST
                sample[ending] = tar.extractfile(member).read() if text else (member.offset_data, member.size)
            file.seek(tar.offset)
            if file.read(512) != bytes(512):  # tarfile takes damage in the middle for the end
                raise UserError(f"{path}: cut off or damaged at byte {tar.offset:,}; fetch or write it again")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path}: cut off, or no (uncompressed) tar file: {error}; fetch or write it again") from error
    found = []
    for key, sample in samples.items():
        images = [ending for ending in sample if (ending == input_key if input_key else ending in IMAGES)]
        if len(images) > 1:
            raise UserError(
                f"{path}: {key} has several images, {listed(images)}; --config.data.input_key={images[0]} names one"
            )
        if images:
            found.append([*sample[images[0]], f"{key}.{images[0]}", _target(sample, target_key, f"{path}: {key}")])
    return found


def _target(sample, target_key, where):
    """The stored label of a sample, int or str, or None where it has none."""
    try:
        ending = target_key or "cls"
        if isinstance(sample.get(ending), bytes) and ending != "json":
            text = sample[ending].decode("utf-8").strip()
            return int(text) if re.fullmatch(r"-?\d+", text) else text or None
        stored = json.loads(sample["json"]) if isinstance(sample.get("json"), bytes) else {}
        value = stored.get(target_key or "label")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{where}: its label cannot be read ({error}); write the shard again") from error
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise UserError(f"{where}: the label {value!r} in its .json is neither a whole number nor a word")
    return value

"""Tells what kind of data a folder holds, by the names in it."""

import os
import re
from typing import Optional, Tuple

from g16net.data import layout, shards, splits, walk
from g16net.errors import UserError, suggest

NAMES = ("digits", "synthetic", "idx", "cifar", "folder", "tfrecord", "parquet", "arrow", "wds")
NAMED = ("tfds:NAME", "hf:NAME")


def detect(text: str) -> Tuple[str, str]:
    """`(source name, data_dir)` of what `--data=` names: a source by name, `tfds:NAME`, `hf:NAME`, or a folder.

    UserError where the folder is not there or is of no known kind.
    """
    text = text if os.path.exists(text) else os.path.expanduser(text)  # bash leaves the ~ in --data=~/photos
    if text in NAMES or text.startswith(("tfds:", "hf:")):
        return text, ""
    if not os.path.isdir(text):
        if os.path.exists(text):
            if text.endswith((".parquet", ".tar")):
                raise UserError(f"--data={text} is one shard; name its folder: --data={os.path.dirname(text) or '.'}")
            raise UserError(f"--data={text} is a file; name the folder that holds train/CLASS/IMAGE or CLASS/IMAGE")
        if re.search(r"[{*?\[]", text):
            text = os.path.dirname(text) or "."
            raise UserError(f"--data takes a folder, no pattern: --data={text} reads the shards in it")
        hint = "" if os.sep in text else f" As the name of a source: {suggest(text, NAMES + NAMED)}"
        raise UserError(f"--data={text}: no such folder (looked at {os.path.abspath(text)}).{hint}")
    for folder in _inward(text):
        kind = _kind(folder)
        if kind != "folder":
            return kind, folder
    if walk.entries(text)[0]:
        return "folder", text
    names, images = sorted(map(walk.shown, os.listdir(text))), walk.has_image(text)
    above = walk.shown(os.path.dirname(os.path.abspath(text)))
    raise UserError(
        f"--data={text}: neither class folders (class/image.jpg, or train/class/image.jpg), nor TFRecords "
        "(train-00000-of-01024), nor IDX files (train-images-idx3-ubyte), nor shards "
        "(train-00000.parquet, train-0000.tar), nor prepared TFDS data (imagenet2012/) "
        f"in it; it holds {', '.join(names[:5]) or 'nothing'}{layout.tables(layout.Look(text))}"
        + (f". If these are the images of one class, name the folder above: --data={above}" if images else "")
    )


def _inward(folder):
    """`folder`, and while there is a single folder in it that, too."""
    seen = set()
    while os.path.realpath(folder) not in seen:
        seen.add(os.path.realpath(folder))
        yield folder
        inside = walk.entries(folder)[0]
        if len(inside) == 1:
            folder = inside[0].path


def prepared_imagenet(data_dir: str = "") -> Optional[Tuple[str, str]]:
    """`("tfds:imagenet2012", data_dir)` where TFDS has it prepared, else None. Looks at no network."""
    folder = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return ("tfds:imagenet2012", folder) if _is_tfds(os.path.join(folder, "imagenet2012")) else None


def _kind(folder):
    """The kind of what lies in `folder`; "folder" where it is none of the others. UserError where it is several."""
    names = sorted(name for name in os.listdir(folder) if not walk.junk(name))
    if any(re.match(r".*-images[-.]idx3-ubyte(\.gz)?$", name, re.IGNORECASE) for name in names):
        return "idx"
    if any(map(splits.record_file, names)):
        return "tfrecord"
    kind = shards.cifar_version(names)
    if kind == "pickle":
        raise UserError(shards.cifar_pickles(folder))
    if kind:
        return "cifar"
    if shards.arrow_files(folder):
        return "arrow"
    folders = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    if any(
        splits.role(name) and any(map(splits.record_file, os.listdir(os.path.join(folder, name)))) for name in folders
    ):
        return "tfrecord"
    prepared = [name for name in folders if _is_tfds(os.path.join(folder, name))]
    if len(prepared) > 1:
        raise UserError(
            f"{folder}: several sets that TFDS has prepared, {walk.listed(prepared)}; name one: "
            f"--data=tfds:{prepared[0]} --config.data.dir={folder}"
        )
    if prepared:
        return f"tfds:{prepared[0]}"
    for kind, ending in (("parquet", ".parquet"), ("wds", ".tar")):
        if _shards(folder, ending):
            return kind
    return "folder"


def _shards(folder, ending):
    """Whether files with `ending` are the data here: numbered ones, or any where no images lie beside them."""
    found, others = [], False
    for parent, inner, names in os.walk(folder):
        below = os.path.relpath(parent, folder).count(os.sep) + (parent != folder)
        inner[:] = [] if below == shards.DEPTH else sorted(name for name in inner if not walk.junk(name))[:64]
        names = [name for name in names if not walk.junk(name)]
        found += [name for name in names if name.lower().endswith(ending)]
        others = others or any(map(walk.is_image, names))
    numbered = any(re.search(r"(^|[-_.])\d+(-[0-9a-f]{16})?\.", name) for name in found)
    return bool(found) and (numbered or not others)


def _is_tfds(folder):
    """Whether `folder` is one prepared dataset: [config/]version/dataset_info.json below it."""
    for root, folders, files in os.walk(folder):
        if "dataset_info.json" in files:
            return True
        if root[len(folder) :].count(os.sep) >= 2:
            folders.clear()
    return False

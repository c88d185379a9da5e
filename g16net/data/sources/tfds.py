"""TensorFlow Datasets by name: prepared classification sets, read from their record files without decoding."""

import os
from typing import Optional

import tensorflow as tf

from g16net.data import identity
from g16net.data.sources.base import Source
from g16net.data.sources.records import CYCLE, WINDOW, Shards, sharded
from g16net.data.splits import choose
from g16net.data.walk import listed
from g16net.errors import UserError, suggest


def open_tfds(
    split: str,
    data_dir: Optional[str] = None,
    name: str = "imagenet2012",
    download: bool = False,
    cycle: int = CYCLE,
    window: int = WINDOW,
) -> Source:
    """A prepared TFDS set of images with one label each. Looks at no network unless `download`.

    The images stay encoded (TFDS calls it SkipDecoding): the training transform decodes only the part it needs.

    Args:
        split: also a part of one, such as "train[:90%]".
        data_dir: TFDS' data folder; None: TFDS_DATA_DIR, or ~/tensorflow_datasets.
        name: NAME, NAME/CONFIG, NAME:VERSION, as TFDS has it.
        download: let TFDS fetch and prepare what is not there.
        cycle, window: see `records.sharded`.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(f"tfds:{name}: pip install tensorflow-datasets ({error})") from error
    data_dir = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = _prepared(name, data_dir)
    if folder is None:
        _refuse_unknown(tensorflow_datasets, name)
        if not download:
            raise UserError(
                f"tfds:{name} is not prepared in {os.path.abspath(data_dir)} (looked for {name}/.../dataset_info.json "
                "there). Prepare it there, name its folder as data_dir, or give download=True to let TFDS fetch it"
            )
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    else:
        builder = tensorflow_datasets.builder_from_directory(folder)
    info = builder.info
    image, label = _keys(tensorflow_datasets, info, name)
    if info.file_format is not None and info.file_format.value != "tfrecord":
        raise UserError(
            f"tfds:{name} is prepared as {info.file_format.value}; prepare it as TFRecords (file_format='tfrecord')"
        )

    base = split.split("[")[0]
    part = "A part of a split does: --config.data.train_split='train[:80%]' --config.data.eval_split='train[80%:]'"
    split = choose(base, info.splits, f"tfds:{name}", part) + split[len(base) :]
    parts = info.splits[split].file_instructions
    if not parts:
        raise UserError(f"tfds:{name}, split {split}: no images")
    paths = [os.fspath(part.filename) for part in parts]
    missing = [path for path in paths if not tf.io.gfile.exists(path)]
    if missing:
        raise UserError(
            f"tfds:{name}, split {split}: {len(missing)} of {len(paths)} record files are missing, the first is "
            f"{missing[0]}. Fetch or prepare them again"
        )
    counts = [part.examples_in_shard - part.skip if part.take == -1 else part.take for part in parts]
    share = sum(counts) / sum(part.examples_in_shard for part in parts)
    sizes = [tf.io.gfile.stat(path).length for path in paths]
    size = share * sum(sizes)
    keys = {image: tf.io.FixedLenFeature([], tf.string), label: tf.io.FixedLenFeature([], tf.int64)}

    def parse(record, _):
        fields = tf.io.parse_single_example(record, keys)
        return {"image": fields[image], "label": tf.cast(fields[label], tf.int32)}

    class_names, skips = info.features[label].names, [part.skip for part in parts]
    shards = Shards.of(paths, counts, size, skips)

    def contents():
        return identity.of_records(class_names, map(os.path.basename, paths), counts, sizes, skips)

    return sharded(f"tfds:{name}", split, shards, class_names, parse, cycle, window, contents)


def _prepared(name, data_dir):
    """The folder of the prepared set (its newest version unless one is named), or None.

    UserError where it has several configurations and `name` does not say which.
    """
    name, _, version = name.partition(":")
    found, root = [], os.path.join(data_dir, name)
    for parent, folders, files in os.walk(root):
        if "dataset_info.json" in files and version in ("", os.path.basename(parent)):
            found.append(parent)
        if os.path.relpath(parent, root).count(os.sep) >= 1:
            folders.clear()
    configs = sorted({os.path.dirname(os.path.relpath(folder, root)) for folder in found})
    if configs[:1] == [""]:  # without one: the set by its name alone
        found = [folder for folder in found if os.path.dirname(folder) == root]
    elif len(configs) > 1:
        raise UserError(
            f"tfds:{name}: {root} holds its configurations {listed(configs)}; name one: "
            f"--data=tfds:{name}/{configs[0]} --config.data.dir={data_dir}"
        )

    def newest(folder):
        return [int(part) if part.isdigit() else -1 for part in os.path.basename(folder).split(".")], folder

    return max(found, key=newest, default=None)


def _refuse_unknown(tensorflow_datasets, name):
    plain = name.split(":")[0].split("/")[0]
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    if plain not in known:
        near = suggest(plain, known)
        raise UserError(f"tfds:{name}: TFDS has no such set.{' ' + near if near.startswith('Did') else ''}")


def _keys(tensorflow_datasets, info, name):
    """Names of the image and the label; UserError unless the set has just these to supervise with."""
    keys = info.supervised_keys
    features = tensorflow_datasets.features
    kinds = [type(info.features[key]) for key in keys or () if isinstance(key, str)]
    if kinds != [features.Image, features.ClassLabel]:
        raise UserError(f"tfds:{name} is no set of images with one label each (it supervises {keys})")
    return keys

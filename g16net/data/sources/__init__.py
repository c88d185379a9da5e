"""Sources: from a name to the examples of one split, all with one interface (`base.Source`).

Two engines do the work. Sources that find any example by its index (arrays, file lists) give each epoch one permutation
of all examples (`base.indexed`). Sources of record files (TFRecord, TFDS) permute the files, read some side by side and
permute windows of what they read (`records.sharded`). Both start anywhere without replaying what came before.
"""

from g16net.compat import tensorflow_only  # noqa: F401  isort: skip  says first what is missing

from typing import Any, Optional

from g16net.data.sources.arrays import open_digits, open_idx, open_synthetic
from g16net.data.sources.base import TRAIN, VALIDATION, Source
from g16net.data.sources.folder import open_folder
from g16net.data.sources.tfds import open_tfds
from g16net.data.sources.tfrecord import open_tfrecord
from g16net.errors import UserError, suggest

__all__ = ["KINDS", "TRAIN", "VALIDATION", "Source", "open_source"]

KINDS = {
    "digits": open_digits,
    "idx": open_idx,
    "tfrecord": open_tfrecord,
    "folder": open_folder,
    "synthetic": open_synthetic,
}


def open_source(name: str, split: str = "train", data_dir: Optional[str] = None, **options: Any) -> Source:
    """Opens one split of a data set.

    Args:
        name: "digits", "idx", "tfrecord", "folder", "synthetic", or "tfds:NAME" (also "tfds:NAME/CONFIG:VERSION").
        split: "train" or "validation" (also val, valid, test), or what the data set calls it.
        data_dir: the folder of the data; digits and synthetic need none.
        **options: of the kind; see the functions of `KINDS`.

    Returns:
        A `Source`.

    Raises:
        UserError (a ValueError): an unknown name or split, or data that is not there or not whole; the message says
            what was found, where it looked and what to do.
    """
    if name.startswith("tfds:"):
        source = open_tfds(split, data_dir or None, name=name[len("tfds:") :], **options)
    elif name in KINDS:
        source = KINDS[name](split, data_dir or None, **options)
    else:
        raise UserError(f"no data source {name!r}: {suggest(name, tuple(KINDS) + ('tfds:NAME',))}")
    if source.num_classes < 2:
        raise UserError(
            f"{name}, split {source.split}: one class only ({source.class_names[0]!r}); a classifier needs two or more"
        )
    return source

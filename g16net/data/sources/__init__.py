"""Sources: from a name to the examples of one split, all with one interface (`base.Source`).

Two engines do the work. Sources that find any example by its index (arrays, file lists; tar shards and Arrow files by
`fetched`) give each epoch one permutation of all examples (`base.indexed`). Sources of record files (TFRecord, TFDS,
Parquet) permute the files, read some side by side and permute windows of what they read (`records.sharded`). Both start
anywhere without replaying what came before.
"""

from g16net.compat import tensorflow_only  # noqa: F401  isort: skip  says first what is missing

from typing import Any, Callable, Dict, Optional, Tuple

from g16net.data.sources.arrays import open_digits, open_idx, open_synthetic
from g16net.data.sources.arrow import open_arrow
from g16net.data.sources.base import TRAIN, VALIDATION, Source
from g16net.data.sources.cifar import open_cifar
from g16net.data.sources.folder import open_folder
from g16net.data.sources.hub import open_hf
from g16net.data.sources.parquet import open_parquet
from g16net.data.sources.tfds import open_tfds
from g16net.data.sources.tfrecord import open_tfrecord
from g16net.data.sources.webdataset import open_webdataset
from g16net.errors import UserError, suggest

__all__ = ["HERE", "KINDS", "NAMED", "OPTIONS", "TRAIN", "VALIDATION", "Source", "open_source"]

KINDS: Dict[str, Callable[..., Source]] = {
    "digits": open_digits,
    "idx": open_idx,
    "tfrecord": open_tfrecord,
    "folder": open_folder,
    "cifar": open_cifar,
    "parquet": open_parquet,
    "arrow": open_arrow,
    "wds": open_webdataset,
    "synthetic": open_synthetic,
}
NAMED: Dict[str, Callable[..., Source]] = {"tfds": open_tfds, "hf": open_hf}  # tfds:NAME, hf:NAME
_TABLE = ("holdout", "train_split", "input_key", "target_key", "label_offset")
OPTIONS: Dict[str, Tuple[str, ...]] = {  # the fields of `data` that each takes, beside those that all take
    "digits": (),
    "idx": ("label_offset",),
    "tfrecord": ("label_offset",),
    "folder": ("holdout", "train_split", "layout"),
    "cifar": ("target_key",),
    "parquet": _TABLE,
    "arrow": _TABLE,
    "wds": _TABLE,
    "synthetic": ("num_examples", "num_classes"),
    "tfds": ("download",),
    "hf": (*_TABLE, "download"),
}
HERE = ("parquet", "arrow", "wds", "hf")  # read by Python, and so not by the workers of a data service


def open_source(name: str, split: str = "train", data_dir: Optional[str] = None, **options: Any) -> Source:
    """Opens one split of a data set.

    Args:
        name: one of `KINDS`, or "tfds:NAME" (also "tfds:NAME/CONFIG:VERSION"), "hf:OWNER/NAME" (":CONFIG").
        split: "train" or "validation" (also val, valid, test), or what the data set calls it.
        data_dir: the folder of the data; digits and synthetic need none.
        **options: of the kind; see the functions of `KINDS`.

    Returns:
        A `Source`.

    Raises:
        UserError (a ValueError): an unknown name or split, or data that is not there or not whole; the message says
            what was found, where it looked and what to do.
    """
    kind, _, inner = name.partition(":")
    if inner and kind in NAMED:
        source = NAMED[kind](split, data_dir or None, name=inner, **options)
    elif name in KINDS:
        source = KINDS[name](split, data_dir or None, **options)
    else:
        raise UserError(f"no data source {name!r}: {suggest(name, tuple(KINDS) + ('tfds:NAME', 'hf:NAME'))}")
    if source.num_classes < 2:
        raise UserError(
            f"{name}, split {source.split}: one class only ({source.class_names[0]!r}); a classifier needs two or more"
        )
    return source

"""Which part of a data set a name stands for: `train`, `Training`, `seg_train`, `train_images`, `val2017`, `t10k`."""

import re
from typing import Any, Optional

from absl import logging

from g16net.data.walk import once
from g16net.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
ALL = "all"  # of data without splits, for evaluations: what is held out and what is not
ROLES = {  # the words for each part; the first are taken first where there are several
    TRAIN: ("train", "training", "trn", "trains", "trainset", "trainval"),
    VALIDATION: (
        "validation val valid dev eval evaluation validate validating validset valset devset development holdout"
    ).split(),
    TEST: ("test", "testing", "tst", "tests", "testset", "t10k"),
}
# A request for one of these takes what there is to measure on; other names are taken at their word.
GENERAL = ("validation", "val", "valid", "test", "eval")
_PLAIN = frozenset(  # say nothing, before or after the word that does: my_train_images
    "set sets data dataset images image imgs img pics pictures photos split splits folder files samples crops resized "
    "jpg "
    "jpeg png raw".split()
)
_WORDS = {word: role for role, words in ROLES.items() for word in words}


def role(name: str) -> Optional[str]:
    """TRAIN, VALIDATION or TEST as `name` says it in any case, alone or as its first or last word; None: none of them.

    `train_val` (and trainval) is what a test is kept apart from: training images.
    """
    words = _words(name)
    said = {_WORDS[word] for word in words if word in _WORDS}
    if said == {TRAIN, VALIDATION}:
        return TRAIN
    if len(said) != 1 or not {words[0], words[-1]} & set(_WORDS):
        return None
    return said.pop()


def is_plain(name: str) -> bool:
    """Whether `name` says nothing but the part: `test`, `Test_images`; not `test_tube`."""
    return len(_words(name)) == 1 and role(name) is not None


def _words(name):
    words = [word.lower() for word in re.findall(r"t10k|[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    return [word for word in words if word not in _PLAIN] or [""]


def record_file(name: str) -> Any:
    """The split in the name of a record file (`train-00000-of-01024`, `seg_val.tfrecord`), or None."""
    match = re.match(r"(?:.*[-.])?([A-Za-z]\w*)(?:\.tfrecords?)?-\d{5}-of-\d{5}(\.tfrecords?)?$", name)
    match = match or re.match(r"(?:.*[-.])?([A-Za-z]\w*)\.tfrecords?$", name)
    return match and match.group(1)


def share(split: str, train_split: str, where: str) -> str:
    """The share of data without splits that `split` means: TRAIN, VALIDATION or ALL.

    Raises:
        UserError: none of them; a training split of ALL, with what is held out in it.
    """
    if train_split.lower() == ALL:
        raise UserError(
            f"{where}: data.train_split={train_split} would train on the images that are held out for the evaluation; "
            "leave it out, or hold out fewer with --config.data.holdout"
        )
    return choose(split, (TRAIN, VALIDATION, ALL), where)


def choose(split: str, available: Any, where: str, remedy: str = "") -> Any:
    """The name in `available` that `split` means: itself in any case, or another usual name of the same part.

    Validation comes before test where a general word (val, test, eval, ...) asks for what there is to measure on.

    Raises:
        UserError: there is none, or there are several. `remedy` is appended.
    """
    available = sorted(available)
    same = [name for name in available if name.lower() == split.lower()]
    if split in available or len(same) == 1:
        return split if split in available else same[0]
    wanted = _WORDS.get(split.lower())
    roles = [wanted] if wanted else []
    if split.lower() in GENERAL:
        roles = [TEST, VALIDATION] if wanted == TEST else [VALIDATION, TEST]
    for part in roles:
        found = [name for name in available if role(name) == part]
        plain = [name for word in ROLES[part] for name in found if name.lower() == word]
        found = plain[:1] or found
        if len(found) > 1:
            raise UserError(
                f"{where}: {' and '.join(map(repr, found))} may each be the split {split!r}; name one: "
                f"--config.data.{'train' if part == TRAIN else 'eval'}_split={found[0]}"
            )
        if found:
            if found[0] not in (split, "val"):
                once(logging.INFO, f"{where}: split {found[0]!r} stands for {split!r}")
            return found[0]
    there = ", ".join(map(repr, available)) or "none"
    raise UserError(f"{where}: no split {split!r}; there is {there}{'. ' if remedy else ''}{remedy}")

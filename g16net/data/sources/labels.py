"""What stored labels mean, and which examples of a data set of one or more splits are used."""

import os
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from absl import logging

from g16net.data import walk
from g16net.data.sources.base import TRAIN, VALIDATION, check_labels, counted_from_1, held_out, listed
from g16net.data.splits import ALL, choose, role, share
from g16net.errors import UserError


class Asked(NamedTuple):
    """A split that was asked for.

    Attributes:
        name: of the files, a key of what was found.
        trained: that of the training split; None: there is none.
        part: TRAIN, VALIDATION or ALL where there is one split only, of which a part is held out; None: the whole split
            of several.
    """

    name: str
    trained: Optional[str]
    part: Optional[str]

    @property
    def shown(self) -> str:
        return self.part or self.name

    @property
    def undivided(self) -> bool:
        return self.part is not None

    @property
    def training(self) -> bool:
        return (self.part or role(self.name)) == TRAIN or self.name == self.trained and self.part is None


def ask(split: str, found: Any, where: str, train_split: str = "") -> Asked:
    """Which of the splits `found` is meant by `split`. A single one that is no test split is both, by `held_out`."""
    if len(found) == 1:
        (sole,) = found
        if role(sole) in (None, TRAIN):
            trained = TRAIN if train_split == sole else train_split
            whole = role(sole) is None and split != train_split
            asked = (ALL if whole else TRAIN) if split == sole else split
            return Asked(sole, sole, share(asked, trained, where))
    remedy = "Name the splits: --config.data.train_split=NAME --config.data.eval_split=NAME"
    chosen = choose(split, found, where, remedy)
    named = train_split or (TRAIN if any(role(name) == TRAIN for name in found) else "")
    return Asked(chosen, choose(named, found, where, remedy) if named else None, None)


class Labels(NamedTuple):
    """The examples that are used, by their places among all, with their labels.

    Attributes:
        places: int64 [used], ascending.
        labels: int32 [used].
        class_names: one a class.
    """

    places: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]


def used(
    asked: Asked,
    values: Any,
    names: Any,
    training: Callable[[], Any],
    where: str,
    holdout: float,
    label_offset: Optional[int] = None,
) -> Labels:
    """What the stored labels mean, and which examples of the split are used.

    Examples without a label (None, -1) are left out, with a warning, and so is what is not in `asked.part`.

    Args:
        values: stored labels of all examples of `asked.name`: int, str or None each.
        names: the classes' names where the data knows them; None: whole numbers name themselves, from 0 to the training
            split's largest, and words are sorted.
        training: () -> `values` of the training split.
        holdout: share of each class for VALIDATION.
        label_offset: subtracted from labels that are numbers; None: 0.

    Raises:
        UserError: no labels, numbers outside the classes, a word that is no class, a class without training image.
    """
    where, offset = f"{where}, split {asked.shown}", label_offset or 0
    values = _values(values, where)
    there = np.flatnonzero([value is not None for value in values])
    if not len(there):
        raise UserError(
            f"{where}: {len(values)} images, none with a label (null or -1, as test sets are published without); name "
            "another split: --config.data.eval_split=NAME"
        )
    if len(there) < len(values):
        logging.warning("%s: %d of %d examples have no label; they are left out", where, len(values) - len(there),
                        len(values))  # fmt: skip
    if names is None:
        known = [value for value in _values(training(), where) if value is not None]
        words = any(isinstance(value, str) for value in known)
        names = sorted(set(known)) if words else [str(i) for i in range(offset, max(known, default=-1) + 1)]
    remedy = f"The classes are {listed(map(repr, names))}."
    if any(isinstance(values[i], str) for i in there):
        if offset:
            raise UserError(
                f"{where}: data.label_offset={offset} is for numbers, and the labels are words; leave it out"
            )
        place = {name: label for label, name in enumerate(names)}
        unknown = sorted({values[i] for i in there if values[i] not in place})
        if unknown:
            raise UserError(
                f"{where}: labels that are none of the {len(names)} classes: {listed(map(repr, unknown))}; the classes "
                f"are {listed(map(repr, names))}"
            )
        labels = np.array([place[values[i]] for i in there], np.int64)
    else:
        labels = np.array([values[i] for i in there], np.int64) - offset
        remedy = counted_from_1(labels, offset) or remedy
    check_labels(labels, len(names), where, names if asked.training else None, remedy)
    labels = labels.astype(np.int32)
    if asked.part in (TRAIN, VALIDATION):
        held = held_out(labels, holdout)
        walk.once(
            logging.INFO,
            f"{where}: there is no other split; {holdout:g} of each class, drawn once, is the validation split: "
            f"{held.sum()} of {len(held)} images",
        )
        keep = held == (asked.part == VALIDATION)
        there, labels = there[keep], labels[keep]
        if not len(labels):
            raise UserError(
                f"{where}: holding out {holdout:g} of each class leaves no image for it; add images or set "
                "--config.data.holdout=0.5"
            )
    return Labels(there.astype(np.int64), labels, tuple(names))


def _values(values, where):
    """int, str or None each. UserError for a mixture of numbers and words."""
    values = [None if value is None or value == -1 else value for value in values]
    words = sum(isinstance(value, str) for value in values)
    if words and words + values.count(None) < len(values):
        raise UserError(f"{where}: some labels are numbers and some are words; write all of them one way")
    return values


def listed_classes(folder: str) -> Optional[Tuple[str, ...]]:
    """The lines of classes.txt, labels.txt or class_names.txt in `folder`; None where there is none of them."""
    for name in ("classes.txt", "labels.txt", "class_names.txt"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                return tuple(line.strip() for line in file if line.strip())
    return None

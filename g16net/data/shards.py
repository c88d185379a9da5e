"""Files that together are a data set, known by their names: Parquet and tar shards, Arrow files, CIFAR's batches."""

import json
import os
import re
from typing import Any, Dict, List, Sequence

from g16net.data import walk
from g16net.data.splits import TRAIN, role
from g16net.data.walk import listed
from g16net.errors import UserError

DEPTH = 2  # folders below the one named that are looked into


def shard_files(folder: str, ending: str) -> Dict[str, List[str]]:
    """{split: sorted paths} of the files with `ending` in `folder` and below it.

    The split is what a name says before its number (`train-00000-of-00294`, `imagenet1k-validation-03`), or its
    folder (`train/0000`), or TRAIN where neither says any.

    Raises:
        UserError: two folders hold the same split, as the configurations of a set on the Hugging Face hub do.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder (looked at {os.path.abspath(folder)})")
    found: Dict[str, Dict[str, List[str]]] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        below = os.path.relpath(parent, folder).split(os.sep) if parent != folder else []
        folders[:] = [] if len(below) == DEPTH else sorted(name for name in folders if not walk.junk(name))
        inner = next((name for name in reversed(below) if role(name)), None)
        place = os.path.join(folder, *(name for name in below if not role(name)))
        for name in files:
            if name.lower().endswith(ending) and not walk.junk(name):
                stem = _stem(name[: -len(ending)])
                split = stem if role(stem) or not inner and stem else inner or TRAIN
                found.setdefault(split, {}).setdefault(place, []).append(os.path.join(parent, name))
    for split, places in found.items():
        if len(places) > 1:
            raise UserError(
                f"{folder}: the split {split!r} lies in {listed(map(os.path.basename, sorted(places)))}: several "
                f"configurations of a set; name the folder of one: --data={sorted(places)[0]}"
            )
    return {split: sorted(sum(places.values(), [])) for split, places in found.items()}


def _stem(name):
    """What a file's name says before the number of the shard."""
    name = re.sub(r"-[0-9a-f]{16}$", "", name)  # the hub's older files end with a digest
    return re.sub(r"(^|[-_.])\d+([-_]of[-_]\d+)?$", "", name)


def check_complete(paths: Sequence[str]) -> None:
    """UserError where file names count to a number of files that are not all there."""
    places = [re.search(r"-(\d{5})-of-(\d{5})", os.path.basename(path)) for path in paths]
    totals = {int(place.group(2)) for place in places if place}
    if len(totals) > 1:
        raise UserError(
            f"{os.path.dirname(paths[0])}: files of {len(totals)} writings of one split lie together "
            f"(of {', '.join(str(t) for t in sorted(totals))} files); keep one"
        )
    for total in totals:
        there = [int(place.group(1)) for place in places if place]
        missing = sorted(set(range(total)) - set(there))
        if missing:
            example = os.path.basename(paths[0])
            names = [re.sub(r"-\d{5}-of", f"-{number:05d}-of", example) for number in missing]
            raise UserError(
                f"{os.path.dirname(paths[0])}: {len(missing)} of {total} record files are missing: {listed(names)}. "
                "Fetch or write them again"
            )
        if len(there) > total:
            raise UserError(f"{os.path.dirname(paths[0])}: {len(there)} record files where the names say {total}")


def arrow_files(folder: str) -> Dict[str, List[str]]:
    """{split: paths} of the Arrow files that `folder` holds as `datasets` writes them; empty where it does not."""
    found: Dict[str, List[str]] = {}
    inner = sorted(name for name in os.listdir(folder) if os.path.exists(os.path.join(folder, name, "state.json")))
    for name in ["", *inner]:
        state = os.path.join(folder, name, "state.json")
        if os.path.exists(state):
            with open(state, encoding="utf-8") as file:
                stored = json.load(file)
            if stored.get("_indices_data_files"):
                raise UserError(f"{folder}: rows chosen by indices; save flatten_indices() of it instead")
            paths = [os.path.join(folder, name, one["filename"]) for one in stored["_data_files"]]
            found[name or stored.get("_split") or "train"] = paths
    if not found and os.path.exists(os.path.join(folder, "dataset_info.json")):  # a folder of the cache
        for name in sorted(os.listdir(folder)):
            match = re.match(r".*?-([^-]+)(-\d{5}-of-\d{5})?\.arrow$", name)
            if match and not name.startswith("cache-"):
                found.setdefault(match.group(1), []).append(os.path.join(folder, name))
        for paths in found.values():
            check_complete(paths)
    missing = [path for paths in found.values() for path in paths if not os.path.exists(path)]
    if missing:
        raise UserError(f"{folder}: {len(missing)} of its files are missing: {listed(missing)}; copy it again")
    return found


def cifar_version(names: Any) -> str:
    """cifar10 or cifar100 as the names of files in a folder tell; pickle for the Python version; empty for none."""
    names = set(names)
    if any(re.fullmatch(r"data_batch_\d+\.bin", name) for name in names):
        return "cifar10"
    if {"train.bin", "test.bin"} & names and {"fine_label_names.txt", "coarse_label_names.txt"} & names:
        return "cifar100"
    python10, python100 = {"data_batch_1", "batches.meta"}, {"train", "test", "meta"}
    return "pickle" if python10 <= names or python100 <= names and "file.txt~" in names else ""


def cifar_pickles(folder: str) -> str:
    """What to say of a folder with the pickles."""
    return (
        f"{folder}: the Python version of CIFAR, pickles, which can run any code when they are read and are never "
        "read here. Take the archive of the binary version from the same page (cifar-10-binary.tar.gz, "
        "cifar-100-binary.tar.gz)"
    )

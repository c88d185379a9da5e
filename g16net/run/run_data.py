"""What data a run was trained on: kept with the run and in its checkpoints, and compared before anything is written.

    WORKDIR/data.json      the facts of the training split (`data.identity`), where it lay, and which images it was
                           tested on
    WORKDIR/classes.json   the class names alone, for people and scripts
    checkpoints/STEP/manifest.json   the facts again, as "data": what these weights were trained on

The newest checkpoint is believed first. Runs of versions that kept no facts have the class names alone: these are
compared, and the facts of what the run goes on with are kept from then on.

A resumed run is the run that was interrupted, so its training split must be the one that it was begun with, wherever it
lies by now; `data.allow_changed` lets it go on with another one of the same classes. A finished run is never trained
again, and its folder may have changed since.
"""

import functools
import json
import os
from typing import Any, Dict, List, Optional

from absl import logging
from ml_collections import ConfigDict

from g16net.data import identity, splits
from g16net.data.sources.base import Source
from g16net.errors import UserError
from g16net.models import portable
from g16net.run import checkpoint, records
from g16net.run.workdir import Workdir


def known(workdir: str) -> Optional[Dict[str, Any]]:
    """The facts of the data that the run in `workdir` was trained on, or its {"classes"} alone; None: it says none."""
    data = checkpoint.newest_manifest(Workdir(workdir).checkpoints).get("data") or _read(Workdir(workdir).data)
    if data:
        return data
    classes = _read(Workdir(workdir).classes)
    return {"classes": classes} if classes else None


def class_names(workdir: str) -> List[str]:
    """The class names of the run in `workdir`; UserError where none is."""
    data = known(workdir)
    if not data:
        raise UserError(f"{workdir!r} holds no trained run (no classes.json); train there first with --mode=train")
    return list(data["classes"])


def num_classes(config: ConfigDict, workdir: str) -> int:
    """Classes of the run in `workdir`, or of the config where it holds none."""
    data = known(workdir)
    return len(data["classes"]) if data else config.data.num_classes


def class_names_of_weights(path: str) -> Optional[List[str]]:
    """The class names of what `init.checkpoint` names: a workdir, a checkpoint's folder, or a `.keras` file that
    has them or lies in a run's folder (or in that of its fine-tuning). None where nothing tells them."""
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "state.index")):
        data = known(path) or checkpoint.newest_manifest(path).get("data") or known(os.path.dirname(path.rstrip("/")))
    elif os.path.isdir(path):
        data = checkpoint.manifest_of(path).get("data") or known(os.path.dirname(os.path.dirname(path.rstrip("/"))))
    else:
        names = portable.class_names(path)
        if names is not None:
            return names
        folder = os.path.dirname(os.path.abspath(path))
        data = known(folder) or known(os.path.dirname(os.path.dirname(folder)))
    return list(data["classes"]) if data else None


def finished(config: ConfigDict, workdir: str) -> bool:
    """Whether the training in `workdir` has reached the last epoch of `config`."""
    return checkpoint.newest_manifest(Workdir(workdir).checkpoints).get("epoch", 0) >= config.run.epochs


def check(config: ConfigDict, workdir: str, source: Source, done: bool, batch: Optional[int] = None) -> str:
    """Compares the training split `source` with the one that the run in `workdir` was begun with. Writes nothing.

    Args:
        done: whether the run is finished, so that it is only used.
        batch: images in a weight update; None: `run.global_batch`.

    Returns:
        What differs, in words, where the run may be used all the same; empty where nothing does.

    Raises:
        UserError: other classes, or classes that changed places; another training split for a run that would be
            resumed; another data set for a finished one.
    """
    old = known(workdir) if Workdir(workdir).begun else None
    if old is None:
        return ""
    new, here = facts(config, source), where(config)
    changed = identity.differences(old, new)
    weights = f"--workdir=NEW --config.init.checkpoint={workdir}"
    restore = "Restore the data" + (f", or name that of the run{_was(old, new)}" if _was(old, new) else "")
    if identity.class_differences(old["classes"], new["classes"]):
        raise UserError(
            f"{workdir!r} was trained on other classes than {here} has: {'; '.join(changed)}. {restore}. To train on "
            f"these classes, give another --workdir; from the weights of this run: {weights}"
        )
    if "digest" not in old and not done:
        warn(
            f"{workdir} is of a version that kept no record of its training split: its classes are those of {here}; "
            "whether the images are the same, nobody can tell"
        )
    if not changed:
        return ""
    text = "; ".join(changed)
    before, now = _steps(workdir, old, new, batch or config.run.global_batch)
    if config.data.allow_changed:
        warn(f"{workdir}: the training split is not the one that the run was begun with: {text}")
        return text
    if identity.changed_places(old, new):
        raise UserError(
            f"{workdir!r} was trained on {here} before classes changed places there: {text}. Labels go by the folders' "
            f"names, so that these would be trained as one another. {restore}; or start anew: {weights}; or, where the "
            "names are right now and were not: --config.data.allow_changed=true"
        )
    if not done:
        go_on = "or let it go on with the changed data: --config.data.allow_changed=true"
        if before != now:
            go_on = f"it cannot go on with the changed data, whose epoch has {now} weight updates and had {before}"
        raise UserError(
            f"{workdir!r} was begun with another training split than {here} is now: {text}. A run that is resumed goes "
            f"on exactly where it was, with its own data. {restore}; or start a new run from its weights: {weights}; "
            f"{go_on}"
        )
    if old.get("dir") is not None and old["dir"] != new["dir"]:
        raise UserError(
            f"{workdir!r} was trained on another data set than {here}: {text}. {restore}; or train on this one in "
            "another --workdir. --mode=evaluate shows the run's figures on it; for more: "
            "--config.data.allow_changed=true"
        )
    warn(
        f"{workdir} is finished, and its training split has changed since: {text}. It is not trained again; another "
        "--workdir trains on the data as it is now"
    )
    return text


def _steps(workdir, old, new, batch):
    """Weight updates in an epoch: those after which the run's checkpoint was made, and those of the facts `new`."""
    now = new["images"] // batch
    manifest = checkpoint.newest_manifest(Workdir(workdir).checkpoints)
    return (manifest.get("steps") or old.get("images", new["images"]) // batch) if manifest else now, now


def remark(config: ConfigDict, workdir: str, source: Source) -> None:
    """Says in the log where the training split `source` is not the one of the run in `workdir`, which is only looked
    at or evaluated."""
    old, new = known(workdir) if Workdir(workdir).begun else None, facts(config, source)
    changed = identity.differences(old, new) if old else []
    if changed:
        was, what = _was(old, new), "; ".join(changed)
        more = "; --config.data.eval_split=all evaluates all of its images, and not only the share that is held out"
        rest = more if source.undivided and config.data.eval_split.lower() != splits.ALL else ""
        warn(f"{where(config)} is not the data that the run in {workdir} was trained on{was}: {what}{rest}")


@functools.lru_cache(maxsize=None)
def warn(text: str) -> None:
    """Logs `text` once: the command line compares before it writes, and each mode for those who call it."""
    logging.warning("%s", text)


def keep(config: ConfigDict, workdir: str, source: Source, tested: Optional[Source] = None) -> None:
    """Writes the facts of `source`, and a digest of the evaluation split `tested`, beside the run in `workdir`, after
    `check` has let it pass; a finished run keeps those of its training, and is tested on what it is measured on now."""
    new = facts(config, source)
    if tested is not None and tested.contents:
        new["tested"] = {"split": tested.split, **{key: tested.contents()[key] for key in ("images", "digest")}}
    if _read(Workdir(workdir).classes) != new["classes"]:
        records.write_json(Workdir(workdir).classes, new["classes"])
    old = _read(Workdir(workdir).data)
    if old and finished(config, workdir):
        new = {**old, **({"tested": new["tested"]} if "tested" in new else {})}
    if old != new:
        records.write_json(Workdir(workdir).data, new)


def other_test_images(config: ConfigDict, workdir: str, source: Source) -> str:
    """A digest of the evaluation split `source` where the run in `workdir` was tested on other images in its training,
    which is warned of; empty where it was not, or nothing tells."""
    if tested_on(workdir, source) is not False:
        return ""
    old = (_read(Workdir(workdir).data) or {})["tested"]
    warn(
        f"{where(config)}, split {source.split}: not the images that the run in {workdir} was tested on when it was "
        f"trained ({old['images']:,} then, {source.num_examples:,} now): figures of these are not the run's own"
    )
    return source.contents()["digest"][:8] if source.contents else "some classes"


def tested_on(workdir: str, source: Source) -> Optional[bool]:
    """Whether the evaluation split `source` has the images that the run in `workdir` was tested on in its training;
    None: nothing tells, as of another split than the one that it was tested on."""
    old = (_read(Workdir(workdir).data) or {}).get("tested")
    if not old or old.get("split", source.split) != source.split:
        return None
    # a source without contents has some of the run's classes only (`relabelled`)
    return source.contents is not None and old["digest"] == source.contents()["digest"]


def facts(config: ConfigDict, source: Source) -> Dict[str, Any]:
    """The facts of the training split `source`, with the place where it lies, which is only for messages and for
    telling a changed folder from another one."""
    assert source.contents is not None  # every source that trains has its facts
    return {
        "source": config.data.name,
        "dir": os.path.realpath(config.data.dir) if config.data.dir else "",
        **source.contents(),
    }


def where(config: ConfigDict) -> str:
    """The data of `config` in words."""
    return f"{config.data.name} {config.data.dir}".strip()


def _was(old, new):
    return f" (--data={old['dir']})" if old.get("dir", "") not in ("", new["dir"]) else ""


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None

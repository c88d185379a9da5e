"""How far the runs of a sweep are, by what is in its folder; and who works there.

DIR/runs.json             the runs that the folder knows
    sweep.json            the summary for other programs, see `table`; of a shard: sweep-3of10.json
    sweep.lock            held by the scheduler while it works; of a shard: sweep-3of10.lock
    NAME/                 the workdir of a run: it is done when each of its modes has left its figures there
    NAME/failed.json      why it failed; it is not tried again while this is there
    NAME/run.log          what it printed
"""

import contextlib
import glob
import json
import os
import platform

from filelock import FileLock, Timeout

from g16net.errors import UserError
from g16net.run import records
from g16net.run.workdir import Workdir

DONE, FAILED, RUNNING, WAITING, BLOCKED = "done", "failed", "running", "waiting", "blocked"


class Sweepdir:
    """The paths in the folder of a sweep; `shard`: "3/10", or "" for the whole."""

    def __init__(self, path, shard=""):
        self.path = path
        self.name = "sweep" + (f"-{shard.replace('/', 'of')}" if shard else "")

    def run(self, name):
        return os.path.join(self.path, name)

    def log(self, name):
        return os.path.join(self.path, name, "run.log")

    def failed(self, name):
        return os.path.join(self.path, name, "failed.json")

    @property
    def runs(self):
        return os.path.join(self.path, "runs.json")

    @property
    def summary(self):
        return os.path.join(self.path, f"{self.name}.json")

    @property
    def lock(self):
        return os.path.join(self.path, f"{self.name}.lock")

    @property
    def overlapping(self):
        """The locks of schedulers that might do the same runs: all but this one's and other shards of as many."""
        parts = self.name.partition("of")[2]
        own = os.path.join(self.path, f"sweep-*of{parts}.lock") if parts else self.lock
        return sorted(set(glob.glob(os.path.join(self.path, "sweep*.lock"))) - set(glob.glob(own)))


def read(path):
    """A JSON file, or None where it is not there (or not whole)."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def alone(folder):
    """Within it, this process is the one scheduler of `folder`'s runs. UserError, naming the other, where there is
    another."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder.lock, timeout=0))
            for path in folder.overlapping:
                with FileLock(path, timeout=0):
                    pass
        except Timeout as busy:
            holder = read(busy.lock_file.replace(".lock", ".holder")) or "another process"
            raise UserError(
                f"{folder.path!r} is in use: {holder} works on this sweep; wait for it, stop it, or give another "
                "--workdir"
            ) from None
        holder = folder.lock.replace(".lock", ".holder")
        records.write_json(holder, f"process {os.getpid()} on {platform.node()}")
        try:
            yield
        finally:
            os.remove(holder)


def settle(runs, folder):
    """Makes `folder` that of these runs; UserError where it cannot be written, or a run of the same name is another
    one there."""
    try:
        os.makedirs(folder.path, exist_ok=True)
        with FileLock(f"{folder.runs}.lock"):  # an array job starts many schedulers at once
            known = agreed(runs, folder)
            if known != read(folder.runs):
                records.write_json(folder.runs, known)
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={folder.path}: {error.strerror}; name a folder you may write to"
        ) from error


def agreed(runs, folder):
    """The runs that `folder` knows and these; UserError where a run of the same name is another one there."""
    old = {one["name"]: one for one in read(folder.runs) or []}
    for one in json.loads(json.dumps(runs)):
        before = old.get(one["name"], one)
        different = [
            key for key in ("experiment", "data", "modes", "fields", "after") if _told(before, key) != _told(one, key)
        ]
        if different:
            lines = [f"{key}: {before[key]} -> {one[key]}" for key in different]
            raise UserError(
                f"{folder.path!r} holds another run {one['name']!r}; it differs in\n  " + "\n  ".join(lines) + "\n"
                "Give the new run another name, or the sweep another --workdir."
            )
        old[one["name"]] = one
    return list(old.values())


def _told(one, key):
    """What makes a run this run: where it may run is free to change."""
    return {k: v for k, v in one[key].items() if not k.startswith("sweep.")} if key == "fields" else one[key]


def states_of(runs, folder, running=(), ended=()):
    """name -> `(state, facts)` of each run. `running` and `ended`, names, are what the caller knows before the files
    of other machines show here."""
    states = {}
    for one in runs:
        name = one["name"]
        failure = read(folder.failed(name))
        modes = [read(Workdir(folder.run(name)).figures(mode)) for mode in one["modes"]]
        if name in running:
            states[name] = RUNNING, {}
        elif failure:
            states[name] = FAILED, failure
        elif name in ended or all(mode and "failed" not in mode for mode in modes):
            seconds = sum(mode.get("wall_seconds", 0.0) for mode in modes if mode)
            states[name] = DONE, {"seconds": round(seconds, 3)}
        else:
            states[name] = WAITING, {}
    for one in runs:
        if one["after"] and states[one["name"]][0] == WAITING and states.get(one["after"], ("",))[0] == FAILED:
            states[one["name"]] = BLOCKED, {"error": f"the training of {one['after']} failed"}
    return states


def running(folder):
    """The runs that a scheduler of `folder` has in work, by its summary."""
    if not os.path.exists(folder.lock):
        return set()
    try:
        with FileLock(folder.lock, timeout=0):
            return set()
    except Timeout:
        rows = (read(folder.summary) or {"runs": []})["runs"]
        return {row["name"] for row in rows if row["state"] == RUNNING}


def forgive(runs, folder):
    """Lets failed runs be tried again."""
    for one in runs:
        with contextlib.suppress(FileNotFoundError):
            os.remove(folder.failed(one["name"]))


def share_training(folder, trainer):
    """Gives the workdir `folder` of a run the trained weights in that of the run that trained for it."""
    own, trainer = Workdir(folder), Workdir(trainer)
    for link, path in zip(own.training, trainer.training):
        if os.path.exists(path) and not os.path.lexists(link):  # older runs have no data.json
            os.symlink(os.path.relpath(path, own.path), link)

"""Many runs from one file: a queue in a shared folder that any number of processes and machines work off.

    launch.py --mode=sweep --experiment=experiments/sweeps/norms.py --workdir=DIR --jobs=2

The file has `get_runs(arg)`, which returns a list of `run(...)`; `grid(...)` makes one from axes. Each run has a folder
`DIR/NAME` that is the workdir of an ordinary run, a process of its own, and what it printed in `run.log`. Runs whose
training is the same train once: the first trains, the others wait for it and take its checkpoints.

The queue is files in `DIR/queue`, made so that only one process can make each: `NAME.1.claim` says who works on the
first attempt and is touched while he does; `NAME.1.json` says how it ended. A claim that its owner no longer touches is
taken over by making `NAME.2.claim`, which again only one can. See `Queue`.
"""

import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
import uuid

from g16net import config as config_lib
from g16net import experiments, recipe, records
from g16net.config import ConfigError, UserError

BEAT_SECONDS = 5.0  # between the touches of a claim
SAVE_SECONDS = 60.0  # that a run which is ended may take to save
POLL_SECONDS = 1.0  # between looks at what others do
STALE_SECONDS = 120.0  # without a touch, after which the claim of another machine is taken over
MODES = ("train", "finetune", "evaluate", "export")  # what a run may do

DONE, FAILED, RUNNING, STALE, WAITING, BLOCKED = "done", "failed", "running", "stale", "waiting", "blocked"


def run(name, experiment, modes=("train", "evaluate"), data="", **fields):
    """One run of a sweep as a dict.

    Args:
        name: of its folder.
        experiment: as after `--experiment=`.
        modes: as after `--mode=`, in order.
        data: as after `--data=`.
        **fields: changed fields, with two underscores for the point: `run__seed=1`.
    """
    return {
        "name": name,
        "experiment": experiment,
        "modes": tuple(modes),
        "data": data,
        "fields": {key.replace("__", "."): value for key, value in fields.items()},
    }


def grid(name, experiment, modes=("train", "evaluate"), data="", fields=None, **axes):
    """Runs for every combination of `axes`, the last one changing fastest.

    Args:
        name, experiment: with the axes' names in braces: "{norm}-{seed}", "g16_{norm}:demo". A value of an axis may be
            a dict: it is filled in by its key "name", and its other keys are fields as below.
        fields: fields of every run, as {"run.seed": "{seed}"} or with plain values. Texts are filled in too, and a text
            that is one axis' name in braces alone becomes its value.
        **axes: names and lists of values.
    """
    runs = []
    for values in itertools.product(*axes.values()):
        own, extra = {}, {}
        for axis, value in zip(axes, values):
            own[axis] = value["name"] if isinstance(value, dict) else value
            if isinstance(value, dict):
                extra.update({key.replace("__", "."): item for key, item in value.items() if key != "name"})
        filled = {key: _fill(value, own) for key, value in (fields or {}).items()}
        runs.append(run(name.format(**own), experiment.format(**own), modes, data))
        runs[-1]["fields"].update({**filled, **extra})
    return runs


def _fill(value, own):
    alone = re.fullmatch(r"\{(\w+)\}", value) if isinstance(value, str) else None
    if alone and alone.group(1) in own:
        return own[alone.group(1)]
    return value.format(**own) if isinstance(value, str) else value


def load(experiment, assignments=(), data=""):
    """The runs of the sweep file `experiment` (`NAME`, `FILE.py` or `FILE.py:ARG`), checked.

    `assignments`, `[(key, text), ...]`, are set in every run, `data` in those that name none. Each run gets "after":
    the run that trains for it, or None. Raises UserError, which names the run, for what would end one later.
    """
    module, arg = experiments.module(experiment, "sweeps")
    if not hasattr(module, "get_runs"):
        raise ConfigError(
            f"sweep file {module.__file__!r} has no function get_runs(arg); see experiments/sweeps/norms.py"
        )
    runs, names, trainers = module.get_runs(arg), set(), {}
    if not runs:
        raise ConfigError(f"sweep file {module.__file__!r}: get_runs({arg!r}) gives no runs")
    for one in runs:
        one["data"] = one["data"] or data
        one["fields"] = {**one["fields"], **{key: config_lib.parse_value(key, text) for key, text in assignments}}
        _check(one, names)
        names.add(one["name"])
        trained = (one["data"], recipe.training_key(_resolved(one)))
        one["after"] = trainers.get(trained)
        if "train" in one["modes"]:
            trainers.setdefault(trained, one["name"])
    return runs


def _check(one, names):
    where = f"run {one['name']!r} of the sweep"
    if not re.fullmatch(r"\w[\w.,=+-]*", one["name"]) or one["name"] == "queue":
        raise ConfigError(f"{where}: its name is that of a folder, of letters, digits and _.,=+-; give another one")
    if one["name"] in names:
        raise ConfigError(f"{where} is there twice; put all that differs into the names")
    for mode in one["modes"]:
        if mode not in MODES:
            raise ConfigError(f"{where}: unknown mode {mode!r}. {config_lib.suggest(mode, MODES)}")
    for key in one["fields"]:
        config_lib.field_of(key)


def _resolved(one):
    from g16net import cli

    try:
        return cli.resolve(_assignments(one), one["experiment"], one["data"] or None)[0]
    except UserError as error:
        raise ConfigError(f"run {one['name']!r} of the sweep: {error}") from None


def arguments(one, workdir):
    """The arguments of launch.py that make this run."""
    given = [f"--experiment={one['experiment']}", f"--mode={','.join(one['modes'])}"]
    given += [f"--data={one['data']}"] if one["data"] else []
    given += [f"--workdir={os.path.join(workdir, one['name'])}"]
    return given + [f"--config.{key}={text}" for key, text in _assignments(one)]


def plan(experiment, workdir, assignments=(), data=""):
    """The runs as the commands that would make them one by one, and how far they are."""
    runs = load(experiment, assignments, data)
    agreed(runs, workdir)
    states = states_of(runs, Queue(os.path.join(workdir, "queue")))
    commands = [shlex.join(["launch.py"] + arguments(one, workdir)) for one in runs]
    return "\n".join(commands + [table(summarise(runs, states, workdir, time.time(), 0))])


def _assignments(one):
    return [(key, _text(value)) for key, value in one["fields"].items()]


def _text(value):
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


class Queue:
    """Who works on which run: files in one folder that all machines see.

    An attempt n of a run is claimed by making `NAME.n.claim`, which the file system lets one process do. It is in
    work until `NAME.n.json` tells its end. Attempt n + 1 may be claimed where n failed and is to be tried again, and
    where the claim n is stale: its process is gone (on this machine), or it was not touched for `stale` seconds by the
    clock of the process that looks, so that machines need not agree about the time.
    """

    def __init__(self, folder, stale=STALE_SECONDS):
        self.folder, self.stale = folder, stale
        self._seen = {}  # claim: (its time, when that was first seen here)

    def state(self, name):
        """`(state, attempt, result)` of a run; the result is what `finish` was told."""
        attempt = self._attempt(name)
        if not attempt:
            return WAITING, 0, {}
        result = _read(self._path(name, attempt, "json"))
        if result:
            return result["state"], attempt, result
        return (STALE if self._is_stale(name, attempt) else RUNNING), attempt, {}

    def claim(self, name, retry_before=0.0):
        """The `Claim` of a run that waits, is stale, or failed before the time `retry_before`; None otherwise."""
        state, attempt, result = self.state(name)
        again = state == FAILED and result["time"] < retry_before
        if state not in (WAITING, STALE) and not again:
            return None
        os.makedirs(self.folder, exist_ok=True)
        owner = {"place": place(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        try:
            file = os.open(self._path(name, attempt + 1, "claim"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(file, "w") as opened:
            json.dump(owner, opened)
        # Its owner may have ended the attempt that looked stale in the moment before the new claim was there.
        ended = attempt and not again and _read(self._path(name, attempt, "json"))
        claim = Claim(self._path(name, attempt + 1, "claim"), self._path(name, attempt + 1, "json"), owner, attempt + 1)
        if ended:
            claim.finish(**{k: v for k, v in ended.items() if k not in ("time", "place", "pid", "attempt")})
            return None
        return claim

    def _attempt(self, name):
        """The newest attempt; 0: none."""
        attempt = 0
        while os.path.exists(self._path(name, attempt + 1, "claim")):
            attempt += 1
        return attempt

    def _is_stale(self, name, attempt):
        path = self._path(name, attempt, "claim")
        try:
            touched = os.stat(path).st_mtime_ns
        except OSError:
            return False
        owner = _read(path)
        if owner and owner["place"] == place() and not _alive(owner["pid"]):
            return True
        seen, since = self._seen.get(path, (None, 0.0))
        if seen != touched:
            self._seen[path] = (touched, time.monotonic())
            return False
        return time.monotonic() - since > self.stale

    def _path(self, name, attempt, end):
        return os.path.join(self.folder, f"{name}.{attempt}.{end}")


class Claim:
    """The right to work on one attempt of a run; sent from the process that claimed to the one that works."""

    def __init__(self, path, result, owner, attempt):
        self.path, self.result, self.owner, self.attempt = path, result, owner, attempt

    def take(self):
        """Makes this process the owner."""
        self.owner = dict(self.owner, place=place(), pid=os.getpid())
        records.write_json(self.path, self.owner)

    def touch(self):
        """Says that the work goes on. False where the claim was taken over by another process."""
        newer = f"{self.path[: -len('.claim')].rpartition('.')[0]}.{self.attempt + 1}.claim"
        owner = _read(self.path)
        if os.path.exists(newer) or not owner or owner["token"] != self.owner["token"]:
            return False
        os.utime(self.path)
        return True

    def finish(self, state, **result):
        """Says how the attempt ended: `DONE` or `FAILED`."""
        owner = {key: self.owner[key] for key in ("place", "pid")}
        records.write_json(
            self.result, {"state": state, "time": time.time(), "attempt": self.attempt, **owner, **result}
        )


def place():
    """Where a process id means the same process: machine, its start, and the namespace of processes."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", _first_line), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(read(path))
        except OSError:  # not Linux
            pass
    return "/".join(parts)


def _first_line(path):
    with open(path, encoding="utf-8") as file:
        return file.readline().strip()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # ended, and not yet waited for
    except OSError:
        return True


def _read(path):
    """A JSON file, or None where it is not there (or not whole)."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def shares(jobs):
    """The cores of this process in `jobs` sets, for runs that each keep to their own: runs with a thread for every
    core each would wait for one another. None for each where there are fewer cores than jobs, or none can be told."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < jobs:
        return [None] * jobs
    return [set(cores[len(cores) * job // jobs : len(cores) * (job + 1) // jobs]) for job in range(jobs)]


def work(argv, claim, log, beat=BEAT_SECONDS, cores=None):
    """Does one claimed run in this process, which does nothing else: `launch.py` with `argv`, its output in `log`.

    `cores`: those it keeps to, before TensorFlow counts them; None: any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the scheduler's, which ends its runs
    if cores:
        os.sched_setaffinity(0, cores)
    claim.take()

    def beats():
        while claim.touch():
            time.sleep(beat)
        os._exit(75)  # another process does this run now

    if claim.attempt > 1:
        time.sleep(beat)  # who lost the claim notices at his next touch
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(file, f"$ {' '.join(argv)}\n".encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    threading.Thread(target=beats, daemon=True).start()
    started = time.time()
    sys.argv = argv
    from g16net import cli

    status = 1
    try:
        cli.main(argv)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 128:  # otherwise a signal stopped it: who takes the claim over goes on
        _finish(claim, status, time.time() - started, log)
    sys.exit(status)


def _finish(claim, status, seconds, log):
    result = {"seconds": round(seconds, 3), "status": status}
    if status:
        claim.finish(FAILED, error=last_line(log), **result)
    else:
        claim.finish(DONE, **result)


def last_line(path, most=300):
    """The last line of a log that says something."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - 65536, 0))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return "no log"
    errors = [line for line in lines if re.match(r"(error: |[\w.]+(Error|Exception)\b)", line)]
    return (errors or [line for line in lines if line] or ["nothing printed"])[-1][:most]


def share_training(workdir, one):
    """Gives the folder of a run the trained weights of the run that trained for it."""
    folder = os.path.join(workdir, one["name"])
    os.makedirs(folder, exist_ok=True)
    for name in ("checkpoints", "classes.json", "data.json", "records.jsonl"):
        link = os.path.join(folder, name)
        there = os.path.exists(os.path.join(workdir, one["after"], name))  # older runs have no data.json
        if there and not os.path.lexists(link):
            os.symlink(os.path.join("..", one["after"], name), link)


def sweep(
    experiment,
    workdir,
    assignments=(),
    data="",
    jobs=1,
    retry=False,
    beat=BEAT_SECONDS,
    stale=STALE_SECONDS,
    show=print,
):
    """Works on the runs of the sweep file `experiment` in `workdir` until all have ended, whoever does them.

    Args:
        assignments, data: as for `load`.
        jobs: runs at a time in this process' care; each gets cores of its own (see `shares`).
        retry: whether runs that failed before are tried again.
        beat, stale: seconds, see the constants.
        show: called with the table where a run starts or ends.

    Returns:
        The summary that is in `WORKDIR/sweep.json` too.
    """
    runs = load(experiment, assignments, data)
    settle(runs, workdir)
    queue = Queue(os.path.join(workdir, "queue"), stale)
    retry_before = time.time() if retry else 0.0
    started, working, shown = time.time(), {}, None
    context, free = forkserver(), shares(jobs)
    try:
        while True:
            for name, (process, claim, since, cores) in list(working.items()):
                if process.exitcode is None:
                    continue
                process.join()
                del working[name]
                free.append(cores)
                if process.exitcode >= 128:  # a signal stopped it after it saved: whoever takes it over goes on
                    continue
                if not os.path.exists(claim.result) and claim.touch():  # it could not say so itself
                    log = os.path.join(workdir, name, "run.log")
                    how = f"ended by signal {-process.exitcode}" if process.exitcode < 0 else last_line(log)
                    claim.finish(FAILED, error=how, status=process.exitcode, seconds=round(time.monotonic() - since, 3))
            states = states_of(runs, queue)
            for one in runs:
                if len(working) >= jobs or not _ready(one, states):
                    continue
                claim = queue.claim(one["name"], retry_before)
                if claim is None:
                    continue
                os.makedirs(os.path.join(workdir, one["name"]), exist_ok=True)
                if one["after"]:
                    share_training(workdir, one)
                argv = ["launch.py"] + arguments(one, workdir)
                log = os.path.join(workdir, one["name"], "run.log")
                cores = free.pop(0)
                process = context.Process(target=work, args=(argv, claim, log, beat, cores), name=one["name"])
                process.start()
                working[one["name"]] = process, claim, time.monotonic(), cores
                states[one["name"]] = (RUNNING, claim.attempt, {})
            summary = summarise(runs, states, workdir, started, len(working))
            now = [(row["state"], row["attempt"]) for row in summary["runs"]]
            if now != shown:
                shown = now
                records.write_json(os.path.join(workdir, "sweep.json"), summary)
                show(table(summary))
            open_states = {row["state"] for row in summary["runs"]} & {RUNNING, STALE, WAITING}
            again = any(s == FAILED and r["time"] < retry_before for s, _, r in states.values())
            if not working and not open_states and not again:
                return summary
            multiprocessing.connection.wait([p.sentinel for p, *_ in working.values()], timeout=min(POLL_SECONDS, beat))
            if not working:
                time.sleep(min(POLL_SECONDS, beat))
    finally:
        for process, *_ in working.values():  # only where this process is being ended
            process.terminate()
        for process, *_ in working.values():
            process.join(SAVE_SECONDS)


def forkserver():
    """How processes of runs are made: forked from one that has imported TensorFlow and done nothing with it."""
    try:
        context = multiprocessing.get_context("forkserver")
    except ValueError:  # Windows
        return multiprocessing.get_context("spawn")
    context.set_forkserver_preload(["g16net.sweep_imports"])
    return context


def settle(runs, workdir):
    """Makes `workdir` that of these runs; UserError where a run of the same name is another one there."""
    known = agreed(runs, workdir)
    try:
        os.makedirs(workdir, exist_ok=True)
        records.write_json(os.path.join(workdir, "runs.json"), known)
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir}: {error.strerror}; name a folder you may write to"
        ) from error


def agreed(runs, workdir):
    """The runs that `workdir` knows and these; UserError where a run of the same name is another one there."""
    path = os.path.join(workdir, "runs.json")
    old = {one["name"]: one for one in _read(path) or []}
    new = json.loads(json.dumps(runs))
    for one in new:
        before = old.get(one["name"], one)
        different = [key for key in ("experiment", "data", "modes", "fields", "after") if before[key] != one[key]]
        if different:
            lines = [f"{key}: {before[key]} -> {one[key]}" for key in different]
            raise UserError(
                f"{workdir!r} holds another run {one['name']!r}; it differs in\n  " + "\n  ".join(lines) + "\n"
                "Give the new run another name, or the sweep another --workdir."
            )
        old[one["name"]] = one
    return list(old.values())


def states_of(runs, queue):
    """name -> (state, attempt, result) of each run."""
    states = {one["name"]: queue.state(one["name"]) for one in runs}
    for one in runs:
        if one["after"] and states[one["name"]][0] == WAITING and states[one["after"]][0] == FAILED:
            states[one["name"]] = (BLOCKED, 0, {"error": f"the training of {one['after']} failed"})
    return states


def _ready(one, states):
    return not one["after"] or states[one["after"]][0] == DONE


def summarise(runs, states, workdir, started, working):
    """Counts, the time left, and a row for each run."""
    rows = []
    for one in runs:
        state, attempt, result = states[one["name"]]
        row = {"name": one["name"], "state": state, "attempt": attempt, "after": one["after"], **figures(workdir, one)}
        rows.append({**row, **{key: result[key] for key in ("seconds", "error") if key in result}})
    counts = {state: sum(row["state"] == state for row in rows) for state in (DONE, FAILED, RUNNING, STALE, WAITING)}
    counts[WAITING] += sum(row["state"] == BLOCKED for row in rows)
    known = [row["seconds"] for row in rows if row["state"] == DONE and "seconds" in row]
    left = None
    if known:
        open_runs = counts[RUNNING] + counts[STALE] + counts[WAITING]
        left = sum(known) / len(known) * open_runs / max(working, counts[RUNNING], 1)
    return {
        "mode": "sweep",
        "command": records.command(),
        **counts,
        "seconds": round(time.time() - started, 3),
        "seconds_left": left and round(left, 1),
        "runs": rows,
    }


def figures(workdir, one):
    """The newest figures of a run: those of its last mode that has a test accuracy, or of its last epoch."""
    found = {}
    folder = os.path.join(workdir, one["name"])
    for mode in one["modes"]:
        result = _read(os.path.join(folder, f"{mode}.json"))
        if result:
            found.update({key: result[key] for key in ("top1", "top5", "loss") if key in result})
    if "finetune" in one["modes"]:
        result = _read(os.path.join(folder, "finetune.json")) or {"sizes": []}
        found["finetuned"] = {str(row["size"]): row["top1"] for row in result["sizes"]} or None
    if "top1" not in found and not one["after"]:
        epochs = records.by_epoch(records.read_lines(os.path.join(folder, "records.jsonl")))
        if epochs:
            last = epochs[-1]
            found = {"epoch": last["epoch"], "top1": last.get("eval_top1_average", last.get("eval_top1"))}
    return {key: value for key, value in found.items() if value is not None}


def table(summary):
    """The summary for a person."""
    width = max(len(row["name"]) for row in summary["runs"])
    lines = [f"{'run':{width}}  state    top-1    seconds"]
    for row in summary["runs"]:
        top1 = f"{100 * row['top1']:6.2f} %" if "top1" in row else " " * 8
        seconds = f"{row['seconds']:8.0f}" if "seconds" in row else " " * 8
        notes = [f"epoch {row['epoch']}"] if "epoch" in row and row["state"] == RUNNING else []
        notes += [f"fine-tuned at {size}: {100 * top1:.2f} %" for size, top1 in row.get("finetuned", {}).items()]
        if row["state"] == WAITING and row["after"]:
            notes = [f"for the training of {row['after']}"]
        note = row.get("error") or ", ".join(notes)
        lines.append(f"{row['name']:{width}}  {row['state']:8}{top1} {seconds}  {note}".rstrip())
    counts = ", ".join(f"{summary[state]} {state}" for state in (DONE, FAILED, RUNNING, STALE, WAITING))
    left = f"; about {summary['seconds_left']:.0f} s left" if summary["seconds_left"] else ""
    return "\n".join(lines + [f"{counts}; {summary['seconds']:.0f} s{left}"])

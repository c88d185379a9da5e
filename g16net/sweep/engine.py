"""Works off the runs of a sweep, each in a process of its own, beside whoever else does."""

import json
import multiprocessing
import multiprocessing.connection
import os
import re
import shlex
import signal
import sys
import threading
import time

from g16net.errors import UserError
from g16net.run import records
from g16net.run.workdir import Workdir
from g16net.sweep.grid import arguments, load
from g16net.sweep.queue import BLOCKED, DONE, FAILED, RUNNING, STALE, STALE_SECONDS, WAITING, Queue, read
from g16net.sweep.table import summarise, table

BEAT_SECONDS = 5.0  # between the touches of a claim
SAVE_SECONDS = 60.0  # that a run which is ended may take to save
POLL_SECONDS = 1.0  # between looks at what others do


def plan(experiment, workdir, assignments=(), data=""):
    """The runs as the commands that would make them one by one, and how far they are."""
    runs = load(experiment, assignments, data)
    agreed(runs, workdir)
    states = states_of(runs, Queue(os.path.join(workdir, "queue")))
    commands = [shlex.join(["launch.py"] + arguments(one, workdir)) for one in runs]
    return "\n".join(commands + [table(summarise(runs, states, workdir, time.time(), 0))])


def shares(jobs):
    """The cores of this process in `jobs` sets, for runs that each keep to their own: runs with a thread for every
    core each would wait for one another. None for each where there are fewer cores than jobs, or none can be told."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < jobs:
        return [None] * jobs
    return [set(cores[len(cores) * job // jobs : len(cores) * (job + 1) // jobs]) for job in range(jobs)]


def work(main, argv, claim, log, beat=BEAT_SECONDS, cores=None):
    """Does one claimed run in this process, which does nothing else: `main(argv)`, its output in `log`.

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
    status = 1
    try:
        main(argv)
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
    own, trainer = (Workdir(os.path.join(workdir, name)) for name in (one["name"], one["after"]))
    os.makedirs(own.path, exist_ok=True)
    for link, path in zip(own.training, trainer.training):
        if os.path.exists(path) and not os.path.lexists(link):  # older runs have no data.json
            os.symlink(os.path.relpath(path, own.path), link)


def sweep(
    experiment,
    workdir,
    main,
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
        main: the command line, which does a run: called with the arguments of `launch.py` in a process of its own.
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
                process = context.Process(target=work, args=(main, argv, claim, log, beat, cores), name=one["name"])
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
    context.set_forkserver_preload(["g16net.sweep.imports"])
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
    old = {one["name"]: one for one in read(path) or []}
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

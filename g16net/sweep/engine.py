"""Works off the runs of a sweep: starts those that are ready, takes note of those that end, shows the table.

An engine (`local.Local`, `cluster.Cluster`) starts a run and says which have ended; all else is here.
"""

import os
import shlex
import time

from g16net.run import records
from g16net.sweep import state
from g16net.sweep.grid import arguments, load, part
from g16net.sweep.local import Local, last_line
from g16net.sweep.state import DONE, FAILED, WAITING, Sweepdir
from g16net.sweep.table import summarise, table

POLL_SECONDS = 1.0  # between looks at the runs' folders


def plan(experiment, workdir, assignments=(), data="", shard=""):
    """The runs as the commands that would make them one by one, and how far they are."""
    runs, folder = load(experiment, assignments, data), Sweepdir(workdir, shard)
    state.agreed(runs, folder)
    runs = part(runs, shard)
    states = state.states_of(runs, folder, state.running(folder))
    commands = [shlex.join(["launch.py"] + arguments(one, workdir)) for one in runs]
    return "\n".join(commands + [table(summarise(runs, states, folder, time.time()))])


def sweep(experiment, workdir, main, assignments=(), data="", jobs=1, retry=False, cluster="", shard="", show=print):
    """Works on the runs of the sweep file `experiment` in `workdir` until all have ended.

    Args:
        assignments, data: as for `load`.
        main: the command line, which does a run: called with the arguments of `launch.py` in a process of its own.
        jobs: runs at a time on this machine; each gets cores of its own (see `local.shares`).
        retry: whether runs that failed before are tried again.
        cluster: address of a Ray cluster that does the runs, "auto" for the one that this machine belongs to; "": here.
        shard: "3/10" for the third of ten parts of the runs.
        show: called with the table where a run starts or ends.

    Returns:
        The summary that is in `WORKDIR/sweep.json` too.
    """
    runs, folder = load(experiment, assignments, data), Sweepdir(os.path.abspath(workdir), shard)
    ours = part(runs, shard)
    if cluster:
        from g16net.sweep.cluster import Cluster

        engine = Cluster(cluster, ours)
    else:
        engine = Local(jobs)
    with engine:
        state.settle(runs, folder)
        with state.alone(folder):
            engine.prepare(folder.path)
            if retry:
                state.forgive(ours, folder)
            return work_off(ours, folder, engine, main, show)


def work_off(runs, folder, engine, main, show):
    """Has `engine` do the runs until none is left that can be done. Returns the summary."""
    begun, since, done, shown = time.time(), {}, set(), None
    while True:
        states = state.states_of(runs, folder, since, done)
        for one in runs:
            name, after = one["name"], one["after"]
            ready = states[name][0] == WAITING and (not after or states[after][0] == DONE)
            if ready and engine.has_room():
                argv = ["launch.py"] + arguments(one, folder.path)
                engine.start(one, main, argv, folder.run(name), after and folder.run(after))
                since[name] = time.monotonic()
        states = state.states_of(runs, folder, engine.running, done)
        summary = summarise(runs, states, folder, begun)
        now = [row["state"] for row in summary["runs"]]
        if now != shown:
            shown = now
            records.write_json(folder.summary, summary)
            show(table(summary))
        if not since:
            return summary
        for name, status, error in engine.ended(POLL_SECONDS):
            seconds = round(time.monotonic() - since.pop(name), 3)
            if status == 0:
                done.add(name)
            elif status is None or status < 128:  # else a signal stopped it after it saved, and it goes on
                error = error or (f"ended by signal {-status}" if status < 0 else last_line(folder.log(name)))
                os.makedirs(folder.run(name), exist_ok=True)
                failure = {"state": FAILED, "error": error, "status": status, "seconds": seconds}
                records.write_json(folder.failed(name), failure)

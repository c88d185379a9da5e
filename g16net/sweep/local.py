"""Runs as processes of this machine, each with cores of its own."""

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
from g16net.sweep import state

SAVE_SECONDS = 60.0  # that a run which is being ended may take to save


class Local:
    """Starts runs here, `jobs` at a time, and says which have ended."""

    def __init__(self, jobs):
        self.free = shares(jobs)
        self._processes = {}  # name: (process, cores)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end([process for process, _ in self._processes.values()])

    @property
    def running(self):
        """The names of the runs in work."""
        return set(self._processes)

    def prepare(self, workdir):
        """Every process of this machine sees `workdir`."""

    def has_room(self):
        return bool(self.free)

    def start(self, one, *job):
        """Starts the run `one`; `job`: the first arguments of `work`."""
        cores = self.free.pop(0)
        self._processes[one["name"]] = start(*job, cores=cores), cores

    def ended(self, seconds):
        """Waits so long at most; yields `(name, exit status, what is known of the failure)` of each run that ended."""
        multiprocessing.connection.wait([process.sentinel for process, _ in self._processes.values()], timeout=seconds)
        for name, (process, cores) in list(self._processes.items()):
            if process.exitcode is not None:
                process.join()
                del self._processes[name]
                self.free.append(cores)
                yield name, process.exitcode, ""


def shares(jobs):
    """The cores of this process in `jobs` sets, for runs that each keep to their own: runs with a thread for every
    core each would wait for one another. None for each where there are fewer cores than jobs, or none can be told."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < jobs:
        return [None] * jobs
    return [set(cores[len(cores) * job // jobs : len(cores) * (job + 1) // jobs]) for job in range(jobs)]


def start(*job, **options):
    """A process that does `work(*job, **options)`, forked from one that has imported TensorFlow and done nothing with
    it."""
    try:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["g16net.sweep.imports"])
    except ValueError:  # Windows
        context = multiprocessing.get_context("spawn")
    process = context.Process(target=work, args=job, kwargs=options)
    process.start()
    return process


def gpus():
    """The variables by which Ray gives this process its GPUs: a run is forked from an older one, without them."""
    return {key: os.environ[key] for key in ("CUDA_VISIBLE_DEVICES",) if key in os.environ}


def end(processes):
    """Ends processes of runs, which save first."""
    for process in processes:
        process.terminate()
    last = time.monotonic() + SAVE_SECONDS
    for process in processes:
        process.join(max(last - time.monotonic(), 0.0))
        if process.exitcode is None:
            process.kill()


def work(main, argv, folder, trainer=None, cores=None, threads=None, environment=None, cwd=None):
    """Does one run in this process, which does nothing else: `main(argv)`, its output in `run.log` in `folder`.

    Args:
        trainer: the folder of the run that trained for this one, or None.
        cores: those it keeps to, before TensorFlow counts them; None: any.
        threads: how many at once, where no cores are its own; None: one a core.
        environment: variables to set.
        cwd: folder that relative paths start from.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the scheduler's, which ends its runs
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if cwd and os.path.isdir(cwd):
        os.chdir(cwd)
    os.makedirs(folder, exist_ok=True)
    file = os.open(os.path.join(folder, "run.log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(file, f"$ {shlex.join(argv)}\n".encode())
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment or {})
    if cores:
        os.sched_setaffinity(0, cores)
    if threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    _lock(folder)
    if trainer:
        state.share_training(folder, trainer)
    sys.argv = argv
    main(argv)


def _end_with_parent():
    """Ends this process, which saves first, where the one that started it is gone: nobody else knows of it then."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _lock(folder):
    """Takes the run's workdir; the process of a scheduler that was killed may still be saving there."""
    last = time.monotonic() + SAVE_SECONDS
    while True:
        try:
            return records.lock(folder)
        except UserError:
            if time.monotonic() > last:
                raise
            time.sleep(0.2)


def last_line(path, most=300):
    """The last line of a log that says something, an error rather than what follows it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - 65536, 0))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return "no log"
    errors = [line for line in lines if re.match(r"(error: |[\w.]+(Error|Exception)\b)", line)]
    return (errors or [line for line in lines if line] or ["nothing printed"])[-1][:most]

"""Modes that stand alone: they have no run's config. Each takes the assignments of the command line and `main`, the
command line itself, and returns the exit status."""

import os
import signal
import sys

from g16net import sweep as sweeps
from g16net.cli.flags import FLAGS
from g16net.config import experiments
from g16net.data import walk
from g16net.errors import UserError
from g16net.report import page
from g16net.run.start import start_tensorflow


def sweep(assignments, main):
    """Works on the runs of a sweep file until all have ended."""
    if not FLAGS.experiment:
        raise UserError("name a sweep file: --experiment=experiments/sweeps/norms.py")
    workdir = FLAGS.workdir or os.path.join("runs", experiments.run_name(FLAGS.experiment, demo=False))
    if FLAGS.dry_run:
        print(sweeps.plan(FLAGS.experiment, workdir, assignments, FLAGS.data or "", FLAGS.shard))
        return 0
    if FLAGS.cluster and FLAGS["jobs"].present:
        raise UserError(
            "--jobs is for this machine alone; a cluster does as many runs at a time as it has room for, by what each "
            "asks for: --config.sweep.cpus=4"
        )
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        summary = sweeps.sweep(
            FLAGS.experiment,
            workdir,
            main,
            assignments,
            FLAGS.data or "",
            jobs=FLAGS.jobs,
            retry=FLAGS.retry,
            cluster=FLAGS.cluster,
            shard=FLAGS.shard,
        )
    except KeyboardInterrupt as stop:
        print("stopped; the same command goes on", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if summary["done"] == len(summary["runs"]) else 1


def _interrupt(number, frame):
    raise KeyboardInterrupt(number)


def report(assignments, main):
    """Makes the page of the runs that `--runs` names."""
    if not FLAGS.runs:
        raise UserError(
            "name the runs to report: --runs=runs/b0,runs/norms,'runs/half-*' (a sweep's folder: all of it)"
        )
    made = page.write(walk.named(FLAGS.runs), FLAGS.workdir or os.path.join("runs", "report"), FLAGS.quoted)
    for line in made.pop("left_out"):
        print(f"left out: {line}", file=sys.stderr)
    print("report: " + ", ".join(f"{value} {key}" for key, value in made.items() if isinstance(value, int)))
    print(f"  figures: {', '.join(made['figures'])}\n  {made['page']}")
    return 0


def data_service(assignments, main):
    """Runs a server of tf.data's service until it is stopped."""
    start_tensorflow()
    from g16net.data import service

    service.start(FLAGS.role, FLAGS.port, FLAGS.dispatcher, FLAGS.workdir or "", FLAGS.host).join()
    return 0

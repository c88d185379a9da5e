"""One command: from its flags to a resolved config, the checks of its modes, and their figures."""

import contextlib
import errno
import os
import sys
import time

from g16net import config as config_lib
from g16net.cli import modes
from g16net.cli.flags import FLAGS, options
from g16net.cli.modes import MODES
from g16net.config import recipe
from g16net.errors import RunError, UserError, suggest
from g16net.run import resolve
from g16net.run.start import start_tensorflow
from g16net.run.workdir import Workdir

DEMO_START = (
    "No ImageNet is prepared here and no data was named: this is the experiment's DEMO FORM on scikit-learn's 1,797\n"
    "handwritten digits (a CIFAR-size network at 32 pixels). For your data: --data=FOLDER, or --data=tfds:imagenet2012."
)
DEMO_END = "This was the DEMO FORM on digits, not ImageNet; --data=... trains on yours."

TRAININGS = ("train", "finetune")
BEGINNINGS = ("train", "adopt")  # modes that make a run where there is none


def chosen():
    """The modes of this command, in order, as {name: row}. UserError where one is unknown or has to stand alone."""
    for name in FLAGS.mode:
        if name not in MODES:
            raise UserError(f"unknown mode {name!r}. {suggest(name, MODES)}")
        if MODES[name].alone and len(FLAGS.mode) > 1:
            raise UserError(f"--mode={name} runs alone, not together with other modes; got {','.join(FLAGS.mode)}")
    return {name: MODES[name] for name in FLAGS.mode}


def execute(assignments, main):
    """Resolves the experiment, then runs its modes; `main` is the command line, for modes that call it again. Returns
    the exit status."""
    rows = chosen()
    (first, *_) = rows or [None]
    if first and rows[first].alone:
        return modes.function(first)(assignments, main)
    if FLAGS.format:
        assignments = assignments + [("export.format", FLAGS.format)]
    # No demo is made for want of images where none is needed.
    imageless = all(row.imageless for row in rows.values()) and FLAGS.experiment
    data = FLAGS.data or ("synthetic" if imageless else None)
    config, name, demo = resolve.resolve(assignments, FLAGS.experiment, data, FLAGS.workdir)
    start_tensorflow()
    workdir = FLAGS.workdir or os.path.join("runs", name)
    names = [*(["adopt"] if adopts(FLAGS.mode, config, workdir) else []), *FLAGS.mode]
    rows = {mode: MODES[mode] for mode in names}
    # What the command cannot do is found before anything is written, and before another mode has spent time.
    for mode, row in rows.items():
        if "check" in row.checks:
            modes.function(mode, "check")(config, **options(mode))
    if any(key == "init.checkpoint" for key, _ in assignments):
        modes.function("adopt", "check_weights")(config, workdir)
    check_workdir(rows, config, workdir)
    if FLAGS.dry_run:
        dry_run(rows, config, workdir)
        return 0
    from g16net.training import evaluate, runtime

    runtime.connect(config)
    if any(row.opens_data for row in rows.values()):
        check_data(rows, config, workdir)
    chief = runtime.chief(config, any(row.all_workers for row in rows.values()))
    if chief:
        # an evaluation with other weights or sizes leaves the run's config as it is
        new = not os.path.exists(Workdir(workdir).config)
        begins = any(mode in rows for mode in BEGINNINGS)
        keep = begins or new and any(row.of_run for row in rows.values())
        settle_workdir(config, workdir, lock=begins, keep_config=keep)
    if demo:
        print(DEMO_START)
    # JSON lines have stdout to themselves
    lines_only = FLAGS.mode == ["predict"] and config.predict.output == "jsonl"
    with contextlib.redirect_stdout(sys.stderr if lines_only else sys.stdout), evaluate.sharing():
        ours = [mode for mode in names if chief or rows[mode].all_workers]  # one may be asked for again
        failed = [mode for mode in ours if not run_mode(mode, config, workdir, chief)]
        if not chief:
            return 0
        print(f"Everything is in {workdir}:")
        for entry in sorted(name for name in os.listdir(workdir) if not name.startswith(".")):
            print(f"  {os.path.join(workdir, entry)}")
        if demo:
            print(DEMO_END)
    return 1 if failed else 0


def adopts(names, config, workdir):
    """Whether the modes begin with one that wants a trained run, where there are weights to start from and no run."""
    first = next((mode for mode in names if MODES[mode].trained or mode in BEGINNINGS), None)
    return bool(config.init.checkpoint) and first not in (None, *BEGINNINGS) and not Workdir(workdir).begun


def check_workdir(rows, config, workdir):
    """Rejects a `workdir` that holds a run which these settings would make another one, or none for a mode that wants
    one."""
    from g16net.run import assemble, run_data

    before = []
    for mode, row in rows.items():
        if row.trained and not set(BEGINNINGS) & set(before):
            run_data.class_names(workdir)
            if "eval.weights" in row.fields and config.eval.weights == "finetuned" and "finetune" not in before:
                assemble.finetuned_folder(config, workdir)
            if "check_workdir" in row.checks:
                modes.function(mode, "check_workdir")(config, workdir, before, **options(mode))
        before.append(mode)
    of_run = any(row.of_run or row.trained for row in rows.values()) and Workdir(workdir).begun
    stored = resolve.of_run(workdir) if of_run else None
    if stored:
        different = recipe.training_differences(stored, config)
        compiled = [of.ipu.connection == "PRE_COMPILE" for of in (stored, config)]
        if compiled[0] != compiled[1]:
            raise UserError(
                f"{workdir!r} holds what a run {'with' if compiled[0] else 'without'} ipu.connection=PRE_COMPILE left, "
                "which computes nothing but zeros: give compiling a --workdir of its own"
            )
        if different:
            raise UserError(
                f"{workdir!r} holds another run; it differs in\n  " + "\n  ".join(different) + "\n"
                "Give another --workdir, or the same settings to resume it."
            )


def check_data(rows, config, workdir):
    """Opens the data and rejects what the modes would reject of it. Returns the training and the evaluation source."""
    from g16net.run import assemble, run_data

    assemble.check_options(config, workdir)
    train_source, eval_source = assemble.open_sources(config, trains=bool(set(TRAININGS) & set(rows)))
    asking = [mode for mode, row in rows.items() if "check_data" in row.checks]
    for mode in asking:
        modes.function(mode, "check_data")(config, workdir, train_source, before=asking[: asking.index(mode)])
    if not asking and not any(mode in rows for mode in BEGINNINGS):
        for mode, row in rows.items():
            if row.trained and row.opens_data:
                assemble.open_eval_source(config, workdir, run_data.class_names(workdir), f"run --mode={mode}")
        run_data.remark(config, workdir, train_source)
    return train_source, eval_source


def check_writable(workdir):
    """Refuses a `workdir` in which a folder or file could not be made, without making it."""
    there = os.path.abspath(workdir)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} is {'not writable' if os.path.isdir(there) else 'no folder'}"
        raise UserError(f"cannot write to --workdir={workdir}: {why}; name a folder you may write to")


def settle_workdir(config, workdir, lock, keep_config):
    """Makes `workdir` the folder of this run and of no other process that trains there."""
    from g16net.run import records

    try:
        os.makedirs(workdir, exist_ok=True)
        if lock:
            records.lock(workdir)
        if keep_config:
            config_lib.save(config, Workdir(workdir).config)
            records.write_json(Workdir(workdir).versions, records.versions())
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir}: {error.strerror}; name a folder you may write to"
        ) from error


def run_mode(mode, config, workdir, chief=True):
    """Runs one mode; the chief writes its `<mode>.json` and prints the same. False where the figures say `failed`."""
    from g16net import compat
    from g16net.run import records

    started = time.monotonic()
    try:
        figures = modes.function(mode)(config, workdir, **options(mode))
        text = figures.pop("text", None)  # the result itself, where a mode's result is text
        if chief:
            result = records.finish(workdir, mode, started, figures)
            if text:
                print(text, file=sys.__stdout__)
            print(summary(mode, result, rows=not text))
    except data_errors() as error:
        raise RunError(f"--mode={mode} ended: {compat.reason(error)}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise RunError(
            f"--mode={mode} could not write {error.filename or workdir}: {error.strerror}; what was written before is "
            "kept: fix the cause and run the same command again"
        ) from error
    return "failed" not in figures


def data_errors():
    """What TensorFlow raises where files, images or labels are not as they should be."""
    import tensorflow as tf

    return (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.NotFoundError)


def summary(mode, result, rows=True):
    """A mode's figures for a person; without `rows` those that are no table."""
    lines = [f"{mode}: done in {result['wall_seconds']:.0f} s"]
    for key, value in result.items():
        if key in ("mode", "command", "versions", "wall_seconds"):
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            shown = value[1:] and value if rows else []
            lines += ["  " + ", ".join(figure(name, row[name]) for name in row) for row in shown]
        else:
            lines.append("  " + figure(key, value, 26))
    return "\n".join(lines)


def figure(name, value, width=0):
    """`top-1 97.50 %`."""
    if name.startswith("top"):
        name, value = name.replace("top", "top-", 1), f"{100 * value:.2f} %"
    elif isinstance(value, float):
        value = f"{value:.5g}"
    elif isinstance(value, dict):
        value = ", ".join(figure(*item) for item in value.items())
    return f"{name.replace('_', ' ').ljust(width)} {value}"


def dry_run(rows, config, workdir):
    """Prints what a run would be, without training and without writing; refuses what the run would refuse."""
    from g16net.costs import counts
    from g16net.training import runtime, train

    check_writable(workdir)
    train_source, eval_source = check_data(rows, config, workdir)
    steps = train.steps_per_epoch(config, train_source)
    if "train" in rows:
        runtime.check(config, steps)
    cost = counts.count(
        **recipe.network(config),
        size=config.data.train_size,
        num_classes=train_source.num_classes,
        batch=config.run.global_batch,
    )
    print(config)
    images = f"{train_source.num_examples:,} training and {eval_source.num_examples:,} test images"
    print(f"data               {train_source.name}: {images}, {train_source.num_classes} classes")
    print(f"parameters         {cost.params:,}")
    print(f"multiply-adds      {cost.macs:,} an image at {config.data.train_size} px")
    print(f"activations        {cost.activations:,} an image")
    print(
        f"memory             {cost.memory / 2**20:,.0f} MiB for a batch of {config.run.global_batch}, by the cost model"
    )
    print(f"steps              {config.run.epochs * steps:,} ({config.run.epochs} epochs of {steps:,})")

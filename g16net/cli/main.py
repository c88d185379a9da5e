"""The command line: `launch.py` and the console command `g16net`.

    launch.py --experiment=g16_ln_pn:variant=B2,resolution=half --workdir=DIR --config.run.epochs=100

Exit status: 0; 1 where a run failed, an export differs from its checkpoint, or an image for prediction is broken;
2 where the command, the config or the data is wrong; 128 and the signal's number where SIGTERM or SIGINT ended a
training that saved.
"""

import os
import platform
import sys
from importlib import metadata


def onednn_is_mature():
    """Whether the installed TensorFlow has oneDNN's kernels for good, which no import may find out here."""
    for name in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
        try:
            return tuple(int(part) for part in metadata.version(name).split(".")[:2]) >= (2, 9)
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return sys.version_info >= (3, 9)  # the IPU SDK's Python is 3.8, its TensorFlow 2.6


# The choice of Keras, TensorFlow's chatter and its kernels are settled before TensorFlow is imported. Keras 3 cannot
# `fit` under MultiWorkerMirroredStrategy (keras-team/keras#20585). TensorFlow takes oneDNN's kernels by itself only on
# CPUs with AVX-512 VNNI; on others too they train faster, and have the gradient of grouped convolutions, which its own
# lack. Before 2.9 they are an experiment: in 2.6 a grouped convolution ends the process by SIGFPE.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if platform.machine() in ("x86_64", "AMD64") and onednn_is_mature():
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import contextlib  # noqa: E402
import errno  # noqa: E402
import importlib  # noqa: E402
import logging as std_logging  # noqa: E402
import time  # noqa: E402

from absl import app, flags, logging  # noqa: E402

import g16net  # noqa: E402
from g16net import config as config_lib  # noqa: E402
from g16net.config import experiments, recipe  # noqa: E402
from g16net.errors import RunError, UserError, suggest  # noqa: E402
from g16net.run import resolve  # noqa: E402
from g16net.run.signals import Stopped  # noqa: E402
from g16net.run.start import start_tensorflow  # noqa: E402

MODES = {
    "train": "g16net.training.train",
    "finetune": "g16net.training.finetune",
    "evaluate": "g16net.training.evaluate",
    "export": "g16net.export",
    "verify_export": "g16net.export.verify",
    "predict": "g16net.training.predict",
    "channels": "g16net.inspect.channels",
    "inspect_data": "g16net.inspect.inspect_data",
    "benchmark_data": "g16net.benchmark.input",
    "benchmark": "g16net.benchmark.networks",
    "costs": "g16net.benchmark.estimates",
}

RUN_MODES = {"train", "finetune", "evaluate", "export"}  # they belong to one run, whose config the workdir keeps
WORKER_MODES = {"train", "evaluate"}  # all workers of a run do them together; the others are the chief's
TRAINED_MODES = {"finetune", "evaluate", "export", "verify_export", "predict", "channels"}  # they want a trained run
NO_DATA_MODES = {"export", "predict", "benchmark", "costs"}  # they open no data, or only what they need of it
OPTIONS = {  # flags that modes take
    "benchmark": ("peers",),
    "benchmark_data": ("peers",),
    "verify_export": ("file",),
    "predict": ("images",),
    "costs": ("machines", "compare"),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, "Name of an experiment, or a .py file, with its arguments after a colon.")
flags.DEFINE_list(
    "mode",
    ["train", "evaluate", "export"],
    "What to do, in order: " + ", ".join(MODES) + "; or alone: sweep, report, data_service.",
)
flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/EXPERIMENT. A run that is there is resumed.")
flags.DEFINE_string("data", None, "A folder with data, or a source: digits, synthetic, tfds:NAME.")
flags.DEFINE_bool("version", False, "Print the version and end.")
flags.DEFINE_bool("list", False, "List the experiments and end.")
flags.DEFINE_bool("dry_run", False, "Print the resolved config, the costs and the steps, and end.")
flags.DEFINE_string("format", "", "export, verify_export: the same as --config.export.format.")
flags.DEFINE_string("file", "", "verify_export: the exported file; default: where export writes it.")
flags.DEFINE_list(
    "machines", ["ipu_mk2", "a100_40gb", "cpu"], "costs: ipu_mk2, ipu_mk2_x16, a100_40gb, a100_80gb; cpu: this one."
)
flags.DEFINE_list("compare", [], "costs: readings (of the paper), measured (networks run here, minutes).")
flags.DEFINE_multi_string(
    "images", [], "predict: image files, folders and globs, with commas between them or in a flag each."
)
flags.DEFINE_integer("jobs", 1, "sweep: runs at a time in this process' care; others may work in the same workdir.", 1)
flags.DEFINE_bool("retry", False, "sweep: try again what failed.")
flags.DEFINE_list("peers", [], "With whom benchmark (timm, keras) and benchmark_data (timm, tf) compare.")
flags.DEFINE_multi_string(
    "runs", [], "report: folders of runs, of sweeps, of benchmarks and costs, and globs of them; as --images."
)
flags.DEFINE_bool("quoted", True, "report: show what was read off the paper's figure beside.")
flags.DEFINE_string("role", "", "data_service: dispatcher or worker.")
flags.DEFINE_integer("port", 0, "data_service: port to listen on; 0 takes a free one.")
flags.DEFINE_string("dispatcher", "", "data_service: HOST:PORT of a worker's dispatcher.")
flags.DEFINE_string("host", "localhost", "data_service: name under which others reach this worker.")


def main(argv=None):
    """Runs the command line `argv` (default: the process's own) and exits with its status."""
    argv = sys.argv if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be UTF-8, nor the terminal
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        print(help_text())
        sys.exit(0)
    arguments, assignments = split_assignments(argv)

    def parse(_):
        try:
            return FLAGS(arguments)
        except flags.Error as error:
            fail(str(error) + fields_named(arguments))

    app.run(lambda rest: sys.exit(run(rest, assignments)), argv=arguments, flags_parser=parse)


def fields_named(arguments):
    """A hint where a field of the config was given as a flag: ` The field is --config.run.epochs=...`."""
    given = {argument.lstrip("-").partition("=")[0] for argument in arguments[1:]} - set(FLAGS)
    meant = [key for key in config_lib.FIELDS if key in given or key.split(".")[1] in given]
    return f". The field is --config.{' or --config.'.join(meant)}" if meant else ""


def run(rest, assignments):
    """Does what the parsed flags ask. Returns the exit status."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    logging.get_absl_logger().addFilter(ours_or_warning)
    try:
        if rest[1:]:
            raise UserError(f"unexpected argument {rest[1]!r}; flags have the form --name=value, see --help")
        if FLAGS.version:
            print(f"g16net {g16net.__version__}")
            return 0
        if FLAGS.list:
            print(list_text())
            return 0
        return execute(assignments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.status


def ours_or_warning(record):
    """Whether a log record is for the user: everything of g16net, of others what is a warning or worse."""
    return record.levelno >= std_logging.WARNING or os.sep + "g16net" + os.sep in record.pathname


def execute(assignments):
    """Resolves the experiment, then runs its modes."""
    if FLAGS.mode == ["data_service"]:
        serve_data()
        return 0
    if FLAGS.mode == ["sweep"]:
        return run_sweep(assignments)
    if FLAGS.mode == ["report"]:
        return write_report()
    for mode in FLAGS.mode:
        if mode not in MODES:  # sweep, report and data_service stand alone
            raise UserError(f"unknown mode {mode!r}. {suggest(mode, MODES)}")
    if FLAGS.format:
        assignments = assignments + [("export.format", FLAGS.format)]
    # Costs and speed depend on no image, so that no demo is made for want of some.
    imageless = set(FLAGS.mode) <= {"costs", "benchmark"} and FLAGS.experiment
    data = FLAGS.data or ("synthetic" if imageless else None)
    config, name, demo = resolve.resolve(assignments, FLAGS.experiment, data, FLAGS.workdir)
    start_tensorflow()
    workdir = FLAGS.workdir or os.path.join("runs", name)
    # What the command cannot do is found before anything is written, and before another mode has spent time.
    check_modes(config)
    check_workdir(config, workdir)
    if FLAGS.dry_run:
        dry_run(config, workdir)
        return 0
    from g16net.training import evaluate, runtime

    runtime.connect(config)
    if set(FLAGS.mode) - NO_DATA_MODES:
        check_data(config, workdir)
    chief = runtime.chief(config)
    if chief:
        # an evaluation with other weights or sizes leaves the run's config as it is
        new = not os.path.exists(os.path.join(workdir, "config.json"))
        settle_workdir(config, workdir, keep_config="train" in FLAGS.mode or new and bool(set(FLAGS.mode) & RUN_MODES))
    if demo:
        print(DEMO_START)
    # JSON lines have stdout to themselves
    lines_only = FLAGS.mode == ["predict"] and config.predict.output == "jsonl"
    with contextlib.redirect_stdout(sys.stderr if lines_only else sys.stdout), evaluate.sharing():
        modes = [mode for mode in FLAGS.mode if chief or mode in WORKER_MODES]
        failed = [mode for mode in modes if not run_mode(mode, config, workdir, chief)]
        if not chief:
            return 0
        print(f"Everything is in {workdir}:")
        for entry in sorted(name for name in os.listdir(workdir) if not name.startswith(".")):
            print(f"  {os.path.join(workdir, entry)}")
        if demo:
            print(DEMO_END)
    return 1 if failed else 0


def run_sweep(assignments):
    """Works on the runs of a sweep file until all have ended. Returns the exit status."""
    from g16net import sweep

    if not FLAGS.experiment:
        raise UserError("name a sweep file: --experiment=experiments/sweeps/norms.py")
    workdir = FLAGS.workdir or os.path.join("runs", experiments.run_name(FLAGS.experiment, demo=False))
    if FLAGS.dry_run:
        print(sweep.plan(FLAGS.experiment, workdir, assignments, FLAGS.data or ""))
        return 0
    try:
        summary = sweep.sweep(FLAGS.experiment, workdir, main, assignments, FLAGS.data or "", FLAGS.jobs, FLAGS.retry)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0 if summary["done"] == len(summary["runs"]) else 1


def write_report():
    """Makes the page of the runs that `--runs` names. Returns the exit status."""
    from g16net.data import walk
    from g16net.report import page

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


def serve_data():
    """Runs a server of tf.data's service until it is stopped."""
    start_tensorflow()
    from g16net.data import service as data_service

    data_service.start(FLAGS.role, FLAGS.port, FLAGS.dispatcher, FLAGS.workdir or "", FLAGS.host).join()


DEMO_START = (
    "No ImageNet is prepared here and no data was named: this is the experiment's DEMO FORM on scikit-learn's 1,797\n"
    "handwritten digits (a CIFAR-size network at 32 pixels). For your data: --data=FOLDER, or --data=tfds:imagenet2012."
)
DEMO_END = "This was the DEMO FORM on digits, not ImageNet; --data=... trains on yours."


def check_modes(config):
    """Asks each mode's own `check(config, **flags of the mode)`."""
    for mode in FLAGS.mode:
        check = getattr(importlib.import_module(MODES[mode]), "check", None)
        if check:
            check(config, **options(mode))


def options(mode):
    """The flags that `mode` takes, and their values."""
    return {name: getattr(FLAGS, name) for name in OPTIONS.get(mode, ())}


def check_data(config, workdir):
    """Opens the data and refuses what the modes would refuse of it. Returns the training and the evaluation source."""
    from g16net.run import assemble, run_data

    train_source, eval_source = assemble.open_sources(config)
    if "train" in FLAGS.mode:
        importlib.import_module(MODES["train"]).steps_per_epoch(config, train_source)
        run_data.check(config, workdir, train_source, run_data.finished(config, workdir))
    if "finetune" in FLAGS.mode:
        importlib.import_module(MODES["finetune"]).steps_per_epoch(config, train_source)
        if "train" not in FLAGS.mode:
            run_data.check(config, workdir, train_source, done=True)
    if not {"train", "finetune"} & set(FLAGS.mode):
        for mode in FLAGS.mode:
            if mode in TRAINED_MODES - NO_DATA_MODES:
                assemble.open_eval_source(config, workdir, run_data.class_names(workdir), f"run --mode={mode}")
        run_data.remark(config, workdir, train_source)
    return train_source, eval_source


def check_workdir(config, workdir):
    """Refuses a `workdir` that holds a run which these settings would make another one, or none for a mode that wants
    one."""
    for place, mode in enumerate(FLAGS.mode):
        if mode in TRAINED_MODES and "train" not in FLAGS.mode[:place]:
            check_trained(config, workdir, mode, FLAGS.mode[:place])
    from g16net.run import run_data

    path = os.path.join(workdir, "config.json")
    if set(FLAGS.mode) & RUN_MODES and run_data.begun(workdir) and os.path.exists(path):
        different = recipe.training_differences(recipe.resolve(config_lib.load(path)), config)
        if different:
            raise UserError(
                f"{workdir!r} holds another run; it differs in\n  " + "\n  ".join(different) + "\n"
                "Give another --workdir, or the same settings to resume it."
            )


def check_trained(config, workdir, mode, before):
    """Refuses a `mode` whose weights or files are not in `workdir`, and which none of the modes `before` makes."""
    from g16net import export
    from g16net.run import assemble, run_data
    from g16net.training import finetune

    run_data.class_names(workdir)
    if mode == "finetune":
        finetune.check_workdir(config, workdir)
    elif config.eval.weights == "finetuned" and "finetune" not in before:
        assemble.finetuned_folder(config, workdir)
    if mode == "verify_export" and "export" not in before:
        export.runners.check(FLAGS.file or export.path_of(config, workdir))


def check_writable(workdir):
    """Refuses a `workdir` in which a folder or file could not be made, without making it."""
    there = os.path.abspath(workdir)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there) or not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} is {'not writable' if os.path.isdir(there) else 'no folder'}"
        raise UserError(f"cannot write to --workdir={workdir}: {why}; name a folder you may write to")


def settle_workdir(config, workdir, keep_config):
    """Makes `workdir` the folder of this run and of no other process that trains there."""
    from g16net.run import records

    try:
        os.makedirs(workdir, exist_ok=True)
        if "train" in FLAGS.mode:
            records.lock(workdir)
        if keep_config:
            config_lib.save(config, os.path.join(workdir, "config.json"))
            records.write_json(os.path.join(workdir, "versions.json"), records.versions())
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir}: {error.strerror}; name a folder you may write to"
        ) from error


def run_mode(mode, config, workdir, chief=True):
    """Runs one mode; the chief writes its `<mode>.json` and prints the same. False where the figures say `failed`."""
    from g16net import compat
    from g16net.run import records

    started = time.monotonic()
    module = importlib.import_module(MODES[mode])
    try:
        figures = getattr(module, mode)(config, workdir, **options(mode))
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
            "kept: mend the cause and run the same command again"
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


def dry_run(config, workdir):
    """Prints what a run would be, without training and without writing; refuses what the run would refuse."""
    from g16net.costs import counts
    from g16net.training import runtime, train

    check_writable(workdir)
    train_source, eval_source = check_data(config, workdir)
    steps = train.steps_per_epoch(config, train_source)
    if "train" in FLAGS.mode:
        runtime.check(config, steps)
    cost = counts.count(
        **recipe.network(config),
        size=config.data.train_size,
        num_classes=train_source.num_classes,
        batch=config.run.global_batch,
    )
    print(config)
    counts = f"{train_source.num_examples:,} training and {eval_source.num_examples:,} test images"
    print(f"data               {train_source.name}: {counts}, {train_source.num_classes} classes")
    print(f"parameters         {cost.params:,}")
    print(f"multiply-adds      {cost.macs:,} an image at {config.data.train_size} px")
    print(f"activations        {cost.activations:,} an image")
    print(
        f"memory             {cost.memory / 2**20:,.0f} MiB for a batch of {config.run.global_batch}, by the cost model"
    )
    print(f"steps              {config.run.epochs * steps:,} ({config.run.epochs} epochs of {steps:,})")


def list_text():
    """A line for each experiment: its name and the first line of its docstring."""
    return "\n".join(f"  {name:12} {line}" for name, line in experiments.listing())


def help_text():
    """Flags, fields and experiments."""
    fields = "\n".join(
        f"  --config.{key}={config_lib.example(field)}\n      {field.comment}"
        for key, field in config_lib.FIELDS.items()
    )
    return f"{__doc__}\n{FLAGS.module_help(sys.modules[__name__])}\n\nExperiments:\n{list_text()}\n\nFields:\n{fields}"


def split_assignments(argv):
    """Separates `--config.key=value` (or `--config.key value`) from the other arguments."""
    rest, assignments, arguments = [], [], iter(argv)
    for argument in arguments:
        name = argument.lstrip("-")
        if argument.startswith("-") and name.startswith("config."):
            key, equals, value = name[len("config.") :].partition("=")
            if not equals:
                value = next(arguments, "")
            assignments.append((key, value))
        else:
            rest.append(argument)
    return rest, assignments


def fail(message):
    """Prints the message as every mistake's, and ends with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

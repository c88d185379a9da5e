"""The texts of `--help`, `--help=MODE`, `--help=all` and `--list`. No TensorFlow."""

import textwrap

from g16net.cli.flags import FLAGS
from g16net.cli.modes import MODES
from g16net.config import FIELDS, example, experiments
from g16net.errors import UserError, suggest

HEAD = """\
g16net: efficient EfficientNets, trained, evaluated and exported by one command.

  launch.py --experiment=g16_ln_pn --data=PHOTOS --workdir=runs/mine
  launch.py --experiment=g16_ln_pn:variant=B2,resolution=half --mode=train,finetune,evaluate
  launch.py --workdir=runs/mine --mode=predict --images=photo.jpg
"""

# What most commands need, in the order of their use.
COMMON = (
    "--experiment=NAME:ARGS    what to train; see --list",
    "--data=FOLDER             your images, or digits, synthetic, tfds:NAME, hf:NAME",
    "--workdir=DIR             folder of the run; the same command resumes it",
    "--mode=MODE,MODE          what to do, in order (default: train,evaluate,export)",
    "--dry_run                 print the resolved config, costs and steps, and exit",
    "--config.run.epochs=30    passes over the training images",
    "--config.run.global_batch=64    images per weight update",
    "--config.data.train_size=160    pixels in training",
    "--config.optim.learning_rate=0.01    peak of the learning rate",
    "--config.init.checkpoint=FILE    weights to start from: a run's, timm's, keras.applications'",
)

TAIL = """\
More: --help=MODE (its flags and fields), --help=all (every field), --list (experiments), docs/.
Exit status: 0; 1: a run failed, or an export or image is bad; 2: a mistake in the command, config or data;
128 + the signal's number where SIGTERM or SIGINT stopped a training that was saved."""


def asked(arguments):
    """What `--help` or `--help=TOPIC` among the arguments asks for: "" for the overview; None: no help is wanted."""
    for argument in arguments:
        name, _, topic = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in ("help", "h", "helpfull", "helpshort"):
            return "all" if name == "helpfull" else topic
    return None


def text(topic=""):
    """The help on `topic`: "" is the overview, "all" every flag and field, otherwise a mode.

    UserError for another topic.
    """
    if not topic:
        return overview()
    if topic == "all":
        shown = sorted(set(FLAGS.flags_by_module_dict()["g16net.cli.flags"]), key=lambda flag: flag.name)
        return "\n".join(["Flags:", *map(_flag, shown), "", "Fields:", *map(_field, FIELDS), "", experiments_text()])
    if topic not in MODES:
        raise UserError(f"--help={topic}: no such mode. {suggest(topic, [*MODES, 'all'])}")
    return of_mode(topic)


def overview():
    """Two screens: modes, the most used flags, where to find more."""
    modes = [f"  {name:15} {mode.about}" for name, mode in MODES.items()]
    return "\n".join([HEAD, "Modes:", *modes, "", "Most used:", *(f"  {line}" for line in COMMON), "", TAIL])


def of_mode(name):
    """The flags and fields that a mode reads, with their defaults."""
    mode = MODES[name]
    lines = [f"--mode={name}: {mode.about}."]
    if mode.flags:
        lines += ["", "Flags:", *(_flag(FLAGS[flag]) for flag in mode.flags)]
    fields = [key for key in FIELDS if key in mode.fields or key.split(".")[0] in mode.fields]
    if fields:
        lines += ["", "Fields:", *map(_field, fields)]
    if mode.trained:
        lines += ["", "Needs a trained run in --workdir (or --mode=train before it)."]
    if mode.alone:
        lines += ["", "Runs alone, not together with other modes."]
    return "\n".join(lines)


def _flag(flag):
    default = "" if flag.default in (None, "", [], False) else f" (default: {_shown(flag.default)})"
    return _entry(f"--{flag.name}", flag.help + default)


def _field(key):
    field = FIELDS[key]
    rule = f"; {field.rule}" if field.rule and field.rule not in field.comment else ""
    default = "none" if field.default is None else example(field) if field.default != () else ""
    return _entry(f"--config.{key}={default}", field.comment + rule)


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).lower()


def _entry(name, about):
    return f"  {name}\n" + textwrap.fill(about, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)


def experiments_text():
    """A line for each experiment: its name and the first line of its docstring."""
    return "\n".join(f"  {name:12} {line}" for name, line in experiments.listing())

"""The table of modes: everything that the command line asks of one stands in its row."""

import importlib
from typing import Any, Callable, Dict, NamedTuple, Tuple


class Mode(NamedTuple):
    """A row. The module holds the mode as a function of the mode's name.

    Attributes:
        about: a line for the help.
        module: where its function lies: `(config, workdir, **flags) -> figures`, or of a mode that stands alone
            `(assignments, flags) -> exit status`.
        flags: flags of the command line that it takes besides those of every mode.
        fields: fields of the config that it reads, or their sections, for the help.
        checks: which of these functions its module has, asked before anything is written:
            `check(config, **flags)`; `check_workdir(config, workdir, before, **flags)`, where no mode before trains;
            `check_data(config, workdir, source, before)`, with the training split.
        of_run: it belongs to one run, whose config the workdir keeps.
        all_workers: all processes of a run do it together; otherwise the chief does.
        trained: it wants a trained run.
        opens_data: it reads the data of the config.
        imageless: its figures depend on no image, so that it runs without data.
        alone: it is the only mode of a command, and has no run's config.
    """

    about: str
    module: str
    flags: Tuple[str, ...] = ()
    fields: Tuple[str, ...] = ()
    checks: Tuple[str, ...] = ()
    of_run: bool = False
    all_workers: bool = False
    trained: bool = False
    opens_data: bool = True
    imageless: bool = False
    alone: bool = False


WEIGHTS = ("eval.weights", "eval.finetune_size", "finetune.folder")  # which trained weights a mode takes
DEVICES = ("runtime", "ipu")

MODES: Dict[str, Mode] = {
    "train": Mode(
        "train a run to its last epoch, or resume it",
        "g16net.training.train",
        fields=("run", "data", "model", "optim", "schedule", "regularise", "init", "checkpoint", "eval.batch",
                "eval.every_epochs", *DEVICES),
        checks=("check_data",),
        of_run=True,
        all_workers=True,
    ),
    "adopt": Mode(
        "make a run of the weights of init.checkpoint as they are; other modes do it by themselves",
        "g16net.training.adopt",
        fields=("init", "data", "model"),
        checks=("check",),
        of_run=True,
    ),
    "finetune": Mode(
        "fine-tune the last layers of a trained run at test resolution",
        "g16net.training.finetune",
        fields=("finetune", "eval.batch", "runtime"),
        checks=("check", "check_workdir", "check_data"),
        of_run=True,
        trained=True,
    ),
    "evaluate": Mode(
        "accuracy and loss of a trained run over its test split",
        "g16net.training.evaluate",
        fields=("eval", "eval.weights", "finetune.folder", "data.eval_size", "data.eval_split", *DEVICES),
        checks=("check",),
        of_run=True,
        all_workers=True,
        trained=True,
    ),
    "export": Mode(
        "write a trained run as SavedModel, TFLite, ONNX, OpenVINO, Keras file or IPU program",
        "g16net.export",
        flags=("format",),
        fields=("export", "data.eval_size", *WEIGHTS),
        checks=("check",),
        of_run=True,
        trained=True,
        opens_data=False,
    ),
    "verify_export": Mode(
        "compare an exported file with its checkpoint on test images",
        "g16net.export.verify",
        flags=("file", "format"),
        fields=("export.format", "export.precision", "export.check_images", *WEIGHTS),
        checks=("check", "check_workdir"),
        trained=True,
    ),
    "predict": Mode(
        "classes of image files by a trained run",
        "g16net.training.predict",
        flags=("images",),
        fields=("predict", "eval.batch", "data.eval_size", *WEIGHTS),
        checks=("check",),
        trained=True,
        opens_data=False,
    ),
    "channels": Mode(
        "statistics of a trained run's channels, layer by layer",
        "g16net.diagnostics.channels",
        fields=("eval.batch", "data.eval_size", *WEIGHTS),
        checks=("check",),
        trained=True,
    ),
    "inspect_data": Mode(
        "images as the model gets them, their classes, faults and duplicates",
        "g16net.diagnostics.inspect_data",
        fields=("inspect", "data"),
    ),
    "benchmark_data": Mode(
        "speed of the input pipeline, stage by stage, beside peers",
        "g16net.benchmark.input",
        flags=("peers",),
        fields=("data", "run.global_batch"),
        checks=("check",),
    ),
    "benchmark": Mode(
        "speed and memory of networks in training and inference, beside peers",
        "g16net.benchmark.networks",
        flags=("peers",),
        fields=("benchmark", "model", "data.train_size", "data.eval_size"),
        checks=("check",),
        opens_data=False,
        imageless=True,
    ),
    "costs": Mode(
        "parameters, multiply-adds and estimated speed, layer by layer",
        "g16net.benchmark.estimates",
        flags=("machines", "compare", "devices"),
        fields=("costs", "model", "data.train_size", "data.eval_size", "run.epochs", "run.global_batch",
                "runtime.precision", "runtime.micro_batch", "runtime.recompute"),
        checks=("check",),
        opens_data=False,
        imageless=True,
    ),
    "sweep": Mode(
        "many runs of one file, side by side or on a Ray cluster",
        "g16net.cli.alone",
        flags=("jobs", "cluster", "shard", "retry", "dry_run"),
        fields=("sweep",),
        alone=True,
    ),
    "report": Mode(
        "a page with figures of finished runs",
        "g16net.cli.alone",
        flags=("runs", "quoted"),
        alone=True,
    ),
    "data_service": Mode(
        "a dispatcher or worker of tf.data's service",
        "g16net.cli.alone",
        flags=("role", "port", "dispatcher", "host"),
        alone=True,
    ),
}  # fmt: skip


def function(mode: str, name: str = "") -> Callable[..., Any]:
    """The function of a mode, or another function, `name`, of its module."""
    return getattr(importlib.import_module(MODES[mode].module), name or mode)

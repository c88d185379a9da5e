"""Checks an exported file against the checkpoint that it was made of."""

from typing import Any, Dict, Sequence

from ml_collections import ConfigDict

from g16net import compat
from g16net.data import identity
from g16net.export import compare, formats
from g16net.run import assemble


def check(config: ConfigDict, file: str = "") -> None:
    """UserError where the export that is named is none, by its name."""
    if file:
        formats.check_file(file)


def check_workdir(config: ConfigDict, workdir: str, before: Sequence[str] = (), file: str = "") -> None:
    """UserError where there is no export to verify, and none of the modes `before` makes it."""
    if "export" not in before:
        formats.check_file(file or formats.path_of(config, workdir))


def verify_export(config: ConfigDict, workdir: str, file: str = "") -> Dict[str, Any]:
    """Compares the export at `file` (default: of `export.format` in `workdir`) with the newest checkpoint.

    Runs both on `export.check_images` test images. Returns the figures: `largest_logit_difference`,
    `top1_agreement` (share of images on which both give the same class), and `top1` of each. Beyond the tolerance of
    its precision, or with other class names, the figures hold `failed`, and the command ends with status 1.
    """
    path = file or formats.path_of(config, workdir)
    runner = formats.load(path)
    config = assemble.at_test_size(config, workdir)
    with compat.policy("float32"):
        model, class_names = assemble.trained(config, workdir)
    source = assemble.open_eval_source(config, workdir, class_names, "verify the export")
    figures = {"path": path, "weights": config.eval.weights, **compare.on_images(config, model, runner, source)}
    share = compare.TOLERANCES[compare.precision_of(path)]
    if share is not None:
        figures["tolerance"] = share * max(1.0, figures["largest_logit"])
        if not figures["largest_logit_difference"] <= figures["tolerance"]:
            figures["failed"] = "its logits are not those of the checkpoint: exported from another one, or damaged"
    if runner.class_names is not None and runner.class_names != class_names:
        different = identity.class_differences(class_names, runner.class_names)
        different = different or identity.order_differences(class_names, runner.class_names)
        figures["failed"] = f"its class names are not those of the checkpoint: {', '.join(different)}; export it again"
    return figures

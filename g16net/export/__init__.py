"""Export of trained weights in the formats that others run: SavedModel, TFLite, ONNX, OpenVINO, Keras, and the IPU's.

All but Keras' and the IPU's are written from the folded network (`folding`), so that no format computes statistics of a
proxy or batch norms, and hold the class names and the preprocessing. A file takes the place of an older one after it
was run in its own runtime and its logits were those of the live model.
"""

from g16net.compat import tensorflow_only  # noqa: F401  isort: skip  says first what is missing

import os
import shutil
from typing import Any, Dict, Optional

from ml_collections import ConfigDict
from tensorflow import keras

from g16net import compat
from g16net.data.sources.base import Source
from g16net.errors import RunError
from g16net.export import compare as comparison
from g16net.export.formats import FORMATS, Job, load, path_of, size_of
from g16net.ipu import session
from g16net.run import assemble
from g16net.training import evaluate


def export(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Writes the trained weights of `workdir` (averaged by default) in `export.format`. Returns the figures.

    The export is compared with the live model at several sizes, and under TFLite on test images, where the figures show
    what its precision costs.
    """
    kind, row = config.export.format, FORMATS[config.export.format]
    check(config)
    config = assemble.at_test_size(config, workdir)
    if row.write is None:
        return session.export(config, workdir)
    # What is folded, or compared with, may be made for one size of images; a Keras file may not.
    same = kind != "keras" and config.runtime.precision == "float32"
    before = evaluate.kept(config, [config.data.eval_size]) if same else None
    with compat.policy("float32"):
        model, class_names = assemble.trained(config, workdir, network=before and before.model)
    source = assemble.open_eval_source(config, workdir, class_names, "compare the export") if row.on_images else None
    path = path_of(config, workdir)
    root, ending = os.path.splitext(path)
    partial = f"{root}.partial{ending}"
    _remove(partial)
    try:
        row.write(partial, Job(config, model, class_names))
        figures = checked(config, model, partial, source)
        _remove(path)
        os.replace(partial, path)
    finally:
        _remove(partial)
    return {
        "format": kind,
        **({"precision": config.export.precision} if "{precision}" in row.file else {}),
        "path": path,
        "bytes": size_of(path),
        "classes": len(class_names),
        "weights": config.eval.weights,
        **figures,
    }


def check(config: ConfigDict) -> None:
    """UserError where a package or a device that the format needs is missing; before anything takes time."""
    FORMATS[config.export.format].check(config)


def checked(config: ConfigDict, model: keras.Model, path: str, source: Optional[Source] = None) -> Dict[str, Any]:
    """Figures of the export at `path` against `model`, on images of `source` too where it is given; RunError where its
    logits are others."""
    runner = load(path)
    sizes = sorted({config.data.eval_size, config.data.train_size, config.data.eval_size + 32})
    differences = [comparison.on_noise(model, runner, size) for size in sizes]
    tolerance = comparison.tolerance(config.export)
    figures: Dict[str, Any] = {
        "checked_sizes": sizes,
        "largest_logit_difference": max(difference for difference, _ in differences),
        "largest_logit": max(logit for _, logit in differences),
    }
    if tolerance is not None:
        figures["tolerance"] = tolerance * max(1.0, figures["largest_logit"])
        if not figures["largest_logit_difference"] <= figures["tolerance"]:
            raise RunError(
                f"the export's logits differ from the model's by {figures['largest_logit_difference']:.3g}, more than "
                f"{figures['tolerance']:.3g}: nothing was replaced; please report it with the versions of versions.json"
            )
    if source is not None:
        on_images = comparison.on_images(config, model, runner, source)
        del on_images["largest_logit"]
        figures.update({f"{key}_on_images" if "largest" in key else key: on_images[key] for key in on_images})
    return figures


def _remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)

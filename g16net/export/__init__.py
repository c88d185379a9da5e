"""Export of trained weights in the formats that others run: SavedModel, TFLite, ONNX, Keras, and the IPU's.

All but Keras' and the IPU's are written from the folded network (`folding`), so that no format computes statistics of a
proxy or batch norms, and hold the class names and the preprocessing. A file takes the place of an older one after it
was run in its own runtime and its logits were those of the live model.
"""

import os
import shutil

from absl import logging

from g16net import assemble, compat, evaluate, extras
from g16net.config import ConfigError, RunError, UserError
from g16net.export import folding, onnx_graph, runners, saved_model, tflite, verify
from g16net.models import portable


def export(config, workdir):
    """Writes the trained weights of `workdir` (averaged by default) in `export.format`. Returns the figures.

    The export is compared with the live model at several sizes, and under TFLite on test images, where the figures show
    what its precision costs.
    """
    kind = config.export.format
    check(config)
    if kind == "ipu_serving":
        from g16net.ipu import session

        return session.export(config, workdir)
    compat.set_policy("float32")
    # What is folded, or compared with, may be made for one size of images; a Keras file may not.
    same = kind != "keras" and config.runtime.precision == "float32"
    before = evaluate.kept(config, [config.data.eval_size]) if same else None
    model, class_names = assemble.trained(config, workdir, network=before and before.model)
    source = assemble.open_eval_source(config, workdir, class_names, "compare the export") if kind == "tflite" else None
    path = path_of(config, workdir)
    root, ending = os.path.splitext(path)
    partial = f"{root}.partial{ending}"
    _remove(partial)
    try:
        write(kind, partial, config, model, class_names)
        figures = compare(config, model, partial, source)
        _remove(path)
        os.replace(partial, path)
    finally:
        _remove(partial)
    return {
        "format": kind,
        **({"precision": config.export.precision} if kind == "tflite" else {}),
        "path": path,
        "bytes": size_of(path),
        "classes": len(class_names),
        "weights": config.eval.weights,
        **figures,
    }


def path_of(config, workdir):
    """Where `export` writes the format of `config`; fine-tuned weights go to the folder of their size."""
    name = {
        "saved_model": "saved_model",
        "tflite": f"model_{config.export.precision}.tflite",
        "onnx": "model.onnx",
        "keras": "model.keras",
        "ipu_serving": "ipu_serving",
    }[config.export.format]
    folder = assemble.finetuned_folder(config, workdir) if config.eval.weights == "finetuned" else workdir
    return os.path.join(folder, name)


def check(config):
    """UserError where a package that writes or runs the format is missing; before anything takes time."""
    kind = config.export.format
    if kind == "onnx":
        for module in ("onnx", "onnxruntime"):
            extras.need(module, "export", "--format=onnx")
    if kind == "tflite":
        if compat.TF_VERSION < (2, 11):
            raise UserError(
                "--format=tflite needs TensorFlow 2.11 or newer, whose converter keeps grouped convolutions"
            )
        runners.tflite_interpreter()
    if kind == "ipu_serving" and config.runtime.strategy != "ipu":
        raise ConfigError(
            "--format=ipu_serving is compiled by the IPU SDK in one process; got "
            f"runtime.strategy={config.runtime.strategy}, set --config.runtime.strategy=ipu"
        )
    if kind == "keras" and compat.TF_VERSION < (2, 12):
        raise UserError("--format=keras needs Keras 2.12 or newer, which brought the format; use --format=saved_model")


def preprocessing(config):
    """How an image becomes the input, as arguments of `transforms.eval_image`."""
    return assemble.eval_preprocessing(config, config.data.eval_size)


def write(kind, path, config, model, class_names):
    """Writes `model` in the format `kind` to the new `path`."""
    prepare = preprocessing(config)
    if kind == "keras":
        portable.save(model, path)
        return
    steps = folding.fold(model)
    if kind == "saved_model":
        saved_model.save(path, steps, class_names, prepare)
        return
    if kind == "onnx":
        data = onnx_graph.convert(steps, class_names, prepare)
    else:
        data = tflite.convert(steps, class_names, prepare, config.export.precision, calibration(config))
    with open(path, "wb") as file:
        file.write(data)


def calibration(config):
    """Training images as the network gets them in testing, for the ranges of int8; None where they are not needed."""
    if config.export.precision != "int8":
        return None
    source = assemble.open_source_of(config, "train")
    images = [images for images, _ in verify.sample(config, source, config.data.eval_size, config.export.calibration)]
    logging.info("int8: ranges of activations from %d images of %s", len(images), source.name)
    return images


def compare(config, model, path, source=None):
    """Figures of the export at `path` against `model`, on images of `source` too where it is given; RunError where its
    logits are others."""
    runner = runners.load(path)
    sizes = sorted({config.data.eval_size, config.data.train_size, config.data.eval_size + 32})
    differences = [verify.on_noise(model, runner, size) for size in sizes]
    tolerance = verify.tolerance(config.export)
    figures = {
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
        on_images = verify.on_images(config, model, runner, source)
        del on_images["largest_logit"]
        figures.update({f"{key}_on_images" if "largest" in key else key: on_images[key] for key in on_images})
    return figures


def size_of(path):
    """Bytes of a file, or of all files of a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)


def _remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)

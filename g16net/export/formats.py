"""The formats of an export: where each is written, what it needs, and by what it is written."""

import os

from absl import logging

from g16net import compat, extras
from g16net.errors import ConfigError, UserError
from g16net.export import compare, folding, onnx_graph, runners, saved_model, tflite
from g16net.models import portable
from g16net.run import assemble
from g16net.run.workdir import Workdir


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
    return Workdir(folder).file(name)


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
    images = [images for images, _ in compare.sample(config, source, config.data.eval_size, config.export.calibration)]
    logging.info("int8: ranges of activations from %d images of %s", len(images), source.name)
    return images


def size_of(path):
    """Bytes of a file, or of all files of a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)

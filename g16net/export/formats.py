"""The table of export formats: everything that is asked of one stands in its row.

A row more, and its name among the choices of `export.format`, is a format more.
"""

import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from absl import logging
from ml_collections import ConfigDict

from g16net import compat, extras
from g16net.errors import ConfigError, UserError
from g16net.export import folding, onnx_graph, openvino_ir, runners, saved_model, tflite
from g16net.models import portable
from g16net.run import assemble
from g16net.run.workdir import Workdir


class Job(NamedTuple):
    """What is exported: the trained `model` of the run `config`, with the names of its classes."""

    config: Any
    model: Any
    class_names: Sequence[str]

    @property
    def steps(self) -> List[Any]:
        """The folded network."""
        return folding.fold(self.model)

    @property
    def preprocessing(self) -> Dict[str, Any]:
        """How an image becomes the input, as arguments of `transforms.eval_image`."""
        return assemble.eval_preprocessing(self.config, self.config.data.eval_size)


class Format(NamedTuple):
    """A row.

    Attributes:
        file: its name in the workdir, without an ending that of a folder; `{precision}` is that of `export.precision`.
        write: `(path, job)`; None where the format's own exporter does all (the IPU's).
        load: `path -> (images -> logits, class names)`, see `runners`; None where nothing here can run it.
        check: `config`: raises UserError where a package or a device that it needs is missing.
        on_images: whether it is compared on test images too, not on noise alone.
    """

    file: str
    write: Optional[Callable[[str, Job], None]]
    load: Optional[Callable[[str], Tuple[Callable, Any]]]
    check: Callable[[Any], None] = lambda config: None
    on_images: bool = False


def _write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def _write_tflite(path, job):
    export = job.config.export
    images = calibration(job.config) if export.precision == "int8" else None
    _write(path, tflite.convert(job.steps, job.class_names, job.preprocessing, export.precision, images))


def _check_tflite(config):
    if compat.TF_VERSION < (2, 11):
        raise UserError("--format=tflite needs TensorFlow 2.11 or newer, whose converter keeps grouped convolutions")
    runners.tflite_interpreter()


def _check_onnx(config):
    for module in ("onnx", "onnxruntime"):
        extras.need(module, "export", "--format=onnx")


def _check_openvino(config):
    extras.need("onnx", "export", "--format=openvino")
    extras.need("openvino", "openvino", "--format=openvino")


def _check_keras(config):
    if compat.TF_VERSION < (2, 12):
        raise UserError("--format=keras needs Keras 2.12 or newer, which brought the format; use --format=saved_model")


def _check_ipu(config):
    if config.runtime.strategy != "ipu":
        raise ConfigError(
            "--format=ipu_serving is compiled by the IPU SDK in one process; got "
            f"runtime.strategy={config.runtime.strategy}, set --config.runtime.strategy=ipu"
        )


FORMATS = {
    "saved_model": Format(
        "saved_model",
        lambda path, job: saved_model.save(path, job.steps, job.class_names, job.preprocessing),
        runners.saved_model,
    ),
    "tflite": Format("model_{precision}.tflite", _write_tflite, runners.tflite, _check_tflite, on_images=True),
    "onnx": Format(
        "model.onnx",
        lambda path, job: _write(path, onnx_graph.convert(job.steps, job.class_names, job.preprocessing)),
        runners.onnx,
        _check_onnx,
    ),
    "openvino": Format(
        "openvino",
        lambda path, job: openvino_ir.save(path, job.steps, job.class_names, job.preprocessing),
        runners.openvino,
        _check_openvino,
    ),
    "keras": Format(
        "model.keras",
        lambda path, job: portable.save(job.model, path, job.class_names),
        runners.keras,
        _check_keras,
    ),
    "ipu_serving": Format("ipu_serving", None, None, _check_ipu),
}

LOADERS = {os.path.splitext(row.file)[1]: row.load for row in FORMATS.values() if row.load and "." in row.file}
ENDINGS = ", ".join(LOADERS)
FOLDERS = {"saved_model.pb": runners.saved_model, openvino_ir.FILE: runners.openvino}  # by the file that is in it


def path_of(config: ConfigDict, workdir: str) -> str:
    """Where `export` writes the format of `config`; fine-tuned weights go to the folder of their size."""
    name = FORMATS[config.export.format].file.format(precision=config.export.precision)
    folder = assemble.finetuned_folder(config, workdir) if config.eval.weights == "finetuned" else workdir
    return Workdir(folder).file(name)


def load(path: str) -> Any:
    """`images -> logits` of the export at `path`: uint8 [batch, height, width, 3] to float32 [batch, classes].

    Its attribute `class_names` has the names in the file, one per logit; None where the format keeps none (Keras').

    Raises:
        UserError: where there is no export of a known format, or its runtime is missing.
    """
    check_file(path)
    loader: Any = LOADERS.get(os.path.splitext(path)[1])
    if os.path.isdir(path):
        loader = next(load for file, load in FOLDERS.items() if os.path.exists(os.path.join(path, file)))
    run: Any
    run, class_names = loader(path)
    run.class_names = class_names
    return run


def check_file(path: str) -> None:
    """UserError where there is no export at `path`, by its name."""
    if not os.path.exists(path):
        raise UserError(f"no exported file at {path!r}; write one with --mode=export --format=FORMAT")
    if os.path.isdir(path):
        if not any(os.path.exists(os.path.join(path, file)) for file in FOLDERS):
            raise UserError(
                f"{path!r} is a folder without {' or '.join(FOLDERS)}; name a SavedModel, an OpenVINO export, or a "
                f"file of {ENDINGS}"
            )
        return
    ending = os.path.splitext(path)[1]
    if not ending or ending not in LOADERS:  # of what has no ending only a folder is one
        raise UserError(f"{path!r} is no export of a known format; its name should end with {ENDINGS}")


def calibration(config: ConfigDict) -> List[Any]:
    """Training images as the network gets them in testing, for the ranges of int8."""
    source = assemble.open_source_of(config, "train")
    images = [images for images, _ in assemble.sample(config, source, config.data.eval_size, config.export.calibration)]
    logging.info("int8: ranges of activations from %d images of %s", len(images), source.name)
    return images


def size_of(path: str) -> int:
    """Bytes of a file, or of all files of a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files)

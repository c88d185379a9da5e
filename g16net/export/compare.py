"""Compares an exported file with the model that it was made of, on noise and on images."""

import contextlib
import json
import zipfile
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tensorflow import keras

from g16net.data.sources.base import Source
from g16net.errors import UserError
from g16net.run import assemble

# Largest difference of a logit, as a share of the largest logit (or of 1); int8 is judged by its accuracy.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": None}

BATCH = 32  # test images in one run of both


def tolerance(export: ConfigDict) -> Optional[float]:
    """The share of the largest logit by which those of an export may differ, or None, by the config's `export`."""
    return TOLERANCES[export.precision if export.format == "tflite" else "float32"]


def precision_of(path: str) -> str:
    """The precision of an exported file, as it says itself; of TFLite files that do not, by the name that `export`
    gives them."""
    if path.endswith(".tflite"):
        with contextlib.suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("model.json"))["precision"]
    named = [name for name in TOLERANCES if path.endswith(f"_{name}.tflite")]
    return named[0] if named else "float32"


def on_noise(model: keras.Model, runner: Callable, size: int, batch: int = 2) -> Tuple[float, float]:
    """`(largest difference, largest logit)` of `model` and `runner` on random images of `size` pixels.

    `model` may be made for another size: it is asked by `call`, without the check of the input that comes before.
    """
    images = np.random.RandomState(size).randint(0, 256, (batch, size, size, 3)).astype(np.uint8)
    expected = np.asarray(model.call(tf.cast(images, tf.float32), training=False), np.float32)
    return float(np.abs(runner(images) - expected).max()), float(np.abs(expected).max())


def on_images(config: ConfigDict, model: keras.Model, runner: Callable, source: Source) -> Dict[str, Any]:
    """Figures of `model` and `runner` on up to `export.check_images` images of `source` at `data.eval_size`.

    UserError where no image can be read, or the export has another number of classes.
    """
    logits = tf.function(lambda images: model(tf.cast(images, tf.float32), training=False))
    rows = []
    for images, labels in assemble.sample(config, source, config.data.eval_size, config.export.check_images, BATCH):
        rows.append((logits(images).numpy(), runner(images), labels))
    if not rows:
        raise UserError(f"{source.name}, split {source.split}: none of the images drawn for the check can be read")
    live, other, labels = (np.concatenate(column) for column in zip(*rows))
    if live.shape != other.shape:
        raise UserError(f"the export has {other.shape[1]} classes, the checkpoint {live.shape[1]}; export it again")
    return {
        "images": len(labels),
        "largest_logit_difference": float(np.abs(live - other).max()),
        "largest_logit": float(np.abs(live).max()),
        "top1_agreement": float(np.mean(live.argmax(1) == other.argmax(1))),
        "top1_checkpoint": float(np.mean(live.argmax(1) == labels)),
        "top1_export": float(np.mean(other.argmax(1) == labels)),
    }

"""Checks an exported file against the checkpoint that it was made of."""

import numpy as np
import tensorflow as tf

from g16net import assemble, compat
from g16net.config import UserError
from g16net.data import identity
from g16net.data.order import Order
from g16net.export import runners

# Largest difference of a logit, as a share of the largest logit (or of 1); int8 is judged by its accuracy.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": None}

BATCH = 32  # test images in one run of both


def check(config, file=""):
    """UserError where the export that is named is none, by its name."""
    if file:
        runners.check(file)


def verify_export(config, workdir, file=""):
    """Compares the export at `file` (default: of `export.format` in `workdir`) with the newest checkpoint.

    Runs both on `export.check_images` test images. Returns the figures: `largest_logit_difference`,
    `top1_agreement` (share of images on which both give the same class), and `top1` of each. Beyond the tolerance of
    its precision, or with other class names, the figures hold `failed`, and the command ends with status 1.
    """
    from g16net import export

    path = file or export.path_of(config, workdir)
    runner = runners.load(path)
    compat.set_policy("float32")
    model, class_names = assemble.trained(config, workdir)
    source = assemble.open_eval_source(config, workdir, class_names, "verify the export")
    figures = {"path": path, "weights": config.eval.weights, **on_images(config, model, runner, source)}
    share = TOLERANCES[precision_of(path)]
    if share is not None:
        figures["tolerance"] = share * max(1.0, figures["largest_logit"])
        if not figures["largest_logit_difference"] <= figures["tolerance"]:
            figures["failed"] = "its logits are not those of the checkpoint: exported from another one, or damaged"
    if runner.class_names is not None and runner.class_names != class_names:
        different = identity.class_differences(class_names, runner.class_names)
        different = different or identity.order_differences(class_names, runner.class_names)
        figures["failed"] = f"its class names are not those of the checkpoint: {', '.join(different)}; export it again"
    return figures


def tolerance(export):
    """The share of the largest logit by which those of an export may differ, or None, by the config's `export`."""
    return TOLERANCES[export.precision if export.format == "tflite" else "float32"]


def precision_of(path):
    """The precision of an exported file by its name, as `export` gives it."""
    named = [name for name in TOLERANCES if path.endswith(f"_{name}.tflite")]
    return named[0] if named else "float32"


def on_noise(model, runner, size, batch=2):
    """`(largest difference, largest logit)` of `model` and `runner` on random images of `size` pixels.

    `model` may be made for another size: it is asked by `call`, without the check of the input that comes before.
    """
    images = np.random.RandomState(size).randint(0, 256, (batch, size, size, 3)).astype(np.uint8)
    expected = np.asarray(model.call(tf.cast(images, tf.float32), training=False), np.float32)
    return float(np.abs(runner(images) - expected).max()), float(np.abs(expected).max())


def on_images(config, model, runner, source):
    """Figures of `model` and `runner` on up to `export.check_images` images of `source` at `data.eval_size`.

    UserError where no image can be read, or the export has another number of classes.
    """
    logits = tf.function(lambda images: model(tf.cast(images, tf.float32), training=False))
    rows = []
    for images, labels in sample(config, source, config.data.eval_size, config.export.check_images, BATCH):
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


def sample(config, source, size, count, batch=1):
    """Up to `count` images spread over `source`, prepared as in testing, in batches of at most `batch`: arrays
    (uint8 [batch, size, size, 3], int [batch]). Corrupt ones are left out."""
    transform = assemble.eval_transform(config, size)
    order = Order(stop=min(count, source.num_examples), batch=1, seed=0, epochs=1)

    def read(row):
        done = transform(source.read(row), tf.zeros([2], tf.int32))
        return done["image"], done["label"]

    for images, labels in compat.ignore_errors(source.stream(order).unbatch().map(read)).batch(batch):
        yield images.numpy(), labels.numpy()

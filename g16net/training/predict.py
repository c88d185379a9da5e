"""Predicts classes of image files: `--mode=predict --images=photo.jpg,folder,'*.png'`.

Images are read one by one as in testing; one that cannot be read is reported and the others are predicted all the same.
Limits hold before memory is asked for: `MAX_BYTES` of a file, `data.max_pixels` of an image.
"""

import glob
import json
import os
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tensorflow import keras

from g16net import compat
from g16net.data import transforms, walk
from g16net.errors import UserError
from g16net.models import explain
from g16net.report import heatmap, sheet
from g16net.run import assemble
from g16net.run.workdir import Workdir

MAX_BYTES = 2**30
GRID = 48  # most images of the picture


def predict(config: ConfigDict, workdir: str, images: Sequence[str] = ()) -> Dict[str, Any]:
    """Writes `WORKDIR/predictions.jsonl`, a line per image, and returns the figures; `text` is for the terminal.

    A line is {"image": path, "predictions": [{"class": name, "probability": p}, ...]} with the `predict.top` likeliest
    classes in falling order, or {"image": path, "error": why}. Where an image was broken the figures hold `failed`, and
    the command ends with status 1. With `predict.grid` there is a picture, `WORKDIR/predictions.png`; with
    `predict.explain` a line's "explanation" is the path of a picture that shows where the network sees the likeliest
    class, in `WORKDIR/explain`, with all of them on its page `index.html`.

    Args:
        images: files, folders (searched for images, with the folders below) and globs.
    """
    paths = find(images)
    config = assemble.at_test_size(config, workdir)
    with compat.policy("float32"):
        model, class_names = assemble.trained(config, workdir)
    prepare = assemble.eval_preprocessing(config, config.data.eval_size)
    explained = Explained(Workdir(workdir).explain) if config.predict.explain else None
    predictor = Predictor(model, class_names, prepare, config.predict.top, explained)
    records: List[Dict[str, Any]] = []
    shown: List[Any] = []
    for first in range(0, len(paths), config.eval.batch):
        batch, pixels = predictor(paths[first : first + config.eval.batch])
        records += batch
        sound = [record for record in batch if "error" not in record]
        shown += list(zip(pixels, sound))[: GRID - len(shown)]
    lines = [json.dumps(record) for record in records]
    figures: Dict[str, Any] = {"images": len(records), "predictions": Workdir(workdir).file("predictions.jsonl")}
    partial = f"{figures['predictions']}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(partial, figures["predictions"])
    if config.predict.grid and shown:
        figures["grid"] = draw(shown, Workdir(workdir).file("predictions.png"))
    if explained:
        figures["explanations"] = explained.page()
    broken = sum("error" in record for record in records)
    figures["broken"] = broken
    if broken:
        figures["failed"] = f"{broken} of {len(records)} images could not be read; the lines with an error say why"
    figures["text"] = "\n".join(lines) if config.predict.output == "jsonl" else table(records)
    return figures


def find(images: Sequence[str]) -> List[str]:
    """The paths of the image files that `images` names, in order, each once; UserError where one names none.

    Each of `images` is a file, a folder (searched by the rule of `walk`), a glob, or several with
    commas between them. A file named itself is taken whatever its name; what a folder or a glob holds besides images is
    counted in the log.
    """
    if not images:
        raise UserError("--mode=predict needs images: --images=photo.jpg,folder,'holiday/*.jpg'")
    found = {}
    for name in walk.named(images):
        passed: Dict[str, Any] = {}
        if os.path.isdir(name):
            paths = [os.path.join(name, path) for path, _ in walk.images(name, passed)]
            hint = f"no image in the folder ({' '.join(walk.EXTENSIONS)} count)"
        elif os.path.lexists(name):
            paths, hint = [name], ""
        else:
            paths = walk.matches(name, passed)
            hint = "no such file or folder" if not glob.has_magic(name) else "no file matches"
        walk.tell(name, passed)
        if not paths:
            more = f"; {walk.summary(passed)}" if passed else ""
            raise UserError(
                f"--images={walk.shown(name)}: {hint} (looked at {walk.shown(os.path.abspath(name))}){more}"
            )
        found.update(dict.fromkeys(paths))
    return list(found)


def check(config: ConfigDict, images: Sequence[str] = ()) -> None:
    """UserError where `images` names none."""
    find(images)


class Predictor:
    """Predicts batches of files with one model.

    Args:
        model: of `efficientnet.build`.
        class_names: one per logit.
        preprocessing: arguments of `transforms.eval_image`, with `size`.
        top: classes to give for an image.
        explained: what draws where the network sees the likeliest class, or None.
    """

    def __init__(
        self,
        model: keras.Model,
        class_names: Sequence[str],
        preprocessing: Dict[str, Any],
        top: int = 5,
        explained: Optional["Explained"] = None,
    ) -> None:
        self.class_names, self.top, self.explained = class_names, min(top, len(class_names)), explained
        signature = [tf.TensorSpec([], tf.string)]
        self._read = tf.function(lambda data: transforms.eval_image(data, **preprocessing), signature)
        max_pixels = preprocessing.get("max_pixels", transforms.MAX_PIXELS)
        self._why = tf.function(lambda data: transforms.reason(data, max_pixels)[0], signature)
        signature = [tf.TensorSpec([None, preprocessing["size"], preprocessing["size"], 3], tf.uint8)]
        cam = explain.grad_cam(model) if explained else None

        def classify(images):
            """Probabilities and, where asked for, the maps of the likeliest classes as large as the images."""
            if cam is None:
                return tf.nn.softmax(model(tf.cast(images, tf.float32), training=False)), None
            logits, maps = cam(images)
            return tf.nn.softmax(logits), tf.image.resize(maps[..., tf.newaxis], tf.shape(images)[1:3])[..., 0]

        self._classify = tf.function(classify, signature)

    def __call__(self, paths):
        """`(records, images)`: a record a path, in order, and the uint8 image of each that could be read."""
        records, images, places = [], [], []
        for path in paths:
            record = {"image": walk.shown(path)}
            try:
                data = read_bytes(path)
                images.append(self._read(data).numpy())
                places.append(record)
            except tf.errors.InvalidArgumentError:
                record["error"] = self._why(data).numpy().decode("utf-8", "backslashreplace")
            except tf.errors.OpError as error:  # such as no memory
                record["error"] = compat.reason(error)
            except (OSError, ValueError) as error:
                record["error"] = reason(error)
            records.append(record)
        if images:
            probabilities, maps = self._classify(np.stack(images))
            for index, (record, row) in enumerate(zip(places, probabilities.numpy())):
                if not np.isfinite(row).all():
                    record["error"] = "its probabilities are not finite"
                    continue
                record["predictions"] = self._best(row)
                if self.explained:
                    record["explanation"] = self.explained(record, images[index], maps[index].numpy())
        return records, [image for image, record in zip(images, places) if "error" not in record]

    def _best(self, row):
        best = np.argsort(-row, kind="stable")[: self.top]
        return [{"class": self.class_names[i], "probability": round(float(row[i]), 6)} for i in best]


class Explained:
    """Draws images with their maps into `folder`, by the names of the images, and a page of them."""

    def __init__(self, folder: str) -> None:
        self.folder, self.names = folder, heatmap.Names()
        self.rows: List[Any] = []
        os.makedirs(folder, exist_ok=True)

    def __call__(self, record: Dict[str, Any], image: Any, heat: Any) -> str:
        """The path of the picture of a record's image, uint8 [size, size, 3], and its map [size, size]."""
        name = self.names(record["image"])
        self.rows.append((name, [record["image"], best(record), *([] if heat.any() else ["no place spoke for it"])]))
        return heatmap.draw(image, heat, os.path.join(self.folder, name))

    def page(self) -> str:
        """Writes the page with all pictures. Returns its path."""
        return heatmap.write(self.rows, self.folder, f"Why: {len(self.rows)} images")


def best(record: Dict[str, Any]) -> str:
    """`cat 93 %`: the likeliest class of a record."""
    first = record["predictions"][0]
    return f"{first['class']} {100 * first['probability']:.0f} %"


def read_bytes(path: str) -> bytes:
    """The bytes of a regular file of at most `MAX_BYTES`; ValueError for others."""
    if not os.path.isfile(path):  # a pipe or a device would wait for ever
        raise ValueError("not a regular file, or a link to nowhere")
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes, more than the {MAX_BYTES} that are read")
    with open(path, "rb") as file:
        return file.read(MAX_BYTES)


def reason(error: Exception) -> str:
    """Why a file could not be read, in a line."""
    return compat.reason(error)[:300]


def table(records: List[Dict[str, Any]]) -> str:
    """Paths and predictions in columns."""
    width = max([len(record["image"]) for record in records] + [5])
    rows = [f"{'image':{width}}  predictions"]
    for record in records:
        text = ", ".join(f"{p['class']} {100 * p['probability']:.1f} %" for p in record.get("predictions", []))
        rows.append(f"{record['image']:{width}}  {text or 'ERROR: ' + record['error']}")
    return "\n".join(rows)


def draw(shown: Any, path: str) -> str:
    """Draws pairs of an image and its record to the PNG `path`."""
    texts = [best(record) for _, record in shown]
    return sheet.draw([image for image, _ in shown], texts, path, columns=min(8, len(shown)))

"""A look at the data before training: counts, classes, sizes, duplicates, speed, and a sheet of augmented images."""

import csv
import os
import time
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from g16net.data import duplicates, formats, mixing, transforms
from g16net.data.each import each
from g16net.data.order import Order
from g16net.data.sources.base import Source
from g16net.errors import UserError
from g16net.report import sheet
from g16net.run import assemble

SAMPLE = 256  # images whose size is looked at
TURNED_SAMPLE = 4096  # images whose orientation is looked at
ROWS, COLUMNS = 6, 8  # of the sheet
LEAST = 0.005  # share of a class in an image that is named


def inspect_data(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Writes `WORKDIR/contact_sheet.png`, the first training images as the network sees them with the shares of their
    classes, and `WORKDIR/duplicates.csv` where images are there twice.

    Returns counts, classes, sizes in pixels, duplicates and images per second.
    """
    train, test = assemble.open_sources(config)
    heights, widths = image_sizes(train).T
    turned, looked_at = turned_images(train)
    if turned and not config.data.exif:
        logging.warning(
            "%d of %d images looked at are stored turned or mirrored, as their EXIF orientation says, and are taken as "
            "they are stored; --config.data.exif=true puts them upright",
            turned, looked_at,
        )  # fmt: skip
    images, targets = first_images(config, train, ROWS * COLUMNS)
    captions = ["\n".join(shares(target, train.class_names)) for target in targets]
    path = sheet.draw(images, captions, os.path.join(workdir, "contact_sheet.png"), columns=min(COLUMNS, len(images)))
    return {
        "source": config.data.name,
        "training_images": train.num_examples,
        "test_images": test.num_examples,
        "classes": train.num_classes,
        "class_names": preview(train.class_names),
        "images_per_class": class_counts(train),
        "height": spread(heights),
        "width": spread(widths),
        "turned_by_exif": f"{turned} of {looked_at}",
        "train_size": config.data.train_size,
        **twice(train, test, config.inspect.duplicates, workdir),
        "images_per_second": round(speed(config, train), 1),
        "contact_sheet": path,
    }


def image_sizes(source: Source, most: int = SAMPLE) -> Any:
    """int [images, 2]: height and width of up to `most` images spread over the source; UserError where none is read."""
    sizes = _looked_at(source, most, transforms.image_extent)
    if not sizes:
        raise UserError(
            f"{source.name}, split {source.split}: not one of {min(most, source.num_examples)} images looked at can be "
            "read; are they JPEG, PNG, GIF or BMP?"
        )
    return np.array(sizes)


def turned_images(source: Source, most: int = TURNED_SAMPLE) -> Any:
    """Of up to `most` images spread over the source, how many an EXIF orientation turns or mirrors, and of how many."""
    if not source.encoded:
        return 0, min(most, source.num_examples)
    found = _looked_at(source, most, formats.orientation)
    return sum(int(orientation) != 1 for orientation in found), len(found)


def _looked_at(source, most, function):
    """`function(image)` of images spread over the source, without those that cannot be read."""
    order = Order(stop=min(most, source.num_examples), batch=1, seed=0, epochs=1)
    rows = source.stream(order).unbatch()
    return list(each(rows, lambda row: function(source.read(row)["image"])).as_numpy_iterator())


def twice(train: Source, test: Source, most: int, workdir: str) -> Dict[str, Any]:
    """Figures of the images that are there twice, of up to `most` of each split; their names go to a file.

    `test_in_training`: test images whose bytes (`same_bytes`) or pictures (`alike`) are in the training split.
    `in_two_classes`: training images that are in another class too. `repeated`: those whose bytes are there before.
    """
    if not most:
        return {}
    logging.info(
        "Comparing %s training and %s test images (--config.inspect.duplicates=0 leaves that out)",
        f"{min(most, train.num_examples):,}", f"{min(most, test.num_examples):,}",
    )  # fmt: skip
    seen, tested = duplicates.look(train, most), duplicates.look(test, most)
    found = {
        "test_in_training": (tested, seen, duplicates.between(tested, seen)),
        "in_two_classes": (seen, seen, duplicates.across_classes(seen)),
    }
    figures: Dict[str, Any] = {
        "compared": f"{len(seen.ids):,} of {train.num_examples:,} training and {len(tested.ids):,} of "
        f"{test.num_examples:,} test images"
    }
    rows = []
    for kind, (first, second, pairs) in found.items():
        same = sum(pair.same for pair in pairs)
        figures[kind] = {"same_bytes": same, "alike": len(pairs) - same}
        names = [
            (names_of(source, some.ids[[pair[side] for pair in pairs]]), some.labels)
            for side, (source, some) in enumerate(((test if first is tested else train, first), (train, second)))
        ]
        for n, pair in enumerate(pairs):
            (one, labels), (other, others) = names
            rows.append(
                [kind, "same bytes" if pair.same else "alike", one[n], train.class_names[labels[pair.first]], other[n],
                 train.class_names[others[pair.second]]]
            )  # fmt: skip
    figures["repeated"] = duplicates.repeated(seen)
    if rows:
        figures["duplicates"] = os.path.join(workdir, "duplicates.csv")
        with open(figures["duplicates"], "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            csv.writer(file).writerows([["kind", "how", "image", "class", "other", "its class"], *rows])
        for kind, how, one, label, other, its in rows[:3]:
            logging.warning("%s (%s): %s of %s, %s of %s", kind.replace("_", " "), how, one, label, other, its)
    return figures


def names_of(source: Source, ids: Any) -> List[str]:
    """Where a person finds these images."""
    return [name.decode("utf-8", "backslashreplace") for name in source.locate(ids).numpy()] if len(ids) else []


def first_images(config: ConfigDict, source: Source, count: int) -> Any:
    """`(images, targets)` of the first `count` training images in the run's order, as the network sees them: cropped,
    augmented and mixed at the run's first size. uint8 [images, size, size, 3]; class ids, or [images, terms, 2].

    Mixing on the device makes fractions of a level, which are rounded.
    """
    images, targets = [], []
    size = assemble.progressive_parts(config)[0][0]
    for inputs, target in assemble.train_batches(config, source, size=size):
        if isinstance(inputs, tuple):  # to be mixed on the device
            pixels, m, box = inputs
            inputs, _ = mixing.mix(pixels, tf.zeros([len(m)], tf.int32), m, box[0], tf.float32)
        images.append(np.rint(inputs.numpy()).astype(np.uint8))
        targets.append(target.numpy())
        if sum(map(len, images)) >= count:
            break
    return np.concatenate(images)[:count], np.concatenate(targets)[:count]


def shares(target: Any, class_names: Sequence[str]) -> List[str]:
    """A line for each class in an image's target: its name alone, or with its share where several are mixed.

    `target`: a class id, or [terms, 2] of ids and weights; the terms of one class are added up.
    """
    if not np.ndim(target):
        return [class_names[int(target)]]
    weights: Dict[int, float] = {}
    for label, weight in target:
        weights[int(label)] = weights.get(int(label), 0.0) + float(weight)
    found = [(weight, label) for label, weight in weights.items() if weight >= LEAST]
    if len(found) == 1:
        return [class_names[found[0][1]]]
    return [f"{class_names[label]} {100 * weight:.0f} %" for weight, label in sorted(found, reverse=True)]


def class_counts(source: Source) -> Optional[Dict[str, Any]]:
    """Least, mean and most images of a class; None where counting would mean reading every record."""
    if source.labels is None:
        return None
    counts = np.bincount(source.labels, minlength=source.num_classes)
    return {"least": int(counts.min()), "mean": round(float(counts.mean()), 1), "most": int(counts.max())}


def spread(values: Any) -> Dict[str, int]:
    """Least, median and most."""
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def preview(names: Sequence[str], most: int = 10) -> str:
    """The first names in words."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def speed(config: ConfigDict, source: Source, seconds: float = 3.0) -> float:
    """Images per second of the training pipeline after its first batches."""
    batches = iter(assemble.train_batches(config, source))
    for _ in range(2):
        next(batches)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += len(next(batches)[1])
    return images / (time.perf_counter() - started)

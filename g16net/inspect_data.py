"""A look at the data before training: counts, classes, sizes, speed, and a sheet of augmented images with labels."""

import os
import time

import numpy as np
import tensorflow as tf

from g16net import assemble
from g16net.data import transforms
from g16net.data.order import Order
from g16net.report import sheet

SAMPLE = 256  # images whose size is looked at
ROWS, COLUMNS = 6, 8  # of the sheet


def inspect_data(config, workdir):
    """Writes `WORKDIR/contact_sheet.png` and returns counts, classes, sizes in pixels and images a second."""
    train, test = assemble.open_sources(config)
    heights, widths = image_sizes(train).T
    images, labels = first_images(config, train, ROWS * COLUMNS)
    path = sheet.draw(
        images,
        [train.class_names[label] for label in labels],
        os.path.join(workdir, "contact_sheet.png"),
        columns=COLUMNS,
    )
    return {
        "source": config.data.name,
        "training_images": train.num_examples,
        "test_images": test.num_examples,
        "classes": train.num_classes,
        "class_names": preview(train.class_names),
        "images_per_class": class_counts(train),
        "height": spread(heights),
        "width": spread(widths),
        "train_size": config.data.train_size,
        "images_per_second": round(speed(config, train), 1),
        "contact_sheet": path,
    }


def image_sizes(source, most=SAMPLE):
    """int [images, 2]: height and width of up to `most` images spread over the source."""
    order = Order(stop=min(most, source.num_examples), batch=1, seed=0, epochs=1)
    records = source.stream(order).unbatch().map(source.read)
    return np.array([transforms.image_extent(record["image"]).numpy() for record in records])


def first_images(config, source, count):
    """The first `count` training images as the network gets them, uint8, and their labels (of the larger share)."""
    images, labels = [], []
    for batch, targets in assemble.train_batches(config, source):
        images.append(batch.numpy())
        labels.append(main_labels(targets.numpy()))
        if sum(map(len, images)) >= count:
            break
    return np.concatenate(images)[:count], np.concatenate(labels)[:count]


def main_labels(targets):
    """The class ids of plain targets [batch], or those of the largest weight of mixed ones [batch, terms, 2]."""
    if targets.ndim == 1:
        return targets
    ids, weights = targets[..., 0], targets[..., 1]
    return ids[np.arange(len(ids)), weights.argmax(1)].astype(int)


def class_counts(source):
    """Least, mean and most images of a class; None where counting would mean reading every record."""
    if source.labels is None:
        return None
    counts = np.bincount(source.labels, minlength=source.num_classes)
    return {"least": int(counts.min()), "mean": round(float(counts.mean()), 1), "most": int(counts.max())}


def spread(values):
    """Least, median and most."""
    return {"least": int(values.min()), "median": int(np.median(values)), "most": int(values.max())}


def preview(names, most=10):
    """The first names in words."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def speed(config, source, seconds=3.0):
    """Images a second of the training pipeline after its first batches."""
    batches = iter(assemble.train_batches(config, source))
    for _ in range(2):
        next(batches)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += int(tf.shape(next(batches)[0])[0])
    return images / (time.perf_counter() - started)

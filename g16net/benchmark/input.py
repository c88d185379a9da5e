"""How many images per second the input side gives, stage by stage, and beside it what others give on the same files.

Every row is timed in `rounds` turns, all rows in each turn, so that a machine whose speed drifts is unfair to none;
a row's figure is the median of its turns.
"""

import subprocess
import sys
import time

import numpy as np
import tensorflow as tf
from absl import logging

from g16net import compat, extras, host
from g16net.data import order as orders
from g16net.data import transforms
from g16net.data.each import each
from g16net.data.sources.folder import list_images
from g16net.errors import RunError, UserError
from g16net.run import assemble

PEERS = ("timm", "tf")
JPEGS = 256  # images that are looked at before bare decoding, of JPEG alone, is timed


def check(config, peers=()):
    """UserError for a peer that is unknown, is not installed, or does not read such data."""
    unknown = set(peers) - set(PEERS)
    if unknown:
        raise UserError(f"unknown peer {sorted(unknown)[0]!r}; --peers takes {', '.join(PEERS)}")
    if "timm" in peers:
        if config.data.name != "folder":
            raise UserError(f"--peers=timm reads class folders; data.name is {config.data.name!r}: give --data=FOLDER")
        extras.find("timm", "peers", "--peers=timm")


def benchmark_data(config, workdir, peers=(), rounds=5, seconds=2.0):
    """Images per second, in total and per core, of each stage and each peer. Returns the figures.

    Stages add up: `read` alone, then with `decode` (bare `decode_and_crop_jpeg` of the training boxes), with
    `crop_resize` (the training transform without a policy), with `augment`, and `batch`, the pipeline that trains.

    Raises:
        UserError: a peer that does not read such data; a batch larger than the data.
        RunError: a stage, or a peer, that can read none of the first images.
    """
    check(config, peers)
    source = assemble.open_source_of(config, "train")
    runs, peers_rates = stages(config, source), {}
    if "tf" in peers:
        runs["peer_tf"] = plain_tensorflow(config, source)
    if "timm" in peers:
        peers_rates["peer_timm"] = timm_rate(config)
    speeds = {name: [] for name in [*runs, *peers_rates]}
    for turn in range(rounds):
        for name, batches in runs.items():
            speeds[name].append(measure(batches, seconds, warmup=1.5 * seconds if turn == 0 else 0.25 * seconds))
        for name, rate in peers_rates.items():
            speeds[name].append(rate(seconds, warmup=0.5 * seconds))
    cores = host.cores()
    rows = [
        {
            "name": name,
            "images_per_second": round(float(np.median(values)), 1),
            "least": round(min(values), 1),
            "most": round(max(values), 1),
            "images_per_second_per_core": round(float(np.median(values)) / cores, 1),
        }
        for name, values in speeds.items()
    ]
    ratios = {
        f"batch_over_{name}": round(float(np.median(np.divide(speeds["batch"], speeds[name]))), 3)
        for name in speeds
        if name.startswith("peer_") or name == "decode"
    }
    return {
        "source": source.name,
        "images": source.num_examples,
        "size": config.data.train_size,
        "batch": config.run.global_batch,
        "cores": cores,
        **ratios,
        "rows": rows,
    }


def stages(config, source):
    """{stage: function that gives an endless iterator over batches}; a batch has the images along its first axis."""
    size, batch = config.data.train_size, config.run.global_batch
    if batch > source.num_examples:
        raise UserError(
            f"run.global_batch={batch} is more than the {source.num_examples} images of {source.name}, split "
            f"{source.split}; set it to at most {source.num_examples}"
        )
    plain = config.copy_and_resolve_references()
    plain.data.augment = "none"

    def read(record, seed):
        image = record["image"]
        return tf.strings.length(image) if image.dtype == tf.string else image

    def decode(record, seed):
        """The training box alone; returns one pixel, so that only the decoding costs."""
        image = record["image"]
        box = transforms.random_box(tf.image.extract_jpeg_shape(image), seed, area=(config.data.area_min, 1.0))
        return tf.image.decode_and_crop_jpeg(image, box, channels=3)[0, 0]

    remedy = "; leave data.jpeg=true out where not every image is a JPEG" if config.data.jpeg else ""
    remedy = f"--mode=inspect_data shows what is wrong with them{remedy}"
    functions = {"read": read, "decode": decode, "crop_resize": unmixed(plain)}
    if not source.encoded or not all_jpeg(source):
        del functions["decode"]
    if config.data.augment != "none":
        functions["augment"] = unmixed(config)
    runs = {name: rows(f"stage {name}", source, function, batch, remedy) for name, function in functions.items()}
    # targets, one an image: mixed on the device, the images are a tuple
    runs["batch"] = lambda: (targets for _, targets, *_ in assemble.train_batches(config, source))
    logging.info("Timing %s at %d pixels, batch %d", ", ".join(runs), size, batch)
    return runs


def all_jpeg(source):
    """Whether each of `JPEGS` images, spread over `source`, is a JPEG; of others bare decoding would fail at once."""
    order = orders.Order(min(JPEGS, source.num_examples), 1, seed=0, epochs=1)
    jpegs = each(source.stream(order).unbatch(), lambda row: tf.io.is_jpeg(source.read(row)["image"]))
    return all(jpegs.as_numpy_iterator())


def unmixed(config):
    """The training transform as a function from record and seed to the image."""
    transform = assemble.train_transform(config)
    return lambda record, seed: transform(record, seed)["image"]


def rows(name, source, function, batch, remedy):
    """Endless batches of `function(record, seed)` in the training order, images side by side on all cores.

    Those that raise are left out, as corrupt ones do; RunError, with `name` and `remedy`, where the first ones all do:
    the endless order would never give a batch.
    """

    def examples(order):
        def example(row):
            seed = orders.seeds(orders.TRANSFORM, 0, row["epoch"], row["position"])
            return function(source.read(row), seed)

        data = source.stream(order).unbatch()
        return data.map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def make():
        order = orders.Order(source.num_examples // batch * batch, batch, seed=0)
        data = compat.ignore_errors(examples(order), log=False)
        return iter(data.batch(batch).prefetch(2))

    first = min(max(2 * batch, 64), source.num_examples)
    found, why = iter(examples(orders.Order(first, 1, seed=0, epochs=1))), ""
    for _ in range(first):
        try:
            next(found)
            return make
        except tf.errors.OpError as error:
            why = compat.reason(error)
    raise RunError(f"{name} can read none of the first {first} images of {source.name} ({why}); {remedy}")


def plain_tensorflow(config, source):
    """The plain TensorFlow way: decode the whole JPEG, draw a box, crop, resize, flip."""
    size = config.data.train_size

    def example(record, seed):
        image = tf.io.decode_image(record["image"], channels=3, expand_animations=False)
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image), tf.zeros([1, 0, 4]), seed, min_object_covered=0.1, aspect_ratio_range=(0.75, 1.33),
            area_range=(config.data.area_min, 1.0), max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        image = tf.image.resize(tf.slice(image, begin, extent), [size, size])
        image = tf.image.stateless_random_flip_left_right(image, seed)
        image.set_shape([size, size, 3])
        return image

    if not source.encoded:
        raise UserError(f"--peers=tf compares decoding, but {source.name} holds arrays; use a folder or TFRecords")
    remedy = "leave --peers=tf out, or --mode=inspect_data shows what is wrong with them"
    return rows("--peers=tf", source, example, config.run.global_batch, remedy)


def timm_rate(config):
    """A function that times timm's loader, a worker a core, on the same class folders."""
    data = config.data
    root = list_images(data.train_split or "train", data.dir, data.holdout, data.train_split, data.layout).root
    size, batch = str(config.data.train_size), str(config.run.global_batch)

    def rate(seconds, warmup):
        command = [sys.executable, "-m", "g16net.benchmark.timm_loader", root, size, batch, str(seconds), str(warmup)]
        command.append(str(host.cores()))
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    return rate


def measure(make, seconds, warmup):
    """Images per second after `warmup` seconds."""
    batches = make()
    end = time.perf_counter() + warmup
    next(batches)
    while time.perf_counter() < end:
        next(batches)
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += len(next(batches))
    return images / (time.perf_counter() - started)

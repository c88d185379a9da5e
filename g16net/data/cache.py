"""Sources kept near: encoded bytes in memory, or images decoded to a stated size on disk.

Both turn a source into one that finds any example by its index, so that an epoch's order is one permutation of all
examples. They read the whole source once, before the first batch, and say beforehand how much room they take.
"""

import hashlib
import json
import os
import shutil

import numpy as np
import tensorflow as tf
from absl import logging

from g16net import compat
from g16net.data import order as orders
from g16net.data import pipeline, transforms
from g16net.data.each import each
from g16net.data.remembered import aside
from g16net.data.sources.base import Source, indexed, listed
from g16net.errors import UserError

CHUNK = 256  # images read at a time
DECODING = 2  # grows when the same bytes give other pixels


def in_memory(source: Source) -> Source:
    """`source` with its encoded images in memory. A source that holds arrays is there already and comes back as it is.

    Raises:
        UserError: the images take more than the machine's memory.
    """
    if not source.encoded or (source.held_bytes and not source.part):  # such as the synthetic one's
        return source
    needed, there = source.num_examples * source.example_bytes, memory()
    logging.info("%s, split %s: keeps %.0f MB in memory", source.name, source.split, needed / 1e6)
    if needed > there:
        raise UserError(
            f"{source.name}, split {source.split}: {needed / 1e9:.1f} GB of encoded images do not fit into the "
            f"{there / 1e9:.1f} GB of memory here; use the cache on disk, or none"
        )

    rows = _rows(source)
    by_record = "record" in rows.element_spec
    column = "record" if by_record else "image"

    def fetch(row):
        return {"id": row["id"], column: row["record"] if by_record else source.read(row)["image"]}

    found = each(rows, fetch).batch(source.num_examples)
    found = next(iter(found))
    kept, place = found[column], np.full(source.num_examples, -1)
    place[found["id"].numpy()] = np.arange(len(found["id"]))
    place = tf.constant(place)
    labels = None if source.labels is None else tf.constant(source.labels)

    def read(row):
        data = tf.gather(kept, place[row["id"]])  # raises for what could not be read: a corrupt image
        if by_record:
            return source.read({"id": row["id"], "record": data})
        return {"image": data, "label": labels[row["id"]], "id": row["id"]}

    return _like(source, read, encoded=True, example_bytes=source.example_bytes, held_bytes=needed)


def on_disk(source, size, folder, max_corrupt=0.01, max_pixels=transforms.MAX_PIXELS, exif=False, fit="crop"):
    """`source` with its images decoded to uint8 [size, size, 3] in a file in `folder`, made at the first use.

    Images are scaled with smoothing. What is cropped later is cropped from that.

    Args:
        size: pixels.
        folder: for the files: one of num_examples * size * size * 3 bytes, which NumPy reads too (.npy), one of labels
            (-1 where an image is left out), and a JSON file with the ids of those and the reasons.
        max_corrupt: share of the images that may be corrupt.
        max_pixels, exif: of the originals, as in `transforms`.
        fit: "crop" keeps the centre square of the original; "resize" scales both sides, as `transforms.eval_image`.

    Raises:
        UserError: no room on the disk, or too many corrupt images.
    """
    key = _fingerprint(source, size, max_pixels, exif, fit)
    name = f"{source.name}-{source.split}-{size}px-{key}".replace("/", "-").replace(":", "-")
    images, labels, reasons = (os.path.join(folder, name + end) for end in (".npy", ".labels.npy", ".left_out.json"))
    if not all(map(os.path.exists, (images, labels, reasons))):
        _write(source, size, images, labels, reasons, max_corrupt, max_pixels, exif, fit)
    known = np.load(labels, allow_pickle=False)
    one = size * size * 3
    header = os.path.getsize(images) - len(known) * one
    if len(known) != source.num_examples or not 0 < header < one + 4096:
        raise UserError(f"{images}: not the file that was written; remove it and {labels}")
    all_labels = tf.constant(known)
    pixels = _Records(images, header, one)

    def read(row):
        label = all_labels[row["id"]]
        sound = tf.debugging.Assert(label >= 0, ["the image was left out when it was cached"])
        with tf.control_dependencies([sound]):
            data = compat.numpy_function(pixels.read, [row["id"]], tf.uint8)
        return {"image": tf.reshape(data, [size, size, 3]), "label": label, "id": row["id"]}

    def read_many(rows):
        found = tf.gather(all_labels, rows["id"])
        data, there = compat.numpy_function(pixels.read_many, [rows["id"], found >= 0], (tf.uint8, tf.bool))
        return tf.reshape(data, [-1, size, size, 3]), tf.where(tf.reshape(there, [-1]), found, -1)

    cached = _like(source, read, encoded=False, example_bytes=one, held_bytes=0.0)
    return cached._replace(fault=_remembered(reasons), shape=(size, size), read_many=read_many)


class _Records:
    """Equal records of a file, each of which one system call reads, whichever comes next.

    TensorFlow has no operation that reads from the middle of a file; its data set of records of one length reads all
    that comes before.
    """

    def __init__(self, path, header, size):
        self.path, self.header, self.size = path, header, size
        self.file = open(path, "rb", buffering=0)  # kept for as long as a graph holds `read`

    def read_many(self, indices, wanted):
        """uint8 [indices, size], and whether each was wanted and could be read; else it is 0."""
        found, there = np.zeros([len(indices), self.size], np.uint8), np.array(wanted)
        for i in np.flatnonzero(wanted):
            try:
                found[i] = self.read(indices[i])
            except (OSError, ValueError):
                there[i] = False
        return found, there

    def read(self, index):
        data = os.pread(self.file.fileno(), self.size, self.header + int(index) * self.size)  # others run meanwhile
        if len(data) != self.size:
            raise ValueError(f"{self.path}: cut off at record {index}")
        return np.frombuffer(data, np.uint8)


def _remembered(path):
    """`Source.fault` of a cache: what `path` says of the images that it lacks."""
    with open(path, encoding="utf-8") as file:
        rows = json.load(file) or [[-1, "", False]]
    ids, why, large = (tf.constant(column, kind) for column, kind in zip(zip(*rows), (tf.int64, tf.string, tf.bool)))

    def fault(row, judge):
        place = tf.equal(ids, row["id"])
        here, first = tf.reduce_any(place), tf.argmax(place)
        return tf.where(here, why[first], "cannot be read from the cache"), here & large[first]

    return fault


def _write(source, size, images, labels, reasons, max_corrupt, max_pixels, exif, fit):
    folder = os.path.dirname(images)
    os.makedirs(folder, exist_ok=True)
    needed, free = source.num_examples * size * size * 3, shutil.disk_usage(folder).free
    logging.info("%s, split %s: writes %.1f GB to %s", source.name, source.split, needed / 1e9, images)
    if needed > free:
        raise UserError(
            f"{images}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; name another folder"
        )

    def example(row):
        record = source.read(row)
        return row["id"], record["label"], _square(record["image"], size, max_pixels, exif, fit)

    done = each(_rows(source), example).batch(CHUNK)
    known = np.full(source.num_examples, -1, np.int32)
    temporary = [aside(path) for path in (images, reasons, labels)]
    try:
        file = np.lib.format.open_memmap(temporary[0], "w+", np.uint8, (source.num_examples, size, size, 3))
        for ids, some_labels, pixels in done.prefetch(1).as_numpy_iterator():
            file[ids], known[ids] = pixels, some_labels
        file.flush()
        left_out = _left_out(source, known, max_pixels)
        corrupt = [name for name, _, _, large in left_out if not large]
        if len(corrupt) > max_corrupt * source.num_examples:
            raise UserError(
                f"{source.name}, split {source.split}: too many corrupt images, {len(corrupt)} of "
                f"{source.num_examples}: {listed(corrupt)}. The log has the reasons. Fix or remove them, or raise "
                "max_corrupt"
            )
        with open(temporary[1], "w", encoding="utf-8") as reasons_file:
            json.dump([row[1:] for row in left_out], reasons_file)
        with open(temporary[2], "wb") as labels_file:
            np.save(labels_file, known)
        for path, final in zip(temporary, (images, reasons, labels)):  # labels last: where they are, all is
            os.replace(path, final)
    finally:
        for path in filter(os.path.exists, temporary):
            os.remove(path)


def _left_out(source, known, max_pixels):
    """`[name, id, why, large]` of each image whose label is not known; the first of them go to the log."""
    missing = tf.constant(known < 0)
    if not np.any(known < 0):
        return []

    def why(row):
        return (row["id"], *pipeline.fault(source, row, lambda data: transforms.reason(data, max_pixels)))

    # What the source itself raises has cost more than one image, and ends the run.
    rows = each(_rows(source).filter(lambda row: missing[row["id"]]), why, skip=False)
    found = [
        (int(i), text.decode("utf-8", "backslashreplace"), bool(large)) for i, text, large in rows.as_numpy_iterator()
    ]
    places = source.locate(np.array([row[0] for row in found], np.int64)).numpy()
    found = [[name.decode("utf-8", "backslashreplace"), *row] for name, row in zip(places, found)]
    for name, _, text, _ in found[: pipeline.MOST_NAMED]:
        logging.warning("Image left out: %s: %s", name, text)
    if len(found) > pipeline.MOST_NAMED:
        logging.warning("and %d others that are left out", len(found) - pipeline.MOST_NAMED)
    return found


def _square(image, size, max_pixels, exif, fit):
    image = transforms.decode(image, max_pixels, exif, target=4 * size)  # spares memory, and nobody sees it
    if fit == "crop":
        height, width = tf.unstack(tf.shape(image)[:2])
        side = tf.minimum(height, width)
        image = tf.slice(image, [(height - side) // 2, (width - side) // 2, 0], [side, side, 3])
    image = tf.image.resize(image, [size, size], antialias=True)
    return tf.cast(tf.clip_by_value(image, 0, 255) + 0.5, tf.uint8)


def _rows(source):
    """Every example's row once, one by one."""
    return source.stream(orders.Order(stop=source.num_examples, batch=CHUNK, epochs=1)).unbatch()


def _like(source, read, encoded, example_bytes, held_bytes):
    return indexed(
        source.name, source.split, source.num_examples, source.class_names, read, source.locate, encoded,
        example_bytes, source.labels, held_bytes, source.contents,
    )  # fmt: skip


def _fingerprint(source, size, max_pixels, exif, fit="crop"):
    ends = [
        text.decode("utf-8", "backslashreplace")
        for text in source.locate(np.array([0, source.num_examples - 1])).numpy()
    ]
    facts = [source.name, source.split, source.num_examples, source.example_bytes, source.class_names, ends, size]
    if source.contents:
        contents = source.contents()
        facts += [contents["digest"], contents.get("class_samples"), contents.get("label_offset")]
        facts += [contents["input_key"]] if "input_key" in contents else []
    facts += [_written(source.files()) if source.files else None, max_pixels, exif, DECODING]
    facts += [] if fit == "crop" else [fit]  # which caches of older versions are not named by
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _written(paths):
    """A digest of when each of `paths` was written: an image that is edited need not change its size."""
    times = hashlib.sha256()
    for path in paths:
        try:
            times.update(
                b"%d," % tf.io.gfile.stat(path).mtime_nsec if "://" in path else b"%d," % os.stat(path).st_mtime_ns
            )
        except (OSError, tf.errors.OpError):
            times.update(b"gone,")
    return times.hexdigest()[:12]


def memory() -> float:
    """Bytes of this machine's memory, or a very large number where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")

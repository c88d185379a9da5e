"""Sources kept near: encoded bytes in memory, or images decoded to a stated size on disk.

Both turn a source into one that finds any example by its index, so that an epoch's order is one permutation of all
examples. They read the whole source once, before the first batch, and say beforehand how much room they take.
"""

import hashlib
import os
import shutil

import numpy as np
import tensorflow as tf
from absl import logging

from g16net import compat
from g16net.config import UserError
from g16net.data import order as orders
from g16net.data import transforms
from g16net.data.sources.base import indexed, listed

CHUNK = 256  # images read at a time


def in_memory(source):
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

    found = compat.ignore_errors(rows.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)).batch(source.num_examples)
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


def on_disk(source, size, folder, max_corrupt=0.01):
    """`source` with its images decoded to uint8 [size, size, 3] in a file in `folder`, made at the first use.

    An image is the centre square of the original, scaled with smoothing. What is cropped later is cropped from that.

    Args:
        size: pixels.
        folder: for the files: one of num_examples * size * size * 3 bytes, which NumPy reads too (.npy), and one of
            labels (-1 where an image is corrupt).
        max_corrupt: share of the images that may be corrupt.

    Raises:
        UserError: no room on the disk, or too many corrupt images.
    """
    name = f"{source.name}-{source.split}-{size}px-{_fingerprint(source, size)}".replace("/", "-").replace(":", "-")
    images, labels = (os.path.join(folder, name + end) for end in (".npy", ".labels.npy"))
    if not os.path.exists(labels):
        _write(source, size, images, labels, max_corrupt)
    known = np.load(labels, allow_pickle=False)
    one = size * size * 3
    header = os.path.getsize(images) - len(known) * one
    if len(known) != source.num_examples or not 0 < header < one + 4096:
        raise UserError(f"{images}: not the file that was written; remove it and {labels}")
    all_labels = tf.constant(known)

    def read(row):
        label = all_labels[row["id"]]
        sound = tf.debugging.Assert(label >= 0, ["the image was corrupt when it was cached"])
        with tf.control_dependencies([sound]):
            begin = header + row["id"] * one
        data = tf.data.FixedLengthRecordDataset(images, one, header_bytes=begin, buffer_size=one).take(1)
        data = tf.io.decode_raw(tf.data.experimental.get_single_element(data), tf.uint8)
        return {"image": tf.reshape(data, [size, size, 3]), "label": label, "id": row["id"]}

    return _like(source, read, encoded=False, example_bytes=one, held_bytes=0.0)


def _write(source, size, images, labels, max_corrupt):
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
        return row["id"], record["label"], _centre(record["image"], size)

    done = compat.ignore_errors(_rows(source).map(example, num_parallel_calls=tf.data.AUTOTUNE)).batch(CHUNK)
    known = np.full(source.num_examples, -1, np.int32)
    temporary = f"{images}.{os.getpid()}"
    try:
        file = np.lib.format.open_memmap(temporary, "w+", np.uint8, (source.num_examples, size, size, 3))
        for ids, some_labels, pixels in done.prefetch(1).as_numpy_iterator():
            file[ids], known[ids] = pixels, some_labels
        file.flush()
        corrupt = np.flatnonzero(known < 0)
        if len(corrupt):
            names = [name.decode("utf-8", "backslashreplace") for name in source.locate(corrupt).numpy()]
            logging.warning("%s: %d corrupt images: %s", source.name, len(corrupt), ", ".join(names))
            if len(corrupt) > max_corrupt * source.num_examples:
                raise UserError(
                    f"{source.name}, split {source.split}: too many corrupt images, {len(corrupt)} of "
                    f"{source.num_examples}: {listed(names)}. Mend or remove them, or raise max_corrupt"
                )
        with open(f"{labels}.{os.getpid()}", "wb") as labels_file:
            np.save(labels_file, known)
        os.replace(temporary, images)
        os.replace(labels_file.name, labels)  # last: where the labels are, all is
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _centre(image, size):
    image = transforms.decode(image)
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


def _fingerprint(source, size):
    ends = [
        text.decode("utf-8", "backslashreplace")
        for text in source.locate(np.array([0, source.num_examples - 1])).numpy()
    ]
    facts = [source.name, source.split, source.num_examples, source.example_bytes, source.class_names, ends, size]
    facts += [source.contents()["digest"]] if source.contents else []
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def memory():
    """Bytes of this machine's memory, or a very large number where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")

"""Makes a small ImageNet-layout data set out of any photos: class folders and TFRecords of the same images.

    python -m g16net.data.make_set PHOTO... --out DIR --images 400 --classes 10

Without a PHOTO it takes the two that come with scikit-learn, a palace and a flower.

A class is a photo with its hue turned by a fixed angle, an image a random crop of it, perhaps mirrored, scaled to 500 x
375 and stored as a JPEG of quality 90. So the set is small to describe, looks like ImageNet to a pipeline, and can be
learnt. The same arguments give the same images.

    DIR/folders/train/CLASS/00000.jpg    four fifths of each class
    DIR/folders/val/CLASS/00003.jpg      one fifth
    DIR/records/train-00000-of-00004     the classic keys; labels count from 1
    DIR/records/validation-00000-of-00001
    DIR/records/labels.txt               the classes' names, in order of their labels
"""

import argparse
import os
from typing import Any, List, Optional, Sequence, Tuple

import tensorflow as tf

from g16net import compat

HEIGHT, WIDTH, QUALITY = 375, 500, 90
VALIDATION_EVERY = 5


def make_set(
    photos: Sequence[str], out: str, images: Any = 400, classes: int = 10, seed: int = 0, shards: int = 4
) -> Tuple[int, int]:
    """Writes the set into the folder `out`, which must be empty or new. Returns (training, validation) counts.

    Args:
        photos: paths of images that TensorFlow decodes, of at least 200 x 150 pixels.
        images: in both splits together; at least 2 for each class.
        classes: class i shows photo i modulo their number.
        shards: TFRecord files of the training split; the validation split has a quarter as many.

    Raises:
        ValueError: for too few images, small photos, or a folder that is not empty.
    """
    if images < VALIDATION_EVERY * classes:
        raise ValueError(f"{images} images are too few for {classes} classes; at least {VALIDATION_EVERY * classes}")
    if os.path.isdir(out) and os.listdir(out):
        raise ValueError(f"{out} is not empty; name a new folder")
    pictures = [_read(path) for path in photos]
    turns = -(-classes // len(photos))
    stems = [os.path.splitext(os.path.basename(photo))[0] for photo in photos]
    names = sorted(f"{stems[i % len(photos)]}_{i % len(photos)}_hue{i // len(photos):02d}" for i in range(classes))
    places = {name: (int(name.split("_")[-2]), int(name[-2:]) / turns) for name in names}

    records = os.path.join(out, "records")
    os.makedirs(records)
    counts = {"train": 0, "validation": 0}
    files = {"train": shards, "validation": max(shards // 4, 1)}
    writers = {
        split: [tf.io.TFRecordWriter(os.path.join(records, f"{split}-{i:05d}-of-{n:05d}")) for i in range(n)]
        for split, n in files.items()
    }
    for number in range(images):
        label = number % classes
        photo, turn = places[names[label]]
        data = _crop(pictures[photo], tf.constant(turn), tf.constant([seed, number])).numpy()
        split = "validation" if number // classes % VALIDATION_EVERY == VALIDATION_EVERY - 1 else "train"
        folder = os.path.join(out, "folders", "val" if split == "validation" else split, names[label])
        os.makedirs(folder, exist_ok=True)
        name = f"{number:05d}.jpg"
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
        # Neighbours differ in class, as in shuffled records.
        writers[split][counts[split] % files[split]].write(_example(data, label + 1, names[label], name))
        counts[split] += 1
    for writer in writers["train"] + writers["validation"]:
        writer.close()
    with open(os.path.join(records, "labels.txt"), "w", encoding="utf-8") as file:
        file.writelines(name + "\n" for name in names)
    return counts["train"], counts["validation"]


def sample_photos() -> List[str]:
    """Paths of the photos that scikit-learn ships."""
    import sklearn

    folder = os.path.join(os.path.dirname(sklearn.__file__), "datasets", "images")
    return [os.path.join(folder, name) for name in ("china.jpg", "flower.jpg")]


def _read(path):
    picture = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    if picture.shape[0] < HEIGHT * 2 // 5 or picture.shape[1] < WIDTH * 2 // 5:
        raise ValueError(f"{path} has {picture.shape[1]} x {picture.shape[0]} pixels; at least 200 x 150 are needed")
    return picture


@tf.function
def _crop(picture, turn, seed):
    """A JPEG of a random crop of `picture`, 60 to 100 % of the largest one of 4:3, with the hue turned."""
    draws = tf.random.stateless_uniform([4], seed)
    height, width = tf.unstack(tf.cast(tf.shape(picture)[:2], tf.float32))
    tall = tf.minimum(height, width * HEIGHT / WIDTH) * (0.6 + 0.4 * draws[0])
    wide = tall * WIDTH / HEIGHT
    begin = [tf.cast((height - tall) * draws[1], tf.int32), tf.cast((width - wide) * draws[2], tf.int32), 0]
    part = tf.slice(picture, begin, [tf.cast(tall, tf.int32), tf.cast(wide, tf.int32), 3])
    part = tf.image.resize(part, [HEIGHT, WIDTH]) / 255
    part = tf.image.adjust_hue(part, (turn + 0.5) % 1 - 0.5)
    part = tf.cond(draws[3] < 0.5, lambda: part, lambda: tf.reverse(part, [1]))
    return tf.io.encode_jpeg(tf.cast(part * 255 + 0.5, tf.uint8), quality=QUALITY)


def _example(data, label, synset, filename):
    def integers(*values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def text(value):
        return tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[value if isinstance(value, bytes) else value.encode()])
        )

    features = {
        "image/height": integers(HEIGHT),
        "image/width": integers(WIDTH),
        "image/channels": integers(3),
        "image/colorspace": text("RGB"),
        "image/format": text("JPEG"),
        "image/filename": text(filename),
        "image/class/label": integers(label),
        "image/class/synset": text(synset),
        "image/class/text": text(synset),
        "image/encoded": text(data),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """The command; `arguments` by default the process's own."""
    parser = argparse.ArgumentParser(prog="python -m g16net.data.make_set", description=__doc__.split("\n")[0])
    parser.add_argument("photos", nargs="*", metavar="PHOTO", help="default: scikit-learn's two")
    parser.add_argument("--out", required=True, help="new folder for the set")
    parser.add_argument("--images", type=int, default=400, help="in both splits together")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=4, help="TFRecord files of the training split")
    args = parser.parse_args(arguments)
    try:
        train, validation = make_set(
            args.photos or sample_photos(), args.out, args.images, args.classes, args.seed, args.shards
        )
    except (ValueError, OSError, tf.errors.OpError) as error:
        parser.error(compat.reason(error))
    print(f"{args.out}: {train} training and {validation} validation images of {args.classes} classes")


if __name__ == "__main__":
    main()

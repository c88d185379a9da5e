import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from made_data import class_folders, example, idx_file, idx_folder, jpeg, record_files

from g16net.data import make_set, order
from g16net.data.detect import detect
from g16net.data.sources import labels, open_source, records, tfds, tfrecord
from g16net.data.sources.arrays import read_idx
from g16net.data.sources.base import held_out

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("cache_home")]


def rows(source, **changes):
    """All columns of a stream, one after the other."""
    base = dict(stop=source.num_examples, batch=1, epochs=1)
    base.update(changes)
    got = list(source.stream(order.Order(**base)).as_numpy_iterator())
    return {name: np.concatenate([row[name] for row in got]) for name in ("epoch", "position", "id")} if got else None


# Each kind of source


def test_digits_split_is_fixed_stratified_and_whole():
    train, validation = open_source("digits"), open_source("digits", "val")
    assert (train.num_examples, validation.num_examples) == (1438, 359)
    assert train.num_classes == 10 and not train.encoded
    share = np.bincount(validation.labels) / (np.bincount(validation.labels) + np.bincount(train.labels))
    assert abs(share - 0.2).max() < 0.003
    record = train.read({"id": tf.constant(5, tf.int64)})
    assert record["image"].shape == (8, 8, 1) and record["image"].dtype == tf.uint8
    assert int(tf.reduce_max(train.read({"id": tf.constant(1, tf.int64)})["image"])) == 255
    assert np.flatnonzero(held_out(np.arange(20) % 2, 0.2)).tolist() == [4, 7, 11, 16]  # on every version of NumPy


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_reads_plain_and_compressed(tmp_path, suffix):
    folder = idx_folder(tmp_path, suffix=suffix)
    train, test = open_source("idx", "train", folder), open_source("idx", "validation", folder)
    assert (train.num_examples, test.num_examples, test.num_classes) == (30, 10, 3)
    expected = read_idx(os.path.join(folder, f"t10k-images-idx3-ubyte{suffix}"), 3)
    np.testing.assert_array_equal(test.read({"id": tf.constant(7, tf.int64)})["image"][..., 0], expected[7])


@pytest.mark.skipif(
    not os.path.isdir("/usr/share/datasets/fashion-mnist"), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_idx_reads_fashion_mnist():
    source = open_source("idx", "train", "/usr/share/datasets/fashion-mnist")
    assert (source.num_examples, source.num_classes) == (60000, 10)
    assert np.bincount(source.labels).tolist() == [6000] * 10


def test_folder_with_splits(tmp_path):
    class_folders(tmp_path, {"cat": 5, "ant": 3}, "train")
    class_folders(tmp_path, {"cat": 2, "ant": 1}, "val")
    train, val = open_source("folder", "train", str(tmp_path)), open_source("folder", "validation", str(tmp_path))
    assert (train.num_examples, val.num_examples, train.class_names) == (8, 3, ("ant", "cat"))
    record = train.read({"id": tf.constant(3, tf.int64)})
    assert record["image"].numpy() == jpeg(0) and int(record["label"]) == 1
    assert train.locate([3]).numpy()[0].decode().endswith("train/cat/000.jpg")


def test_folder_with_a_stated_split(tmp_path):
    class_folders(tmp_path, {"cat": 10, "ant": 5})
    parts = [open_source("folder", split, str(tmp_path), holdout=0.2) for split in ("train", "validation")]
    assert all(np.bincount(part.labels, minlength=2).min() >= 1 for part in parts)
    names = [set(part.locate(tf.range(part.num_examples)).numpy()) for part in parts]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 15


def test_folder_refuses_to_read_large_files(tmp_path):
    class_folders(tmp_path, {"ant": 2, "bee": 1}, "train")
    source = open_source("folder", "train", str(tmp_path), max_file_bytes=100)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_file_bytes"):
        tf.function(source.read)({"id": tf.constant(0, tf.int64)})


def test_tfrecord_reads_the_classic_keys(tmp_path):
    folder = record_files(tmp_path, [2, 3])
    box = (0.1, 0.2, 0.3, 0.4)
    source = open_source("tfrecord", "train", folder, num_classes=3)
    record = source.read({"id": tf.constant(4, tf.int64), "record": tf.constant(example(3, b"x", [box, box]))})
    assert record["image"].numpy() == b"x" and int(record["label"]) == 2
    np.testing.assert_allclose(record["boxes"], [box, box])
    assert source.read({"id": 0, "record": tf.constant(example(3, b"x"))})["boxes"].shape == (0, 4)
    assert source.locate([0, 1, 2, 4]).numpy().tolist() == [
        os.path.join(folder, name).encode()
        for name in (
            "train-00000-of-00002 record 0",
            "train-00000-of-00002 record 1",
            "train-00001-of-00002 record 0",
            "train-00001-of-00002 record 2",
        )
    ]


def test_record_counts_are_remembered_outside_the_data(tmp_path, monkeypatch):
    folder = record_files(tmp_path / "data", [2, 0, 3])
    paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    assert tfrecord.count_records(paths)[0] == [2, 0, 3]
    assert len(os.listdir(folder)) == 3
    monkeypatch.setattr(tfrecord, "_count", None)
    assert tfrecord.count_records(paths)[0] == [2, 0, 3]


@pytest.mark.parametrize("encoded", [False, True])
def test_synthetic(encoded):
    source = open_source("synthetic", num_examples=70, num_classes=5, size=(20, 30), encoded=encoded)
    record = source.read({"id": tf.constant(67, tf.int64)})
    image = tf.io.decode_jpeg(record["image"]) if encoded else record["image"]
    assert image.shape == (20, 30, 3) and int(record["label"]) == 2 and source.encoded == encoded
    again = open_source("synthetic", num_examples=70, num_classes=5, size=(20, 30), encoded=encoded)
    same = again.read({"id": tf.constant(2, tf.int64)})["image"]  # of the same class
    assert same.numpy().tobytes() == record["image"].numpy().tobytes() if not encoded else same == record["image"]


# Order


# The other kinds are streams of positions as folders are.
@pytest.fixture(
    params=["folder", "records"] + [pytest.param(k, marks=pytest.mark.slow) for k in ("digits", "synthetic")]
)
def source(request, tmp_path):
    if request.param == "digits":
        return open_source("digits", "validation")
    if request.param == "synthetic":
        return open_source("synthetic", num_examples=101, num_classes=4, size=8)
    if request.param == "folder":
        class_folders(tmp_path, {"ant": 20, "bee": 17}, "train")
        return open_source("folder", "train", str(tmp_path))
    folder = record_files(tmp_path, [7, 0, 12, 3, 9, 11, 5])
    return open_source("tfrecord", "train", folder, num_classes=3, cycle=3, window=8)


# Records are held to it in test_pipeline, as batches.
RECORDS_SLOW = pytest.mark.parametrize(
    "source", ["folder", pytest.param("records", marks=pytest.mark.slow)], indirect=True
)


def test_an_epoch_has_every_example_once_in_an_order_of_its_own(source):
    n = source.num_examples
    got = rows(source, batch=10, seed=3, epochs=2)
    np.testing.assert_array_equal(got["position"], np.tile(np.arange(n), 2))
    np.testing.assert_array_equal(got["epoch"], np.repeat([0, 1], n))
    first, second = got["id"][:n], got["id"][n:]
    np.testing.assert_array_equal(np.sort(first), np.arange(n))
    np.testing.assert_array_equal(np.sort(second), np.arange(n))
    assert (first != second).any() and (rows(source, seed=4)["id"] != first).any()


@RECORDS_SLOW
def test_a_stream_starts_anywhere(source):
    n = source.num_examples
    whole = rows(source, batch=5, stop=n // 5 * 5, seed=1, epochs=3)
    steps = n // 5
    for start in (0, steps // 2 * 5, steps * 5 - 5):
        part = rows(source, batch=5, stop=n // 5 * 5, seed=1, start_epoch=1, start=start, epochs=3)
        for name in whole:
            np.testing.assert_array_equal(part[name], whole[name][n // 5 * 5 + start :])


@RECORDS_SLOW
def test_workers_share_each_step(source):
    stop = source.num_examples // 6 * 6
    whole = rows(source, batch=6, stop=stop, seed=1)
    parts = [rows(source, batch=6, stop=stop, seed=1, index=i, count=3)["id"].reshape(-1, 2) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).ravel(), whole["id"])


def test_canonical_order_and_ranges(source):
    n = source.num_examples
    whole = rows(source, batch=4)
    np.testing.assert_array_equal(np.sort(whole["id"]), np.arange(n))
    if source.part is None:
        np.testing.assert_array_equal(whole["id"], np.arange(n))
    np.testing.assert_array_equal(rows(source, batch=4, start=8, stop=18)["id"], whole["id"][8:18])


def test_records_alternate_between_files(tmp_path):
    folder = record_files(tmp_path, [3, 1, 2, 4])
    source = open_source("tfrecord", "train", folder, num_classes=3, cycle=3, window=100)
    assert rows(source)["id"].tolist() == [0, 3, 4, 1, 5, 2, 6, 7, 8, 9]


def test_records_go_with_their_ids(tmp_path):
    folder = record_files(tmp_path, [3, 1, 5, 4])
    source = open_source("tfrecord", "train", folder, num_classes=3, cycle=2, window=3)
    for row in source.stream(order.Order(stop=13, batch=2, seed=0, epochs=1)):
        for number, record in zip(row["id"].numpy(), row["record"]):
            got = source.read({"id": number, "record": record})
            assert got["image"].numpy() == b"%d" % number and int(got["label"]) == number % 3


@pytest.mark.parametrize("sizes", [[5, 5, 5], [1, 7, 3, 0], [0, 0, 4], [9]])
def test_rounds_before_any_record(sizes):
    turns = [(i, k) for k in range(max(sizes)) for i in range(len(sizes)) if k < sizes[i]]
    for passed in range(len(turns)):
        rounds, rest = (int(x) for x in records._rounds(tf.constant(sizes, tf.int64), tf.constant(passed, tf.int64)))
        given = np.minimum(sizes, rounds)
        assert given.sum() + rest == passed
        assert all(k == rounds for _, k in turns[given.sum() : passed])


def test_workers_share_files(tmp_path):
    source = open_source("tfrecord", "train", record_files(tmp_path, [3, 1, 5, 4]), num_classes=3, cycle=2, window=3)
    parts = [rows(source.part(i, 2), seed=0)["id"] for i in range(2)]
    assert sorted(parts[0]) == [0, 1, 2, 4, 5, 6, 7, 8] and sorted(parts[1]) == [3, 9, 10, 11, 12]


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with the set `tiny_pictures` of 40 images, prepared into 4 files."""
    tensorflow_datasets = pytest.importorskip("tensorflow_datasets")

    class TinyPictures(tensorflow_datasets.core.GeneratorBasedBuilder):
        """Forty grey pictures in three classes."""

        VERSION = tensorflow_datasets.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = None

        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=tensorflow_datasets.features.FeaturesDict(
                    {
                        "image": tensorflow_datasets.features.Image(shape=(None, None, 3), encoding_format="png"),
                        "label": tensorflow_datasets.features.ClassLabel(names=["ant", "bee", "cat"]),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(40), "test": self._generate_examples(6)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"image": np.full((4, 5, 3), i, np.uint8), "label": i % 3}

    folder = str(tmp_path_factory.mktemp("tfds"))
    TinyPictures(data_dir=folder).download_and_prepare()
    return folder


def test_tfds_reads_without_decoding(prepared):
    source = open_source("tfds:tiny_pictures", "train", prepared)
    assert source.num_examples == 40 and source.class_names == ("ant", "bee", "cat") and source.encoded
    seen = {}
    for row in source.stream(order.Order(stop=40, batch=7, seed=5, epochs=1)):
        for record in row["record"]:
            got = source.read({"id": 0, "record": record})
            seen[int(tf.io.decode_png(got["image"])[0, 0, 0])] = int(got["label"])
    assert seen == {i: i % 3 for i in range(40)}
    assert open_source("tfds:tiny_pictures:1.0.0", "validation", prepared).num_examples == 6  # its split is "test"


def test_tfds_parts_of_a_split(prepared):
    parts = [open_source("tfds:tiny_pictures", split, prepared) for split in ("train[:30%]", "train[30%:]")]
    assert [part.num_examples for part in parts] == [12, 28]
    seen = []
    for part in parts:
        for row in part.stream(order.Order(stop=part.num_examples, batch=5, seed=0, epochs=1)):
            seen += [int(tf.io.decode_png(part.read({"id": 0, "record": r})["image"])[0, 0, 0]) for r in row["record"]]
    assert sorted(seen) == list(range(40))


@pytest.mark.parametrize(
    "name, split, message",
    [
        ("tfds:tiny_pictures", "dev", "no split 'dev'; there is 'test', 'train'"),
        ("tfds:mnist", "train", r"not prepared in .*download=True"),
        ("tfds:mnits", "train", "no such set. Did you mean 'mnist'"),
    ],
)
def test_tfds_errors(prepared, name, split, message):
    with pytest.raises(ValueError, match=message):
        open_source(name, split, prepared)


@pytest.mark.parametrize("sole", ["all", "full", "train", "Training", "seg_train"])
def test_the_name_of_the_only_split_is_all_of_it_unless_it_says_training(sole):
    assert labels.ask(sole, {sole: None}, "here").part == ("all" if sole in ("all", "full") else "train")
    assert (
        labels.ask("train", {sole: None}, "here").part == labels.ask(sole, {sole: None}, "here", sole).part == "train"
    )
    assert labels.ask("all", {sole: None}, "here").part == "all"
    assert labels.ask("val", {sole: None}, "here").part == "validation"


def test_several_prepared_sets_or_configurations_ask_for_one(tmp_path):
    for place in ("pets/small/1.0.0", "pets/small/2.0.0", "pets/large/1.0.0", "roses/1.0.0"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "dataset_info.json").write_text("{}")
    assert tfds._prepared("pets/small", str(tmp_path)) == str(tmp_path / "pets" / "small" / "2.0.0")
    assert tfds._prepared("pets/small:1.0.0", str(tmp_path)) == str(tmp_path / "pets" / "small" / "1.0.0")
    with pytest.raises(ValueError, match="tfds:pets: .* configurations large, small; name one: --data=tfds:pets/large"):
        tfds._prepared("pets", str(tmp_path))
    with pytest.raises(ValueError, match="prepared, pets, roses; name one: --data=tfds:pets --config.data.dir=.*"):
        detect(str(tmp_path))
    os.rename(str(tmp_path / "pets"), str(tmp_path.parent / "pets"))
    assert detect(str(tmp_path)) == ("tfds:roses", str(tmp_path))
    plain = tmp_path.parent / "pets" / "0.1.0"  # a version beside configurations
    plain.mkdir()
    (plain / "dataset_info.json").write_text("{}")
    assert tfds._prepared("pets", str(tmp_path.parent)) == str(plain)


def test_tfds_missing_file(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared, str(tmp_path / "copy"))
    for parent, _, files in os.walk(str(tmp_path / "copy")):
        for file in files:
            if "-train" in file:
                os.remove(os.path.join(parent, file))
    with pytest.raises(ValueError, match="1 of 1 record files are missing"):
        open_source("tfds:tiny_pictures", "train", str(tmp_path / "copy"))


# Mistakes


def test_unknown_names():
    with pytest.raises(ValueError, match="no data source 'digts'.*Did you mean 'digits'"):
        open_source("digts")
    with pytest.raises(ValueError, match="no split 'tran'; there is 'train', 'validation'"):
        open_source("digits", "tran")


@pytest.mark.parametrize("kind", ["idx", "folder", "tfrecord"])
def test_a_place_that_is_not_there(kind, tmp_path):
    with pytest.raises(ValueError, match="folder"):
        open_source(kind)
    with pytest.raises(ValueError, match=f"looked at {tmp_path}/nowhere"):
        open_source(kind, "train", str(tmp_path / "nowhere"))


def test_folder_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no class folders; images must lie as"):
        open_source("folder", "train", str(tmp_path))
    class_folders(tmp_path, {"ant": 3, "bee": 0, "cat": 0}, "train")
    with pytest.raises(ValueError, match="2 of 3 classes have no image: bee, cat"):
        open_source("folder", "train", str(tmp_path))
    with pytest.raises(ValueError, match="no split 'validation'; there is 'train'"):
        open_source("folder", "validation", str(tmp_path))
    class_folders(tmp_path, {"ant": 1, "dog": 1}, "val")
    with pytest.raises(ValueError, match="1 class folders that the training split lacks: dog"):
        open_source("folder", "validation", str(tmp_path))


def test_folder_without_any_image(tmp_path):
    os.makedirs(str(tmp_path / "train" / "ant"))
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="no images"):
        open_source("folder", "train", str(tmp_path))


def test_folder_with_a_split_but_no_train(tmp_path):
    class_folders(tmp_path, {"ant": 1}, "val")
    with pytest.raises(ValueError, match="val but no train"):
        open_source("folder", "train", str(tmp_path))


def test_tfrecord_mistakes(tmp_path):
    folder = record_files(tmp_path, [4, 4, 4])
    with pytest.raises(ValueError, match="how many classes"):
        open_source("tfrecord", "train", folder)
    with pytest.raises(ValueError, match="no split 'validation'; there is 'train'"):
        open_source("tfrecord", "validation", folder, num_classes=3)
    with pytest.raises(
        ValueError, match=r"(?s)4 of 12 labels lie outside 0..2 .*off by one: give --config.data.label_offset=1"
    ):
        open_source("tfrecord", "train", folder, num_classes=3, label_offset=0)
    with pytest.raises(ValueError, match="1 of 4 classes have no image: class 3"):
        open_source("tfrecord", "train", folder, num_classes=4)
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    assert open_source("tfrecord", "train", folder).class_names == ("ant", "bee", "cat")
    os.remove(os.path.join(folder, "train-00001-of-00003"))
    with pytest.raises(ValueError, match="1 of 3 record files are missing: train-00001-of-00003"):
        open_source("tfrecord", "train", folder)


def test_tfrecord_of_another_layout_or_damaged(tmp_path):
    folder = record_files(tmp_path, [4])
    path = os.path.join(folder, "train-00000-of-00001")
    whole = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with pytest.raises(ValueError, match="a damaged file .*corrupted record"):
        open_source("tfrecord", "train", folder, num_classes=3)
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(tf.train.Example().SerializeToString())
    with pytest.raises(ValueError, match="without the key image/class/label"):
        open_source("tfrecord", "train", folder, num_classes=3)


def test_tfrecord_labels_that_count_from_0(tmp_path):
    folder = record_files(tmp_path, [6], label=lambda i: i % 3)
    with pytest.raises(ValueError, match="off by one: give --config.data.label_offset=0"):
        open_source("tfrecord", "train", folder, num_classes=3)
    assert open_source("tfrecord", "train", folder, num_classes=3, label_offset=0).num_examples == 6


def test_tfrecord_cut_off_or_of_another_kind(tmp_path):
    folder = record_files(tmp_path, [4, 4])
    path = os.path.join(folder, "train-00001-of-00002")
    whole = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(whole[:-5])
    with pytest.raises(ValueError, match="train-00001-of-00002: cut off.*record 3"):
        open_source("tfrecord", "train", folder, num_classes=3)
    with open(path, "wb") as file:
        file.write(b"This is a text and no TFRecord.")
    with pytest.raises(ValueError, match="no .uncompressed. TFRecord file"):
        open_source("tfrecord", "train", folder, num_classes=3)
    os.truncate(path, 0)
    os.truncate(os.path.join(folder, "train-00000-of-00002"), 0)
    with pytest.raises(ValueError, match="no records in them"):
        open_source("tfrecord", "train", folder, num_classes=3)


def test_a_file_that_lost_records_after_counting_is_named(tmp_path):
    folder = record_files(tmp_path, [4, 4])
    source = open_source("tfrecord", "train", folder, num_classes=3)
    record_files(tmp_path, [4, 3])
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)fewer records than counted.*train-00001-of-00002"):
        rows(source)


def test_more_workers_than_files(tmp_path):
    source = open_source("tfrecord", "train", record_files(tmp_path, [4, 4]), num_classes=3)
    with pytest.raises(ValueError, match="2 record files cannot be shared by 3 workers"):
        source.part(0, 3)


def test_idx_mistakes(tmp_path):
    folder = idx_folder(tmp_path)
    labels = os.path.join(folder, "train-labels-idx1-ubyte")
    whole = open(labels, "rb").read()
    with open(labels, "wb") as file:
        file.write(whole[:-1])
    with pytest.raises(ValueError, match="says 30 bytes .*has 29"):
        open_source("idx", "train", folder)
    with open(labels, "wb") as file:
        file.write(whole[:4] + struct.pack(">I", 2**32 - 1) + whole[8:])  # must not allocate 4 GiB
    with pytest.raises(ValueError, match="says 4294967295 bytes"):
        open_source("idx", "train", folder)
    idx_file(labels, np.zeros(29, np.uint8))
    with pytest.raises(ValueError, match="30 images in .* but 29 labels"):
        open_source("idx", "train", folder)
    with pytest.raises(ValueError, match="labels lie outside 0..1"):
        open_source("idx", "validation", folder, class_names=["a", "b"])
    os.remove(labels)
    with pytest.raises(ValueError, match="come in pairs.*train has only images"):
        open_source("idx", "train", folder)


def test_idx_labels_that_count_from_1(tmp_path):
    """As those of EMNIST's letters do."""
    folder = idx_folder(tmp_path)
    for split, count in (("train", 30), ("t10k", 10)):
        idx_file(os.path.join(folder, f"{split}-labels-idx1-ubyte"), (1 + np.arange(count) % 3).astype(np.uint8))
    with pytest.raises(ValueError, match="have no image: 0.*count from 1: give --config.data.label_offset=1"):
        open_source("idx", "train", folder)
    train, test = (open_source("idx", split, folder, label_offset=1) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("1", "2", "3")
    assert train.labels.tolist() == [0, 1, 2] * 10 and test.labels.tolist() == [0, 1, 2] * 3 + [0]


def test_idx_class_without_images(tmp_path):
    folder = idx_folder(tmp_path)
    with pytest.raises(ValueError, match="1 of 4 classes have no image: d"):
        open_source("idx", "train", folder, class_names=list("abcd"))


# The tool


def test_make_set(tmp_path):
    sample = pytest.importorskip("sklearn.datasets").__path__[0]
    photos = [os.path.join(sample, "images", name) for name in ("china.jpg", "flower.jpg")]
    out = str(tmp_path / "set")
    make_set.main(photos + ["--out", out, "--images", "22", "--classes", "4", "--shards", "2"])
    folders = [open_source("folder", split, os.path.join(out, "folders")) for split in ("train", "val")]
    files = [open_source("tfrecord", split, os.path.join(out, "records")) for split in ("train", "val")]
    assert [s.num_examples for s in folders] == [s.num_examples for s in files] == [18, 4]
    assert files[0].class_names == folders[0].class_names and files[0].num_classes == 4
    images = {}
    for row in files[0].stream(order.Order(stop=18, batch=18, epochs=1)):
        for record in row["record"]:
            got = files[0].read({"id": 0, "record": record})
            images[got["image"].numpy()] = int(got["label"])
    assert len(images) == 18
    for i in range(18):
        got = folders[0].read({"id": tf.constant(i, tf.int64)})
        assert images[got["image"].numpy()] == int(got["label"])
        assert tf.io.decode_jpeg(got["image"]).shape == (375, 500, 3)
    with pytest.raises(ValueError, match="not empty"):
        make_set.make_set(photos, out)
    again = str(tmp_path / "again")
    make_set.make_set(photos, again, images=22, classes=4, shards=2)
    for parent, _, files in os.walk(os.path.join(out, "folders")):
        for name in files:
            copy = os.path.join(again, os.path.relpath(os.path.join(parent, name), out))
            assert open(os.path.join(parent, name), "rb").read() == open(copy, "rb").read()

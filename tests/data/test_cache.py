import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, pairs
from made_data import assert_same, batches, class_folders, jpeg, mark, open_kind, record_files, transform
from PIL import Image

from g16net import native
from g16net.config import experiments
from g16net.data import cache, pipeline, transforms
from g16net.data.remembered import aside
from g16net.data.sources import base, open_source
from g16net.run import assemble

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("cache_home")]


def by_id(source):
    """{id: (image, label)} of a whole source."""
    rows = cache._rows(source).map(source.read)
    return {int(r["id"]): (r["image"].numpy(), int(r["label"])) for r in rows}


@pytest.mark.parametrize("kind", ["folder", "records"])
def test_memory_holds_what_the_source_has(kind, tmp_path):
    source = open_kind(kind, tmp_path)
    cached = cache.in_memory(source)
    assert by_id(cached) == by_id(source) and len(by_id(cached)) == source.num_examples
    assert cached.locate([3]) == source.locate([3])
    if kind == "folder":
        assert_same(batches(cached, transform, 8, seed=1, epochs=1), batches(source, transform, 8, seed=1, epochs=1))
        for name in ("ant", "bee"):
            for file in os.listdir(str(tmp_path / "train" / name)):
                os.remove(str(tmp_path / "train" / name / file))
        assert len(batches(cached, transform, 8, seed=1, epochs=1)) == 4


def test_memory_leaves_arrays_as_they_are(tmp_path):
    for kind in ("digits", "encoded"):
        source = open_kind(kind, tmp_path)
        assert cache.in_memory(source) is source


def test_memory_that_does_not_suffice(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "memory", lambda: 1000)
    with pytest.raises(ValueError, match="GB of memory here"):
        cache.in_memory(open_kind("folder", tmp_path))


def test_disk_holds_decoded_squares(tmp_path):
    class_folders(tmp_path / "data", {"ant": 4, "bee": 5}, "train")
    source = open_source("folder", "train", str(tmp_path / "data"))
    cached = cache.on_disk(source, 5, str(tmp_path / "decoded"))
    got = by_id(cached)
    assert not cached.encoded and len(got) == 9
    for i, (image, label) in got.items():
        assert image.shape == (5, 5, 3) and label == (i >= 4)
        assert abs(image.astype(int) - (i if i < 4 else i - 4)).max() <= 1  # JPEGs of one grey
    images, labels, _ = sorted(os.listdir(str(tmp_path / "decoded")), key=len)
    np.testing.assert_array_equal(np.load(str(tmp_path / "decoded" / images))[3], got[3][0])
    assert np.load(str(tmp_path / "decoded" / labels)).tolist() == [0] * 4 + [1] * 5


def test_disk_is_written_once_and_gives_the_same_batches(tmp_path, monkeypatch):
    source = open_kind("records", tmp_path / "data")
    first = batches(cache.on_disk(source, 6, str(tmp_path / "decoded")), mark, 8, seed=1, epochs=1)
    monkeypatch.setattr(cache, "_write", None)
    again = cache.on_disk(source, 6, str(tmp_path / "decoded"))
    assert_same(batches(again, mark, 8, seed=1, start_step=2, epochs=1), first[2:])


def test_corrupt_images_stay_corrupt_on_disk(tmp_path):
    class_folders(tmp_path / "data", {"ant": 5, "bee": 5}, "train")
    (tmp_path / "data" / "train" / "bee" / "001.jpg").write_bytes(b"no image")
    source = open_source("folder", "train", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="too many corrupt images, 1 of 10: .*bee/001.jpg"):
        cache.on_disk(source, 4, str(tmp_path / "decoded"))
    assert not os.listdir(str(tmp_path / "decoded"))
    cached = cache.on_disk(source, 4, str(tmp_path / "decoded"), max_corrupt=0.1)
    seen = np.concatenate([x[:, 0, 0, 0] for x, _ in batches(cached, mark, 10, seed=0, epochs=1, max_corrupt=0.1)])
    assert set(seen) == set(range(10)) - {6}
    with pytest.raises(tf.errors.InvalidArgumentError, match="left out when it was cached"):
        tf.function(cached.read)({"id": tf.constant(6, tf.int64)})


def test_record_files_that_changed_make_no_cache(tmp_path):
    """The rows that are lost then are no corrupt images, which could be left out."""
    source = open_source("tfrecord", "train", record_files(tmp_path / "data", [4, 4]), num_classes=3)
    record_files(tmp_path / "data", [4, 3])
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)fewer records than counted.*train-00001-of-00002"):
        cache.on_disk(source, 4, str(tmp_path / "decoded"), max_corrupt=1.0)
    assert not os.listdir(str(tmp_path / "decoded"))


def test_disk_is_read_at_the_image_and_not_from_its_start(tmp_path, monkeypatch):
    class_folders(tmp_path / "data", {"ant": 30}, "train")
    class_folders(tmp_path / "data", {"bee": 30}, "train")
    source = open_source("folder", "train", str(tmp_path / "data"))
    cached = cache.on_disk(source, 4, str(tmp_path / "decoded"))
    asked, pread = [], os.pread
    monkeypatch.setattr(cache.os, "pread", lambda *place: asked.append(place[1:]) or pread(*place))
    for number in (59, 0, 31):
        record = cached.read({"id": tf.constant(number, tf.int64)})
        assert int(record["label"]) == number // 30 and abs(int(record["image"][0, 0, 0]) - number % 30) <= 1
    header = asked[1][1]
    assert asked == [(48, header + 48 * 59), (48, header), (48, header + 48 * 31)]


def test_a_file_cut_off_is_no_image(tmp_path):
    class_folders(tmp_path / "data", {"ant": 3, "bee": 3}, "train")
    source = open_source("folder", "train", str(tmp_path / "data"))
    cached = cache.on_disk(source, 4, str(tmp_path / "decoded"))
    (images,) = (
        path for path in (tmp_path / "decoded").iterdir() if ".labels" not in path.name and path.suffix == ".npy"
    )
    os.truncate(str(images), images.stat().st_size - 10)
    with pytest.raises((ValueError, tf.errors.OpError), match="cut off at record 5"):
        cached.read({"id": tf.constant(5, tf.int64)})


UNFINISHED = """
import sys
from g16net.data import cache, pipeline, transforms
from g16net.data.sources import open_source

def prepare(record, seed):
    return dict(record, image=transforms.small_image(record["image"], 8, seed))

source = cache.on_disk(open_source("folder", "train", sys.argv[1]), 16, sys.argv[2])
batches = iter(pipeline.train_batches(source, prepare, 400, seed=0))
next(batches)
"""


@pytest.mark.run
def test_a_program_ends_in_the_middle_of_data_that_python_reads(tmp_path):
    class_folders(tmp_path / "data", {"ant": 120, "bee": 120, "cat": 120, "dog": 120}, "train")
    command = [sys.executable, "-c", UNFINISHED, str(tmp_path / "data"), str(tmp_path / "decoded")]
    home = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}  # with the operations as built
    subprocess.run(command, cwd=ROOT, timeout=100, check=True, env=home)


@pytest.mark.parametrize(
    "shape, area", pairs([(32, 32, 24), (28, 20, 32), (9, 33, 8)], [(0.05, 1.0), (0.35, 1.0), (0.98, 1.0)])
)
def test_boxes_of_a_batch_are_those_of_images_one_by_one(shape, area):
    if not native.available():
        pytest.skip("no C++ compiler: there is no operation for a whole batch")
    height, width, size = shape
    rng = np.random.default_rng(height)
    images = rng.integers(0, 256, (60, height, width, 3), np.uint8)
    seeds = rng.integers(-(2**31), 2**31, (60, 2)).astype(np.int32)
    for options in ({}, {"resize": "tf1", "flip": False}):
        one = tf.function(functools.partial(transforms.train_image, size=size, area=area, **options))
        found = transforms.small_boxes(tf.constant(images), tf.constant(seeds), size, area, **options)
        for i in range(60):
            np.testing.assert_array_equal(found[i], one(tf.constant(images[i]), seed=tf.constant(seeds[i])))


@pytest.mark.parametrize("reflect", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_batches_at_once_are_those_of_images_one_by_one(reflect, tmp_path):
    if not native.available():
        pytest.skip("no C++ compiler: there is no operation for a whole batch")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / "data" / "train" / ("ant" if i < 30 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(str(folder / f"{i:03d}.png"))
    (tmp_path / "data" / "train" / "bee" / "041.png").write_bytes(b"no image")
    source = open_source("folder", "train", str(tmp_path / "data"))
    cached = cache.on_disk(source, 16, str(tmp_path / "decoded"), max_corrupt=0.1)
    arrays = base.arrays("digits", "train", pixels, np.arange(60) // 30, ["ant", "bee"])
    (file,) = (path for path in (tmp_path / "decoded").glob("*.npy") if ".labels" not in path.name)
    os.truncate(str(file), file.stat().st_size - 10)  # the last image cannot be read any more
    shifts = {"pad": 2, "flip": True, "reflect": reflect}

    def one(record, seed):
        return dict(record, image=transforms.small_image(record["image"], 16, seed, **shifts))

    def many(images, seeds):
        return transforms.small_images(images, seeds, **shifts)

    options = {"seed": 5, "epochs": 2, "max_corrupt": 0.1, "start_step": 1, "corrupt_log": str(tmp_path / "log")}
    for some in (cached, arrays, base.relabelled(cached, ["bee", "wasp", "ant"])):
        found = batches(some, one, 12, many=many, **options)
        assert len(found) == 9
        assert_same(found, batches(some, one, 12, **options))
    beyond = arrays._replace(read_many=lambda rows: (arrays.read_many(rows)[0], tf.fill(tf.shape(rows["id"]), 2)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="label outside 0..3"):  # no class of the longer list
        batches(base.relabelled(beyond, ["ant", "bee", "wasp", "fly"]), one, 12, many=many, **options)
    log = (tmp_path / "log").read_text().splitlines()
    assert sum("041.png" in line for line in log) == sum("059.png" in line for line in log) >= 4
    tested = [list(pipeline.eval_batches(cached, one, 25, max_corrupt=0.1, many=how)) for how in (None, lambda x, _: x)]
    for (_, labels, weights), (images, same_labels, same_weights) in zip(*tested):
        np.testing.assert_array_equal(weights, same_weights)
        np.testing.assert_array_equal(labels, same_labels)
        assert images.shape == (25, 16, 16, 3) and not images.numpy()[weights.numpy() == 0].any()


def test_disk_remembers_why_an_image_is_left_out(tmp_path, capfd):
    class_folders(tmp_path / "data", {"ant": 8, "bee": 8}, "train")
    (tmp_path / "data" / "train" / "ant" / "002.jpg").write_bytes(jpeg(height=30, width=40))
    (tmp_path / "data" / "train" / "bee" / "003.jpg").write_bytes(b"RIFF    WEBP")
    source = open_source("folder", "train", str(tmp_path / "data"))
    for _ in range(2):  # as made, and as found
        cached = cache.on_disk(source, 4, str(tmp_path / "decoded"), max_corrupt=0.1, max_pixels=1000)
        options = {"max_corrupt": 1 / 16, "corrupt_log": str(tmp_path / "log")}
        assert len(batches(cached, mark, 8, seed=0, epochs=1, **options)) == 2
    named = (tmp_path / "log").read_text()
    assert named.count("002.jpg: 40 x 30 pixels, more than data.max_pixels=1000") == 2
    assert named.count("003.jpg: Not a JPEG, PNG, GIF or BMP image but WebP") == 2


def test_disk_holds_upright_images_where_asked_for(tmp_path):
    folder = tmp_path / "data" / "train" / "ant"
    folder.mkdir(parents=True)
    pixels = np.zeros([8, 8, 3], np.uint8)
    pixels[:4] = 200
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(str(folder / "a.png"), exif=exif)
    class_folders(tmp_path / "data", {"bee": 1}, "train")
    source = open_source("folder", "train", str(tmp_path / "data"))
    tops = [
        int(by_id(cache.on_disk(source, 8, str(tmp_path / "decoded"), exif=exif))[0][0][0, 0, 0]) for exif in (0, 1)
    ]
    assert tops == [200, 0]


def test_disk_holds_whole_pictures_where_the_run_scales_them_whole(tmp_path):
    folder = tmp_path / "data" / "train" / "ant"
    folder.mkdir(parents=True)
    pixels = np.full([8, 24, 3], 200, np.uint8)
    pixels[:, 8:16] = 100  # the centre square
    Image.fromarray(pixels).save(str(folder / "a.png"))
    class_folders(tmp_path / "data", {"bee": 1}, "train")
    config = experiments.load("g16_ln_pn:demo")
    config.data.update(cache="decoded", cache_dir=str(tmp_path / "decoded"), cache_size=24)
    source, edges = open_source("folder", "train", str(tmp_path / "data")), []
    for config.data.crop in ("box", "pad", "reflect"):
        image = by_id(assemble.kept(config, source))[0][0]
        edges.append((image[12, 0, 0], image[12, 12, 0], image[12, 23, 0]))
    assert edges == [(100, 100, 100), (200, 100, 200), (200, 100, 200)]
    assert len(list((tmp_path / "decoded").glob("*.labels.npy"))) == 2


def test_processes_of_one_number_write_under_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in containers
    assert aside(str(tmp_path / "cache.npy")) != aside(str(tmp_path / "cache.npy"))
    source = open_kind("records", tmp_path / "data")
    cache.on_disk(source, 6, str(tmp_path / "decoded"))
    assert len(os.listdir(str(tmp_path / "decoded"))) == 3


def test_disk_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 10}))
    with pytest.raises(ValueError, match="GB are needed"):
        cache.on_disk(open_kind("folder", tmp_path), 4, str(tmp_path / "decoded"))


def test_another_column_of_the_same_files_is_another_cache(tmp_path):
    """As of RGB-D sets, whose two images of a row lie in one Parquet file."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {key: [jpeg(grey)] * 4 for key, grey in {"image": 200, "depth": 90}.items()}
    (tmp_path / "data").mkdir()
    rows = pyarrow.table({**columns, "label": [0, 1, 0, 1]})
    parquet.write_table(rows, str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    for key, grey in {"image": 200, "depth": 90}.items():
        source = open_source("parquet", "train", str(tmp_path / "data"), input_key=key)
        images = [image for image, _ in by_id(cache.on_disk(source, 4, str(tmp_path / "decoded"))).values()]
        assert len(images) == 4 and abs(np.array(images).astype(int) - grey).max() <= 1

"""Sets as others write them: Parquet, Arrow files, the Hugging Face cache, tar shards, CIFAR's binary files."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from made_data import batches, class_folders, transform
from made_shards import NAMES, cifar, member, parquet, photo, saved_to_disk, table, tars
from PIL import Image

from g16net.data import cache, identity, order
from g16net.data.detect import detect
from g16net.data.sources import open_source, webdataset

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("cache_home")]
COUNTS = [7, 12, 3, 9, 6]
KINDS = {"parquet": parquet, "arrow": saved_to_disk, "wds": tars}


def held(source):
    """{id: (image, label)} of a whole source."""
    base = order.Order(stop=source.num_examples, batch=8, epochs=1)
    rows = list(source.stream(base).unbatch().map(source.read).as_numpy_iterator())
    assert len(rows) == source.num_examples == len(source.labels)
    return {int(row["id"]): (row["image"], int(row["label"])) for row in rows}


def rows(source, **changes):
    """`[(epoch, id, record)]` of a stream."""
    base = dict(stop=source.num_examples // 8 * 8, batch=8, epochs=2, seed=5)
    found = source.stream(order.Order(**{**base, **changes})).unbatch().as_numpy_iterator()
    return [(row["epoch"], row["id"], row["record"]) for row in found]


def add_test_split(kind, folder):
    """A test split beside what `KINDS[kind]` wrote."""
    if kind == "arrow":
        saved_to_disk(os.path.join(folder, "test"), [5], "test")
    else:
        KINDS[kind](folder, [5], "test")


@pytest.fixture(params=KINDS)
def kind(request):
    if request.param != "wds":
        pytest.importorskip("pyarrow")
    return request.param


# Arrow files come as tar files do, by `fetched`.
ARROW_SLOW = pytest.mark.parametrize(
    "kind", ["parquet", pytest.param("arrow", marks=pytest.mark.slow), "wds"], indirect=True
)


@pytest.fixture
def folder(kind, tmp_path):
    """Training images in five files of unequal size, and five test images."""
    inner = tmp_path / "set" / ("train" if kind == "arrow" else "")
    KINDS[kind](inner, COUNTS)
    add_test_split(kind, str(tmp_path / "set"))
    return str(tmp_path / "set")


# Every one


def test_images_and_labels_are_those_written(kind, folder):
    assert detect(folder) == (kind, folder)
    train, test = (open_source(kind, split, folder) for split in ("train", "validation"))
    assert (train.num_examples, test.num_examples, test.split) == (37, 5, "test")
    assert train.class_names == (("0", "1", "2") if kind == "wds" else NAMES)
    assert held(train) == {i: (photo(i), i % 3) for i in range(37)}
    places = set(train.locate(np.arange(37)).numpy())
    assert len(places) == 37 and all(place.decode().startswith(folder) for place in places)


@ARROW_SLOW
def test_any_start_and_any_share_is_the_same_stream(kind, folder):
    source = open_source(kind, "train", folder)
    whole = rows(source)
    assert len(whole) == 64 and all(record == photo(i) for _, i, record in whole)
    assert len({i for epoch, i, _ in whole if not epoch}) == 32
    assert rows(source, start=24) == whole[24:]
    other = rows(source, index=1, count=2)  # the second of two workers
    assert other == [row for i, row in enumerate(whole) if i % 8 >= 4]
    again = open_source(kind, "train", shutil.copytree(folder, folder + "_copy"))
    assert rows(again) == whole and not identity.differences(source.contents(), again.contents())


@ARROW_SLOW
def test_caches_hold_the_same(kind, folder, tmp_path):
    source = open_source(kind, "train", folder)
    assert held(cache.in_memory(source)) == held(source)
    decoded = cache.on_disk(source, 16, str(tmp_path / "decoded"))
    assert {i: label for i, (_, label) in held(decoded).items()} == dict(enumerate(source.labels))


def test_a_single_split_is_divided(kind, tmp_path):
    folder = KINDS[kind](tmp_path, COUNTS)
    train, validation = (open_source(kind, split, folder, holdout=0.25) for split in ("train", "validation"))
    assert np.bincount(validation.labels).tolist() == [3, 3, 3] and train.num_examples == 28
    images = [image for source in (train, validation) for image, _ in held(source).values()]
    assert sorted(images) == sorted(map(photo, range(37)))
    every = open_source(kind, "all", folder)
    assert every.num_examples == 37 and all(source.undivided for source in (train, validation, every))
    with pytest.raises(ValueError, match="data.train_split=all would train on the images that are held out"):
        open_source(kind, "all", folder, train_split="all")


def test_other_examples_are_another_set(kind, folder, tmp_path):
    first = open_source(kind, "train", folder).contents()
    inner = os.path.join(folder, "train") if kind == "arrow" else folder
    shutil.rmtree(inner)
    KINDS[kind](inner, COUNTS[::-1])  # the same, in other shards
    add_test_split(kind, folder)
    changed = identity.differences(first, open_source(kind, "train", folder).contents())
    assert bool(changed) == (kind == "parquet")  # which is shuffled by its row groups; the others by their rows
    shutil.rmtree(inner)
    KINDS[kind](inner, COUNTS[:-1])
    assert identity.differences(first, open_source(kind, "train", folder).contents())


def test_a_service_cannot_read_them(kind, folder):
    from g16net.config import recipe
    from g16net.run import assemble

    config = recipe.get_config("demo,variant=NANO")
    config.data.name, config.data.dir, config.data.service = kind, folder, "grpc://localhost:1"
    with pytest.raises(ValueError, match=f"data.service=grpc.*cannot read {kind} data"):
        assemble.open_sources(config)


# Parquet and Arrow


@pytest.mark.slow
def test_parquet_of_many_row_groups_streams_them(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from g16net.data.sources import parquet as module

    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "CYCLE", 3)
    folder = parquet(tmp_path, [30, 1, 21], label=lambda i: i % 7 % 3)
    source = open_source("parquet", "train", folder, holdout=0.1)
    whole = rows(source)
    assert rows(source, start=16) == whole[16:]
    shares = [source.part(i, 2) for i in range(2)]
    ids = [int(i) for share in shares for _, i, _ in rows(share, stop=share.num_examples, epochs=1)]
    assert sorted(ids) == list(range(source.num_examples))


@pytest.mark.parametrize("place", ["data", "plain_text", "default/train"])
def test_parquet_lies_as_on_the_hub(place, tmp_path):
    pytest.importorskip("pyarrow")
    parquet(tmp_path / place, [6])
    if place == "default/train":  # the hub's own conversion
        os.rename(str(tmp_path / place / "train-00000-of-00001.parquet"), str(tmp_path / place / "0000.parquet"))
    (tmp_path / ".cache").mkdir()
    assert open_source(*(detect(str(tmp_path))[0], "train", str(tmp_path))).num_examples == 6


def test_labels_that_are_words_or_bare_numbers(tmp_path):
    pytest.importorskip("pyarrow")
    words = parquet(tmp_path / "words", [8], label=lambda i: "dog" if i % 2 else "cow", names=None)
    parquet(words, [4], "test", label=lambda i: "dog", names=None)
    assert open_source("parquet", "train", words).class_names == ("cow", "dog")
    assert open_source("parquet", "test", words).labels.tolist() == [1] * 4
    parquet(words, [4], "test", label=lambda i: "hen", names=None)
    with pytest.raises(ValueError, match="none of the 2 classes: 'hen'"):
        open_source("parquet", "test", words)
    numbers = parquet(tmp_path / "numbers", [8], names=None)
    parquet(numbers, [2], "test", names=None)
    assert open_source("parquet", "test", numbers).class_names == ("0", "1", "2")  # of the training split


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    pytest.importorskip("pyarrow")
    from g16net.config import recipe
    from g16net.run import assemble

    folder = parquet(tmp_path, [6])
    parquet(folder, [6], "test", names=NAMES[::-1])
    config = recipe.get_config("demo,variant=NANO")
    config.data.name, config.data.dir = "parquet", folder
    train, test = assemble.open_sources(config)
    assert test.class_names == train.class_names and test.labels.tolist() == [2, 1, 0] * 2


def test_rows_without_labels_are_left_out(tmp_path):
    pytest.importorskip("pyarrow")
    folder = parquet(tmp_path, [9], label=lambda i: -1 if i in (2, 3) else i % 3)
    parquet(folder, [3], "test", label=lambda i: -1)
    source = open_source("parquet", "train", folder)
    assert sorted(image for image, _ in held(source).values()) == sorted(photo(i) for i in range(9) if i not in (2, 3))
    with pytest.raises(ValueError, match="3 images, none with a label"):
        open_source("parquet", "test", folder)


def test_several_columns_ask_for_one(tmp_path):
    pytest.importorskip("pyarrow")
    folder = parquet(tmp_path, [12], coarse=lambda i: i % 2)
    parquet(folder, [3], "test", coarse=lambda i: i % 2)
    with pytest.raises(ValueError, match="'label' and 'coarse' may each be the label.*--config.data.target_key=label"):
        open_source("parquet", "train", folder)
    assert open_source("parquet", "test", folder, target_key="coarse").labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="no column 'fine'"):
        open_source("parquet", "train", folder, target_key="fine")


def test_parquet_mistakes(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    with pytest.raises(ValueError, match="rows hold no image bytes.*embed_table_storage"):
        open_source("parquet", "train", parquet(tmp_path / "paths", [6], image=lambda i: None))
    with pytest.raises(ValueError, match="of 8 labels lie outside 0..2"):
        open_source("parquet", "train", parquet(tmp_path / "outside", [8], label=lambda i: i % 5))
    folder = parquet(tmp_path / "more", [3, 3])
    path = os.path.join(folder, "train-00001-of-00002.parquet")
    pq.write_table(table([photo(1)], [0], names=("bee", "ant", "cat")), path)
    with pytest.raises(ValueError, match="other columns or class names than"):
        open_source("parquet", "train", folder)
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="cut off, or no Parquet file"):
        open_source("parquet", "train", folder)
    os.remove(path)
    with pytest.raises(ValueError, match="1 of 2 record files are missing: train-00001-of-00002.parquet"):
        open_source("parquet", "train", folder)
    for name in ("plain", "hard"):
        parquet(tmp_path / "two" / name, [3])
    with pytest.raises(ValueError, match="lies in hard, plain: several configurations"):
        open_source("parquet", "train", str(tmp_path / "two"))


def test_a_damaged_row_group_counts_as_corrupt_images(tmp_path):
    pytest.importorskip("pyarrow")
    folder = parquet(tmp_path, [12], group=3)
    parquet(folder, [3], "test")
    path = os.path.join(folder, "train-00000-of-00001.parquet")
    source = open_source("parquet", "train", folder)
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(bytes(40))  # the first page's header
    assert [record for _, _, record in rows(source, seed=None, epochs=1, stop=12)].count(b"") == 3


def test_rows_sorted_by_class_are_told(tmp_path, monkeypatch, caplog):
    pytest.importorskip("pyarrow")
    from g16net.data.sources import parquet as module

    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "CYCLE", 1)
    with caplog.at_level("WARNING"):
        open_source("parquet", "train", parquet(tmp_path / "mixed", [60], group=20))
        assert "sorted by class" not in caplog.text
        open_source("parquet", "train", parquet(tmp_path / "sorted", [60], group=20, label=lambda i: i // 20))
    assert "sorted by class" in caplog.text


def test_hub_reads_the_cache_and_no_network(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="not in the cache.*data.download=true.*load_dataset..some/Small-set"):
        open_source("hf:some/Small-set", "train", str(tmp_path))
    hub = tmp_path / "datasets--some--Small-set" / "snapshots" / "0a1b"
    parquet(hub / "data", [6])
    assert open_source("hf:some/Small-set", "train", str(tmp_path)).num_examples == 6
    prepared = tmp_path / "some___small-set" / "plain" / "0.0.0" / "0a1b"
    saved_to_disk(prepared, [9])
    os.remove(str(prepared / "state.json"))
    os.rename(str(prepared / "data-00000-of-00001.arrow"), str(prepared / "small-set-train.arrow"))
    source = open_source("hf:some/Small-set", "train", str(tmp_path))
    assert source.num_examples == 9 - 3 * 1 and source.name == "hf:some/Small-set"
    shutil.copytree(str(prepared.parent.parent), str(tmp_path / "some___small-set" / "other"))
    with pytest.raises(ValueError, match="configurations other, plain; name one: --data=hf:some/Small-set:other"):
        open_source("hf:some/Small-set", "train", str(tmp_path))
    assert open_source("hf:some/Small-set:other", "train", str(tmp_path)).num_examples == 6


def test_what_the_library_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    class_folders(tmp_path / "photos", {"ant": 5, "bee": 6}, "train")
    written = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache"))
    written.save_to_disk(str(tmp_path / "saved"))
    folder = open_source("folder", "train", str(tmp_path / "photos"))
    os.makedirs(str(tmp_path / "parquet"))
    embedded = written["train"].with_format("arrow").map(datasets.table.embed_table_storage, batched=True)
    embedded.to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    for place in ("saved", "parquet"):
        kind, found = detect(str(tmp_path / place))
        source = open_source(kind, "train", found, holdout=0.0)
        assert sorted(held(source).values()) == sorted(held(folder).values())
        assert source.class_names == folder.class_names


# Tar shards


def test_tar_labels_and_class_names(tmp_path):
    folder = tars(tmp_path / "json", [6], cls=lambda i: json.dumps({"label": i % 2}).encode(), target="json")
    tars(folder, [2], "test", cls=lambda i: json.dumps({"label": i % 2}).encode(), target="json")
    assert open_source("wds", "train", folder).class_names == ("0", "1")
    (tmp_path / "json" / "classes.txt").write_text("cow\ndog\n")
    assert open_source("wds", "test", folder).class_names == ("cow", "dog")
    words = tars(tmp_path / "words", [6], cls=lambda i: NAMES[i % 3].encode())
    assert open_source("wds", "train", words, holdout=0.5).class_names == NAMES
    named = tars(tmp_path / "named", [6], ending="photo.jpg", target="id")
    with pytest.raises(ValueError, match="no examples in it.*input_key"):
        open_source("wds", "train", named)
    with pytest.raises(ValueError, match="no example has a label.*target_key"):
        open_source("wds", "train", named, input_key="photo.jpg")
    assert len(open_source("wds", "train", named, input_key="photo.jpg", target_key="id", holdout=0.5).labels) == 3


def test_labels_that_count_from_1(tmp_path):
    folder = tars(tmp_path / "set", COUNTS, cls=lambda i: b"%d" % (1 + i % 3))
    with pytest.raises(ValueError, match="have no image: 0.*count from 1: give --config.data.label_offset=1"):
        open_source("wds", "train", folder)
    source = open_source("wds", "all", folder, label_offset=1)
    assert source.class_names == ("1", "2", "3") and source.labels.tolist() == [i % 3 for i in range(37)]
    (tmp_path / "set" / "classes.txt").write_text("ant\nbee\ncat\n")
    assert open_source("wds", "all", folder, label_offset=1).labels.tolist() == source.labels.tolist()
    words = tars(tmp_path / "words", COUNTS, cls=lambda i: NAMES[i % 3].encode())
    with pytest.raises(ValueError, match="data.label_offset=1 is for numbers, and the labels are words"):
        open_source("wds", "train", words, label_offset=1)


def test_tar_members_whose_names_are_no_utf8(tmp_path):
    with tarfile.open(str(tmp_path / "train-0000.tar"), "w", format=tarfile.GNU_FORMAT) as tar:
        for i in range(8):
            for ending, data in (("jpg", photo(i)), ("cls", b"%d" % (i % 2))):
                member(tar, f"caf\udce9/{i}.{ending}", data)
    source = open_source("wds", "all", str(tmp_path))
    assert source.locate([3]).numpy()[0].endswith(b"caf\xe9/3.jpg") and len(held(source)) == 8
    assert source.contents()["images"] == 8


def test_tar_index_is_remembered(tmp_path, monkeypatch):
    folder = tars(tmp_path, [4, 5])
    first = held(open_source("wds", "train", folder))
    monkeypatch.setattr(webdataset, "_index", None)
    assert held(open_source("wds", "train", folder)) == first


def test_tar_info_of_timm(tmp_path):
    folder = tars(tmp_path, [4, 5, 3])
    info = {"splits": {"train": {"num_samples": 9, "filenames": ["train-0000.tar", "train-0001.tar"]},
                       "validation": {"num_samples": 3, "filenames": ["train-0002.tar"]}}}  # fmt: skip
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert [open_source("wds", split, folder).num_examples for split in ("train", "val")] == [9, 3]
    tars(tmp_path, [4, 4, 3])
    with pytest.raises(ValueError, match="says 9 examples, 2 shards hold 8"):
        open_source("wds", "train", folder)


@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_tar_cut_off(at, tmp_path):
    folder = tars(tmp_path, [9])
    path = os.path.join(folder, "train-0000.tar")
    with open(path, "r+b") as file:
        file.truncate(int(at * os.path.getsize(path)))
    with pytest.raises(ValueError, match="train-0000.tar: cut off"):
        open_source("wds", "train", folder)


def test_tar_mistakes(tmp_path):
    folder = tars(tmp_path / "damaged", [9])
    path = os.path.join(folder, "train-0000.tar")
    with open(path, "r+b") as file:
        file.seek(tarfile.open(path).getmembers()[6].offset)
        file.write(b"x" * 512)
    with pytest.raises(ValueError, match="damaged at byte"):
        open_source("wds", "train", folder)
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.cls", "a.jpg"):
            member(tar, name, b"0")
    with pytest.raises(ValueError, match="holds a.jpg twice"):
        open_source("wds", "train", folder)
    with tarfile.open(path, "w") as tar:
        for name in ("a.jpg", "a.cls", "a.png"):
            member(tar, name, b"0")
    with pytest.raises(ValueError, match="a has several images, jpg, png"):
        open_source("wds", "train", folder)
    with open(path, "wb") as file:
        file.write(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(ValueError, match="no .uncompressed. tar file"):
        open_source("wds", "train", folder)
    mixed = tars(tmp_path / "mixed", [6], cls=lambda i: b"dog" if i == 4 else b"1")
    with pytest.raises(ValueError, match="some labels are numbers and some are words"):
        open_source("wds", "train", mixed)


def test_images_of_every_kind_and_damaged_ones(tmp_path, capfd):
    def image(i):
        kinds = [photo(i), photo(i, "PNG"), photo(i, mode="L"), photo(i, mode="CMYK"), photo(i)[:60], b""]
        return (kinds + [_deep(i)])[i % 7]

    folder = tars(tmp_path, [28], image=image, cls=lambda i: b"%d" % (i % 2))
    tars(folder, [1], "test", cls=lambda i: b"0")
    source = open_source("wds", "train", folder)
    assert len(batches(source, transform, 7, seed=1, epochs=1, max_corrupt=0.3)) == 4
    lines = capfd.readouterr().err
    assert lines.count("Image left out:") == 8 and "train-0000.tar/some/0004.jpg" in lines


def _deep(i):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 9), 257 * i, np.uint16)).save(file, "PNG")
    return file.getvalue()


# What a path is


def test_archives_beside_class_folders_are_no_data(tmp_path):
    class_folders(tmp_path, {"ant": 2, "bee": 2}, "train")
    with tarfile.open(str(tmp_path / "ILSVRC2012_img_train.tar"), "w"):
        pass
    (tmp_path / "metadata.parquet").write_text("")
    assert detect(str(tmp_path)) == ("folder", str(tmp_path))


def test_a_shard_or_a_pattern_is_no_folder(tmp_path):
    folder = tars(tmp_path, [3])
    with pytest.raises(ValueError, match="is one shard; name its folder"):
        detect(os.path.join(folder, "train-0000.tar"))
    with pytest.raises(ValueError, match="takes a folder, no pattern"):
        detect(os.path.join(folder, "train-{0000..0001}.tar"))


# CIFAR


def test_cifar_is_as_written(tmp_path):
    every = cifar(tmp_path)
    assert detect(str(tmp_path)) == ("cifar", str(tmp_path))
    train, test = (open_source("cifar", split, str(tmp_path)) for split in ("train", "validation"))
    got = {i: image for source, first in ((train, 0), (test, 15)) for i, (image, _) in _moved(held(source), first)}
    assert all((got[i] == every[i]).all() for i in range(19))
    assert train.class_names == NAMES and train.labels.tolist() == [0, 1, 2] * 5


def _moved(rows, first):
    return [(i + first, row) for i, row in rows.items()]


def test_cifar100_has_two_labels(tmp_path):
    for name, count in (("train.bin", 6), ("test.bin", 2)):
        rows = [bytes([i % 2, i % 3]) + bytes(3072) for i in range(count)]
        (tmp_path / name).write_bytes(b"".join(rows))
    (tmp_path / "fine_label_names.txt").write_text("ant\nbee\ncat\n")
    (tmp_path / "coarse_label_names.txt").write_text("small\nlarge\n")
    assert detect(str(tmp_path))[0] == "cifar"
    assert open_source("cifar", "train", str(tmp_path)).labels.tolist() == [0, 1, 2] * 2
    coarse = open_source("cifar", "train", str(tmp_path), target_key="coarse_label")
    assert coarse.class_names == ("small", "large") and coarse.labels.tolist() == [0, 1] * 3
    with pytest.raises(ValueError, match="no label 'colour'"):
        open_source("cifar", "train", str(tmp_path), target_key="colour")


def test_cifar_mistakes(tmp_path):
    cifar(tmp_path / "long", counts=(3, 3, 3, 3, 2))
    with pytest.raises(ValueError, match="data_batch_5.bin 2 images"):
        open_source("cifar", "train", str(tmp_path / "long"))
    path = tmp_path / "long" / "data_batch_5.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="no whole number of images"):
        open_source("cifar", "train", str(tmp_path / "long"))
    path.unlink()
    with pytest.raises(ValueError, match="data_batch_5.bin of the split 'train' missing"):
        open_source("cifar", "train", str(tmp_path / "long"))
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(ValueError, match="pickles.*never read here.*binary version"):
        detect(str(tmp_path))

"""A run knows its data: it is kept with the run and compared, class by class, before anything is written."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import call as launch
from helpers import changed
from made_data import record_files
from PIL import Image

from g16net import config as config_lib
from g16net.config import experiments
from g16net.data import cache, identity
from g16net.data.sources import base, open_source
from g16net.errors import ConfigError, UserError
from g16net.optim.weight_average import WeightAverage
from g16net.run import assemble, checkpoint, records, run_data
from g16net.training import train, warm_start

TINY = "g16_ln_pn:small,variant=NANO"


def picture(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(pixels).numpy())


def photos(root, classes=("ant", "bee", "cat"), train=8, val=2):
    for label, name in enumerate(classes):
        for split, count in (("train", train), ("val", val)):
            for number in range(count):
                picture(root / split / name / f"{number}.png", 100 * label + number)
    return root


def settings(data, **changes):
    config = experiments.load(TINY)
    config.data.name, config.data.dir = "folder", str(data)
    config.data.train_size = config.data.eval_size = 32
    config.run.update(epochs=2, global_batch=4)
    return changed(config, **changes)


def write_run(workdir, config, epoch, version=2):
    """The files of a run with the weights of a network that was not trained; `version` 1: one that kept no facts."""
    source = assemble.open_source_of(config, "train")
    model = assemble.model(config, source.num_classes)
    average = WeightAverage(model, config.regularise.average)
    average.update(model)
    saved = checkpoint.Checkpoints(
        str(workdir / "checkpoints"), checkpoint.state(model=model, average=average), background=False,
        data=run_data.facts(config, source) if version == 2 else None,
    )  # fmt: skip
    saved.save(epoch * 6, epoch=epoch, in_epoch=0)
    config_lib.save(config, workdir / "config.json")
    records.write_json(str(workdir / "classes.json"), list(source.class_names))
    if version == 2:
        run_data.keep(config, str(workdir), source)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`photos`, and the runs `finished`, `broken` (at epoch 1 of 2) and `old` (broken, kept no facts) on them."""
    root = tmp_path_factory.mktemp("made")
    config = settings(photos(root / "photos"))
    for name, epoch, version in (("finished", 2, 2), ("broken", 1, 2), ("old", 1, 1)):
        (root / name).mkdir()
        write_run(root / name, config, epoch, version)
    return root


@pytest.fixture
def place(made, tmp_path):
    """A copy of `made`, to be changed."""
    shutil.copytree(made, tmp_path / "place")
    for run in ("finished", "broken", "old"):
        for path in (tmp_path / "place" / run).rglob("*.json"):
            path.write_text(path.read_text().replace(str(made), str(tmp_path / "place")))
    assemble._open.cache_clear()
    run_data.warn.cache_clear()
    return tmp_path / "place"


def contents(folder):
    """Every file below `folder` and what is in it."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def facts_of(*arguments, **options):
    return open_source(*arguments, **options).contents()


# What is kept


def test_a_folder_that_was_moved_or_copied_has_the_same_facts(tmp_path):
    first = facts_of("folder", "train", str(photos(tmp_path / "a")))
    shutil.copytree(tmp_path / "a", tmp_path / "far" / "away")
    for path in (tmp_path / "far").rglob("*.png"):
        os.utime(path, (1, 1))
    os.rename(tmp_path / "far" / "away" / "train", tmp_path / "classes")  # without the splits' folders
    assert facts_of("folder", "train", str(tmp_path / "far" / ".." / "a")) == first
    paths = sorted((tmp_path / "classes").rglob("*.png"))
    again = identity.of_files(
        first["classes"],
        [str(path.relative_to(tmp_path / "classes")) for path in reversed(paths)],
        [first["classes"].index(path.parent.name) for path in reversed(paths)],
        [path.stat().st_size for path in reversed(paths)],
        lambda place: paths[::-1][place].read_bytes(),
    )
    assert again == first and first["images"] == 24 and first["class_images"] == [8, 8, 8]


def test_differences_are_told_class_by_class():
    def facts(**files):
        names = sorted(files)
        rows = [(f"{name}/{file}", label, len(file)) for label, name in enumerate(names) for file in files[name]]
        return identity.of_files(names, *zip(*rows))

    old = facts(ant=["a", "b"], bee=["c", "d"], cat=["e"])
    assert identity.differences(old, old) == []
    renamed = facts(zebra=["a", "b"], bee=["c", "d"], cat=["e"])
    assert identity.differences(old, renamed) == [
        "'ant' is gone",
        "'zebra' is new",
        "'zebra' holds the images of 'ant'",
    ]
    assert identity.differences(old, facts(ant=["a", "b"], bee=["c", "d"], cat=["e"], dog=["f"])) == ["'dog' is new"]
    changed = facts(ant=["a", "b", "x"], bee=["c", "y"], cat=["e"])
    assert identity.differences(old, changed) == [
        "'ant': 2 -> 3 images",
        "'bee': 2 images as before, but not the same ones",
    ]
    order = identity.reordered(old, ["bee", "ant", "cat"])
    assert "class 0 was 'ant' and is 'bee'" in identity.differences(old, order)[0]
    assert identity.differences({"classes": old["classes"]}, changed) == []  # a run that kept no facts
    assert identity.class_differences([f"{i}" for i in range(9)], []) == ["'0', '1', '2', '3', '4' and 4 more are gone"]
    assert not identity.class_differences(["cafe\u0301"], ["caf\u00e9"])  # as two file systems write it


def test_where_names_say_nothing_the_fingerprint_tells(tmp_path):
    def idx(folder, seed):
        folder.mkdir()
        labels = np.arange(20, dtype=np.uint8) % 10
        images = np.random.default_rng(seed).integers(0, 256, (20, 6, 6), dtype=np.uint8)
        for split in ("train", "t10k"):
            head = bytes([0, 0, 8, 3]) + np.array([20, 6, 6], ">u4").tobytes()
            (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
            head = bytes([0, 0, 8, 1]) + np.array([20], ">u4").tobytes()
            (folder / f"{split}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
        return facts_of("idx", "train", str(folder))

    one, other = idx(tmp_path / "one", 0), idx(tmp_path / "other", 1)
    assert one["classes"] == other["classes"] == [str(i) for i in range(10)]
    assert len(identity.differences(one, other)) == 6 and one == idx(tmp_path / "again", 0)

    def tfrecord(folder, count):
        folder.mkdir()
        (folder / "labels.txt").write_text("0\n1\n")
        with tf.io.TFRecordWriter(str(folder / "train-00000-of-00001")) as writer:
            for number in range(count):
                features = tf.train.Features(
                    feature={
                        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"])),
                        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[1 + number % 2])),
                    }
                )
                writer.write(tf.train.Example(features=features).SerializeToString())
        return facts_of("tfrecord", "train", str(folder))

    one, other = tfrecord(tmp_path / "records", 4), tfrecord(tmp_path / "more", 6)
    assert identity.differences(one, other) == ["4 -> 6 images"] and one == tfrecord(tmp_path / "third", 4)
    synthetic = [facts_of("synthetic", num_examples=n, num_classes=3) for n in (30, 33)]
    assert identity.differences(*synthetic)[0] == "'class 0': 10 -> 11 images"
    assert facts_of("digits") == facts_of("digits") != facts_of("digits", "validation")


def test_the_decoded_cache_belongs_to_its_images(tmp_path):
    """Two photos that change places leave number, sizes and ends as they were."""
    photos(tmp_path / "data", ("ant", "bee"), train=4)
    for name, text in (("ant", "a"), ("bee", "b")):
        shutil.copy(tmp_path / "data/train/ant/0.png", tmp_path / f"data/train/{name}/1{text}.png")
    names = [cache._fingerprint(open_source("folder", "train", str(tmp_path / "data")), 32, 10**6, False)]
    os.rename(tmp_path / "data/train/ant/1a.png", tmp_path / "data/train/ant/1z.png")
    names.append(cache._fingerprint(open_source("folder", "train", str(tmp_path / "data")), 32, 10**6, False))
    assert names[0] != names[1]


def test_an_edit_that_keeps_the_size_makes_another_decoded_cache(tmp_path):
    def name():
        return cache._fingerprint(open_source("folder", "train", str(tmp_path / "data")), 32, 10**6, False)

    photos(tmp_path / "data", ("ant", "bee"), train=4)
    path, first = tmp_path / "data/train/ant/0.png", name()
    assert name() == first
    written = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(written + 1, written + 1))
    assert name() != first


@pytest.mark.once
def test_a_decoded_cache_of_which_a_file_is_gone_is_made_again(tmp_path):
    source = open_source("folder", "train", str(photos(tmp_path / "data", ("ant", "bee"), train=4)))
    cache.on_disk(source, 8, str(tmp_path / "cache"))
    for path in sorted((tmp_path / "cache").iterdir()):
        path.unlink()
        kept = cache.on_disk(source, 8, str(tmp_path / "cache"))
        assert path.exists() and kept.read({"id": tf.constant(0, tf.int64)})["image"].shape == (8, 8, 3)


def test_labels_read_with_another_offset_make_another_decoded_cache(tmp_path):
    (tmp_path / "labels.txt").write_text("0\n1\n2\n")
    with tf.io.TFRecordWriter(str(tmp_path / "train-00000-of-00001")) as writer:
        for number in range(2100):  # more than are looked at to find an offset that is wrong
            features = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x"])),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[1 + number % 2])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    names = [
        cache._fingerprint(open_source("tfrecord", "train", str(tmp_path), label_offset=offset), 32, 10**6, False)
        for offset in (0, 1)
    ]
    assert names[0] != names[1]


def bitmaps(root, classes=("ant", "bee", "cat")):
    """Pictures of one size in bytes, numbered in each class."""
    for label, name in enumerate(classes):
        for number in range(4):
            place = root / "train" / name / f"{number}.bmp"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full([8, 8, 3], 50 * label + number, np.uint8)).save(place)
    return root


def test_classes_of_equal_names_and_sizes_cannot_change_places_unnoticed(tmp_path):
    root = bitmaps(tmp_path / "data")
    before = facts_of("folder", "train", str(root))
    shutil.copytree(root, tmp_path / "copy")
    assert identity.differences(before, facts_of("folder", "train", str(tmp_path / "copy"))) == []
    for name, to in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
        os.rename(root / "train" / name, root / "train" / to)
    now = facts_of("folder", "train", str(root))
    told = ["'ant' holds the images of 'bee'", "'bee' holds the images of 'ant'"]
    assert now["digest"] == before["digest"] and identity.differences(before, now) == told
    assert identity.differences({**before, "class_samples": None}, now) == []  # a run that kept none
    other = identity.reordered(now, ("cat", "bee", "ant"))
    assert identity.differences(before, other)[1:] == told
    os.rename(root / "train/ant/0.bmp", root / "train/ant/first.bmp")
    os.rename(root / "train/bee/0.bmp", root / "train/bee/zero.bmp")
    assert "class_samples" not in facts_of("folder", "train", str(root))  # names tell: no file is read


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("unique", [False, True])
def test_classes_that_changed_places_are_refused_also_where_a_run_is_finished(tmp_path, unique, done):
    root = bitmaps(tmp_path / "data")
    if unique:  # names that tell the classes apart
        for path in (root / "train").rglob("*.bmp"):
            path.rename(path.with_name(f"{path.parent.name}{path.name}"))
    shutil.copytree(root / "train", root / "val")
    config = settings(root)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "records.jsonl").write_text("")
    run_data.keep(config, str(tmp_path / "run"), open_source("folder", "train", str(root)))
    for name, to in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
        os.rename(root / "train" / name, root / "train" / to)
    source = open_source("folder", "train", str(root))
    with pytest.raises(UserError, match="changed places.*'ant' holds the images of 'bee'.*allow_changed"):
        run_data.check(config, str(tmp_path / "run"), source, done)
    config.data.allow_changed = True
    assert "'bee' holds the images of 'ant'" in run_data.check(config, str(tmp_path / "run"), source, done)


# By name


def test_labels_go_by_name_in_any_order_and_in_part():
    images = np.zeros([6, 8, 8, 3], np.uint8)
    source = base.arrays("set", "validation", images, [0, 1, 0, 1, 1, 0], ["cat", "ant"])
    mapped = base.relabelled(source, ("ant", "bee", "cat"))
    assert mapped.num_classes == 3 and mapped.labels.tolist() == [2, 0, 2, 0, 0, 2]
    assert [int(mapped.read({"id": tf.constant(i, tf.int64)})["label"]) for i in range(6)] == mapped.labels.tolist()
    assert mapped.contents is None  # some of the classes are not the split
    whole = base.relabelled(source, ("ant", "cat"))
    assert whole.contents()["classes"] == ["ant", "cat"]
    assert whole.contents()["class_digests"] == source.contents()["class_digests"][::-1]
    with pytest.raises(UserError, match="'cat' unknown"):
        base.relabelled(source, ("ant", "bee"))

    broken = source._replace(read=lambda row: {"label": tf.constant(7)})
    assert int(base.relabelled(broken, ("ant", "bee", "cat")).read({})["label"]) == -1  # stays out of range


def test_a_run_is_evaluated_by_name_on_some_of_its_classes(place, capsys):
    shutil.rmtree(place / "photos" / "val" / "ant"), shutil.rmtree(place / "photos" / "train" / "ant")
    config = settings(place / "photos")
    source = assemble.open_eval_source(config, str(place / "finished"), ["ant", "bee", "cat"], "evaluate it")
    assert source.num_classes == 3 and source.labels.tolist() == [1, 1, 2, 2]
    with pytest.raises(UserError, match="2 classes.*trained on 2: 'ant' is gone, 'cat' is new; evaluate it"):
        assemble.open_eval_source(config, str(place / "finished"), ["ant", "bee"], "evaluate it")


def test_all_images_of_another_folder_are_for_evaluations_alone(place, capsys, caplog):
    run, other = place / "finished", place / "other"
    for label, name in enumerate(("ant", "bee", "cat")):
        for number in range(6):
            picture(other / name / f"{number}.png", 50 + 10 * label + number)
    arguments = [f"--workdir={run}", f"--data={other}"]
    assert launch(capsys, *arguments, "--mode=evaluate")[0] == 0
    assert "--config.data.eval_split=all evaluates all of its images" in caplog.text
    caplog.clear()
    run_data.warn.cache_clear()
    status, printed = launch(capsys, *arguments, "--mode=evaluate", "--config.data.eval_split=all")
    assert status == 0, printed
    assert "is not the data" in caplog.text and "eval_split=all evaluates" not in caplog.text
    held, every = records.read_lines(str(run / "evaluations.jsonl"))
    assert held["images"] < every["images"] == 18 and every["changed"]["data.eval_split"] == "all"
    for mode in ("train", "train,evaluate"):
        arguments = [f"--experiment={TINY}", f"--data={other}", f"--workdir={place / 'new'}", f"--mode={mode}"]
        status, printed = launch(capsys, *arguments, "--config.data.eval_split=all", "--config.run.global_batch=4")
        assert (
            status == 2 and "its training images would be test images too" in printed and not (place / "new").exists()
        )
    with pytest.raises(UserError, match="its training images would be test images too"):
        train.train(settings(other, data__eval_split="all"), str(place / "new"))


def test_the_weights_own_class_names_are_believed(place):
    config = settings(place / "photos")
    (place / "finished" / "classes.json").write_text('["wrong", "names", "here"]')
    assert assemble.trained(config, str(place / "finished"))[1] == ["ant", "bee", "cat"]
    (place / "old" / "classes.json").write_text('["x", "y", "z"]')
    assert assemble.trained(config, str(place / "old"))[1] == ["x", "y", "z"]  # it has no others


@pytest.mark.parametrize(
    "names, told",
    [
        (("cat", "bee", "ant"), "by name, 3 of 3 classes"),
        (("zebra", "bee", "ant", "cat"), "by name, 3 of 4 classes ('zebra' new)"),
        (("p", "q", "r"), "the classifier starts over"),
    ],
)
def test_weights_of_another_run_bring_each_class_its_own(place, names, told, monkeypatch):
    config = settings(place / "photos", init__checkpoint=str(place / "finished"))
    model = assemble.model(config, len(names))
    before = {v.name: v.numpy() for v in model.weights}
    lines = []
    monkeypatch.setattr(warm_start.logging, "info", lambda text, *args: lines.append(text % args))
    warm_start.load(config, model, names)
    assert told in lines[-1]
    stored = warm_start.read(str(place / "finished"), model)
    for variable in model.get_layer("predictions").weights:
        old = stored[f"predictions/{'kernel' if len(variable.shape) == 2 else 'bias'}"]
        for label, name in enumerate(names):
            known = name in ("ant", "bee", "cat")
            expected = old[..., ["ant", "bee", "cat"].index(name)] if known else before[variable.name][..., label]
            np.testing.assert_array_equal(variable.numpy()[..., label], expected)


# Compared before anything is written


def rename(place):
    for split in ("train", "val"):
        os.rename(place / "photos" / split / "ant", place / "photos" / split / "zebra")


def other_set(place):
    shutil.rmtree(place / "photos")
    photos(place / "photos", ("dog", "eel", "fox"))


def another_class(place):
    for split in ("train", "val"):
        picture(place / "photos" / split / "dog" / "0.png", 9)


@pytest.mark.parametrize("change", [rename, other_set, another_class])
@pytest.mark.parametrize("run", ["finished", "broken", "old"])
def test_other_classes_are_refused_by_every_mode_and_nothing_is_written(place, capsys, change, run):
    change(place)
    before = contents(place)
    for mode in ("train,evaluate,export", "finetune", "evaluate", "channels", "verify_export"):
        if run != "finished" and mode == "finetune":
            continue  # it is not trained yet
        arguments = [f"--workdir={place / run}", f"--mode={mode}"]
        if mode == "verify_export":
            (place / run / "saved_model").mkdir()
            (place / run / "saved_model" / "saved_model.pb").touch()
            before = contents(place)
        for dry in ([], ["--dry_run"]):
            status, printed = launch(capsys, *arguments, *dry)
            assert status == 2, printed
            assert "'zebra' is new" in printed if change is rename else "is new" in printed or "are new" in printed
            assert contents(place) == before
    assert json.loads((place / run / "classes.json").read_text()) == ["ant", "bee", "cat"]


def test_a_run_in_its_middle_goes_on_with_its_own_images_alone(place):
    config, run = settings(place / "photos"), str(place / "broken")

    def check(config):
        assemble._open.cache_clear()
        return run_data.check(config, run, assemble.open_source_of(config, "train"), done=False)

    assert check(config) == ""
    shutil.copytree(place / "photos", place / "moved")
    assert check(settings(place / "moved")) == ""
    os.remove(place / "photos/train/bee/3.png")
    with pytest.raises(UserError, match=r"'bee': 8 -> 7 images.*init.checkpoint=.*has 5 weight updates and had 6"):
        check(config)
    assert check(settings(place / "photos", data__allow_changed=True)) == "'bee': 8 -> 7 images"
    picture(place / "photos/train/bee/11.png", 1)
    with pytest.raises(UserError, match="'bee': 8 images as before, but not the same ones.*allow_changed=true"):
        check(config)


def test_a_finished_run_is_only_used_where_its_folder_has_changed(place, caplog):
    config, run = settings(place / "photos"), str(place / "finished")
    picture(place / "photos/train/bee/11.png", 1)
    source = assemble.open_source_of(config, "train")
    assert run_data.check(config, run, source, done=True) == "'bee': 8 -> 9 images"
    assert "is finished, and its training split has changed since" in caplog.text
    before = (place / "finished" / "data.json").read_text()
    run_data.keep(config, run, source)
    assert (place / "finished" / "data.json").read_text() == before
    other = settings(photos(place / "another", train=5))
    with pytest.raises(UserError, match="trained on another data set than folder .*another.*--data=.*photos"):
        run_data.check(other, run, assemble.open_source_of(other, "train"), done=True)


def test_a_finished_run_keeps_its_figures_where_its_folder_has_changed(place):
    config, run = settings(place / "photos"), place / "finished"
    picture(place / "photos/train/bee/11.png", 1)
    with pytest.raises(UserError, match="neither train.json nor records.jsonl has the figures"):
        train.train(config, str(run))
    line = {"kind": "epoch", "epoch": 2, "step": 12, "images_per_second": 9.0, "seconds": 3.0}
    records.append_line(
        str(run / "records.jsonl"),
        {**line, "eval_top1": 0.5, "eval_loss": 2.0, "eval_top1_average": 0.75, "eval_loss_average": 1.0},
    )
    figures = train.train(config, str(run))
    assert (figures["top1"], figures["top1_raw"], figures["loss"]) == (0.75, 0.5, 1.0)
    assert figures["steps"] == 12 and figures["data_changed"] == "'bee': 8 -> 9 images"
    records.write_json(str(run / "train.json"), {"top1": 0.8, "steps": 12, "wall_seconds": 7.0, "mode": "train"})
    same = {"top1": 0.8, "steps": 12, "mode": "train"}
    assert train.train(config, str(run)) == {**same, "data_changed": "'bee': 8 -> 9 images"}
    os.remove(place / "photos/train/bee/11.png")
    kept = json.loads((run / "data.json").read_text())
    records.write_json(str(run / "data.json"), {**kept, "tested": {"images": 5, "digest": "another"}})
    assemble._open.cache_clear()
    assert train.train(config, str(run)) == {**same, "data_changed": "other test images"}


def test_a_stream_of_records_is_not_cached_in_the_middle_of_an_epoch(place):
    config, run = settings(place / "photos"), place / "broken"
    files = record_files(place / "records", [12, 12], image=lambda i: b"")
    (place / "records" / "labels.txt").write_text("ant\nbee\ncat\n")
    sources = [assemble.open_source_of(config, "train"), open_source("tfrecord", "train", files)]
    cached = settings(place / "photos", data__cache="encoded")
    for step in (0, 3):  # the manifest of the checkpoint at the end of the first epoch, and of one behind it
        (manifest,) = run.glob("checkpoints/*/manifest.json")
        records.write_json(str(manifest), {**json.loads(manifest.read_text()), "in_epoch": step})
        train.check_cache(config, str(run), sources[1])
        train.check_cache(cached, str(run), sources[0])  # whose order is one permutation in any case
        if not step:
            train.check_cache(cached, str(run), sources[1])
    with pytest.raises(ConfigError, match="data.cache=encoded: the run.*began with data.cache=none.*leave it none"):
        train.check_cache(cached, str(run), sources[1])


def test_a_run_of_an_older_version_adopts_its_data(place, caplog):
    config, run = settings(place / "photos"), str(place / "old")
    source = assemble.open_source_of(config, "train")
    assert run_data.check(config, run, source, done=False) == "" and "no record of its training split" in caplog.text
    run_data.keep(config, run, source)
    os.remove(place / "photos/train/bee/3.png")
    assemble._open.cache_clear()
    with pytest.raises(UserError, match="'bee': 8 -> 7 images"):
        run_data.check(config, run, assemble.open_source_of(config, "train"), done=False)


class Reached(Exception):
    pass


def test_what_left_nothing_is_no_run_and_training_keeps_its_data(place, monkeypatch):
    def build(*args):
        raise Reached

    monkeypatch.setattr(train, "build", build)
    (place / "new").mkdir()
    (place / "new" / "data.json").write_text('{"classes": ["other"]}')
    config = settings(place / "photos")
    with pytest.raises(Reached):
        train.train(config, str(place / "new"))
    kept = json.loads((place / "new" / "data.json").read_text())
    assert kept["classes"] == ["ant", "bee", "cat"] and kept["images"] == 24
    os.remove(place / "photos/train/bee/3.png")
    assemble._open.cache_clear()
    before = contents(place)
    with pytest.raises(UserError, match="'bee': 8 -> 7 images"):  # also for those who call it in a script
        train.train(config, str(place / "broken"))
    assert contents(place) == before


def test_workers_with_different_data_are_told(place):
    class Devices:
        shard = (1, 2)

        @staticmethod
        def equal(value):
            assert value == round(float(np.float32(value))) and value < 2**16  # exact in a sum over workers
            return False

    config = settings(place / "photos")
    with pytest.raises(UserError, match="worker 1 has 24 images of 3 classes in folder"):
        train.check_workers(config, Devices, assemble.open_source_of(config, "train"))


@pytest.mark.slow
def test_a_run_goes_on_with_changed_data_where_it_is_told_to_and_its_checkpoints_say_so(place, capsys):
    run = place / "trained"
    arguments = [f"--experiment={TINY}", f"--workdir={run}", f"--data={place / 'photos'}", "--mode=train"]
    arguments += ["--config.run.epochs=2", "--config.run.global_batch=5", "--config.data.train_size=32"]
    status, printed = launch(capsys, *arguments)
    assert status == 0, printed
    shutil.rmtree(run / "checkpoints" / "00000008")  # as if killed in the second epoch
    os.remove(place / "photos/train/bee/3.png")
    assemble._open.cache_clear()
    status, printed = launch(capsys, *arguments)
    assert status == 2 and "'bee': 8 -> 7 images" in printed
    status, printed = launch(capsys, *arguments, "--config.data.allow_changed=true")
    assert status == 0 and "data changed" in printed, printed
    assert checkpoint.newest_manifest(str(run / "checkpoints"))["data"]["class_images"] == [8, 7, 8]
    assert records.by_epoch(records.read_lines(str(run / "records.jsonl")))[-1]["epoch"] == 2


def test_fields_of_other_sources_are_refused_but_in_a_run_that_has_them(place, capsys):
    arguments = [f"--experiment={TINY}", f"--data={place / 'photos'}", "--config.run.global_batch=4", "--dry_run"]
    for field, message in {
        "target_key=coarse_label": "data.target_key=coarse_label is for cifar, parquet, arrow, wds, hf data",
        "label_offset=0": "data.label_offset=0 is for idx, tfrecord, parquet, arrow, wds, hf data, and this is folder",
        "num_classes=10": "data.num_classes=10 is for synthetic data",
    }.items():
        status, printed = launch(capsys, *arguments, f"--workdir={place / 'new'}", f"--config.data.{field}")
        assert status == 2 and message in printed, printed
    assert launch(capsys, *arguments, f"--workdir={place / 'new'}", "--config.data.holdout=0.5")[0] == 0
    stored = settings(place / "photos", data__num_classes=10)
    config_lib.save(stored, place / "finished" / "config.json")
    assemble.check_options(stored, str(place / "finished"))
    with pytest.raises(ConfigError, match="data.num_classes=11"):
        assemble.check_options(settings(place / "photos", data__num_classes=11), str(place / "finished"))


# A dry run refuses what the run would refuse


@pytest.mark.parametrize(
    "arguments, part",
    [
        (
            ["--mode=finetune", "--config.runtime.strategy=mirrored"],
            "mode finetune works with runtime.strategy=default",
        ),
        (["--mode=finetune", "--config.finetune.global_batch=99"], "finetune.global_batch=99 is more than the 24"),
        (["--mode=train", "--config.model.norm=ln"], "holds another run"),
        (["--mode=train", "--config.runtime.micro_batch=3"], "runtime.micro_batch=3"),
        (["--mode=predict"], "needs images"),
        (["--mode=predict", "--images=/no/such.jpg"], "no such file"),
        (["--mode=verify_export"], "no exported file"),
        (["--mode=evaluate", "--config.eval.weights=finetuned"], "no such finished fine-tuning"),
        (["--mode=costs", "--machines=abacus"], "abacus"),
        (["--mode=benchmark_data", "--peers=torch"], "unknown peer 'torch'"),
        (["--mode=evaluate", "--workdir={}/empty"], "holds no trained run"),
        (["--mode=train", "--workdir={}/photos/val/ant/0.png/w"], "cannot write to --workdir"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(place, capsys, arguments, part):
    (place / "empty").mkdir()
    config_lib.save(settings(place / "photos"), place / "empty" / "config.json")
    given = [text.replace("{}", str(place)) for text in arguments]
    if not any(text.startswith("--workdir") for text in given):
        given.append(f"--workdir={place / 'finished'}")
    elif "0.png" in given[-1]:
        given += [f"--experiment={TINY}", f"--data={place / 'photos'}", "--config.run.global_batch=4"]
    before = contents(place)
    status, printed = launch(capsys, *given, "--dry_run")
    assert status == 2 and part in printed, printed
    assert contents(place) == before


def test_a_dry_run_approves_what_would_run(place, capsys):
    status, printed = launch(capsys, f"--workdir={place / 'finished'}", "--mode=train,finetune,evaluate", "--dry_run")
    assert status == 0 and "24 training and 6 test images, 3 classes" in printed, printed

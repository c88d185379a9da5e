"""A look at the data, its speed, and its service, as a user meets them."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT
from made_data import class_folders

from g16net.benchmark import input as benchmark_data
from g16net.config import experiments, recipe
from g16net.data import make_set, mix_on_device
from g16net.data import service as data_service
from g16net.diagnostics import inspect_data
from g16net.errors import RunError, UserError
from g16net.run import assemble

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A small set of real photos in class folders."""
    folder = str(tmp_path_factory.mktemp("photos"))
    images = os.path.join(os.path.dirname(pytest.importorskip("sklearn.datasets").__file__), "images")
    sample = [os.path.join(images, name) for name in ("china.jpg", "flower.jpg")]
    make_set.main([*sample, "--out", folder, "--images", "48", "--classes", "3"])
    return folder


def run_of(folder, **changes):
    config = experiments.load("g16_ln_pn:variant=TINY")
    config.data.name, config.data.dir = folder
    config.data.train_size = config.data.eval_size = 64
    config.run.global_batch = 8
    for key, value in changes.items():
        section, field = key.split("__")
        config[section][field] = value
    return recipe.resolve(config)


def folders(photos):
    return "folder", os.path.join(photos, "folders")


def test_inspect_data(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_data.speed, "__defaults__", (0.2,))  # seconds
    figures = inspect_data.inspect_data(run_of(folders(photos)), str(tmp_path))
    assert figures["classes"] == 3 and figures["images_per_second"] > 0
    assert figures["height"] == {"least": 375, "median": 375, "most": 375}
    assert figures["width"]["median"] == 500
    sheet = tf.io.decode_png(tf.io.read_file(figures["contact_sheet"])).numpy()
    assert sheet.shape[0] > 300 and sheet.std() > 10


def test_inspect_data_names_images_that_are_there_twice(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 6, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    for i, picture in enumerate(pixels):
        split, name = ("val" if i >= 40 else "train"), "ant" if i % 2 else "bee"
        folder = tmp_path / "set" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.png").write_bytes(tf.io.encode_png(picture).numpy())
    place = tmp_path / "set"
    (place / "val" / "bee" / "copy.png").write_bytes((place / "train" / "bee" / "02.png").read_bytes())
    larger = tf.cast(tf.image.resize(pixels[5], [100, 100]), tf.uint8)
    (place / "val" / "ant" / "again.jpg").write_bytes(tf.io.encode_jpeg(larger, quality=80).numpy())
    (place / "train" / "ant" / "other.png").write_bytes((place / "train" / "bee" / "08.png").read_bytes())
    (place / "train" / "ant" / "cut.png").write_bytes(b"no picture")  # is no reason to end
    config = run_of(("folder", str(place)))
    figures = inspect_data.twice(*assemble.open_sources(config), 1000, str(tmp_path))
    assert figures["test_in_training"] == {"same_bytes": 1, "alike": 1} and figures["repeated"] == 1
    assert figures["in_two_classes"] == {"same_bytes": 1, "alike": 0}
    assert figures["compared"] == "41 of 42 training and 22 of 22 test images"
    lines = open(figures["duplicates"], encoding="utf-8").read().splitlines()
    assert [[os.path.basename(cell) for cell in line.split(",")] for line in lines[1:]] == [
        ["test_in_training", "alike", "again.jpg", "ant", "05.png", "ant"],
        ["test_in_training", "same bytes", "copy.png", "bee", "02.png", "bee"],
        ["in_two_classes", "same bytes", "08.png", "bee", "other.png", "ant"],
    ]
    assert inspect_data.twice(*assemble.open_sources(config), 0, str(tmp_path)) == {}
    assert "of 42 training" in inspect_data.twice(*assemble.open_sources(config), 10, str(tmp_path))["compared"]


def test_the_sheet_shows_the_runs_own_batches():
    """In the order of the run and at its first size; where the device mixes, as its layer does."""
    changes = {"data__crop": "pad", "data__mixup": 0.4, "data__cutmix": 0.7, "data__progressive": (32, 64)}
    config = run_of(("digits", ""), **changes)
    source = assemble.open_source_of(config, "train")
    images, targets = inspect_data.first_images(config, source, 12)
    batches = assemble.train_batches(config, source, size=32).take(2)
    expected, labels = (np.concatenate(parts)[:12] for parts in zip(*batches.as_numpy_iterator()))
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(targets, labels)
    config.data.mix_on_device = True
    seen, same_targets = inspect_data.first_images(config, source, 12)
    np.testing.assert_array_equal(targets, same_targets)
    assert np.abs(seen.astype(int) - images).max() <= 2  # the host rounds after mixup and after CutMix
    inputs, _ = next(iter(assemble.train_batches(config, source, size=32)))
    layer = mix_on_device.MixImages()([tf.cast(inputs[0], tf.float32), *inputs[1:]]).numpy()
    np.testing.assert_array_equal(seen[:8], np.rint(layer))
    assert inspect_data.speed(config, source, 0.1) > 0


def test_captions_tell_the_share_of_each_class():
    names = ["ant", "bee", "cat"]
    assert inspect_data.shares(np.int32(2), names) == ["cat"]
    mixed = np.array([[0, 0.25], [2, 0.5], [0, 0.248], [1, 0.002]], np.float32)
    assert inspect_data.shares(mixed, names) == ["cat 50 %", "ant 50 %"]
    assert inspect_data.shares(np.array([[1, 1.0], [0, 0.0]], np.float32), names) == ["bee"]


def test_benchmark_data(photos, tmp_path):
    figures = benchmark_data.benchmark_data(run_of(folders(photos)), str(tmp_path), ["tf"], rounds=1, seconds=0.1)
    names = [row["name"] for row in figures["rows"]]
    assert names == ["read", "decode", "crop_resize", "batch", "peer_tf"]
    assert all(row["images_per_second"] > 0 for row in figures["rows"])
    assert figures["batch_over_peer_tf"] > 0


def test_benchmark_data_of_mixed_formats_counts_images(tmp_path):
    class_folders(str(tmp_path / "photos"), {"ant": 8, "bee": 8})
    for i in range(6):
        picture = tf.io.encode_png(np.full([40, 40, 3], 9 * i, np.uint8))
        tf.io.write_file(str(tmp_path / f"photos/ant/picture{i}.png"), picture)
    (tmp_path / "photos/bee/cut.jpg").write_bytes((tmp_path / "photos/bee/000.jpg").read_bytes()[:200])
    changes = {"data__mixup": 0.1, "data__mix_on_device": True, "data__max_corrupt": 0.5, "run__global_batch": 4}
    config = run_of(("folder", str(tmp_path / "photos")), **changes)
    stages = benchmark_data.stages(config, assemble.open_source_of(config, "train"))
    assert list(stages) == ["read", "crop_resize", "batch"]  # bare decoding takes JPEG alone, and would skip the others
    assert {name: len(next(make())) for name, make in stages.items()} == dict.fromkeys(stages, 4)


def test_benchmark_data_that_nothing_can_be_read_of_ends(tmp_path):
    """Its order is endless: it would look for a first image forever."""
    for i in range(6):
        picture = tf.io.encode_png(np.full([40, 40, 3], 9 * i, np.uint8))
        tf.io.write_file(str(tmp_path / f"photos/{'ant' if i % 2 else 'bee'}/{i}.png"), picture)
    place = "folder", str(tmp_path / "photos")
    jpeg = run_of(place, data__jpeg=True, run__global_batch=4)
    source = assemble.open_source_of(jpeg, "train")
    with pytest.raises(RunError, match=r"stage crop_resize can read none of the first \d images.*leave data.jpeg=true"):
        benchmark_data.stages(jpeg, source)
    with pytest.raises(UserError, match="run.global_batch=8 is more than the . images"):
        benchmark_data.stages(run_of(place), source)
    unread = source._replace(read=lambda row: dict(source.read(row), image=tf.constant("no picture")))
    with pytest.raises(RunError, match="--peers=tf can read none.*leave --peers=tf out"):
        benchmark_data.plain_tensorflow(jpeg, unread)


@pytest.mark.parametrize(
    "config, peers, match",
    [
        ((("digits", ""), {}), ["keras"], "unknown peer 'keras'"),
        ((("digits", ""), {}), ["tf"], "holds arrays"),
        ((("digits", ""), {}), ["timm"], "class folders"),
    ],
)
def test_benchmark_data_refuses(config, peers, match, tmp_path):
    source, changes = config
    with pytest.raises(UserError, match=match):
        benchmark_data.benchmark_data(run_of(source, **changes), str(tmp_path), peers)


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def serve(*arguments):
    return subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "launch.py"), "--mode=data_service", *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(port, seconds=90):
    end = time.time() + seconds
    while time.time() < end:
        with socket.socket() as client:
            if client.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


def test_the_service_prepares_the_batches_of_an_epoch(tmp_path):
    dispatcher = data_service.start("dispatcher", 0, workdir=str(tmp_path))
    servers = [dispatcher, data_service.start("worker", 0, dispatcher=dispatcher.target)]
    plain = run_of(("digits", ""), data__crop="pad", run__global_batch=128)
    config = plain.copy_and_resolve_references()
    config.data.service = dispatcher.target
    source = assemble.open_source_of(config, "train")
    taken = [list(assemble.train_batches(each, source).take(11)) for each in (config, plain)]
    found, expected = (
        sorted((images.numpy().tobytes(), targets.numpy().tobytes()) for images, targets in each) for each in taken
    )
    assert found == expected and servers


@pytest.mark.slow
def test_the_service_completes_an_epoch_when_a_worker_dies(tmp_path):
    ports = [free_port() for _ in range(3)]
    servers = [serve("--role=dispatcher", f"--port={ports[0]}", f"--workdir={tmp_path}")]
    try:
        wait_for(ports[0])
        for port in ports[1:]:
            servers.append(serve("--role=worker", f"--port={port}", f"--dispatcher=localhost:{ports[0]}"))
        for port in ports[1:]:
            wait_for(port)
        config = run_of(("digits", ""), data__service=f"grpc://localhost:{ports[0]}", data__crop="pad")
        source = assemble.open_source_of(config, "train")
        steps = source.num_examples // 8
        batches = iter(assemble.train_batches(config, source))
        images = [next(batches)[0].numpy() for _ in range(10)]
        servers[2].send_signal(signal.SIGKILL)
        servers[2].wait()
        images += [next(batches)[0].numpy() for _ in range(steps - 10)]
        assert len(images) == steps and images[-1].shape == (8, 64, 64, 3)
    finally:
        for server in servers:
            server.kill()
            server.wait()


@pytest.mark.parametrize(
    "arguments, match", [(("",), "--role="), (("worker",), "--dispatcher=HOST:PORT"), (("reader",), "reader")]
)
def test_service_mistakes(arguments, match):
    with pytest.raises(UserError, match=match):
        data_service.start(*arguments, port=0)


@pytest.mark.parametrize("mode", ["encoded", pytest.param("decoded", marks=pytest.mark.slow)])
def test_cached_batches(photos, tmp_path, mode):
    plain = run_of(folders(photos))
    config = run_of(folders(photos), data__cache=mode, data__cache_dir=str(tmp_path))
    source = assemble.open_source_of(config, "train")
    images, labels = next(iter(assemble.train_batches(config, source)))
    expected, expected_labels = next(iter(assemble.train_batches(plain, source)))
    np.testing.assert_array_equal(labels, expected_labels)
    assert images.shape == expected.shape and images.numpy().std() > 10
    if mode == "encoded":
        np.testing.assert_array_equal(images, expected)

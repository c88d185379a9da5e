import functools
import os

import numpy as np
import pytest
import tensorflow as tf
from made_data import assert_same, batches, class_folders, jpeg, mark, open_kind, record_files, transform

from g16net import native
from g16net.data import order as orders
from g16net.data import pipeline, transforms
from g16net.data.each import each
from g16net.data.sources import open_source

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("cache_home")]


def seeded(record, seed):
    """A transform whose nine pixels hold the example's id, modulo 256, and the bytes of its seed."""
    image = tf.concat([[tf.cast(record["id"], tf.uint8)], tf.reshape(tf.bitcast(seed, tf.uint8), [8])], 0)
    return {"image": tf.reshape(image, [3, 3, 1]), "label": record["label"]}


@pytest.fixture(
    params=["folder", "records"]
    + [pytest.param(k, marks=pytest.mark.slow) for k in ("idx", "digits", "synthetic", "encoded")]
)
def any_source(request, tmp_path):
    return open_kind(request.param, tmp_path)


@pytest.fixture(params=["folder", "records"])
def source(request, tmp_path):
    """One source of each engine."""
    return open_kind(request.param, tmp_path)


# Records are held to their order, shares and evaluation by the other tests.
RECORDS_SLOW = pytest.mark.parametrize(
    "source", ["folder", pytest.param("records", marks=pytest.mark.slow)], indirect=True
)


def test_batches_are_the_same_with_and_without_an_interruption(any_source):
    source = any_source
    global_batch, steps = 8, source.num_examples // 8
    whole = batches(source, transform, global_batch, seed=1, epochs=3)
    assert len(whole) == 3 * steps
    assert whole[0][0].shape == (8, 6, 6, 3) and whole[0][0].dtype == np.uint8 and whole[0][1].dtype == np.int32
    assert (whole[0][0] != whole[steps][0]).any()
    part = batches(source, transform, global_batch, seed=1, start_epoch=1, start_step=steps // 2, epochs=3)
    assert_same(part, whole[steps + steps // 2 :])


def test_workers_together_give_the_batches_of_one(source):
    whole = batches(source, transform, 8, seed=1, start_step=1, epochs=1)
    workers = [batches(source, transform, 8, seed=1, start_step=1, epochs=1, shard=(i, 2)) for i in range(2)]
    together = [tuple(np.concatenate(columns) for columns in zip(*step)) for step in zip(*workers)]
    assert_same(together, whole)


@RECORDS_SLOW
def test_no_iterator_has_a_thread_that_its_end_would_wait_for(source):
    """See `compat.set_untuned`: which ends wait, and for how long, is a matter of luck."""
    rows = source.stream(orders.Order(stop=4, batch=4, epochs=1)).unbatch()
    for data in (
        pipeline.train_batches(source, transform, 8, seed=0),
        pipeline.eval_batches(source, transform, 8),
        each(rows, lambda row: row["id"]).batch(2).prefetch(1),
    ):
        options = data.options()
        tuned = options.autotune.enabled if hasattr(options, "autotune") else options.experimental_optimization.autotune
        assert tuned is False


@RECORDS_SLOW
def test_every_example_once_an_epoch(source):
    seen = np.concatenate([images[:, 0, 0, 0] for images, _ in batches(source, mark, 8, seed=0, epochs=1)])
    assert len(seen) == source.num_examples // 8 * 8
    assert not np.maximum(np.bincount(seen) - np.bincount(np.arange(source.num_examples) % 256), 0).any()


@pytest.mark.parametrize(
    "batch, workers", [pytest.param(8, 1, marks=pytest.mark.slow), (8, 3), pytest.param(64, 2, marks=pytest.mark.slow)]
)
def test_evaluation_has_every_example_once(source, batch, workers):
    seen, lengths, weights = [], [], 0
    for index in range(workers):
        part = list(pipeline.eval_batches(source, mark, batch, (index, workers)).as_numpy_iterator())
        lengths.append(len(part))
        for image, label, weight in part:
            assert image.shape == (batch, 2, 2, 3) and label.shape == weight.shape == (batch,)
            seen += image[weight > 0, 0, 0, 0].tolist()
            weights += weight.sum()
    assert len(set(lengths)) == 1
    assert weights == source.num_examples
    assert sorted(seen) == sorted(i % 256 for i in range(source.num_examples))


@pytest.mark.parametrize("kind", ["folder", pytest.param("records", marks=pytest.mark.slow)])
def test_order_and_draws_follow_the_seed(kind, tmp_path):
    source = open_kind(kind, tmp_path)
    one, other = (batches(source, transform, 8, seed=seed, epochs=1) for seed in (1, 2))
    assert any((a[0] != b[0]).any() for a, b in zip(one, other))
    assert_same(one, batches(source, transform, 8, seed=1, epochs=1, num_parallel_calls=1))


@pytest.mark.slow
def test_workers_with_files_of_their_own(tmp_path):
    folder = record_files(tmp_path, [7, 6, 12, 3, 9, 11, 5], image=jpeg)
    source = open_source("tfrecord", "train", folder, num_classes=3, cycle=2, window=8)
    steps = pipeline.steps_per_epoch(source, 8, 2, "file")
    assert steps == min(7 + 12 + 9 + 5, 6 + 3 + 11) // 4
    seen, drawn = [], []
    for index in range(2):
        settings = dict(seed=1, epochs=2, shard=(index, 2), shard_by="file")
        whole = batches(source, seeded, 8, **settings)
        assert len(whole) == 2 * steps
        assert_same(batches(source, seeded, 8, start_epoch=1, start_step=2, **settings), whole[steps + 2 :])
        seen.append({i for image, _ in whole for i in image[:, 0, 0, 0]})
        drawn += [image.tobytes()[1:] for images, _ in whole for image in images]
    assert not seen[0] & seen[1]
    assert len(set(drawn)) == len(drawn) == 2 * 2 * steps * 4
    digits = open_source("digits")
    with pytest.raises(ValueError, match='has no record files.*shard_by="position"'):
        pipeline.train_batches(digits, transform, 8, 0, shard=(0, 2), shard_by="file")


def test_mix_gets_a_seed_of_its_own_each_step():
    source = open_source("synthetic", num_examples=32, num_classes=4, size=8)

    def mix(images, labels, seed):
        return images, tf.random.stateless_uniform([2], seed)

    whole = batches(source, mark, 8, seed=0, epochs=2, mix=mix)
    assert len({tuple(draws) for _, draws in whole}) == 8
    assert_same(batches(source, mark, 8, seed=0, start_step=3, epochs=2, mix=mix), whole[3:])
    other = batches(source, mark, 8, seed=0, epochs=2, mix=mix, shard=(1, 2))
    assert not {tuple(draws) for _, draws in whole} & {tuple(draws) for _, draws in other}


def test_an_endless_stream_goes_on_over_epochs():
    source = open_source("synthetic", num_examples=10, num_classes=2, size=8)
    labels = [step[1] for step in pipeline.train_batches(source, mark, 5, 0).take(7).as_numpy_iterator()]
    assert len(labels) == 7


# Corrupt images


def break_file(root, name, data=b"\xff\xd8\xff\xe0 this is no JPEG"):
    with open(os.path.join(str(root), name), "wb") as file:
        file.write(data)


@pytest.fixture
def broken(tmp_path):
    """40 images; those with the ids 7, 8 and 39 are corrupt."""
    class_folders(tmp_path, {"ant": 20, "bee": 20}, "train")
    break_file(tmp_path, "train/ant/007.jpg")
    break_file(tmp_path, "train/ant/008.jpg", b"")
    break_file(tmp_path, "train/bee/019.jpg", jpeg()[:300])
    return open_source("folder", "train", str(tmp_path))


def test_corrupt_training_images_give_their_place_to_the_next(broken, tmp_path, capfd):
    log = str(tmp_path / "corrupt.txt")
    whole = batches(broken, mark, 8, seed=0, epochs=2, max_corrupt=0.1, corrupt_log=log)
    sound = [batch[0][:, 0, 0, 0] for batch in whole]
    order = [row["id"].numpy() for row in broken.stream(pipeline.orders.Order(stop=40, batch=8, seed=0, epochs=2))]
    assert len(sound) == len(order) == 10
    for got, ids in zip(sound, order):
        for place in range(8):
            turned = np.roll(ids, -place)
            assert got[place] == next(i for i in turned if i not in (7, 8, 39))
    named = open(log).read()
    damaged, empty = "damaged or cut off", "Not a JPEG, PNG, GIF or BMP image but an empty file"
    for name, why in (("ant/007.jpg", damaged), ("ant/008.jpg", empty), ("bee/019.jpg", damaged)):
        assert named.count(f"{name}: {why}\n") == 2
    part = batches(broken, mark, 8, seed=0, start_epoch=1, start_step=1, epochs=2, max_corrupt=0.1)
    assert_same(part, whole[6:])
    assert f"ant{os.sep}008.jpg: {empty}" in capfd.readouterr().err


def test_corrupt_evaluation_images_weigh_nothing(broken):
    seen = {}
    for image, label, weight in pipeline.eval_batches(broken, mark, 16, max_corrupt=0.1).as_numpy_iterator():
        seen.update({int(i): int(k) for i, k, w in zip(image[:, 0, 0, 0], label, weight) if w})
    assert seen == {i: i // 20 for i in range(40) if i not in (7, 8, 39)}


def test_too_many_corrupt_images_end_the_run(broken):
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)too many corrupt images.*max_corrupt"):
        batches(broken, mark, 8, seed=0, epochs=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)too many corrupt images.*max_corrupt"):
        list(pipeline.eval_batches(broken, mark, 8, max_corrupt=0.05))
    assert len(batches(broken, mark, 8, seed=0, epochs=3, max_corrupt=0.08)) == 15  # counts anew each epoch


def test_images_above_the_limit_are_left_out_and_named_without_counting_as_corrupt(tmp_path):
    class_folders(tmp_path, {"ant": 20, "bee": 20}, "train")
    break_file(tmp_path, "train/ant/003.jpg", jpeg(height=30, width=40))
    break_file(tmp_path, "train/bee/004.jpg", jpeg(height=30, width=40))
    os.remove(str(tmp_path / "train" / "ant" / "005.jpg"))
    (tmp_path / "train" / "ant" / "005.jpg").mkdir()
    source = open_source("folder", "train", str(tmp_path))
    count, log = source.num_examples, str(tmp_path / "left_out.txt")

    def small(record, seed):
        image = transforms.eval_image(record["image"], 2, max_pixels=1000)
        return {"image": image, "label": record["label"]}

    judge = functools.partial(transforms.reason, max_pixels=1000)
    options = {"max_corrupt": 0, "corrupt_log": log, "judge": judge}
    assert len(batches(source, small, 8, seed=0, epochs=1, **options)) == count // 8
    weights = sum(w.sum() for _, _, w in pipeline.eval_batches(source, small, 8, **options).as_numpy_iterator())
    assert weights == count - 2
    named = open(log).read()
    assert named.count("ant/003.jpg: 40 x 30 pixels, more than data.max_pixels=1000") == 2
    os.remove(str(tmp_path / "train" / "bee" / "000.jpg"))
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="(?s)too many corrupt images.*bee/000.jpg: cannot be read"
    ):
        list(pipeline.eval_batches(source, small, 8, **options))


def test_no_more_images_are_named_in_an_epoch_than_a_log_can_take(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MOST_NAMED", 3)
    class_folders(tmp_path, {"ant": 20, "bee": 20}, "train")
    for i in range(10):
        break_file(tmp_path, f"train/ant/{i:03d}.jpg")
    source, log = open_source("folder", "train", str(tmp_path)), str(tmp_path / "left_out.txt")
    batches(source, mark, 8, seed=0, epochs=2, max_corrupt=0.5, corrupt_log=log)
    lines = open(log).read().splitlines()
    assert sum("damaged" in line for line in lines) == 2 * 3
    assert sum("and others, not named in this epoch" in line for line in lines) == 2


def test_a_batch_without_any_image_ends_the_run(tmp_path):
    class_folders(tmp_path, {"ant": 2, "bee": 2}, "train")
    for name in ("ant/000", "ant/001", "bee/000", "bee/001"):
        break_file(tmp_path, f"train/{name}.jpg")
    source = open_source("folder", "train", str(tmp_path))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not one image of a whole batch"):
        batches(source, mark, 4, seed=0, epochs=1, max_corrupt=1.0)
    weights = [w.sum() for _, _, w in pipeline.eval_batches(source, mark, 4, max_corrupt=1.0).as_numpy_iterator()]
    assert weights == [0]


def test_an_unreadable_record_counts_as_corrupt(tmp_path):
    folder = record_files(tmp_path, [20], image=lambda i: b"none" if i == 3 else jpeg(i))
    source = open_source("tfrecord", "train", folder, num_classes=3)
    steps = batches(source, mark, 10, seed=0, epochs=1, max_corrupt=0.05)
    assert sorted(set(np.concatenate([s[0][:, 0, 0, 0] for s in steps]))) == [i for i in range(20) if i != 3]


# Mistakes


def test_labels_out_of_range_end_the_run(tmp_path):
    labels = [1 + i % 3 for i in range(3000)]
    labels[2500] = 4  # not among those that are looked at beforehand
    folder = record_files(tmp_path, [3000], label=labels.__getitem__)
    source = open_source("tfrecord", "train", folder, num_classes=3)

    def blank(record, seed):
        return {"image": tf.zeros([1, 1, 3], tf.uint8), "label": record["label"]}

    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)label outside 0..2.*off by one"):
        batches(source, blank, 100, seed=0, epochs=1)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(global_batch=9, shard=(0, 2)), "9 does not divide among 2 workers"),
        (dict(global_batch=8, shard=(2, 2)), "this is 2"),
        (dict(global_batch=400), "400 is more than the 359 images of digits.*at most 359"),
        (dict(global_batch=8, shard_by="class"), "shard_by is 'class'"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline.train_batches(open_source("digits", "val"), transform, seed=0, **settings)


def test_a_transform_without_a_static_shape_is_refused():
    def loose(record, seed):
        return {"image": record["image"][: tf.cast(seed[0] % 3, tf.int32)], "label": record["label"]}

    with pytest.raises(ValueError, match="not static"):
        batches(open_source("digits"), loose, 8, seed=0, epochs=1)


# Elsewhere


@pytest.fixture
def service():
    dispatcher = tf.data.experimental.service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    config = tf.data.experimental.service.WorkerConfig(dispatcher_address=address, heartbeat_interval_ms=200)
    workers = [tf.data.experimental.service.WorkerServer(config) for _ in range(2)]
    yield dispatcher.target, workers
    del workers, dispatcher


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "records"])
def test_a_service_shares_out_each_epoch(service, kind, tmp_path):
    source = open_kind(kind, tmp_path)
    steps = batches(source, mark, 4, seed=0, epochs=2, service=service[0])
    seen = np.concatenate([image[:, 0, 0, 0] for image, _ in steps])
    values, times = np.unique(seen, return_counts=True)
    if source.num_examples <= 256:
        assert times.max() <= 2
    # Each worker's last incomplete batch of record files is left out.
    assert len(steps) >= source.num_examples // 4 * 2 - (8 if source.part else 0)


def test_each_start_of_a_run_has_a_stream_of_its_own_and_its_trainers_share_it(service):
    """The dispatcher gives who asks for a job of the same name the batches of that one, whatever data set it sends."""
    few, many = (open_source("synthetic", num_examples=n, num_classes=4, size=8) for n in (16, 24))
    options = {"global_batch": 4, "seed": 0, "epochs": 1, "service": service[0]}

    def ids(steps):
        return sorted(np.concatenate([images[:, 0, 0, 0] for images, _ in steps]))

    cut_off = iter(pipeline.train_batches(few, mark, **options))
    next(cut_off)
    assert ids(batches(many, mark, **options)) == list(range(24))
    assert ids(batches(few, mark, **options)) == list(range(16))  # as started again
    trainers = [pipeline.train_batches(many, mark, shard=(i, 2), job="one", **options) for i in range(2)]
    steps = trainers[0].concatenate(trainers[1]).as_numpy_iterator()
    assert ids(steps) == list(range(24))
    with pytest.raises(ValueError, match="the 2 workers share its batches by the name of a job"):
        pipeline.train_batches(many, mark, shard=(0, 2), **options)


def test_a_service_gets_no_native_operations(service):
    found = []

    def ask(record, seed):
        found.append(native.available())
        return mark(record, seed)

    source = open_source("synthetic", num_examples=8, num_classes=4, size=8)
    pipeline.train_batches(source, ask, 4, 0, service=service[0])
    assert found and not any(found)


def test_a_service_goes_on_when_a_worker_dies(service):
    source = open_source("synthetic", num_examples=240, num_classes=4, size=8)
    address, workers = service
    stream = iter(pipeline.train_batches(source, mark, 4, 0, service=address))
    seen = [next(stream)[0][:, 0, 0, 0].numpy() for _ in range(20)]
    workers[0]._stop()
    seen += [next(stream)[0][:, 0, 0, 0].numpy() for _ in range(100)]  # two epochs of 60 steps in all
    times = np.bincount(np.concatenate(seen), minlength=240)
    assert times.max() <= 3 and (times == 0).sum() < 40  # what the worker had in hand is lost, or comes an epoch later

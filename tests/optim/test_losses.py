"""Loss and accuracy with both forms of targets, against NumPy and the recorded mixing targets."""

import helpers
import numpy as np
import pytest
import tensorflow as tf
from helpers import slow_with_keras3
from tensorflow import keras

from g16net import compat
from g16net.optim.losses import SmoothedCrossEntropy, Top1, Top5, in_top, main_class, targets

MIXING = np.load(helpers.GOLDEN / "mixing.npz")


def terms_of(case):
    """Ids and weights as mixup (partner one back) and then CutMix (partner two back) give them."""
    label = MIXING[f"in{MIXING[case + '/batch']}/label"]
    ids, weights = [label], [np.ones(len(label))]
    if case + "/m" in MIXING:
        m = MIXING[case + "/m"].astype(np.float64)
        ids, weights = [label, np.roll(label, 1)], [m, 1 - m]
    if case + "/label_weight" in MIXING:
        kept = MIXING[case + "/label_weight"].astype(np.float64)
        back = 2 if len(label) > 2 else 1
        weights = [w * kept for w in weights] + [np.roll(w, back) * (1 - kept) for w in weights]
        ids = ids + [np.roll(i, back) for i in ids]
    return np.stack([np.stack(ids, 1), np.stack(weights, 1)], axis=2).astype(np.float32)


def dense(ids, weights, classes, smoothing):
    rows = np.full(ids.shape + (classes,), smoothing / (classes - 1))
    np.put_along_axis(rows, ids[..., None], 1 - smoothing, axis=-1)
    return (rows * weights[..., None]).sum(axis=1)


def cross_entropy(rows, logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return -(rows * (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))).sum(-1)


def mixed(batch, classes, terms, seed=0):
    rng = np.random.default_rng(seed)
    ids, weights = rng.integers(0, classes, (batch, terms)), rng.dirichlet(np.ones(terms), batch)
    return ids, weights, np.stack([ids, weights], axis=2).astype(np.float32)


@pytest.mark.parametrize("case", [str(case) for case in MIXING["cases"]])
def test_targets_equal_recorded_mixing(case):
    np.testing.assert_allclose(targets(terms_of(case), 5, 0.1).numpy(), MIXING[case + "/target"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("terms", [1, 2, 4])
@pytest.mark.parametrize("classes", [2, 10])
def test_equals_dense_cross_entropy_with_gradient(classes, terms, smoothing):
    ids, weights, y_true = mixed(6, classes, terms)
    logits = tf.constant(np.random.default_rng(1).normal(size=(6, classes)) * 5, tf.float32)
    loss = SmoothedCrossEntropy(classes, smoothing, reduction="none")
    rows = dense(ids, weights, classes, smoothing)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = loss(y_true, logits)
    np.testing.assert_allclose(values.numpy(), cross_entropy(rows, logits.numpy()), rtol=1e-5, atol=1e-5)
    gradient = tape.gradient(values, logits).numpy()
    np.testing.assert_allclose(gradient, tf.nn.softmax(logits).numpy() - rows, rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets(y_true, classes, smoothing).numpy(), rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_class_ids(shape, dtype):
    labels = np.array([3, 0, 9, 3]).astype(dtype)
    logits = np.random.default_rng(1).normal(size=(4, 10)).astype(np.float32)
    plain = SmoothedCrossEntropy(10, 0.0)(labels.reshape(shape), logits)
    expected = tf.nn.sparse_softmax_cross_entropy_with_logits(labels.astype("int32"), logits)
    np.testing.assert_allclose(plain.numpy(), expected.numpy().mean(), rtol=1e-6)
    smoothed = SmoothedCrossEntropy(10, 0.1, reduction="none")(labels.reshape(shape), logits)
    rows = dense(labels.astype(int)[:, None], np.ones((4, 1)), 10, 0.1)
    np.testing.assert_allclose(smoothed.numpy(), cross_entropy(rows, logits), rtol=1e-5)


def test_one_term_of_weight_one_equals_ids():
    logits = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    ids, loss = np.array([1, 3, 0]), SmoothedCrossEntropy(4)
    np.testing.assert_allclose(
        loss(ids, logits).numpy(),
        loss(np.stack([ids, np.ones(3)], 1)[:, None].astype(np.float32), logits).numpy(),
        rtol=1e-6,
    )


def test_sample_weight_masks():
    _, _, y_true = mixed(6, 5, 2)
    logits = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    mask = np.array([1, 0, 1, 1, 0, 0], np.float32)
    each = SmoothedCrossEntropy(5, reduction="none")(y_true, logits).numpy()
    assert each.shape == (6,)
    masked = SmoothedCrossEntropy(5, reduction="sum")(y_true, logits, sample_weight=mask)
    np.testing.assert_allclose(masked.numpy(), (each * mask).sum(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_computes_half_precision_logits_in_float32(dtype):
    classes = 1000
    logits = tf.cast(np.random.default_rng(0).normal(size=(4, classes)) * 3, dtype)
    labels = np.array([0, 999, 5, 5])
    values = SmoothedCrossEntropy(classes, reduction="none").call(tf.constant(labels), logits)
    assert values.dtype == tf.float32
    rows = dense(labels[:, None], np.ones((4, 1)), classes, 0.1)
    np.testing.assert_allclose(values.numpy(), cross_entropy(rows, tf.cast(logits, tf.float32).numpy()), rtol=1e-5)


def test_large_logits_stay_finite():
    logits = tf.constant([[1e4, -1e4, 0.0]])
    np.testing.assert_allclose(SmoothedCrossEntropy(3, 0.1)(np.array([1]), logits).numpy(), 18500.0, rtol=1e-6)
    np.testing.assert_allclose(SmoothedCrossEntropy(3, 0.0)(np.array([0]), logits).numpy(), 0.0, atol=1e-6)


def test_main_class():
    y_true = [[[7, 0.3], [2, 0.7]], [[7, 0.7], [2, 0.3]], [[7, 0.5], [2, 0.5]]]
    np.testing.assert_array_equal(main_class(tf.constant(y_true), 9).numpy(), [2, 7, 7])
    # no single term of class 3 is the largest, but together they are
    y_true = [[[1, 0.4], [3, 0.35], [0, 0.0], [3, 0.25]]]
    np.testing.assert_array_equal(main_class(tf.constant(y_true), 9).numpy(), [3])
    np.testing.assert_array_equal(main_class(tf.constant([4, 0]), 9).numpy(), [4, 0])
    np.testing.assert_array_equal(main_class(tf.constant([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0]]), 3).numpy(), [1, 0])


@pytest.mark.parametrize("kind, name, k", [(Top1, "top1", 1), (Top5, "top5", 5)])
@pytest.mark.parametrize("form", ["ids", "column", "mixed", "one_hot", "soft"])
def test_accuracy(kind, name, k, form):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(64, 12)).astype(np.float32), rng.integers(0, 12, 64)
    other = (labels + 1) % 12
    forms = {
        "ids": labels,
        "column": labels[:, None],
        "mixed": np.stack([np.stack([other, labels], 1), np.tile([0.4, 0.6], (64, 1))], 2).astype(np.float32),
        "one_hot": np.eye(12, dtype=np.int64)[labels],
        "soft": np.float32(0.6 * np.eye(12)[labels] + 0.4 * np.eye(12)[other]),
    }
    right = (np.argsort(-logits, -1)[:, :k] == labels[:, None]).any(-1)
    metric = kind()
    assert metric.name == name
    metric.update_state(forms[form][:40], logits[:40])
    metric.update_state(forms[form][40:], logits[40:])
    np.testing.assert_allclose(metric.result().numpy(), right.mean(), rtol=1e-6)
    weights = (np.arange(64) % 3 > 0).astype(np.float32)
    metric = kind()
    metric.update_state(forms[form], logits, sample_weight=weights)
    np.testing.assert_allclose(metric.result().numpy(), (right * weights).sum() / weights.sum(), rtol=1e-6)


def test_accuracy_is_not_free():
    """Equal logits are no success of every class, and five of three classes are all of them."""
    metric = Top1()
    metric.update_state(np.arange(4), np.zeros((4, 4), np.float32))
    assert metric.result().numpy() == 0.25
    metric = Top5()
    metric.update_state(np.array([0, 2]), np.zeros((2, 3), np.float32))
    assert metric.result().numpy() == 1.0


@pytest.mark.run
@pytest.mark.parametrize("form", ["ids", "mixed"])
def test_in_fit_and_evaluate(form):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(6)(inputs))
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    ids, weights, y_mixed = mixed(16, 6, 4)
    y = ids[:, 0] if form == "ids" else y_mixed
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    model.compile("sgd", SmoothedCrossEntropy(6), weighted_metrics=[Top1(), Top5()], **kwargs)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    assert set(model.fit(batches, epochs=1, verbose=0).history) == {"loss", "top1", "top5"}
    mask = (np.arange(16) < 11).astype(np.float32)
    figures = model.evaluate(tf.data.Dataset.from_tensor_slices((x, y, mask)).batch(8), verbose=0, return_dict=True)
    logits = model.predict(x, verbose=0)
    rows = dense(ids[:, :1], np.ones((16, 1)), 6, 0.1) if form == "ids" else dense(ids, weights, 6, 0.1)
    np.testing.assert_allclose(figures["loss"], (mask * cross_entropy(rows, logits)).mean(), rtol=1e-5)
    order = np.argsort(-logits, -1)
    for name, k in (("top1", 1), ("top5", 5)):
        right = (order[:, :k] == rows.argmax(-1)[:, None]).any(-1)
        np.testing.assert_allclose(figures[name], right[:11].mean(), rtol=1e-6)


@pytest.mark.parametrize("thing", [SmoothedCrossEntropy(7, 0.2, name="ce", reduction="sum"), Top1(), Top5("five")])
def test_config_round_trip(thing):
    module = keras.losses if isinstance(thing, keras.losses.Loss) else keras.metrics
    again = module.deserialize(module.serialize(thing))
    assert type(again) is type(thing)
    assert again.get_config() == thing.get_config()
    assert again.name == thing.name


def test_refuses():
    with pytest.raises(ValueError, match="num_classes"):
        SmoothedCrossEntropy(1)
    with pytest.raises(ValueError, match="label_smoothing"):
        SmoothedCrossEntropy(10, 1.0)
    with pytest.raises(ValueError, match="num_classes=10"):
        SmoothedCrossEntropy(10)(np.array([1]), np.zeros((1, 9), np.float32))
    logits = np.zeros((2, 10), np.float32)
    # Ids with their weights in one row were how mixed labels came once; neither they nor other widths are guessed at.
    for shape in ((2, 3), (2, 8), (2, 3, 4), (2, 10, 1), ()):
        for of in (SmoothedCrossEntropy(10, reduction="none").call, Top1().update_state, Top5().update_state):
            with pytest.raises(ValueError, match=r"logits of 10 classes: class ids are .*\[batch, terms, 2\]"):
                of(tf.zeros(shape), tf.constant(logits))
    for shape in ((2, 1), (2,), (2, 3, 4)):  # one logit would always be the largest
        with pytest.raises(ValueError, match="two classes or more"):
            Top1().update_state(np.zeros(2), np.zeros(shape, np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("classes", [2, 4, 5, 8])
def test_one_hot_labels(classes, dtype):
    """Also of as many classes as mixed labels have numbers: they equal the class ids, and Keras' own loss."""
    rng = np.random.default_rng(classes)
    labels, logits = rng.integers(0, classes, 12), rng.normal(size=(12, classes)).astype(np.float32)
    rows = np.eye(classes)[labels].astype(dtype)
    for smoothing in (0.0, 0.1):
        loss = SmoothedCrossEntropy(classes, smoothing)
        np.testing.assert_allclose(loss(rows, logits).numpy(), loss(labels, logits).numpy(), rtol=1e-6)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True)(rows.astype("float32"), logits)
    np.testing.assert_allclose(SmoothedCrossEntropy(classes, 0.0)(rows, logits).numpy(), theirs.numpy(), rtol=1e-5)
    for kind in (Top1, Top5):
        metric, by_id = kind(), kind()
        metric.update_state(rows, logits)
        by_id.update_state(labels, logits)
        assert metric.result().numpy() == by_id.result().numpy()


def test_soft_labels_equal_the_same_labels_mixed():
    ids, weights, y_true = mixed(6, 5, 2)
    rows = dense(ids, weights, 5, 0.0).astype(np.float32)
    logits = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)
    loss = SmoothedCrossEntropy(5, 0.1, reduction="none")
    np.testing.assert_allclose(loss(rows, logits).numpy(), loss(y_true, logits).numpy(), rtol=1e-5)
    np.testing.assert_allclose(targets(rows, 5, 0.1).numpy(), targets(y_true, 5, 0.1).numpy(), atol=1e-6)


@pytest.mark.parametrize("mode, classes", [("int", 3), ("categorical", 4), ("binary", 2)])
def test_labels_of_keras_folders(mode, classes, tmp_path):
    """Every `label_mode` of Keras' reader of class folders: the same loss, top-1 and class weights as by class ids."""
    for name in range(classes):
        (tmp_path / str(name)).mkdir()
        for index in range(3):
            image = tf.fill([4, 4, 3], tf.cast(40 * name + index, tf.uint8))
            tf.io.write_file(str(tmp_path / str(name) / f"{index}.png"), tf.io.encode_png(image))
    options = {"image_size": (4, 4), "batch_size": 4, "shuffle": False}
    read = keras.preprocessing.image_dataset_from_directory(str(tmp_path), label_mode=mode, **options)
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(classes)])
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    model.compile(keras.optimizers.SGD(0.0), SmoothedCrossEntropy(classes), metrics=[Top1()], **kwargs)
    figures = model.evaluate(read, verbose=0, return_dict=True)
    logits = model.predict(read, verbose=0)
    labels = np.repeat(np.arange(classes), 3)
    right = np.isin(np.arange(classes * 3), np.flatnonzero(logits.argmax(1) == labels)).mean()
    each = cross_entropy(dense(labels[:, None], np.ones((len(labels), 1)), classes, 0.1), logits)
    np.testing.assert_allclose([figures["loss"], figures["top1"]], [each.mean(), right], rtol=1e-4)
    weight = {name: 1.0 + name for name in range(classes)}
    history = model.fit(read, class_weight=weight, epochs=1, verbose=0).history
    np.testing.assert_allclose(history["loss"], [(each * (1 + labels)).mean()], rtol=1e-4)


@pytest.mark.parametrize("form", ["ids", "column", "one_hot"])
def test_labels_of_a_generator(form):
    """Keras knows the rank of what a Python generator gives, and no size."""
    labels = np.arange(8) % 4
    y = {"ids": labels, "column": labels[:, None], "one_hot": np.eye(4, dtype=np.float32)[labels]}[form]
    x = 8 * np.eye(4, dtype=np.float32)[labels]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, kernel_initializer="identity")])
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    model.compile("sgd", SmoothedCrossEntropy(4, 0.0), metrics=[Top1()], **kwargs)
    figures = model.evaluate(((x, y) for _ in range(2)), steps=2, verbose=0, return_dict=True)
    assert figures["top1"] == 1 and figures["loss"] < 0.01


@pytest.fixture(scope="module")
def monitored():
    """A model whose metrics callbacks watch, traced once."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile("sgd", SmoothedCrossEntropy(3), metrics=[Top5("best"), Top1("top1")])
    return model


@pytest.mark.parametrize("callback", ["EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"])
@pytest.mark.parametrize("mode", ["auto", pytest.param("min", marks=slow_with_keras3)])
def test_callbacks_know_the_direction(callback, mode, tmp_path, monitored):
    """mode="auto" takes the larger accuracy for the better one; a mode that the user sets stands."""
    model = monitored
    x, y = np.ones((4, 2), np.float32), np.zeros(4)
    options = {"ModelCheckpoint": {"filepath": str(tmp_path / "m.weights.h5"), "save_best_only": True}}.get(
        callback, {}
    )
    if callback == "ModelCheckpoint":
        options["save_weights_only"] = True
    for monitor, larger in (("val_top1", mode == "auto"), ("best", mode == "auto"), ("loss", False)):
        used = getattr(keras.callbacks, callback)(monitor=monitor, mode=mode, **options)
        model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[used])
        for _ in range(2):  # a callback can be used again
            assert bool(used.monitor_op(2.0, 1.0)) == larger and bool(used.monitor_op(1.0, 2.0)) != larger
            if hasattr(used, "best") and used.best is not None:
                assert np.isfinite(float(used.best))
            model.fit(x, y, validation_data=(x, y), verbose=0, callbacks=[used])


def test_early_stopping_waits_for_a_rising_accuracy():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.3), SmoothedCrossEntropy(2, 0.0), metrics=[Top1()])
    x = np.float32([[1, 0], [0, 1], [0.1, 0], [0, 0.1]])
    stop = keras.callbacks.EarlyStopping(monitor="top1", patience=1, min_delta=0.1, restore_best_weights=True)
    history = model.fit(x, np.array([0, 1, 0, 1]), epochs=6, verbose=0, callbacks=[stop]).history["top1"]
    assert max(history) == 1.0 and float(stop.best) == 1.0


@pytest.mark.parametrize("dtype, most", [("bfloat16", 257), ("float16", 2049)])
def test_class_ids_in_floats_that_cannot_hold_them_are_refused(dtype, most):
    """tf-keras gives a loss the targets in the dtype of half-precision logits; id 257 would be 256."""
    for classes, forms in ((most, None), (most + 1, "came as")):
        logits = tf.one_hot([classes - 1, 0], classes, 20.0, 0.0)
        for ids in ([classes - 1, 0], [[classes - 1], [0]], [[[classes - 1, 1.0]], [[0, 1.0]]]):
            ids = tf.cast(ids, dtype)
            if forms:
                with pytest.raises(ValueError, match=f"{forms} {dtype}.*as integers"):
                    SmoothedCrossEntropy(classes).call(ids, logits)
                with pytest.raises(ValueError, match=forms):
                    in_top(ids, logits, 1)
            else:
                assert in_top(ids, logits, 1).numpy().tolist() == [1, 1]
        rows = tf.cast(tf.one_hot([classes - 1, 0], classes), dtype)
        assert in_top(rows, logits, 1).numpy().tolist() == [1, 1]


@pytest.mark.parametrize(
    "ids", [[0, 1, 3], [[-1], [0], [1]], [[[0, 0.5], [3, 0.5]], [[1, 1], [0, 0]], [[2, 1], [0, 0]]]]
)
def test_class_ids_out_of_range_never_pass_for_a_class(ids):
    """Where the device has no exception to raise, the loss is no number: labels from 1 train no other class."""
    logits, ids = tf.constant(np.eye(3, dtype=np.float32) * 5), np.asarray(ids)
    ids = tf.constant(ids, tf.float32 if ids.ndim == 3 else tf.int32)
    outside = np.array([np.min(row[..., 0] if ids.shape.rank == 3 else row) < 0 or
                        np.max(row[..., 0] if ids.shape.rank == 3 else row) > 2 for row in ids.numpy()])  # fmt: skip
    loss = SmoothedCrossEntropy(3)
    values = tf.function(loss.call, jit_compile=True)(ids, logits).numpy()
    assert np.isnan(values).tolist() == outside.tolist() and outside.sum() == 1
    with pytest.raises(tf.errors.InvalidArgumentError):
        loss.call(ids, logits)


def test_class_ids_out_of_range_where_the_form_is_known_late():
    logits, loss = tf.constant(np.eye(3, dtype=np.float32) * 5), SmoothedCrossEntropy(3)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def figures(ids):
        return loss.call(ids, logits), in_top(ids, logits, 1), in_top(ids, logits, 3)

    for ids, right in (([0, 1, 2], [1, 1, 1]), ([-1, 1, 3], [0, 1, 0]), ([0, 1, 3], [1, 1, 0])):
        values, *tops = figures(tf.constant(ids)[:, None])
        assert np.isfinite(values).tolist() == [bool(r) for r in right]
        assert [top.numpy().tolist() for top in tops] == [right, right]
        assert np.isfinite(targets(tf.constant(ids), 3).numpy().sum(-1)).tolist() == [bool(r) for r in right]

"""Loss and accuracy with both forms of targets, against NumPy and the recorded mixing targets."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from g16net import compat
from g16net.optim.losses import SmoothedCrossEntropy, Top1, Top5, main_class, split_terms, targets

MIXING = np.load(pathlib.Path(__file__).parent / "golden" / "mixing.npz")


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
    return np.stack(ids + weights, axis=1).astype(np.float32)


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
    return ids, weights, np.concatenate([ids, weights], axis=1).astype(np.float32)


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
        loss(ids, logits).numpy(), loss(np.stack([ids, np.ones(3)], 1).astype(np.float32), logits).numpy(), rtol=1e-6
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
    y_true = [[7, 2, 0.3, 0.7], [7, 2, 0.7, 0.3], [7, 2, 0.5, 0.5]]
    np.testing.assert_array_equal(main_class(tf.constant(y_true)).numpy(), [2, 7, 7])
    # no single term of class 3 is the largest, but together they are
    np.testing.assert_array_equal(main_class(tf.constant([[1, 3, 0, 3, 0.4, 0.35, 0.0, 0.25]])).numpy(), [3])
    np.testing.assert_array_equal(main_class(tf.constant([4, 0])).numpy(), [4, 0])


@pytest.mark.parametrize("kind, name, k", [(Top1, "top1", 1), (Top5, "top5", 5)])
@pytest.mark.parametrize("form", ["ids", "column", "mixed"])
def test_accuracy(kind, name, k, form):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(64, 12)).astype(np.float32), rng.integers(0, 12, 64)
    other = (labels + 1) % 12
    forms = {
        "ids": labels,
        "column": labels[:, None],
        "mixed": np.stack([other, labels, np.full(64, 0.4), np.full(64, 0.6)], 1).astype(np.float32),
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
    with pytest.raises(ValueError, match="ids and then weights"):
        split_terms(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="ids and then weights"):
        split_terms(np.zeros((2, 3, 4), np.float32))

"""Gradient accumulation and the guard against gradients that are not finite, in the optimizer."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from g16net import compat, models
from g16net.optim.losses import SmoothedCrossEntropy
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import Cosine
from g16net.run import checkpoint

NO_XLA = {} if compat.TF_VERSION < (2, 7) else {"jit_compile": False}


def network(norm, seed=1):
    name = f"efficientnet_g16_tiny_{norm}"
    return models.create(name, num_classes=10, seed=seed, dropout=0.0, survival_prob=1.0, input_size=32)


def data(batches, batch, seed=0):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, [batches * batch, 32, 32, 3]).astype(np.float32)
    return images, draw.integers(0, 10, [batches * batch]).astype(np.int32)


def trained(norm, accumulation, batch, updates, images, labels):
    model = network(norm)
    optimizer = RMSProp(0.01, weight_decay=1e-5, accumulation=accumulation)
    model.compile(optimizer, loss=SmoothedCrossEntropy(10), steps_per_execution=accumulation, **NO_XLA)
    model.fit(images, labels, batch_size=batch // accumulation, shuffle=False, verbose=0)
    assert int(optimizer.iterations) == updates
    return [weight.numpy() for weight in model.trainable_weights]


def largest_difference(norm, accumulation, batch, updates):
    images, labels = data(updates, batch)
    whole = trained(norm, 1, batch, updates, images, labels)
    parts = trained(norm, accumulation, batch, updates, images, labels)
    start = [weight.numpy() for weight in network(norm).trainable_weights]
    moved = max(np.abs(a - b).max() for a, b in zip(whole, start))
    return max(np.abs(a - b).max() for a, b in zip(whole, parts)), moved


def fitted(accumulation):
    """Weights and largest move of a small network after three updates."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, kernel_initializer=keras.initializers.GlorotUniform(seed=1))(inputs)
    x = keras.layers.LayerNormalization()(x)
    outputs = keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=2))(x)
    model = keras.Model(inputs, outputs)
    start = model.get_weights()
    optimizer = RMSProp(0.01, weight_decay=1e-2, accumulation=accumulation)
    model.compile(optimizer, loss=SmoothedCrossEntropy(10), steps_per_execution=accumulation, **NO_XLA)
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=[24, 6]).astype(np.float32), draw.integers(0, 10, [24]).astype(np.int32)
    model.fit(x, y, batch_size=8 // accumulation, shuffle=False, verbose=0)
    assert int(optimizer.iterations) == 3
    return model.get_weights(), max(np.abs(a - b).max() for a, b in zip(model.get_weights(), start))


@pytest.mark.run
def test_accumulation_equals_the_large_batch():
    whole, moved = fitted(1)
    assert moved > 0.01
    for accumulation in (2, 4):
        for value, right in zip(fitted(accumulation)[0], whole):
            np.testing.assert_allclose(value, right, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulation_equals_the_large_batch_with_layer_norm(accumulation):
    difference, moved = largest_difference("ln_pn", accumulation, batch=8, updates=6)
    assert difference < 2e-4 and moved > 0.02


@pytest.mark.slow
def test_batch_norm_sees_the_micro_batch(accumulation=4):
    difference, _ = largest_difference("bn", accumulation, batch=8, updates=6)
    assert difference > 0.01


@pytest.mark.parametrize("before, after", [(1, 4), (4, 1), (2, 4)])
def test_a_run_goes_on_with_another_accumulation(before, after, tmp_path):
    draw = np.random.default_rng(0)
    images, targets = draw.normal(size=[24, 3]).astype("float32"), draw.normal(size=[24, 2]).astype("float32")

    def made(accumulation):
        dense = keras.layers.Dense(2, kernel_initializer="ones", name="dense")
        model = keras.Sequential([keras.Input((3,)), dense], name="model")
        optimizer = RMSProp(Cosine(0.1, steps=6), accumulation=accumulation)
        model.compile(optimizer, loss="mse", steps_per_execution=accumulation, **NO_XLA)
        variables = checkpoint.state(model, optimizer)
        return model, optimizer, checkpoint.Checkpoints(str(tmp_path), variables, accumulation=accumulation)

    def fit(model, accumulation, part):
        model.fit(images[part], targets[part], batch_size=4 // accumulation, shuffle=False, verbose=0)

    whole, _, _ = made(1)
    fit(whole, 1, slice(24))
    first, _, saved = made(before)
    fit(first, before, slice(12))
    saved.save(3)
    saved.wait()
    second, optimizer, saved = made(after)
    manifest = saved.restore_latest()
    compat.recount(optimizer, manifest["accumulation"], after)
    fit(second, after, slice(12, 24))
    for a, b in zip(whole.get_weights(), second.get_weights()):
        np.testing.assert_allclose(a, b, atol=1e-5)


def one_weight(guard, accumulation=1):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    optimizer = RMSProp(0.1, rho=1.0, momentum=0.0, epsilon=1e-9, accumulation=accumulation, guard=guard)
    model.compile(optimizer, loss="mse", **NO_XLA)
    return model, optimizer


@pytest.mark.run
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_guarded_update_with_gradients_that_are_not_finite_is_left_out_and_counted(accumulation):
    model, optimizer = one_weight("skip", accumulation)
    good, bad = np.ones([2, 1], np.float32), np.full([2, 1], np.inf, np.float32)
    target = np.zeros([2, 1], np.float32)
    for _ in range(accumulation):
        model.train_on_batch(good, target)
    after = model.get_weights()[0]
    assert after < 1
    for _ in range(accumulation):
        model.train_on_batch(bad, target)
    np.testing.assert_array_equal(model.get_weights()[0], after)
    assert int(optimizer.skipped.numpy()) == accumulation and optimizer.not_finite.numpy().tolist() == [1]
    for _ in range(accumulation):
        model.train_on_batch(good, target)
    assert model.get_weights()[0] < after


@pytest.mark.run
def test_a_pass_that_is_left_out_shifts_no_update():
    model, optimizer = one_weight("skip", 2)
    good, bad, target = np.ones([2, 1], np.float32), np.full([2, 1], np.inf, np.float32), np.zeros([2, 1], np.float32)
    weights = []
    for images in (good, bad, good, good):
        model.train_on_batch(images, target)
        weights.append(model.get_weights()[0].item())
    assert weights[0] == 1 > weights[1] == weights[2] > weights[3]
    assert int(optimizer.iterations) == 2 and int(optimizer.skipped.numpy()) == 1


@pytest.mark.parametrize("guard", ["report", "skip"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_guard_knows_variables_without_gradients_and_those_that_come_later(guard, accumulation):
    first, idle, late = (tf.Variable([1.0], name=name) for name in ("first", "idle", "late"))
    optimizer = RMSProp(0.1, accumulation=accumulation, guard=guard)
    if compat.KERAS3:  # where an optimizer is built for all its variables
        optimizer.build([first, idle, late])
    good, bad = tf.constant([1.0]), tf.constant([np.inf])
    for _ in range(accumulation):
        optimizer.apply_gradients([(good, first), (None, idle)])
    assert float(first[0]) < 1 == float(idle[0]) and not optimizer.not_finite.numpy().any()
    optimizer.apply_gradients([(good, first), (bad, late)])
    assert optimizer.not_finite.numpy().tolist() == ([0, 0, 1] if compat.KERAS3 else [0, 1])
    assert int(optimizer.skipped.numpy()) == 1


@pytest.mark.run
def test_a_guard_that_reports_does_not_change_training():
    for guard in ("none", "report", "skip"):
        model, _ = one_weight(guard)
        for _ in range(3):
            model.train_on_batch(np.ones([2, 1], np.float32), np.zeros([2, 1], np.float32))
        if guard == "none":
            expected = model.get_weights()[0]
        np.testing.assert_array_equal(model.get_weights()[0], expected)


def test_the_optimizers_state_has_the_same_names_in_every_keras():
    model = models.create("efficientnet_g16_nano_ln_pn", num_classes=10)
    state = compat.optimizer_state(RMSProp(0.1, accumulation=2), model.trainable_variables)
    names = {name.split("/")[0] for name in state}
    assert {"step", "rms", "momentum", "accumulated"} <= names
    assert "rms/block1a_conv/kernel" in state and isinstance(state["step"], tf.Variable)

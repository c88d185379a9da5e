"""RMSProp against recorded trajectories, TensorFlow 1's own optimiser, and in the places where Keras uses it."""

import os
import subprocess
import sys
from statistics import NormalDist
from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT
from tensorflow import keras

from g16net import compat
from g16net.optim.base import own_name
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import ExponentialStaircase

GOLDEN = helpers.GOLDEN


def variable(value, name):
    make = keras.Variable if compat.KERAS3 else tf.Variable
    return make(np.asarray(value, np.float32), name=name)


def slot(optimizer, index, name, variables):
    if compat.KERAS3:
        return optimizer.variables[2 + index + len(variables) * list(optimizer.slots).index(name)].numpy()
    return optimizer.get_slot(variables[index], name).numpy()


def set_rate(optimizer, rate):
    optimizer.learning_rate = rate


@pytest.mark.parametrize("run", ["plain", "l2", "recipe"])
@pytest.mark.parametrize("mode", ["eager", "function"])
def test_equals_recorded_trajectory(run, mode):
    golden = np.load(GOLDEN / "rmsprop.npz")
    names = ["kernel", "bias", "gamma", "beta"]
    variables = [variable(golden["init/" + name], name) for name in names]
    optimizer = RMSProp(0.0, rho=float(golden[run + "/decay"]), weight_decay=float(golden[run + "/weight_decay"]))

    def step(*gradients):
        optimizer.apply_gradients(zip(gradients, variables))

    if mode == "function":
        step = tf.function(step)
    for index, rate in enumerate(golden["lr"]):
        set_rate(optimizer, float(rate))
        step(*[tf.constant(golden["grad/" + name][index]) for name in names])
        for name, var in zip(names, variables):
            np.testing.assert_allclose(var.numpy(), golden[f"{run}/{name}"][index], rtol=0, atol=1e-5)
    for index, name in enumerate(names):
        for kind in ("rms", "momentum"):
            expected = golden[f"{run}/final_{kind}/{name}"]
            np.testing.assert_allclose(slot(optimizer, index, kind, variables), expected, rtol=0, atol=1e-5)
    assert int(optimizer.iterations.numpy()) == 20


def test_equals_tensorflow_1():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(5, 3)), rng.normal(size=(15, 5, 3)).astype(np.float32)
    ours, theirs = variable(start, "kernel"), tf.Variable(start.astype(np.float32))
    optimizer = RMSProp(0.03, rho=0.95, momentum=0.8, epsilon=1e-2)
    reference = tf.compat.v1.train.RMSPropOptimizer(0.03, decay=0.95, momentum=0.8, epsilon=1e-2)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient), ours)])
        reference.apply_gradients([(tf.constant(gradient), theirs)])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=1e-6)


def test_trains_proxy_norm_as_recorded():
    """Layer norm and a proxy-normalised swish, whose four parameters alone are trained."""
    golden = np.load(GOLDEN / "proxy_norm_training.npz")
    names = ["gamma", "beta", "proxy_gamma", "proxy_beta"]
    gamma, beta, proxy_gamma, proxy_beta = variables = [variable(golden["init/" + name], name) for name in names]
    x = golden["x"].astype(np.float64)
    variance = x.var(axis=(1, 2, 3), keepdims=True)
    y = ((x - x.mean(axis=(1, 2, 3), keepdims=True)) / np.sqrt(variance + 1e-3)).astype(np.float32)
    points = np.array([NormalDist().inv_cdf((i + 0.5) / 200) for i in range(200)], np.float32)[:, np.newaxis]
    optimizer = RMSProp(
        float(golden["lr"]), rho=float(golden["rmsprop_decay"]), weight_decay=float(golden["weight_decay"])
    )
    for index in range(12):
        with tf.GradientTape() as tape:
            proxy = tf.nn.silu(gamma * (proxy_beta + (1 + proxy_gamma) * points) + beta)
            moments = tf.nn.moments(proxy, 0)
            out = (tf.nn.silu(gamma * y + beta) - moments[0]) / tf.sqrt(moments[1] + 0.03)
            errors = tf.matmul(tf.reduce_mean(out, (1, 2)), golden["w"]) - golden["target"]
            loss = tf.reduce_mean(tf.square(errors))
        tensors = [v.value if compat.KERAS3 else v for v in variables]
        optimizer.apply_gradients(zip(tape.gradient(loss, tensors), variables))
        np.testing.assert_allclose(loss.numpy(), golden["loss_before_step"][index], rtol=0, atol=1e-5)
        for name, var in zip(names, variables):
            np.testing.assert_allclose(var.numpy(), golden["after_step/" + name][index], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("block1a_norm/gamma:0", "gamma"),
        ("block1a_norm/gamma", "gamma"),
        ("gamma", "gamma"),
        ("model/gamma/kernel:0", "kernel"),
        ("block1a_norm/gamma/replica_1:0", "gamma"),
        ("block1a_se/reduce_bias:0", "reduce_bias"),
        ("top_norm/proxy_gamma:0", "proxy_gamma"),
    ],
)
def test_own_name(name, expected):
    assert own_name(SimpleNamespace(name=name)) == expected
    assert own_name(SimpleNamespace(name=name.split("/")[-1], path=name)) == expected


class Parameters(keras.layers.Layer):
    """Weights with the names of the network's own layers."""

    NAMES = (
        "reduce_kernel",
        "reduce_bias",
        "expand_kernel",
        "expand_bias",
        "gamma",
        "beta",
        "proxy_gamma",
        "proxy_beta",
    )

    def build(self, input_shape):
        for name in self.NAMES:
            setattr(self, name, self.add_weight(name=name, shape=(3,), initializer="ones"))

    def call(self, x):
        return x + 0.0 * sum(tf.reduce_sum(tf.convert_to_tensor(getattr(self, name))) for name in self.NAMES)


def network():
    """Layers whose own names hold the words of the rule, so that a search through the whole name would go wrong."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(3, name="gamma_dense")(inputs)
    x = keras.layers.BatchNormalization(name="kernel_norm")(x)
    x = Parameters(name="block_se")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="beta")(x))


def test_decays_the_right_variables():
    model = network()
    optimizer = RMSProp(0.1, weight_decay=0.5)
    for weight in model.trainable_weights:
        weight.assign(tf.ones_like(weight))
    zeros = [tf.zeros(weight.shape) for weight in model.trainable_weights]
    optimizer.apply_gradients(zip(zeros, model.trainable_weights))
    moved = sorted(own_name(w) for w in model.trainable_weights if np.all(w.numpy() < 1))
    still = sorted(own_name(w) for w in model.trainable_weights if np.all(w.numpy() == 1))
    assert moved == sorted(
        ["kernel", "bias"] * 2
        + ["reduce_kernel", "reduce_bias", "expand_kernel", "expand_bias", "proxy_gamma", "proxy_beta"]
    )
    assert still == sorted(["gamma", "beta"] * 2)


def test_patterns_are_the_callers():
    optimizer = RMSProp(0.1, weight_decay=0.5, exclude_from_weight_decay=[".*bias"])
    weights = {name: variable(np.ones(2), name) for name in ("kernel", "reduce_bias", "bias", "gamma", "bias_kernel")}
    assert [name for name, w in weights.items() if optimizer.decays(w)] == ["kernel", "gamma", "bias_kernel"]


def test_sparse_gradient_equals_dense():
    start = np.arange(12).reshape(4, 3) / 10
    sparse, dense = variable(start, "kernel"), variable(start, "kernel")
    ours, reference = RMSProp(0.1, weight_decay=0.1), RMSProp(0.1, weight_decay=0.1)
    rows = tf.IndexedSlices(
        tf.constant([[1.0, 2, 3], [1, 1, 1], [0, 1, 0]]), tf.constant([2, 0, 2]), tf.constant([4, 3])
    )
    for _ in range(3):
        ours.apply_gradients([(rows, sparse)])
        reference.apply_gradients([(tf.convert_to_tensor(rows), dense)])
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=0, atol=1e-7)
    assert np.all(sparse.numpy()[3] != start[3])  # the decay reaches rows without a gradient


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(16, 6)).astype(np.float32), rng.normal(size=(16, 2)).astype(np.float32)


def fit(model, optimizer, epochs=3):
    x, y = data()
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    model.compile(optimizer, "mse", **kwargs)
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)
    return [w.numpy() for w in model.weights]


def same_networks(count):
    models = [network() for _ in range(count)]
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
    return models


@pytest.mark.run
def test_counts_updates_and_follows_a_schedule():
    plain, scheduled = same_networks(2)
    constant = ExponentialStaircase(0.05, steps=100, rate=1.0)
    optimizer = RMSProp(constant)
    weights = fit(scheduled, optimizer)
    for ours, expected in zip(weights, fit(plain, RMSProp(0.05))):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    assert int(optimizer.iterations.numpy()) == 6
    falling = fit(same_networks(1)[0], RMSProp(ExponentialStaircase(0.0, steps=100)))
    assert all(np.all(np.isfinite(w)) for w in falling)


@pytest.mark.run
@pytest.mark.parametrize("scale", [2.0**10])
def test_loss_scale_changes_nothing_in_float32(scale):
    plain, scaled = same_networks(2)
    inner = RMSProp(0.05, weight_decay=1e-2)
    wrapped = keras.mixed_precision.LossScaleOptimizer(inner, initial_scale=scale)
    for ours, expected in zip(fit(scaled, wrapped), fit(plain, RMSProp(0.05, weight_decay=1e-2))):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    assert int(inner.iterations.numpy()) == 6


@pytest.mark.run
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_trains_in_half_precision_with_float32_state(policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
        optimizer = RMSProp(0.02, weight_decay=1e-4)
        before = [w.numpy() for w in model.weights]
        after = fit(model, optimizer)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert all(np.all(np.isfinite(a)) and np.any(a != b) for a, b in zip(after, before))
    state = optimizer.variables if compat.KERAS3 else optimizer.variables()
    assert all(tf.as_dtype(v.dtype) == tf.float32 for v in state if tuple(v.shape))


def test_refuses_half_precision_variables():
    optimizer = RMSProp(0.1)
    var = (
        keras.Variable(np.ones(2), dtype="float16", name="kernel")
        if compat.KERAS3
        else tf.Variable(tf.ones(2, tf.float16), name="kernel")
    )
    with pytest.raises(ValueError, match="mixed_float16"):
        optimizer.apply_gradients([(tf.ones(2, tf.float16), var)])


def test_config_round_trip():
    schedule = ExponentialStaircase(0.05, steps=100, warmup_steps=2.5, drops=7)
    optimizer = RMSProp(
        schedule,
        rho=0.95,
        momentum=0.8,
        epsilon=0.01,
        weight_decay=0.1,
        exclude_from_weight_decay=["gamma"],
        clipnorm=3.0,
    )
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is RMSProp
    assert again.get_config() == optimizer.get_config()
    assert again.clipnorm == 3.0 and again.undecayed == ("gamma",) and again.decay_rate == 0.1
    plain = RMSProp.from_config(RMSProp(0.125).get_config())
    assert float(plain.learning_rate) == 0.125


@pytest.mark.run
def test_saved_model_goes_on_training(tmp_path):
    keras26 = compat.TF_VERSION < (2, 12)  # knows no .keras files
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    fit(model, RMSProp(ExponentialStaircase(0.05, steps=100, warmup_steps=20), weight_decay=1e-2))
    path = str(tmp_path / ("model.h5" if keras26 else "model.keras"))
    model.save(path)
    again = keras.models.load_model(path)
    assert type(again.optimizer) is RMSProp
    assert again.optimizer.get_config() == model.optimizer.get_config()
    x, y = data()
    for m in (model, again):
        m.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    if not keras26 and not compat.KERAS3:
        return  # tf-keras writes no state of OptimizerV2 into .keras files; checkpoints hold it
    for ours, expected in zip(again.get_weights(), model.get_weights()):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-7)
    assert int(again.optimizer.iterations.numpy()) == 10


@pytest.mark.run
def test_checkpoint_holds_the_state(tmp_path):
    first, second = same_networks(2)
    optimizers = [RMSProp(0.05, weight_decay=1e-2) for _ in range(2)]
    fit(first, optimizers[0])
    path = tf.train.Checkpoint(model=first, optimizer=optimizers[0]).save(str(tmp_path / "state"))
    restored = tf.train.Checkpoint(model=second, optimizer=optimizers[1]).restore(path)
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    second.compile(optimizers[1], "mse", **kwargs)
    x, y = data()
    for model in (first, second):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    restored.assert_existing_objects_matched()
    for ours, expected in zip(second.get_weights(), first.get_weights()):
        np.testing.assert_array_equal(ours, expected)
    assert int(optimizers[1].iterations.numpy()) == 10


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"rho": 1.5}, "rho"),
        ({"momentum": 1.0}, "momentum"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"weight_decay": -1e-5}, "weight_decay"),
        ({"decay": 0.9}, "rho"),
        ({"exclude_from_weight_decay": "gamma"}, "list"),
    ],
)
def test_refuses(kwargs, match):
    with pytest.raises(ValueError, match=match):
        RMSProp(0.1, **kwargs)


MIRRORED = """
import numpy as np, tensorflow as tf
from tensorflow import keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from g16net import compat
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import ExponentialStaircase
from g16net.optim.weight_average import AverageWeights, WeightAverage

def train(strategy):
    with strategy.scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.LayerNormalization(),
                                  keras.layers.Dense(2)])
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        optimizer = RMSProp(ExponentialStaircase(0.05, steps=8, warmup_steps=2), weight_decay=0.1)
        kwargs = {"jit_compile": False} if compat.KERAS3 else {}
        model.compile(optimizer, "mse", **kwargs)
        average = WeightAverage(model, 0.5)
    x, y = rng.normal(size=(16, 6)).astype("float32"), rng.normal(size=(16, 2)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(batches, epochs=4, verbose=0, callbacks=[AverageWeights(average)])
    assert int(optimizer.iterations.numpy()) == 8, optimizer.iterations
    raw = model.get_weights()
    with average.applied():
        averaged = model.get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(raw, model.get_weights()))
    return raw + averaged

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
one, two = train(tf.distribute.get_strategy()), train(strategy)
print("largest difference", max(np.abs(a - b).max() for a, b in zip(one, two)))
for a, b in zip(one, two):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
"""


@pytest.mark.slow  # whole runs on two devices: tests/training/test_distributed.py
@pytest.mark.skipif(compat.KERAS3, reason="runs on several devices take tf-keras")
def test_two_mirrored_replicas_equal_one():
    env = dict(os.environ, PYTHONPATH=ROOT, CUDA_VISIBLE_DEVICES="-1")
    done = subprocess.run([sys.executable, "-c", MIRRORED], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "largest difference" in done.stdout

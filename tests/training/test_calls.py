"""What a train step asks of its device: how many updates a call makes, which values are fetched, what XLA compiles."""

import json
import os
import traceback

import numpy as np
import pytest
import tensorflow as tf
from helpers import tiny
from tensorflow import keras

from g16net import compat
from g16net.errors import ConfigError
from g16net.optim.rmsprop import RMSProp
from g16net.optim.weight_average import AverageWeights, WeightAverage
from g16net.run import assemble, devices
from g16net.training import callbacks, runtime, train

pytestmark = pytest.mark.skipif(compat.KERAS3, reason="launch.py trains with tf-keras")
PLAIN = {"regularise__survival_prob": 1.0, "regularise__dropout": 0.0}


def ending(workdir):
    """{name: array} of the newest checkpoint of a run."""
    folder = sorted(os.listdir(workdir / "checkpoints"))[-1]
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / folder / "state"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "CHECKPOINT" not in name}


def test_averages_inside_an_optimizer_are_those_of_a_callback():
    images, labels = np.random.default_rng(0).normal(size=(2, 16, 5)).astype("float32")
    found = []
    for inside in (True, False):
        compat.set_seed(0)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5), keras.layers.BatchNormalization()])
        average, optimizer = WeightAverage(model, 0.5, "updates"), RMSProp(0.01)
        if inside:
            average.follow(optimizer)
        model.compile(optimizer, "mse", steps_per_execution=3 if inside else 1)  # of eight: two are left
        watching = [] if inside else [AverageWeights(average)]
        model.fit(images, labels, batch_size=2, shuffle=False, verbose=0, callbacks=watching)
        found.append([variable.numpy() for variable in average.named().values()])
    for value, expected in zip(*found):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model__norm": "bn"},
        {"runtime__grad_accumulation": 2},
        {"runtime__max_skipped": 2},
        {"runtime__precision": "mixed_float16"},
        {"runtime__strategy": "mirrored"},
        {"optim__name": "keras:Adam", "optim__learning_rate": 1e-3},
    ],
)
def test_averages_over_updates_are_those_of_updates_one_by_one(changes, tmp_path, monkeypatch):
    changes = {"regularise__ema": 0.9, **PLAIN, **changes}
    train.train(tiny(**changes, runtime__steps_per_execution=3), str(tmp_path / "calls"))  # of four: one is left
    monkeypatch.setattr(devices.Devices, "averages_inside", False)
    train.train(tiny(**changes), str(tmp_path / "one by one"))
    calls, alone = ending(tmp_path / "calls"), ending(tmp_path / "one by one")
    assert sorted(calls) == sorted(alone)
    for name, value in alone.items():
        np.testing.assert_allclose(calls[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture
def fetches(monkeypatch):
    """The steps of epochs, in a list, after which a value was fetched from TensorFlow while an epoch ran."""
    fetched, state = [], {"running": False, "position": None}
    (kind,) = [base for base in type(tf.constant(0)).__mro__ if "_numpy" in vars(base)]
    fetch, begin, end = kind._numpy, callbacks.Bookkeeping.on_epoch_begin, callbacks.Bookkeeping.on_epoch_end

    def counted(tensor):
        asking = traceback.extract_stack(limit=4)
        if state["running"] and not any("data_adapter" in frame.filename for frame in asking):  # of a count on the host
            fetched.append(state["position"].in_epoch)
        return fetch(tensor)

    def on_epoch_begin(self, epoch, logs=None):
        begin(self, epoch, logs)
        state.update(running=True, position=self.position)

    def on_epoch_end(self, epoch, logs=None):
        state.update(running=False)
        end(self, epoch, logs)

    monkeypatch.setattr(kind, "_numpy", counted)
    monkeypatch.setattr(callbacks.Bookkeeping, "on_epoch_begin", on_epoch_begin)
    monkeypatch.setattr(callbacks.Bookkeeping, "on_epoch_end", on_epoch_end)
    return fetched


def test_values_are_fetched_at_looks_alone(tmp_path, monkeypatch, fetches):
    monkeypatch.setattr(devices.Devices, "looks", 3)
    monkeypatch.setattr(callbacks.Progress, "__init__", quiet(callbacks.Progress.__init__))
    train.train(tiny(run__global_batch=8, regularise__ema=0.9), str(tmp_path))
    assert set(fetches) - {0} == {
        1,
        3,
        6,
        8,
    }  # 0: tracing makes constants; 1: the costs of input until then, on the host


def quiet(initialise):
    """Progress once an epoch instead of four times."""
    return lambda self, *args, **kwargs: initialise(self, *args, **{**kwargs, "lines": 1})


@pytest.mark.parametrize("saving, first, last", [pytest.param(None, 1, 4, marks=pytest.mark.slow), (2, 1, 2)])
def test_a_late_look_says_where_values_ceased_to_be_finite_and_saves_none_of_them(
    saving, first, last, tmp_path, monkeypatch
):
    monkeypatch.setattr(devices.Devices, "looks", 4)
    config = tiny(optim__learning_rate=1e30, checkpoint__every_steps=saving)
    with pytest.raises(FloatingPointError, match=f"at a step from {first} to {last} "):
        train.train(config, str(tmp_path))
    assert not os.path.exists(tmp_path / "checkpoints") or not os.listdir(tmp_path / "checkpoints")


def test_updates_in_a_call_are_chosen_by_the_device(monkeypatch):
    assert runtime.setup(tiny()).per_execution == 1
    monkeypatch.setattr(compat, "on_cpu", lambda: False)
    assert runtime.setup(tiny(regularise__ema=0.9)).per_execution == devices.PER_EXECUTION > 1
    assert runtime.setup(tiny(runtime__steps_per_execution=5)).updates.steps_per_execution == 5
    tpu = devices.Devices(tiny())
    for ema, calls in ((0.9, 1), (0.0, devices.PER_EXECUTION)):
        tpu.config = tiny(runtime__strategy="tpu", regularise__ema=ema)
        assert tpu.per_execution == calls


def test_passes_that_a_loss_scale_leaves_out_belong_to_no_update():
    config = tiny(runtime__precision="mixed_float16", runtime__dynamic_loss_scale=True, runtime__grad_accumulation=2)
    with pytest.raises(ConfigError, match="dynamic_loss_scale leaves out passes.*2 of them one update"):
        devices.Devices(config).check(4)


def test_keras_3_takes_whole_calls_alone(monkeypatch):
    config = tiny(runtime__steps_per_execution=3)
    devices.Devices(config).check(4)
    monkeypatch.setattr(compat, "KERAS3", True)
    with pytest.raises(ConfigError, match="steps_per_execution=3 does not divide the 4 weight updates of an epoch"):
        devices.Devices(config).check(4)
    devices.Devices(config).check(6)
    with pytest.raises(ConfigError, match="the 5 weight updates that are left of the epoch"):
        devices.Devices(config).check_rest(6, 1)
    monkeypatch.setattr(compat, "on_cpu", lambda: False)
    assert devices.Devices(tiny()).per_execution == 1


@pytest.mark.run
def test_an_epoch_of_one_call_is_timed_and_saved_like_others(tmp_path, monkeypatch):
    seconds = iter(range(1000))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: float(next(seconds)))
    one = tiny(runtime__steps_per_execution=8, run__epochs=2, checkpoint__every_epochs=9, checkpoint__every_steps=4)
    train.train(one, str(tmp_path))
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [(row["step"], row["images_per_second"] * row["seconds"]) for row in records] == [
        (4, pytest.approx(64, rel=0.01)), (8, pytest.approx(64, rel=0.01))
    ]  # fmt: skip
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["00000004", "00000008"]


def test_a_constant_rate_is_warmed_up():
    config = tiny(run__epochs=4, schedule__name="constant", schedule__warmup_epochs=2.0, optim__learning_rate=0.5)
    np.testing.assert_allclose([assemble.schedule(config, 10)(step) for step in (0, 10, 20, 39)], [0, 0.25, 0.5, 0.5])
    assert assemble.schedule(tiny(schedule__name="constant", optim__learning_rate=0.5), 10) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"model__norm": norm, "model__group_size": size}
            for norm in ("bn", "gn", "ln", "gn_pn", "ln_pn")
            for size in (1, 16)
        ),
        {"runtime__max_skipped": 2, "optim__clip_norm": 0.5},
        {"data__mixup": 0.2, "data__mix_on_device": True},
        {"runtime__recompute": True},
    ],
    ids=lambda changes: ",".join(map(str, changes.values())),
)
@pytest.mark.skipif(compat.TF_VERSION < (2, 8), reason="compile's jit_compile came with 2.8")
def test_xla_compiles_the_whole_step_to_what_the_plain_one_gives(changes, monkeypatch):
    monkeypatch.setenv("G16NET_NATIVE", "0")
    plain, compiled = (steps(tiny(**PLAIN, regularise__ema=0.9, runtime__jit=jit, **changes)) for jit in (False, True))
    for name, value in plain.items():
        np.testing.assert_allclose(compiled[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.skipif(compat.TF_VERSION < (2, 8), reason="compile's jit_compile came with 2.8")
def test_xla_is_asked_for_where_the_config_does(monkeypatch):
    monkeypatch.setenv("G16NET_NATIVE", "0")
    config = tiny(runtime__jit=True)
    assert train.build(config, runtime.setup(config), 5, 3).trainer.jit_compile


def steps(config):
    """{name: array}: loss and weights, averages among them, after three updates of `config`."""
    run = runtime.setup(config)
    with compat.policy(config.runtime.precision):
        built = train.build(config, run, 5, 3)
    average = assemble.average(config, built.model)
    average.follow(built.inner)
    made = run.feed(assemble.train_batches(config, assemble.open_source_of(config, "train")))
    history = built.trainer.fit(made, steps_per_epoch=3, verbose=0).history
    assert bool(built.trainer.jit_compile) == config.runtime.jit
    averages = {f"average {name}": variable.numpy() for name, variable in average.named().items()}
    weights = {compat.name_of(weight): weight.numpy() for weight in built.model.weights}
    return {"loss": history["loss"], **averages, **weights}


@pytest.mark.run
@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "runtime.jit is for GPUs.*G16NET_NATIVE=0"),
        ({"runtime__strategy": "mirrored"}, "runtime.jit is for one device, and runtime.strategy is mirrored"),
        ({"runtime__strategy": "tpu"}, "compiler takes every step anyway"),
    ],
)
def test_xla_is_refused_where_it_cannot_be(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(devices.native, "enabled", lambda *_: True)
    with pytest.raises(ConfigError, match=message):
        train.train(tiny(runtime__jit=True, **changes), str(tmp_path))
    assert not os.listdir(tmp_path)

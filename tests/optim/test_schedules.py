"""Schedules against the recorded learning rates, in the float32 in which training calls them."""

import json

import helpers
import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from g16net.optim.schedules import Cosine, ExponentialStaircase

RECORDED = json.loads((helpers.GOLDEN / "schedules.json").read_text())
STAIRCASES = ["exponential_batch768", "exponential_batch512"]
COSINES = ["finetune_cosine", "finetune_cosine_default_warmup", "cosine_warmup5_batch768"]

ROUNDING = 1e-17  # of the recorded cosines, which are 1 + cos in float64: it shows in their last steps


def make(name):
    recorded = RECORDED[name]
    kind = ExponentialStaircase if name in STAIRCASES else Cosine
    return recorded, kind(recorded["base_lr"], recorded["iterations"], recorded["warmup_iterations"])


def called(schedule, steps, dtype="int64"):
    call = tf.function(schedule)
    return np.array([call(tf.constant(step, dtype)).numpy() for step in steps])


@pytest.mark.parametrize("name", STAIRCASES + COSINES)
@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
def test_equals_recorded_rates(name, dtype):
    recorded, schedule = make(name)
    rates = called(schedule, recorded["step"], dtype)
    assert rates.dtype == np.float32
    np.testing.assert_allclose(rates, recorded["lr"], rtol=1e-6, atol=ROUNDING)


@pytest.mark.parametrize("name", STAIRCASES + COSINES)
def test_curve_equals_recorded_rates(name):
    recorded, schedule = make(name)
    curve = schedule.curve(recorded["step"])
    assert curve.dtype == np.float64
    np.testing.assert_allclose(curve, recorded["lr"], rtol=1e-10, atol=ROUNDING)


@pytest.mark.parametrize("name", STAIRCASES)
def test_drops_fall_on_their_exact_steps(name):
    recorded, schedule = make(name)
    first = np.array(recorded["first_step_of_drop"])
    assert len(first) == recorded["drops_made"] == 145
    np.testing.assert_array_equal(schedule.drops_made(first), np.arange(1, 146))
    np.testing.assert_array_equal(schedule.drops_made(first - 1), np.arange(145))
    np.testing.assert_array_equal(schedule.drops_made(np.array(recorded["step"])), recorded["drops"])
    after = first[first > recorded["warmup_iterations"]]
    ratio = called(schedule, after, "float32") / called(schedule, after - 1, "float32")
    np.testing.assert_allclose(ratio, 0.97, rtol=3e-7)


def test_curve_equals_formula_at_every_step():
    recorded, schedule = make("exponential_batch768")
    steps = np.arange(recorded["iterations"])
    drops = np.searchsorted(recorded["first_step_of_drop"], steps, side="right")
    warmup = np.minimum(1, steps / recorded["warmup_iterations"])
    np.testing.assert_allclose(schedule.curve(steps), recorded["base_lr"] * 0.97**drops * warmup, rtol=1e-14)
    assert schedule.curve(steps).argmax() == 8341
    np.testing.assert_allclose(schedule.curve(8341), 0.97**2 * 0.046875, rtol=1e-12)


@pytest.mark.parametrize("name", ["exponential_batch768", "cosine_warmup5_batch768"])
def test_training_dtype_follows_the_curve(name):
    recorded, schedule = make(name)
    steps = np.random.default_rng(0).integers(0, recorded["iterations"], 100)
    np.testing.assert_allclose(called(schedule, steps, "float32"), schedule.curve(steps), rtol=1e-6, atol=0)


def test_stays_after_the_end():
    staircase, cosine = ExponentialStaircase(1.0, steps=100, drops=4, rate=0.5), Cosine(1.0, steps=100)
    np.testing.assert_allclose(called(staircase, [0, 24, 25, 99, 100, 500]), [1, 1, 0.5, 0.125, 0.0625, 0.0625])
    np.testing.assert_allclose(called(cosine, [0, 50, 100, 500]), [1, 0.5, 0, 0], atol=1e-7)
    np.testing.assert_allclose(staircase.curve([100, 500]), [0.0625, 0.0625])


def test_rate_of_one_is_constant_after_warmup():
    schedule = ExponentialStaircase(0.1, steps=10, warmup_steps=4, rate=1.0)
    np.testing.assert_allclose(called(schedule, [0, 2, 4, 9]), [0, 0.05, 0.1, 0.1], rtol=1e-6)


def test_more_drops_than_steps():
    schedule = ExponentialStaircase(1.0, steps=3, drops=146)
    np.testing.assert_allclose(called(schedule, range(3)), 0.97 ** np.array([0, 48, 97]), rtol=1e-6)


@pytest.mark.parametrize("schedule", [ExponentialStaircase(0.1, 50, 2.5, drops=7, rate=0.9), Cosine(0.1, 50, 2.5)])
def test_config_round_trip(schedule):
    schedules = keras.optimizers.schedules
    again = schedules.deserialize(schedules.serialize(schedule))
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    json.dumps(schedule.get_config())
    np.testing.assert_array_equal(again.curve(np.arange(50)), schedule.curve(np.arange(50)))


@pytest.mark.parametrize(
    "kind, kwargs, match",
    [
        (Cosine, {"base": -1.0}, "base"),
        (Cosine, {"base": float("nan")}, "base"),
        (Cosine, {"steps": 0}, "steps"),
        (Cosine, {"steps": 1.5}, "steps"),
        (Cosine, {"warmup_steps": -1}, "warmup_steps"),
        (ExponentialStaircase, {"drops": 0}, "drops"),
        (ExponentialStaircase, {"rate": 1.1}, "rate"),
    ],
)
def test_refuses(kind, kwargs, match):
    with pytest.raises(ValueError, match=match):
        kind(**dict({"base": 0.1, "steps": 10}, **kwargs))

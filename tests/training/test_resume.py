"""A run that is ended at any step goes on as if it had not been: bit for bit on one CPU."""

import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from helpers import Died, die, tiny, train_until
from tensorflow import keras

from g16net import compat, config
from g16net.optim.losses import SmoothedCrossEntropy
from g16net.run import assemble, checkpoint, records, signals
from g16net.training import callbacks, train, warm_start

pytestmark = pytest.mark.run

EXACT = compat.KERAS3 or compat.TF_VERSION >= (2, 11)  # before, random layers have no state that could be saved
STEPS, EPOCHS = 4, 3
PLAIN = {"regularise__ema": 0.9}  # and the moments of RMSProp
# All that a run may have to keep: moving statistics, gradients added up over passes, random draws (those by default),
# the moments of another optimizer, and an average that goes on with every update.
FULL = {
    "model__norm": "bn",
    "runtime__grad_accumulation": 2,
    "optim__name": "lamb",
    "optim__learning_rate": 0.01,
    "optim__decay": 0.99,
    "optim__clip_norm": 1.0,
    "regularise__ema": 0.9,
}


def exact(kind=PLAIN, **changes):
    changes.setdefault("checkpoint__every_steps", 3)
    return tiny(run__epochs=EPOCHS, runtime__deterministic=True, **kind, **changes)


def newest(workdir):
    """`(manifest, {name: array})` of a run's newest checkpoint."""
    folder, manifest = checkpoint.newest_whole(os.path.join(workdir, "checkpoints"))
    stored = tf.train.load_checkpoint(os.path.join(folder, "state"))
    return manifest, {name: stored.get_tensor(name) for name in stored.get_variable_to_shape_map()}


def assert_same_run(a, b):
    (first, tensors), (second, others) = newest(a), newest(b)
    assert first["step"] == second["step"] == EPOCHS * STEPS
    assert set(tensors) == set(others)
    for name, value in tensors.items():
        if EXACT:
            np.testing.assert_array_equal(value, others[name], err_msg=name)
        else:
            np.testing.assert_allclose(value, others[name], atol=0.1, err_msg=name)
    for one, other in zip(*(records.by_epoch(records.read_lines(os.path.join(w, "records.jsonl"))) for w in (a, b))):
        for key in ("epoch", "step", "loss", "top1", "learning_rate", "eval_top1", "eval_loss_average"):
            assert one[key] == pytest.approx(other[key], **({"rel": 1e-5} if EXACT else {"abs": 0.2})), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    train.train(exact(), str(workdir))
    return workdir


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Another, of a network and a training with more to keep."""
    if not EXACT:
        pytest.skip("TensorFlow 2.6 draws anew after a resume, which moving statistics magnify")
    workdir = tmp_path_factory.mktemp("full")
    train.train(exact(FULL), str(workdir))
    return workdir


@pytest.mark.slow
def test_dying_within_an_epoch(full, tmp_path):
    with pytest.raises(Died):
        train_until(11, die, exact(FULL, checkpoint__background=False), tmp_path)
    assert train.train(exact(FULL), str(tmp_path))["resumed_from_step"] == 9
    assert_same_run(full, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 11])  # before the first checkpoint, at the end of an epoch, within one
def test_dying_at_any_step(step, whole, tmp_path):
    with pytest.raises(Died):
        train_until(step, die, exact(), tmp_path)
    figures = train.train(exact(), str(tmp_path))
    assert step - 3 <= figures["resumed_from_step"] <= step
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_signal_saves_the_step_and_ends_the_run(name, whole, tmp_path):
    handler = signal.getsignal(getattr(signal, name))
    with pytest.raises(signals.Stopped, match=f"{name} at step 5") as caught:
        train_until(5, lambda: os.kill(os.getpid(), getattr(signal, name)), exact(), tmp_path)
    assert caught.value.status == 128 + getattr(signal, name)
    assert signal.getsignal(getattr(signal, name)) == handler
    manifest, _ = newest(tmp_path)
    assert (manifest["step"], manifest["epoch"], manifest["in_epoch"]) == (5, 1, 1)
    assert train.train(exact(), str(tmp_path))["resumed_from_step"] == 5
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(whole, tmp_path, caplog):
    with pytest.raises(Died):
        train_until(8, die, exact(), tmp_path)
    folder, manifest = checkpoint.newest_whole(str(tmp_path / "checkpoints"))
    data = next(os.path.join(folder, name) for name in os.listdir(folder) if "data" in name)
    os.truncate(data, os.path.getsize(data) // 2)
    assert manifest["step"] - 3 <= train.train(exact(), str(tmp_path))["resumed_from_step"] < manifest["step"]
    assert_same_run(whole, tmp_path)


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(tmp_path, monkeypatch):
    sync, left = os.fsync, [5]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(config.RunError, match="cannot save the checkpoint .*00000004: No space left.*same command"):
        train.train(exact(), str(tmp_path))
    monkeypatch.undo()
    assert newest(tmp_path)[0]["step"] == 3
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.endswith(".partial")]


def test_the_best_and_the_newest_checkpoints_are_kept(whole):
    folders = sorted(os.listdir(whole / "checkpoints"))
    assert folders[-3:] == ["00000008", "00000009", "00000012"]
    scores = {name: json.loads((whole / "checkpoints" / name / "manifest.json").read_text()) for name in folders}
    assert all("score" in manifest for name, manifest in scores.items() if int(name) % STEPS == 0)


def test_not_finite_gradients_end_the_run_by_name(tmp_path, monkeypatch):
    poison(monkeypatch, [2, 5])
    with pytest.raises(callbacks.NotFinite, match=r"the gradients of .*stem_conv/kernel.* are not finite at step 2 "):
        train.train(exact(checkpoint__every_steps=1, checkpoint__background=False), str(tmp_path))
    assert newest(tmp_path)[0]["step"] == 1


def test_some_of_them_may_be_skipped(tmp_path, monkeypatch):
    poison(monkeypatch, [2, 5])
    with pytest.raises(callbacks.NotFinite, match="at step 5 "):
        train.train(exact(runtime__max_skipped=1, checkpoint__background=False), str(tmp_path))
    manifest, tensors = newest(tmp_path)
    assert manifest["step"] == 4 and all(np.isfinite(value).all() for value in tensors.values())


@pytest.mark.slow
def test_a_run_ends_well_with_as_many_as_may_be_skipped(tmp_path, monkeypatch):
    poison(monkeypatch, [2, 5])
    assert np.isfinite(train.train(exact(runtime__max_skipped=2), str(tmp_path))["loss"])


def poison(monkeypatch, steps):
    """Makes the gradients NaN at these steps of the next run, and leaves the loss as it is."""
    count = tf.Variable(0, dtype=tf.int64)

    @tf.custom_gradient
    def poisoned(logits):
        def gradient(upstream):
            bad = tf.reduce_any(tf.equal(count.assign_add(1), tf.constant(steps, tf.int64)))
            return tf.where(bad, tf.constant(float("nan"), upstream.dtype), upstream)

        return tf.identity(logits), gradient

    class Poisoned(SmoothedCrossEntropy):
        def call(self, y_true, y_pred):
            return super().call(y_true, poisoned(tf.convert_to_tensor(y_pred)))

    monkeypatch.setattr(assemble, "loss", lambda config, num_classes: Poisoned(num_classes))


def test_weights_of_another_run_start_a_new_one(whole):
    settings = tiny(init__checkpoint=str(whole), data__num_classes=7)
    model = assemble.model(settings, 7)
    before = {v.name: v.numpy() for v in model.weights}
    loaded, kept = warm_start.load(settings, model)
    assert [name.split(" ")[0] for name in kept] == ["predictions/kernel", "predictions/bias"]
    _, stored = newest(whole)
    for variable in model.weights:
        name = compat.name_of(variable)
        if name.startswith("predictions"):
            np.testing.assert_array_equal(variable.numpy(), before[variable.name])
        elif name in loaded:
            np.testing.assert_array_equal(variable.numpy(), stored[f"average/{name}"])


def test_what_cannot_start_a_run_is_told(whole, tmp_path):
    settings = tiny(init__checkpoint=str(tmp_path))
    model = assemble.model(settings, 5)
    with pytest.raises(config.UserError, match="init.checkpoint=.* holds no whole checkpoint"):
        warm_start.load(settings, model)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="other")])
    with pytest.raises(config.UserError, match="not one of its"):
        warm_start.load(tiny(init__checkpoint=str(whole)), other)

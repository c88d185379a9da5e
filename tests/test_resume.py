"""A run that is ended at any step goes on as if it had not been: bit for bit on one CPU."""

import json
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras
from test_train import tiny

from g16net import checkpoint, compat, config, records, signals, train, warm_start

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("three_stages")]

EXACT = compat.KERAS3 or compat.TF_VERSION >= (2, 11)  # before, random layers have no state that could be saved
STEPS = 11  # an epoch of 1,438 digits in batches of 128


def exact(**changes):
    changes.setdefault("checkpoint__every_steps", 4)
    return tiny(run__epochs=3, runtime__deterministic=True, **changes)


class Died(Exception):
    pass


def run_until(step, action, settings, workdir, monkeypatch):
    """Trains with `action` at `step`, counted from where the run starts."""
    position = train.Position.on_train_batch_end
    count = [0]

    def counted(self, batch, logs=None):
        position(self, batch, logs)
        count[0] += 1
        if count[0] == step:
            action()

    monkeypatch.setattr(train.Position, "on_train_batch_end", counted)
    try:
        train.train(settings, str(workdir))
    finally:
        monkeypatch.undo()


def die():
    raise Died


def newest(workdir):
    """`(manifest, {name: array})` of a run's newest checkpoint."""
    folder, manifest = checkpoint.newest_whole(os.path.join(workdir, "checkpoints"))
    stored = tf.train.load_checkpoint(os.path.join(folder, "state"))
    return manifest, {name: stored.get_tensor(name) for name in stored.get_variable_to_shape_map()}


def assert_same_run(a, b):
    (first, tensors), (second, others) = newest(a), newest(b)
    assert first["step"] == second["step"] == 3 * STEPS
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


@pytest.mark.parametrize("step", [3, 11, 30])  # before the first checkpoint, at the end of an epoch, within one
def test_dying_at_any_step(step, whole, tmp_path, monkeypatch):
    with pytest.raises(Died):
        run_until(step, die, exact(), tmp_path, monkeypatch)
    figures = train.train(exact(), str(tmp_path))
    assert step - 4 <= figures["resumed_from_step"] <= step
    assert_same_run(whole, tmp_path)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_the_step_and_ends_the_run(name, whole, tmp_path, monkeypatch):
    handler = signal.getsignal(getattr(signal, name))
    with pytest.raises(signals.Stopped, match=f"{name} at step 15") as caught:
        run_until(15, lambda: os.kill(os.getpid(), getattr(signal, name)), exact(), tmp_path, monkeypatch)
    assert caught.value.status == 128 + getattr(signal, name)
    assert signal.getsignal(getattr(signal, name)) == handler
    assert newest(tmp_path)[0]["step"] == 15
    assert train.train(exact(), str(tmp_path))["resumed_from_step"] == 15
    assert_same_run(whole, tmp_path)


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(whole, tmp_path, monkeypatch, caplog):
    with pytest.raises(Died):
        run_until(18, die, exact(), tmp_path, monkeypatch)
    folder, _ = checkpoint.newest_whole(str(tmp_path / "checkpoints"))
    data = next(os.path.join(folder, name) for name in os.listdir(folder) if "data" in name)
    os.truncate(data, os.path.getsize(data) // 2)
    assert train.train(exact(), str(tmp_path))["resumed_from_step"] in (11, 12)
    assert_same_run(whole, tmp_path)


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(whole, tmp_path, monkeypatch):
    sync, left = os.fsync, [5]

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(config.RunError, match="cannot save the checkpoint .*00000008: No space left.*same command"):
        train.train(exact(), str(tmp_path))
    monkeypatch.undo()
    assert newest(tmp_path)[0]["step"] == 4
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.endswith(".partial")]
    train.train(exact(), str(tmp_path))
    assert_same_run(whole, tmp_path)


@pytest.mark.skipif(not EXACT, reason="TensorFlow 2.6 draws anew after a resume, which moving statistics magnify")
def test_batch_norm_and_accumulation_resume_too(tmp_path, monkeypatch):
    settings = exact(model__norm="bn", runtime__grad_accumulation=4)
    for name in ("whole", "broken"):
        os.makedirs(tmp_path / name)
    train.train(settings, str(tmp_path / "whole"))
    with pytest.raises(Died):
        run_until(17, die, settings, tmp_path / "broken", monkeypatch)
    train.train(settings, str(tmp_path / "broken"))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_the_best_and_the_newest_checkpoints_are_kept(whole):
    folders = sorted(os.listdir(whole / "checkpoints"))
    assert folders[-3:] == ["00000028", "00000032", "00000033"]
    scores = {name: json.loads((whole / "checkpoints" / name / "manifest.json").read_text()) for name in folders}
    assert all("score" in manifest for name, manifest in scores.items() if int(name) % STEPS == 0)


def test_not_finite_gradients_end_the_run_by_name(tmp_path, monkeypatch):
    poison(monkeypatch, [5])
    with pytest.raises(train.NotFinite, match=r"the gradients of .*stem_conv/kernel.* are not finite at step 5"):
        train.train(exact(), str(tmp_path))
    assert newest(tmp_path)[0]["step"] == 4


def test_some_of_them_may_be_skipped(tmp_path, monkeypatch, caplog):
    poison(monkeypatch, [5, 14])
    figures = train.train(exact(runtime__max_skipped=2), str(tmp_path))
    assert np.isfinite(figures["loss"])
    poison(monkeypatch, [5, 14])
    with pytest.raises(train.NotFinite, match="at step 14"):
        train.train(exact(runtime__max_skipped=1), str(tmp_path / "less"))


def poison(monkeypatch, steps):
    """Makes the gradient of the first variable NaN at these steps of the next run."""
    from g16net import assemble

    optimizer = assemble.optimizer
    count = tf.Variable(0, dtype=tf.int64)

    def poisoned(*args):
        made = optimizer(*args)
        base = made.apply if compat.KERAS3 else made._distributed_apply

        def spoil(gradient):
            now = count.assign_add(1)
            bad = tf.reduce_any(tf.equal(tf.convert_to_tensor(now), tf.constant(steps, tf.int64)))
            return tf.where(bad, float("nan"), 0.0) + gradient

        if compat.KERAS3:
            made.apply = lambda gradients, variables=None: base([spoil(gradients[0]), *gradients[1:]], variables)
        else:
            made._distributed_apply = lambda strategy, pairs, *args, **kwargs: base(
                strategy, [(spoil(pairs[0][0]), pairs[0][1]), *pairs[1:]], *args, **kwargs
            )
        return made

    monkeypatch.setattr(assemble, "optimizer", poisoned)


def test_weights_of_another_run_start_a_new_one(whole, tmp_path, caplog):
    settings = tiny(init__checkpoint=str(whole), data__name="synthetic", data__num_examples=256, data__num_classes=7)
    from g16net import assemble

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
    from g16net import assemble

    settings = tiny(init__checkpoint=str(tmp_path))
    model = assemble.model(settings, 10)
    with pytest.raises(config.UserError, match="init.checkpoint=.* holds no whole checkpoint"):
        warm_start.load(settings, model)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="other")])
    with pytest.raises(config.UserError, match="not one of its"):
        warm_start.load(tiny(init__checkpoint=str(whole)), other)

"""Checkpoints are whole or passed over."""

import contextlib
import os

import pytest
import tensorflow as tf
from helpers import check_held_back
from tensorflow import keras

from g16net import compat, config, native
from g16net.optim.rmsprop import RMSProp
from g16net.run import checkpoint


def _saved(directory, steps, keep=3):
    variable = tf.Variable(0.0)
    saved = checkpoint.Checkpoints(directory, {"state": variable}, keep, background=False)
    for step in steps:
        variable.assign(float(step))
        saved.save(step, epoch=step // 10)
    return variable, saved


def test_restores_the_newest_and_keeps_the_last(tmp_path):
    variable, saved = _saved(str(tmp_path), [10, 20, 30, 40, 50])
    variable.assign(-1.0)
    manifest = saved.restore_latest()
    assert (float(variable), manifest["step"], manifest["epoch"]) == (50.0, 50, 5)
    assert sorted(os.listdir(tmp_path)) == ["00000030", "00000040", "00000050"]


def test_nothing_to_restore(tmp_path):
    _, saved = _saved(str(tmp_path / "none"), [])
    assert saved.restore_latest() is None


def _truncate(folder):
    path = next(os.path.join(folder, n) for n in os.listdir(folder) if "data" in n)
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 1)


def _flip_bit(folder):
    path = next(os.path.join(folder, n) for n in os.listdir(folder) if "data" in n)
    with open(path, "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


def _drop_manifest(folder):
    os.remove(os.path.join(folder, "manifest.json"))


def _cut_manifest(folder):
    with open(os.path.join(folder, "manifest.json"), "r+b") as file:
        file.truncate(20)


@pytest.mark.parametrize("damage", [_truncate, _flip_bit, _drop_manifest, _cut_manifest])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    variable, saved = _saved(str(tmp_path), [10, 20])
    damage(os.path.join(tmp_path, "00000020"))
    assert saved.restore_latest()["step"] == 10
    assert float(variable) == 10.0


def test_an_unfinished_checkpoint_is_ignored_and_replaced(tmp_path):
    variable, saved = _saved(str(tmp_path), [10])
    os.makedirs(tmp_path / "00000020.partial")
    assert saved.restore_latest()["step"] == 10
    saved.save(20, epoch=2)
    assert not os.path.exists(tmp_path / "00000020.partial")
    assert saved.restore_latest()["step"] == 20


def test_a_save_beside_the_training_holds_the_values_of_its_moment(tmp_path):
    variables = {f"v{i}": tf.Variable(tf.zeros([256, 256])) for i in range(20)}
    saved = checkpoint.Checkpoints(str(tmp_path), variables)
    for step in (1, 2, 3):
        saved.save(step)
        for variable in variables.values():
            variable.assign_add(tf.ones([256, 256]))
            tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=1.0, delta=-tf.ones([256, 256]))
    saved.wait()
    for step in (1, 2, 3):
        stored = tf.train.load_checkpoint(str(tmp_path / f"{step:08d}" / "state"))
        assert {float(stored.get_tensor(name)[-1, -1]) for name in variables} == {2.0 * (step - 1)}


HOW = ["native", "operation", "xla"][: 3 if compat.TF_VERSION >= (2, 8) else 2]  # compile's jit_compile came then


@pytest.mark.parametrize("how", HOW)
def test_a_save_beside_the_training_is_of_one_step_however_weights_are_updated(how, tmp_path, monkeypatch):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(5)])
    optimizer = RMSProp(0.01, weight_decay=1e-3)
    model.compile(optimizer, "mse", jit_compile=True) if how == "xla" else model.compile(optimizer, "mse")
    saved = checkpoint.Checkpoints(str(tmp_path), checkpoint.state(model, optimizer))
    data = tf.data.Dataset.from_tensors((tf.ones([4, 8]), tf.zeros([4, 5]))).repeat()
    with contextlib.nullcontext() if how == "native" else native.disabled():
        check_held_back(saved, model, data, 3, monkeypatch)


def test_the_best_is_kept_beside_the_newest(tmp_path):
    saved = checkpoint.Checkpoints(str(tmp_path), {"state": tf.Variable(0.0)}, keep=2, background=False)
    for step, score in enumerate([0.1, 0.7, 0.5, None, 0.6, 0.65], start=1):
        saved.save(step, score=score)
    assert sorted(os.listdir(tmp_path)) == ["00000002", "00000005", "00000006"]


def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path):
    checkpoint.Checkpoints(str(tmp_path), {"a": tf.Variable([1.0, 2.0])}, background=False).save(1)
    for variables, message in (
        ({"a": tf.Variable([0.0])}, r"a \[1\] has the shape \[2\] there"),
        ({"b": tf.Variable(0.0)}, r"b \[\] is not in it"),
    ):
        with pytest.raises(config.UserError, match=message):
            checkpoint.Checkpoints(str(tmp_path), variables).restore_latest()


def test_what_a_run_begins_to_keep_later_starts_over(tmp_path):
    checkpoint.Checkpoints(str(tmp_path), {"optimizer/step": tf.Variable(3)}, background=False).save(3)
    step, scale = tf.Variable(0), tf.Variable(1024.0)
    variables = {"optimizer/step": step, "optimizer/loss_scale": scale}
    checkpoint.Checkpoints(str(tmp_path), variables).restore_latest()
    assert (int(step), float(scale)) == (3, 1024.0)


def test_a_save_that_fails_in_the_background_is_told_at_the_next(tmp_path):
    (tmp_path / "file").write_text("")
    saved = checkpoint.Checkpoints(str(tmp_path / "file"), {"a": tf.Variable(0.0)})
    saved.save(1)
    with pytest.raises(config.RunError, match="cannot save the checkpoint .*00000001.*are kept"):
        saved.save(2)
    saved.wait()


@pytest.mark.parametrize(
    "message, expected",
    [
        (
            "Graph execution error:\n\nDetected at node Assert defined at (most recent call last):\n<stack traces "
            "unavailable>\nassertion failed: [folder: too many:] [7] [allowed]\n\t [[{{node Assert}}]] [Op:__x_1]",
            "folder: too many: 7 allowed",
        ),
        ("{{function_node __wrapped__SaveV2}} a/b.partial; No space left on device [Op:SaveV2]",
         "a/b.partial; No space left on device"),
    ],
)  # fmt: skip
def test_tensorflows_errors_are_told_without_names_of_nodes(message, expected):
    assert compat.reason(tf.errors.InvalidArgumentError(None, None, message)) == expected

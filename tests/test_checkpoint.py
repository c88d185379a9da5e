"""Checkpoints are whole or passed over."""

import os

import pytest
import tensorflow as tf

from g16net import checkpoint


def _saved(directory, steps, keep=3):
    variable = tf.Variable(0.0)
    saved = checkpoint.Checkpoints(directory, keep, state=variable)
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

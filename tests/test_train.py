"""The training loop on real digits with a tiny network: layout, figures, resume, evaluation, export."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from g16net import assemble, checkpoint, compat, evaluate, experiments, export, recipe, records, train
from g16net import config as config_lib
from g16net.mix_on_device import MixImages

EXPERIMENTS = ("g16_ln_pn", "g16_ln", "g16_gn", "g16_gn_pn", "g16_bn", "g1_gn", "g1_bn", "g1_ln_pn", "g1_bn_aa")


def tiny(name="g16_ln_pn", **changes):
    """A resolved demo config of the tiny network; `changes` as section__field=value."""
    config = experiments.load(f"{name}:demo,variant=TINY")
    config.run.epochs, config.run.global_batch = 1, 128
    config.schedule.warmup_epochs = 0.0
    for key, value in changes.items():
        section, field = key.split("__")
        config[section][field] = value
    return recipe.resolve(config)


def weights_of(workdir, config):
    model, _ = assemble.trained(config, str(workdir))
    return model.get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_and_leaves_the_same_files(name, tmp_path):
    figures = train.train(tiny(name), str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "classes.json", "curves.png", "records.jsonl", "tensorboard"]
    assert figures["images"] == 359 and 0 <= figures["top1"] <= figures["top5"] <= 1
    (record,) = records.read_lines(tmp_path / "records.jsonl")
    assert record["step"] == 11 and record["images_per_second"] > 0
    assert record["eval_top1_average"] == pytest.approx(figures["top1"])


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    config = tiny(run__epochs=3, runtime__deterministic=True)
    train.train(config, str(tmp_path / "whole"))

    save = checkpoint.Checkpoints.save

    def save_then_die(self, step, **meta):
        save(self, step, **meta)
        if meta["epoch"] == 1:
            raise Killed

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_die)
    with pytest.raises(Killed):
        train.train(config, str(tmp_path / "killed"))
    monkeypatch.undo()
    figures = train.train(config, str(tmp_path / "killed"))
    assert figures["resumed_from_epoch"] == 1
    whole, resumed = (weights_of(tmp_path / name, config) for name in ("whole", "killed"))
    for a, b in zip(whole, resumed):
        if hasattr(tf.config.experimental, "enable_op_determinism"):
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(config, workdir)` of a trained run."""
    workdir = str(tmp_path_factory.mktemp("trained"))
    config = tiny(eval__batch=100)
    train.train(config, workdir)
    return config, workdir


@pytest.mark.slow
def test_evaluation_counts_every_image_once(trained):
    config, workdir = trained
    figures = evaluate.evaluate(config, workdir)
    model, _ = assemble.trained(config, workdir)
    source = assemble.open_source_of(config, "eval")
    images, labels = [], []
    for batch, label, weight in assemble.eval_batches(config, source, 32):  # 359 images in batches of 100
        keep = weight.numpy() > 0
        images.append(batch.numpy()[keep])
        labels.append(label.numpy()[keep])
    labels = np.concatenate(labels)
    logits = model(tf.constant(np.concatenate(images), tf.float32), training=False).numpy().astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    assert len(labels) == figures["images"] == 359
    assert figures["top1"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert figures["loss"] == pytest.approx(np.mean(log_sum - logits[np.arange(359), labels]), rel=1e-5)


@pytest.mark.slow
def test_export_equals_the_live_model_at_two_sizes(trained):
    config, workdir = trained
    figures = export.export(config, workdir)
    assert len(figures["checked_sizes"]) >= 2
    assert figures["largest_logit_difference"] < 1e-4
    served = tf.saved_model.load(figures["path"])
    assert [name.decode() for name in served.class_names.numpy()] == [str(digit) for digit in range(10)]


@pytest.mark.slow
def test_averaged_and_raw_weights_differ_where_asked(trained):
    config, workdir = trained
    raw = config.copy_and_resolve_references()
    raw.eval.weights = "raw"
    # after one epoch the average is that epoch's weights
    for a, b in zip(weights_of(workdir, config), weights_of(workdir, raw)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path):
    config = tiny(optim__learning_rate=1e30, run__epochs=2)
    with pytest.raises(FloatingPointError, match=r"at step \d+ .*learning_rate"):
        train.train(config, str(tmp_path))


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    config = tiny(run__global_batch=2000)
    with pytest.raises(config_lib.ConfigError, match="run.global_batch=2000.*1438.*359"):
        train.train(config, str(tmp_path))


@pytest.mark.skipif(compat.KERAS3, reason="TensorFlow 1's learning-rate form is read from Keras 2 optimizers")
def test_learning_rate_of_a_step():
    config = tiny(run__epochs=10)
    optimizer = assemble.optimizer(config, 11)
    schedule = assemble.schedule(config, 11)
    assert train.learning_rate(optimizer, 55) == pytest.approx(float(schedule(55)))


def test_records_survive_a_crash_in_mid_line(tmp_path):
    path = tmp_path / "records.jsonl"
    for epoch in (1, 2, 2):
        records.append_line(path, {"kind": "epoch", "epoch": epoch, "loss": 1.0 / epoch})
    with open(path, "a") as file:
        file.write('{"kind": "epo')
    assert [record["epoch"] for record in records.by_epoch(records.read_lines(path))] == [1, 2]


def test_finish_writes_command_versions_and_figures(tmp_path):
    records.finish(str(tmp_path), "train", 0.0, {"top1": 0.5})
    result = json.loads((tmp_path / "train.json").read_text())
    assert {"mode", "command", "versions", "wall_seconds", "top1"} <= set(result)


def test_mixing_on_the_device_equals_mixing_on_the_host():
    config = tiny(data__mixup=0.2, data__cutmix=0.8, run__global_batch=8)
    device = config.copy_and_resolve_references()
    device.data.mix_on_device = True
    source = assemble.open_source_of(config, "train")
    images, targets = next(iter(assemble.train_batches(config, source)))
    plain, device_targets = next(iter(assemble.train_batches(device, source)))
    np.testing.assert_array_equal(targets, device_targets)
    assert targets.shape == (8, 8)  # four ids and four weights
    np.testing.assert_allclose(targets.numpy()[:, 4:].sum(1), 1, atol=1e-6)
    mixed = MixImages(dtype="float32")([tf.cast(plain[0], tf.float32), plain[1], plain[2]])
    np.testing.assert_allclose(images.numpy(), mixed.numpy(), atol=0.51)  # rounded to uint8 on the host
    network = assemble.model(config, 10, 32)
    logits = assemble.training_model(device, network)(list(plain)).numpy()
    np.testing.assert_allclose(logits, network(mixed).numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__mixup": 0.2, "data__cutmix": 0.8},
        {"data__mixup": 0.2, "data__cutmix": 0.8, "data__mix_on_device": True},
        {"data__augment": "randaugment", "data__crop": "box"},
    ],
)
def test_mixing_and_augmentation_train(changes, tmp_path):
    assert train.train(tiny(**changes), str(tmp_path))["images"] == 359

"""The training loop on real digits with a tiny network: layout, figures, resume, evaluation, export."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf

from g16net import assemble, checkpoint, compat, evaluate, experiments, export, recipe, records, train
from g16net import config as config_lib
from g16net.mix_on_device import MixImages

pytestmark = pytest.mark.usefixtures("three_stages")

# Of each norm, group size and recipe one.
EXPERIMENTS = ("g16_ln_pn", "g16_ln", "g16_gn_pn", "g16_bn", "g1_gn", "g1_bn_aa", "g16_ln_pn_progressive")


def tiny(name="g16_ln_pn", **changes):
    """A resolved demo config of the tiny network; `changes` as section__field=value."""
    config = experiments.load(f"{name}:demo,variant=TINY")
    config.run.epochs, config.run.global_batch = max(len(config.data.progressive), 1), 128
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
    *_, record = records.read_lines(tmp_path / "records.jsonl")
    assert record["step"] == 11 * figures["epochs"] and record["images_per_second"] > 0
    assert record["eval_top1_average"] == pytest.approx(figures["top1"])


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    random = {} if compat.KERAS3 or compat.TF_VERSION >= (2, 11) else {"survival_prob": 1.0, "dropout": 0.0}
    config = tiny(run__epochs=3, runtime__deterministic=True, **{f"regularise__{k}": v for k, v in random.items()})
    train.train(config, str(tmp_path / "whole"))

    save = checkpoint.Checkpoints.save

    def save_then_die(self, step, **meta):
        save(self, step, **meta)
        self.wait()
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
@pytest.mark.parametrize("device", [{}, {"data__mixup": 0.2, "data__mix_on_device": True}])
def test_a_run_trains_at_one_size_and_is_evaluated_at_another(device, tmp_path):
    config = tiny(data__train_size=32, data__eval_size=48, **device)
    figures = train.train(config, str(tmp_path))
    assert figures["images"] == 359 and figures["train_size"] == 32
    at_48 = evaluate.evaluate(config, str(tmp_path))
    assert at_48["size"] == 48 and at_48["top1"] == pytest.approx(figures["top1"])


@pytest.mark.slow
def test_progressive_training_changes_the_size_at_its_epochs_and_resumes(tmp_path, monkeypatch):
    config = tiny(run__epochs=5, data__progressive=(16, 32), eval__every_epochs=5)
    assert assemble.progressive_parts(config) == [(16, 0, 2), (32, 2, 5)]
    sizes, batches = [], assemble.train_batches

    def watched(config, source, start_epoch, start_step=0, **options):
        data = batches(config, source, start_epoch, start_step, **options)
        sizes.append((start_epoch, data.element_spec[0].shape[1]))
        return data

    monkeypatch.setattr(assemble, "train_batches", watched)
    save = checkpoint.Checkpoints.save

    def save_then_die(self, step, **meta):
        save(self, step, **meta)
        self.wait()
        if meta["epoch"] == 3:
            raise Killed

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_die)
    with pytest.raises(Killed):
        train.train(config, str(tmp_path))
    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)
    assert train.train(config, str(tmp_path))["resumed_from_epoch"] == 3
    assert sizes == [(0, 16), (2, 32), (3, 32)]
    history = records.by_epoch(records.read_lines(tmp_path / "records.jsonl"))
    assert [record["step"] for record in history] == [11, 22, 33, 44, 55]
    assert history[-1]["loss"] < history[0]["loss"]


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
    assert targets.shape == (8, 4, 2)  # four ids, and the weight of each
    np.testing.assert_allclose(targets.numpy()[..., 1].sum(1), 1, atol=1e-6)
    mixed = MixImages(dtype="float32")([tf.cast(plain[0], tf.float32), plain[1], plain[2]])
    np.testing.assert_allclose(images.numpy(), mixed.numpy(), atol=0.51)  # rounded to uint8 on the host
    network = assemble.model(config, 10, 32)
    logits = assemble.training_model(device, network)(list(plain)).numpy()
    np.testing.assert_allclose(logits, network(mixed).numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__mixup": 0.2, "data__cutmix": 0.8, "data__augment": "randaugment", "data__crop": "box"},
        {"data__mixup": 0.2, "data__cutmix": 0.8, "data__mix_on_device": True},
    ],
)
def test_mixing_and_augmentation_train(changes, tmp_path):
    assert train.train(tiny(**changes), str(tmp_path))["images"] == 359


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"runtime__precision": "mixed_bfloat16"},
        {"runtime__precision": "mixed_float16", "runtime__dynamic_loss_scale": True, "runtime__loss_scale": 2.0**15},
        {"runtime__precision": "mixed_float16", "runtime__grad_accumulation": 2},
    ],
)
def test_each_precision_trains_with_float32_statistics(changes, tmp_path):
    if changes["runtime__precision"] == "mixed_bfloat16" and compat.TF_VERSION < (2, 8):
        pytest.skip("TensorFlow 2.6 has no bfloat16 convolution on the CPU")
    try:
        figures = train.train(tiny(**changes, run__epochs=2), str(tmp_path))
    finally:
        compat.set_policy("float32")
    losses = [record["loss"] for record in records.read_lines(tmp_path / "records.jsonl")]
    assert losses[1] < losses[0] and np.isfinite(figures["loss"])
    folder, _ = checkpoint.newest_whole(str(tmp_path / "checkpoints"))
    stored = tf.train.load_checkpoint(os.path.join(folder, "state")).get_variable_to_dtype_map()
    assert {dtype for name, dtype in stored.items() if name.startswith(("model", "average/b"))} == {tf.float32}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"runtime__dynamic_loss_scale": True}, "for runtime.precision=mixed_float16; got float32"),
        ({"data__mix_on_device": True, "runtime__grad_accumulation": 2}, "mixes the whole batch in one pass"),
        ({"runtime__strategy": "ipu", "runtime__max_skipped": 1}, "runtime.max_skipped waits for values"),
    ],
)
def test_combinations_that_cannot_run(changes, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        tiny(**changes)


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused_before_a_model_is_built(tmp_path):
    with pytest.raises(config_lib.ConfigError, match="micro_batch=100 x runtime.grad_accumulation=1 x 1 replica = 100"):
        train.train(tiny(runtime__micro_batch=100), str(tmp_path))
    assert not os.listdir(tmp_path)

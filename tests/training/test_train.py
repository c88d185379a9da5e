"""The training loop with a tiny network: what a run leaves behind, its figures, sizes, precisions, early ends."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from helpers import Died, die, slow_with_keras3, tiny, train_until
from tensorflow import keras

from g16net import compat, export
from g16net import config as config_lib
from g16net.data.mix_on_device import MixImages
from g16net.run import assemble, checkpoint, devices, records
from g16net.training import callbacks, evaluate, train

# Of each norm, group size and recipe one.
EXPERIMENTS = ("g16_ln_pn", "g16_ln", "g16_gn_pn", "g16_bn", "g1_gn", "g1_bn_aa", "g16_ln_pn_progressive")
EPOCHS, STEPS = 2, 4  # of `trained`


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(config, workdir, figures)` of a run of two epochs."""
    workdir = str(tmp_path_factory.mktemp("trained"))
    config = tiny(run__epochs=EPOCHS)
    return config, workdir, train.train(config, workdir)


def stored(workdir):
    """{name: array} of a run's newest checkpoint."""
    folder, _ = checkpoint.newest_whole(os.path.join(workdir, "checkpoints"))
    reader = tf.train.load_checkpoint(os.path.join(folder, "state"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def weights(config, workdir):
    """{name: array} of the weights that a mode takes from a run."""
    model, _ = assemble.trained(config, workdir)
    return {name.partition("/")[2]: variable.numpy() for name, variable in checkpoint.model_state(model).items()}


@pytest.mark.run
def test_a_run_leaves_its_files_and_figures(trained):
    config, workdir, figures = trained
    kept = ["checkpoints", "classes.json", "curves.png", "data.json", "records.jsonl", "tensorboard"]
    assert sorted(os.listdir(workdir)) == kept
    assert sorted(os.listdir(os.path.join(workdir, "checkpoints"))) == ["00000004", "00000008"]
    assert figures["images"] == 64 and 0 <= figures["top1"] <= figures["top5"] == 1  # of five classes
    history = records.by_epoch(records.read_lines(os.path.join(workdir, "records.jsonl")))
    assert [record["step"] for record in history] == [STEPS, EPOCHS * STEPS] and figures["steps"] == EPOCHS * STEPS
    assert all(record["images_per_second"] > 0 for record in history)
    schedule = assemble.schedule(config, STEPS)
    rates = [record["learning_rate"] for record in history]
    assert rates == pytest.approx([float(schedule(step)) for step in (STEPS - 1, EPOCHS * STEPS - 1)])
    assert history[-1]["eval_top1_average"] == figures["top1"] and history[-1]["eval_top1"] == figures["top1_raw"]
    assert json.loads(open(os.path.join(workdir, "classes.json")).read()) == [f"class {i}" for i in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains(name, tmp_path):
    figures = train.train(tiny(f"{name}:demo,variant=NANO"), str(tmp_path))
    assert figures["images"] == 64 and np.isfinite(figures["loss"])


@pytest.mark.run
def test_averaged_weights_are_the_average_over_epochs_and_evaluated_unless_raw_ones_are_asked_for(trained):
    config, workdir, figures = trained
    raw = config.copy_and_resolve_references()
    raw.eval.weights = "raw"
    first = tf.train.load_checkpoint(os.path.join(workdir, "checkpoints", "00000004", "state"))
    last, decay = stored(workdir), config.regularise.average
    averaged, plain = weights(config, workdir), weights(raw, workdir)
    assert averaged.keys() == plain.keys()
    for name, value in averaged.items():
        expected = decay * first.get_tensor(f"model/{name}") + (1 - decay) * last[f"model/{name}"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(plain[name], last[f"model/{name}"])
    record = records.by_epoch(records.read_lines(os.path.join(workdir, "records.jsonl")))[-1]
    found = [evaluate.evaluate(each, workdir)["loss"] for each in (config, raw)]
    assert found == pytest.approx([record["eval_loss_average"], record["eval_loss"]], rel=1e-5)
    assert abs(found[0] - found[1]) > 1e-3 and figures["loss"] == record["eval_loss_average"]


@pytest.mark.run
def test_evaluation_counts_every_image_once(trained):
    config, workdir, _ = trained
    figures = evaluate.evaluate(config, workdir)
    model, _ = assemble.trained(config, workdir)
    source = assemble.open_source_of(config, "eval")
    images, labels = [], []
    for batch, label, weight in assemble.eval_batches(config, source, 32):  # 64 images in batches of 24
        keep = weight.numpy() > 0
        images.append(batch.numpy()[keep])
        labels.append(label.numpy()[keep])
    labels = np.concatenate(labels)
    logits = model(tf.constant(np.concatenate(images), tf.float32), training=False).numpy().astype(np.float64)
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    assert len(labels) == figures["images"] == 64
    assert figures["top1"] == pytest.approx(np.mean(logits.argmax(1) == labels))
    assert figures["loss"] == pytest.approx(np.mean(log_sum - logits[np.arange(64), labels]), rel=1e-5)


@pytest.mark.run
def test_export_equals_the_live_model_at_two_sizes(trained):
    config, workdir, _ = trained
    figures = export.export(config, workdir)
    assert len(figures["checked_sizes"]) >= 2
    assert figures["largest_logit_difference"] < 1e-4
    served = tf.saved_model.load(figures["path"])
    assert [name.decode() for name in served.class_names.numpy()] == [f"class {i}" for i in range(5)]


@slow_with_keras3
def test_a_run_of_growing_sizes_mixes_and_is_evaluated_at_another_size(tmp_path, monkeypatch):
    config = tiny(run__epochs=2, data__progressive=(16, 32), data__eval_size=48, eval__every_epochs=2,
                  data__mixup=0.2, data__cutmix=0.8)  # fmt: skip
    sizes = watched_sizes(monkeypatch)
    figures = train.train(config, str(tmp_path))
    assert sizes == [(0, 16), (1, 32)] and figures["images"] == 64 and figures["train_size"] == 32
    at_48 = evaluate.evaluate(config, str(tmp_path))
    assert at_48["size"] == 48 and at_48["loss"] == pytest.approx(figures["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("device", [{}, {"data__mixup": 0.2, "data__mix_on_device": True}])
def test_a_run_trains_at_one_size_and_is_evaluated_at_another(device, tmp_path):
    config = tiny(data__train_size=32, data__eval_size=48, **device)
    figures = train.train(config, str(tmp_path))
    assert figures["images"] == 64 and figures["train_size"] == 32
    at_48 = evaluate.evaluate(config, str(tmp_path))
    assert at_48["size"] == 48 and at_48["loss"] == pytest.approx(figures["loss"], rel=1e-5)


def watched_sizes(monkeypatch):
    """`(first epoch, pixels)` of each stream of training images from now on, in a list."""
    sizes, batches = [], assemble.train_batches

    def watched(config, source, start_epoch, start_step=0, **options):
        data = batches(config, source, start_epoch, start_step, **options)
        sizes.append((start_epoch, data.element_spec[0].shape[1]))
        return data

    monkeypatch.setattr(assemble, "train_batches", watched)
    return sizes


def test_sizes_of_progressive_training_share_its_epochs():
    config = tiny(run__epochs=5, data__progressive=(16, 32))
    assert assemble.progressive_parts(config) == [(16, 0, 2), (32, 2, 5)]


@pytest.mark.slow
def test_progressive_training_changes_the_size_at_its_epochs_and_resumes(tmp_path, monkeypatch):
    config = tiny(run__epochs=5, data__progressive=(16, 32), eval__every_epochs=5)
    sizes = watched_sizes(monkeypatch)
    with pytest.raises(Died):
        train_until(3 * STEPS + 1, die, config, tmp_path)
    assert train.train(config, str(tmp_path))["resumed_from_epoch"] == 3
    assert sizes == [(0, 16), (2, 32), (3, 32)]
    history = records.by_epoch(records.read_lines(tmp_path / "records.jsonl"))
    assert [record["step"] for record in history] == [STEPS * epoch for epoch in range(1, 6)]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path):
    config = tiny(optim__learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"at step [234] .*learning_rate"):
        train.train(config, str(tmp_path))


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    config = tiny(run__global_batch=2000)
    with pytest.raises(config_lib.ConfigError, match="run.global_batch=2000.* 64 .*=16"):
        train.train(config, str(tmp_path))


def test_optimizer_loss_and_network_have_the_values_of_the_config():
    optim = {"decay": 0.71, "momentum": 0.72, "epsilon": 0.073, "weight_decay": 0.00074}
    config = tiny(
        **{f"optim__{name}": value for name, value in optim.items()},
        regularise__label_smoothing=0.15,
        regularise__dropout=0.16,
        regularise__survival_prob=0.4,
        model__norm_epsilon=0.0018,
        model__proxy_epsilon=0.0019,
        model__quadrature="gauss_hermite",
        model__activation="relu",
        model__norm_groups=2,
        model__norm="gn_pn",
        model__mean=(1.0, 2.0, 3.0),
        model__std=(4.0, 5.0, 6.0),
    )
    found = assemble.optimizer(config, STEPS).get_config()
    assert {name: found[{"decay": "rho"}.get(name, name)] for name in optim} == optim
    assert assemble.loss(config, 5).label_smoothing == 0.15
    layers = {layer.name: layer.get_config() for layer in assemble.model(config, 5).layers}
    assert tuple(layers["normalize"]["mean"]) == (1, 2, 3) and tuple(layers["normalize"]["std"]) == (4, 5, 6)
    assert layers["stem_norm"]["epsilon"] == 0.0018 and layers["stem_norm"]["proxy_epsilon"] == 0.0019
    assert (layers["stem_norm"]["quadrature"], layers["stem_norm"]["groups"]) == ("gauss_hermite", 2)
    assert layers["stem_norm"]["activation"] == layers["block1a_se"]["activation"] == "relu"
    assert layers["block2a_drop"]["survival_prob"] == pytest.approx(1 - 0.6 / 3)  # the second of three blocks
    assert any(found.get("rate") == 0.16 for found in layers.values())


@pytest.mark.parametrize(
    "name, fields, kept",
    [
        ("sgd", {}, {"momentum": 0.8}),
        ("adamw", {"decay": 0.95, "epsilon": 1e-5}, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-5}),
        ("lamb", {"decay": 0.95}, {"beta_1": 0.8, "beta_2": 0.95}),
        ("lion", {"decay": 0.95}, {"beta_1": 0.8, "beta_2": 0.95}),
    ],
)
def test_each_optimizer_has_the_values_of_the_config(name, fields, kept):
    fields = {"name": name, "momentum": 0.8, "learning_rate": 0.3, "weight_decay": 0.02, "clip_norm": 2.0, **fields}
    optimizer = assemble.optimizer(tiny(**{f"optim__{key}": value for key, value in fields.items()}), STEPS)
    found = optimizer.get_config()
    assert type(optimizer).__name__.split(">")[-1].lower() == name
    assert {key: found[key] for key in kept} == kept
    assert found["weight_decay"] == 0.02 and found["clip_norm"] == 2.0


def test_an_optimizer_of_keras_by_its_name():
    config = tiny(optim__name="keras:Adamax", optim__learning_rate=0.3)
    assert "Adamax" in [kind.__name__ for kind in type(assemble.optimizer(config, STEPS)).__mro__]
    with pytest.raises(config_lib.ConfigError, match="optim.name=keras:Adamix: .*no optimizer 'Adamix'"):
        assemble.optimizer(tiny(optim__name="keras:Adamix", optim__learning_rate=0.3), STEPS)


@pytest.mark.skipif(compat.KERAS3, reason="TensorFlow 1's learning-rate form is read from Keras 2 optimizers")
def test_learning_rate_of_a_step():
    config = tiny(run__epochs=10)
    optimizer = assemble.optimizer(config, 11)
    schedule = assemble.schedule(config, 11)
    assert callbacks.learning_rate(optimizer, 55) == pytest.approx(float(schedule(55)))


@pytest.mark.skipif(compat.KERAS3, reason="Keras 3 has no strategies")
def test_a_constant_learning_rate_is_read_from_a_strategys_variable():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        optimizer = assemble.optimizer(tiny(schedule__name="constant", optim__learning_rate=0.25), 11)
        optimizer._create_all_weights([tf.Variable([1.0])])
    assert callbacks.learning_rate(optimizer, 0) == 0.25


def test_a_checkpoint_of_epochs_of_another_length_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "checkpoints" / "00000024"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"step": 24, "epoch": 2, "files": {}}')
    with pytest.raises(config_lib.ConfigError, match="a run with 12 weight updates per epoch, and now an epoch has 4"):
        train.train(tiny(run__epochs=3), str(tmp_path))
    assert os.listdir(tmp_path) == ["checkpoints"]


@pytest.mark.parametrize(
    "error, lost",
    [
        (
            tf.errors.UnavailableError(None, None, "Collective ops is aborted by: failed to connect to all addresses"),
            True,
        ),
        (tf.errors.InternalError(None, None, "NCCL: unhandled system error. Set NCCL_DEBUG=WARN for detail."), True),
        (tf.errors.InternalError(None, None, "cuDNN launch failure : input shape ([8,32,16,16])"), False),
        (tf.errors.InternalError(None, None, "[Poplar][Execute engine] application_runtime_error: Tiles"), False),
        (tf.errors.UnavailableError(None, None, "Failed to get element from tf.data service worker"), False),
        (tf.errors.AbortedError(None, None, "Error executing an HTTP request: libcurl code 56"), False),
        (tf.errors.InvalidArgumentError(None, None, "label outside 0..9"), False),
    ],
)
def test_only_errors_between_workers_are_told_as_lost_workers(error, lost):
    assert devices.lost_worker(error) == lost


def test_records_survive_a_crash_in_mid_line(tmp_path):
    path = tmp_path / "records.jsonl"
    for epoch, loss in ((1, 3.0), (2, 2.0), (2, 1.0)):  # the second epoch was done again
        records.append_line(path, {"kind": "epoch", "epoch": epoch, "loss": loss})
    with open(path, "a") as file:
        file.write('{"kind": "epo')
    found = records.by_epoch(records.read_lines(path))
    assert [(record["epoch"], record["loss"]) for record in found] == [(1, 3.0), (2, 1.0)]
    records.append_line(path, {"kind": "epoch", "epoch": 3, "loss": 0.5})  # of the run that goes on
    assert [record["epoch"] for record in records.by_epoch(records.read_lines(path))] == [1, 2, 3]


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
    network = assemble.model(config, 5, 32)
    logits = assemble.training_model(device, network)(list(plain)).numpy()
    np.testing.assert_allclose(logits, network(mixed).numpy(), atol=1e-4)


def test_augmentation_changes_the_images_of_a_run_and_no_label():
    batches = []
    for augment in ("none", "randaugment"):
        config = tiny(data__augment=augment, data__crop="box")
        source = assemble.open_source_of(config, "train")
        batches.append([part.numpy() for part in next(iter(assemble.train_batches(config, source)))])
    (plain, labels), (images, same_labels) = batches
    assert images.shape == plain.shape == (16, 32, 32, 3) and (images != plain).any()
    np.testing.assert_array_equal(labels, same_labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__mixup": 0.2, "data__cutmix": 0.8, "data__augment": "randaugment", "data__crop": "box"},
        {"data__mixup": 0.2, "data__cutmix": 0.8, "data__mix_on_device": True},
    ],
)
def test_mixing_and_augmentation_train(changes, tmp_path):
    assert train.train(tiny(**changes), str(tmp_path))["images"] == 64


@slow_with_keras3
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"runtime__precision": "mixed_bfloat16"}, marks=pytest.mark.slow),
        {"runtime__precision": "mixed_float16", "runtime__dynamic_loss_scale": True, "runtime__loss_scale": 2.0**15},
        pytest.param({"runtime__precision": "mixed_float16", "runtime__grad_accumulation": 2}, marks=pytest.mark.slow),
    ],
)
def test_each_precision_trains_with_float32_statistics(changes, tmp_path):
    if changes["runtime__precision"] == "mixed_bfloat16" and compat.TF_VERSION < (2, 8):
        pytest.skip("TensorFlow 2.6 has no bfloat16 convolution on the CPU")
    figures = train.train(tiny(**changes, run__epochs=4, data__train_size=16, data__eval_size=16), str(tmp_path))
    assert keras.mixed_precision.global_policy().name == "float32"  # the caller's own
    losses = [record["loss"] for record in records.read_lines(tmp_path / "records.jsonl")]
    assert losses[-1] < losses[0] and np.isfinite(figures["loss"])
    found = {name: value.dtype for name, value in stored(str(tmp_path)).items()}
    assert {dtype for name, dtype in found.items() if name.startswith(("model", "average/b"))} == {np.dtype("float32")}


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
    with pytest.raises(config_lib.ConfigError, match="micro_batch=10 x runtime.grad_accumulation=1 x 1 replica = 10"):
        train.train(tiny(runtime__micro_batch=10), str(tmp_path))
    assert not os.listdir(tmp_path)

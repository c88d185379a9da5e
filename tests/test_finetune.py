"""Fine-tuning on real digits with a tiny network: what is frozen, kept features, schedule, sizes, resume."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from g16net import assemble, checkpoint, compat, evaluate, experiments, export, finetune, recipe, records, train
from g16net.config import ConfigError, UserError

SCHEDULES = json.loads((pathlib.Path(__file__).parent / "golden" / "schedules.json").read_text())


def tiny(norm="ln_pn", **changes):
    """A resolved demo config of the tiny network; `changes` as section__field=value."""
    config = experiments.load("g16_ln_pn:demo,variant=TINY")
    config.model.norm = norm
    config.run.epochs, config.run.global_batch = 1, 128
    config.schedule.warmup_epochs = 0.0
    config.regularise.dropout = 0.2
    config.finetune.sizes = (48,)
    for key, value in changes.items():
        section, field = key.split("__")
        config[section][field] = value
    return recipe.resolve(config)


@pytest.fixture(scope="module", params=["ln_pn", "bn"])
def trained(request, tmp_path_factory):
    """`(norm, workdir)` of a trained run."""
    workdir = str(tmp_path_factory.mktemp(request.param))
    train.train(tiny(request.param), workdir)
    return request.param, workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the run, so that a test's fine-tunings are its own."""
    for name in ("checkpoints", "classes.json"):
        os.symlink(os.path.join(trained[1], name), tmp_path / name)
    return str(tmp_path)


def weights(config, workdir, which):
    """The weights by name, and their model."""
    model, _ = assemble.trained(config, workdir, 48, which)
    return {f"{layer.name}/{i}": w.numpy() for layer in model.layers for i, w in enumerate(layer.weights)}


@pytest.mark.slow
@pytest.mark.parametrize("layers, noise", [("top", "all"), ("top,block7", "top")])
def test_the_frozen_part_stays_bit_equal_and_the_rest_trains(trained, workdir, layers, noise):
    config = tiny(trained[0], finetune__layers=layers, finetune__noise=noise, data__mixup=0.2)
    figures = finetune.finetune(config, workdir)
    assert figures["features_kept"] == (noise == "top")
    before, after = (weights(config, workdir, which) for which in ("average", "finetuned"))
    starts = tuple(layers.split(",")) + ("predictions",)
    for name, value in before.items():
        if not np.issubdtype(value.dtype, np.floating):
            continue  # states of random draws
        if name.startswith(starts):
            assert not np.array_equal(value, after[name]), name
        else:
            np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert any(name.startswith("stem_norm") for name in before)


@pytest.mark.slow
def test_kept_features_give_the_results_of_computing_them_anew(trained, workdir):
    layers = {"ln_pn": "top", "bn": "top,block7,block6"}[trained[0]]
    found = {}
    for folder, cache_gb in (("kept", 4.0), ("anew", 0.0)):
        config = tiny(trained[0], finetune__layers=layers, finetune__folder=folder, finetune__cache_gb=cache_gb)
        figures = finetune.finetune(config, workdir)
        assert figures["features_kept"] == (folder == "kept")
        found[folder] = figures, weights(config, workdir, "finetuned")
    for key in ("top1", "top5", "top1_before"):
        assert found["kept"][0][key] == found["anew"][0][key]
    assert found["kept"][0]["loss"] == pytest.approx(found["anew"][0]["loss"], rel=1e-5)
    for name, value in found["kept"][1].items():
        np.testing.assert_allclose(value, found["anew"][1][name], atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.skipif(compat.TF_VERSION < (2, 8), reason="TensorFlow 2.6 has no bfloat16 convolution on the CPU")
def test_half_precision_keeps_the_features_as_they_are(trained, workdir):
    if trained[0] == "bn":
        pytest.skip("one norm is enough here")
    found = []
    for cache_gb in (4.0, 0.0):
        config = tiny(
            trained[0],
            runtime__precision="mixed_bfloat16",
            finetune__folder=f"cache-{cache_gb:g}",
            finetune__cache_gb=cache_gb,
        )
        found.append(finetune.finetune(config, workdir))
    compat.set_policy("float32")
    assert [figures["features_kept"] for figures in found] == [True, False]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=2e-3)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_uninterrupted_one(trained, workdir, monkeypatch):
    changes = {"finetune__epochs": 3, "finetune__noise": {"ln_pn": "top", "bn": "all"}[trained[0]]}
    if not compat.KERAS3 and compat.TF_VERSION < (2, 11):  # draws anew after a resume
        changes.update(regularise__dropout=0.0, regularise__survival_prob=1.0)
    whole, killed = (tiny(trained[0], finetune__folder=name, **changes) for name in ("whole", "killed"))
    whole_figures = finetune.finetune(whole, workdir)
    save = checkpoint.Checkpoints.save

    def save_then_die(self, step, **meta):
        save(self, step, **meta)
        self.wait()
        if meta["epoch"] == 1:
            raise Killed

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_die)
    with pytest.raises(Killed):
        finetune.finetune(killed, workdir)
    monkeypatch.undo()
    figures = finetune.finetune(killed, workdir)
    lines = records.read_lines(os.path.join(workdir, "killed", "48", "records.jsonl"))
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert figures["top1_before"] == whole_figures["top1_before"]
    a, b = (weights(config, workdir, "finetuned") for config in (whole, killed))
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_several_sizes_lie_side_by_side_and_later_modes_pick_one(trained, workdir):
    if trained[0] == "bn":
        pytest.skip("one norm is enough here")
    config = tiny(finetune__sizes=(32, 48))
    assert [row["size"] for row in finetune.finetune(config, workdir)["sizes"]] == [32, 48]
    paths = [os.path.join(workdir, "finetune", size, "finetune.json") for size in ("32", "48")]
    before = [os.stat(path).st_mtime_ns for path in paths]
    assert len(finetune.finetune(tiny(finetune__sizes=(64, 48)), workdir)["sizes"]) == 3
    assert [os.stat(path).st_mtime_ns for path in paths] == before, "finished sizes are left alone"

    with pytest.raises(UserError, match="noise: top -> all"):
        finetune.finetune(tiny(finetune__noise="all"), workdir)

    with pytest.raises(UserError, match="there is 32, 48, 64.*finetune_size=32"):
        evaluate.evaluate(tiny(eval__weights="finetuned"), workdir)
    picked = tiny(eval__weights="finetuned", eval__finetune_size=48)
    figures = evaluate.evaluate(picked, workdir)
    stored = json.loads(pathlib.Path(paths[1]).read_text())
    assert (figures["size"], figures["top1"]) == (48, stored["top1"])
    assert figures["loss"] == pytest.approx(stored["loss"], rel=1e-5)
    exported = export.export(picked, workdir)
    assert exported["path"] == os.path.join(workdir, "finetune", "48", "saved_model")
    assert exported["largest_logit_difference"] < 1e-4


@pytest.mark.slow
def test_figures_by_class(trained, workdir):
    config = tiny(trained[0], eval__per_class=True, eval__sizes=(32, 48))
    figures = evaluate.evaluate(config, workdir)
    assert figures["size"] == 32 and [row["size"] for row in figures["sizes"]] == [32, 48]
    assert figures["multiply_adds"] < figures["sizes"][1]["multiply_adds"]
    lines = records.read_lines(os.path.join(workdir, "evaluations.jsonl"))
    assert [line["top1"] for line in lines] == [row["top1"] for row in figures["sizes"]]
    confusion = np.loadtxt(figures["confusion"], delimiter=",", skiprows=1, dtype=int)
    assert confusion[:, 1:].sum() == 359 and confusion[:, 0].tolist() == list(range(10))
    assert confusion[:, 1:].trace() / 359 == pytest.approx(figures["top1"])
    table = np.genfromtxt(figures["per_class"], delimiter=",", skip_header=1)
    np.testing.assert_array_equal(table[:, 1], confusion[:, 1:].sum(1))
    np.testing.assert_allclose(table[:, 2], confusion[:, 1:].diagonal() / confusion[:, 1:].sum(1))


@pytest.mark.slow
def test_an_unfinished_training_is_refused(trained, workdir):
    if trained[0] == "bn":
        pytest.skip("one norm is enough here")
    with pytest.raises(UserError, match="epoch 1 of 2; finish it first"):
        finetune.finetune(tiny(run__epochs=2), workdir)
    assert not os.path.exists(os.path.join(workdir, "finetune"))


def test_no_training_is_refused(tmp_path):
    with pytest.raises(UserError, match="no trained run.*--mode=train"):
        finetune.finetune(tiny(), str(tmp_path))
    with pytest.raises(UserError, match="none is there.*--mode=finetune"):
        assemble.finetuned_folder(tiny(), str(tmp_path))


@pytest.mark.parametrize("name, warmup", [("finetune_cosine_default_warmup", 5.0), ("finetune_cosine", 0.0)])
def test_the_published_schedule(name, warmup):
    config = recipe.get_config()
    assert config.finetune.warmup_epochs == 5.0  # as the published command was run
    config.finetune.warmup_epochs = warmup
    config = recipe.resolve(config)
    assert (config.finetune.global_batch, config.finetune.decay) == (512, 1 - 512 * 2**-14)
    curve = finetune.schedule(config, 1281167 // 512).curve(SCHEDULES[name]["step"])
    np.testing.assert_allclose(curve, SCHEDULES[name]["lr"], rtol=1e-10, atol=1e-17)


@pytest.mark.parametrize(
    "arg, size",
    [("variant=B2,resolution=half", 256), ("variant=B0,resolution=half", 224), ("variant=B3,resolution=half", 300)],
)
def test_default_size_is_the_fitting_one_nearest_to_native(arg, size):
    assert recipe.resolve(recipe.get_config(arg)).finetune.sizes == (size,)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"finetune__sizes": (48, 50)}, "finetune.sizes: 50 pixels.*stride 16 of TINY.*48 or 64"),
        ({"finetune__layers": "top,block6"}, "layers=top,block7,block6"),
        ({"finetune__layers": ""}, "layers=top"),
        ({"finetune__layers": "top,blok7"}, "Did you mean 'block7'"),
        ({"finetune__layers": ",".join(recipe.PARTS)}, "the whole network"),
        ({"finetune__folder": "a/b"}, "finetune.folder"),
    ],
)
def test_refused_before_anything_is_opened(changes, match):
    with pytest.raises(ConfigError, match=match):
        tiny(**changes)


def test_other_hardware_and_small_data_are_refused():
    config = tiny().copy_and_resolve_references()
    config.runtime.strategy = "ipu"
    with pytest.raises(ConfigError, match="runtime.strategy=default; got ipu"):
        finetune.check(config)
    config = tiny(finetune__global_batch=2000)
    with pytest.raises(ConfigError, match="finetune.global_batch=2000.*1438.*359"):
        finetune.steps_per_epoch(config, assemble.open_source_of(config, "train"))


def test_memory_is_stated_and_limited(caplog):
    source = assemble.open_source_of(tiny(), "train")

    class Trunk:
        output = tf.zeros([1, 7, 7, 320], tf.float16)

    needed = 1438 * 7 * 7 * 320 * 2
    assert finetune.fits(tiny(finetune__cache_gb=needed / 1e9), Trunk, source)
    assert not finetune.fits(tiny(finetune__cache_gb=(needed - 1) / 1e9), Trunk, source)

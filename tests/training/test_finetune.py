"""Fine-tuning with a tiny network: what is frozen, kept features, schedule, sizes, resume."""

import functools
import json
import os
import pathlib

import helpers
import numpy as np
import pytest
import tensorflow as tf

from g16net import compat, export
from g16net import config as config_lib
from g16net.config import recipe
from g16net.errors import ConfigError, UserError
from g16net.run import assemble, checkpoint, records
from g16net.training import evaluate, finetune

SCHEDULES = json.loads((helpers.GOLDEN / "schedules.json").read_text())
LAST = "top,block7"


def tiny(norm="ln_pn", **changes):
    """A resolved config, see `helpers.tiny`, that fine-tunes at 48 pixels for two epochs of four steps."""
    usual = {
        "run__epochs": 2,
        "regularise__dropout": 0.2,
        "finetune__sizes": (48,),
        "finetune__epochs": 2,
        "finetune__global_batch": 16,
    }
    return helpers.tiny(model__norm=norm, **{**usual, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`norm -> workdir` of a run that is as if trained, made once."""

    @functools.lru_cache(maxsize=None)
    def of(norm):
        workdir = tmp_path_factory.mktemp(norm)
        helpers.untrained_run(workdir, tiny(norm))
        return workdir

    return of


@pytest.fixture
def workdir_of(trained, tmp_path):
    """The same, in a folder of the test's own, so that its fine-tunings are too."""

    def of(norm):
        for name in ("checkpoints", "classes.json"):
            os.symlink(str(trained(norm) / name), str(tmp_path / name))
        return str(tmp_path)

    return of


def weights(config, workdir, which):
    """The weights by name."""
    model, _ = assemble.trained(config, workdir, 48, which)
    return {f"{layer.name}/{i}": w.numpy() for layer in model.layers for i, w in enumerate(layer.weights)}


@pytest.mark.run
@pytest.mark.parametrize(
    "norm, layers, noise",
    [
        ("ln_pn", "top", "all"),
        pytest.param("bn", LAST, "top", marks=helpers.slow_with_keras3),
        pytest.param("ln_pn", LAST, "top", marks=pytest.mark.slow),
        pytest.param("bn", "top", "all", marks=pytest.mark.slow),
    ],
)
def test_the_frozen_part_stays_bit_equal_and_the_rest_trains(norm, layers, noise, workdir_of):
    workdir = workdir_of(norm)
    changes = {"data__mix_on_device": True} if (norm, noise) == ("ln_pn", "all") else {}
    config = tiny(norm, finetune__layers=layers, finetune__noise=noise, data__mixup=0.2, **changes)
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


@helpers.slow_with_keras3
@pytest.mark.parametrize(
    "norm, layers, resumed",
    [
        ("bn", LAST, True),  # both at once: it has moving statistics to keep, and to leave
        pytest.param("bn", LAST + ",block6,block5,block4,block3,block2", False, marks=pytest.mark.slow),
        pytest.param("ln_pn", "top", False, marks=pytest.mark.slow),
        pytest.param("ln_pn", "top", True, marks=pytest.mark.slow),
    ],
)
def test_kept_features_give_the_results_of_computing_them_anew_and_a_killed_run_those_of_a_whole_one(
    norm, layers, resumed, workdir_of, monkeypatch
):
    workdir, changes = workdir_of(norm), {"finetune__layers": layers}
    if resumed and not compat.KERAS3 and compat.TF_VERSION < (2, 11):  # draws anew after a resume
        changes.update(regularise__dropout=0.0, regularise__survival_prob=1.0)
    kept = tiny(norm, finetune__folder="kept", finetune__cache_gb=4.0, **changes)
    anew = tiny(norm, finetune__folder="anew", finetune__cache_gb=0.0, **changes)
    figures = finetune.finetune(kept, workdir)
    if resumed:
        die_after_the_first_epoch(monkeypatch)
        with pytest.raises(helpers.Died):
            finetune.finetune(anew, workdir)
        monkeypatch.undo()
    again = finetune.finetune(anew, workdir)
    assert figures["features_kept"] and not again["features_kept"]
    lines = records.read_lines(os.path.join(workdir, "anew", "48", "records.jsonl"))
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    for key in ("top1", "top5", "top1_before"):
        assert figures[key] == again[key]
    assert figures["loss"] == pytest.approx(again["loss"], rel=1e-5)
    a, b = (weights(config, workdir, "finetuned") for config in (kept, anew))
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], atol=1e-5, err_msg=name)


def die_after_the_first_epoch(monkeypatch):
    save = checkpoint.Checkpoints.save

    def save_then_die(self, step, **meta):
        save(self, step, **meta)
        self.wait()
        if meta["epoch"] == 1:
            raise helpers.Died

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_die)


@pytest.mark.slow
@pytest.mark.skipif(compat.TF_VERSION < (2, 8), reason="TensorFlow 2.6 has no bfloat16 convolution on the CPU")
def test_half_precision_keeps_the_features_as_they_are(workdir_of):
    workdir, found = workdir_of("ln_pn"), []
    for cache_gb in (4.0, 0.0):
        config = tiny(
            runtime__precision="mixed_bfloat16", finetune__folder=f"cache-{cache_gb:g}", finetune__cache_gb=cache_gb
        )
        found.append(finetune.finetune(config, workdir))
    assert [figures["features_kept"] for figures in found] == [True, False]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=2e-3)


@helpers.slow_with_keras3
def test_several_sizes_lie_side_by_side_and_later_modes_pick_one(workdir_of):
    workdir, short = workdir_of("ln_pn"), {"finetune__epochs": 1}
    config = tiny(finetune__sizes=(32, 48), **short)
    assert [row["size"] for row in finetune.finetune(config, workdir)["sizes"]] == [32, 48]
    paths = [os.path.join(workdir, "finetune", size, "finetune.json") for size in ("32", "48")]
    before = [os.stat(path).st_mtime_ns for path in paths]
    assert len(finetune.finetune(config, workdir)["sizes"]) == 2
    assert [os.stat(path).st_mtime_ns for path in paths] == before, "finished sizes are left alone"

    with pytest.raises(UserError, match="noise: top -> all"):
        finetune.finetune(tiny(finetune__noise="all", **short), workdir)

    with pytest.raises(UserError, match="there is 32, 48.*finetune_size=32"):
        evaluate.evaluate(tiny(eval__weights="finetuned"), workdir)
    picked = tiny(eval__weights="finetuned", eval__finetune_size=48)
    figures = evaluate.evaluate(picked, workdir)
    stored = json.loads(pathlib.Path(paths[1]).read_text())
    assert (figures["size"], figures["top1"]) == (48, stored["top1"])
    assert figures["loss"] == pytest.approx(stored["loss"], rel=1e-5)
    config_lib.save(tiny(), os.path.join(workdir, "config.json"))
    assert assemble.at_test_size(picked, workdir).data.eval_size == 48 and picked.data.eval_size == 32
    asked = tiny(eval__weights="finetuned", eval__finetune_size=48, data__eval_size=64)
    assert assemble.at_test_size(asked, workdir).data.eval_size == 64  # is not the run's
    exported = export.export(picked, workdir)
    assert exported["path"] == os.path.join(workdir, "finetune", "48", "saved_model")
    assert exported["checked_sizes"] == [32, 48, 80], "its own size is that of its fine-tuning"
    assert exported["largest_logit_difference"] < 1e-4


@pytest.mark.run
def test_figures_by_class(workdir_of):
    workdir = workdir_of("bn")
    config = tiny("bn", eval__per_class=True, eval__sizes=(32, 48))
    figures = evaluate.evaluate(config, workdir)
    assert figures["size"] == 32 and [row["size"] for row in figures["sizes"]] == [32, 48]
    assert figures["multiply_adds"] < figures["sizes"][1]["multiply_adds"]
    lines = records.read_lines(os.path.join(workdir, "evaluations.jsonl"))
    assert [line["top1"] for line in lines] == [row["top1"] for row in figures["sizes"]]
    table = np.loadtxt(figures["confusion"], delimiter=",", dtype=str)
    assert table[1:, 0].tolist() == table[0, 1:].tolist() == [f"class {i}" for i in range(5)]
    confusion = table[1:, 1:].astype(int)
    assert confusion.sum(1).tolist() == [13, 13, 13, 13, 12]  # rows are the true classes
    assert confusion.trace() / 64 == pytest.approx(figures["top1"])
    images, top1, precision = np.genfromtxt(
        figures["per_class"], delimiter=",", skip_header=1, usecols=(1, 2, 3), unpack=True
    )
    np.testing.assert_array_equal(images, confusion.sum(1))
    np.testing.assert_allclose(top1, confusion.diagonal() / confusion.sum(1))
    predicted = confusion.sum(0)
    np.testing.assert_allclose(precision, np.where(predicted, confusion.diagonal() / np.maximum(predicted, 1), np.nan))
    assert os.path.basename(figures["classes_page"]) == "average-32px.html" and os.path.exists(figures["classes_page"])


@pytest.mark.run
def test_an_unfinished_training_is_refused(workdir_of):
    workdir = workdir_of("ln_pn")
    with pytest.raises(UserError, match="epoch 2 of 3; finish it first"):
        finetune.finetune(tiny(run__epochs=3), workdir)
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
        ({"finetune__sizes": (48, 49)}, "finetune.sizes: 49 pixels.*stride 2 of NANO.*48 or 50"),
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
    config = tiny()
    config.runtime.strategy = "ipu"
    with pytest.raises(ConfigError, match="runtime.strategy=default; got ipu"):
        finetune.check(config)
    with pytest.raises(
        ConfigError, match="finetune.optimizer=keras:Adam has no rule for its rate.*learning_rate=0.001"
    ):
        finetune.check(tiny(finetune__optimizer="keras:Adam"))
    finetune.check(tiny(finetune__optimizer="keras:Adam", finetune__learning_rate=1e-3))
    scaled = {"runtime__precision": "mixed_float16", "runtime__dynamic_loss_scale": True}
    finetune.check(tiny(**scaled))
    with pytest.raises(ConfigError, match="dynamic_loss_scale leaves out passes.* 4 of them one update"):
        finetune.check(tiny(**scaled, runtime__grad_accumulation=4))
    config = tiny(finetune__global_batch=2000)
    with pytest.raises(ConfigError, match="finetune.global_batch=2000.* 64 .*=16"):
        finetune.steps_per_epoch(config, assemble.open_source_of(config, "train"))


@pytest.mark.parametrize(
    "runtime, batch, count",
    [({}, 64, 1), ({"grad_accumulation": 4}, 16, 4), ({"micro_batch": 8}, 12, 2), ({"micro_batch": 4}, 4, 1)],
)
def test_a_pass_has_no_more_images_than_one_of_the_training(runtime, batch, count):
    config = tiny(finetune__global_batch=batch, **{f"runtime__{key}": value for key, value in runtime.items()})
    assert finetune.passes(config) == count


@pytest.mark.run
def test_other_images_are_another_fine_tuning_and_their_figures_say_so(workdir_of, monkeypatch):
    workdir, config = workdir_of("ln_pn"), tiny(finetune__epochs=1, runtime__grad_accumulation=2)
    config_lib.save(config, os.path.join(workdir, "config.json"))
    assert "changed" not in finetune.finetune(config, workdir)
    other = tiny(finetune__epochs=1, data__eval_crop=1.0, data__eval_split="train")
    with pytest.raises(
        UserError, match="(?s)another fine-tuning.*data.eval_crop.*data.eval_split.*finetune.folder=finetune2"
    ):
        finetune.finetune(other, workdir)
    other.finetune.folder = "finetune2"
    figures = finetune.finetune(other, workdir)
    assert figures["changed"] == {"data.eval_split": "train", "data.eval_crop": 1.0}
    settings = os.path.join(workdir, "finetune", "48", "settings.json")
    kept = json.load(open(settings))
    of_before = {key: value for key, value in kept.items() if not key.startswith(("data.", "runtime."))}
    records.write_json(settings, of_before)
    assert finetune.finetune(config, workdir)["epochs"] == 1
    records.write_json(settings, kept)
    config.runtime.precision = "mixed_bfloat16"
    records.write_json(settings, of_before)
    with pytest.raises(UserError, match="runtime.precision: float32 -> mixed_bfloat16"):  # it was in the run's
        finetune.finetune(config, workdir)
    records.write_json(settings, kept)
    with pytest.raises(UserError, match="(?s)another fine-tuning.*runtime.precision: float32 -> mixed_bfloat16"):
        finetune.finetune(config, workdir)
    own = config_lib.load(os.path.join(workdir, "config.json")).to_dict()
    del own["data"]["eval_resize"]  # as versions before this field
    records.write_json(os.path.join(workdir, "config.json"), own)
    config.runtime.precision = "float32"
    assert "changed" not in finetune.finetune(config, workdir)


@pytest.mark.run
@pytest.mark.skipif(not compat.KERAS3, reason="Keras 2 counts weight updates, Keras 3 passes")
def test_a_fine_tuning_goes_on_with_another_number_of_passes(workdir_of, monkeypatch):
    workdir, rates = workdir_of("ln_pn"), []
    save = checkpoint.Checkpoints.save

    def save_and_die(self, step, **facts):
        save(self, step, **facts)
        self.wait()
        helpers.die()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", save_and_die)
        with pytest.raises(helpers.Died):
            finetune.finetune(tiny(), workdir)
    optimizer = assemble.finetuning_optimizer

    def noted(*args):
        made = optimizer(*args)
        rates.append(made)
        return made

    monkeypatch.setattr(assemble, "finetuning_optimizer", noted)
    finetune.finetune(tiny(runtime__grad_accumulation=4), workdir)
    assert int(rates[0].iterations) == 2 * 4  # epochs of four updates


def test_memory_is_stated_and_limited(caplog):
    source = assemble.open_source_of(tiny(), "train")

    class Trunk:
        output = tf.zeros([1, 7, 7, 320], tf.float16)

    needed = 64 * 7 * 7 * 320 * 2
    assert finetune.fits(tiny(finetune__cache_gb=(needed + 1) / 1e9), Trunk, source)
    assert not finetune.fits(tiny(finetune__cache_gb=(needed - 1) / 1e9), Trunk, source)

"""Evaluation does nothing twice, and says what the present weights give."""

import contextlib
import inspect
import io
import json
import os
import shutil

import helpers
import numpy as np
import pytest
import tensorflow as tf
from made_data import class_folders

from g16net import compat
from g16net import config as config_lib
from g16net.cli import command
from g16net.cli import main as cli
from g16net.config import experiments, recipe
from g16net.optim.weight_average import WeightAverage
from g16net.run import assemble, records, resolve, run_data, scoring
from g16net.training import evaluate, runtime

pytestmark = pytest.mark.run


def tiny():
    return recipe.resolve(experiments.load("g16_ln_pn:demo,variant=NANO"))


@pytest.mark.slow  # in test_cli.py with the other modes
@pytest.mark.once
def test_no_weights_and_no_program_are_made_twice_in_one_command(tmp_path, monkeypatch):
    evaluations, networks, programs = [], [], []
    call, model, sums = evaluate.Evaluator.__call__, assemble.model, scoring.Scorer._sums

    def counted(self, size, *rest):
        evaluations.append(call(self, size, *rest))
        return evaluations[-1]

    monkeypatch.setattr(evaluate.Evaluator, "__call__", counted)
    monkeypatch.setattr(assemble, "model", lambda *args: networks.append(args) or model(*args))
    monkeypatch.setattr(scoring.Scorer, "_sums", lambda *args: programs.append(args) or sums(*args))
    arguments, fields = cli.split_assignments(
        ["launch.py", "--experiment=g16_ln_pn:demo,variant=NANO", "--data=digits", f"--workdir={tmp_path}"]
        + ["--config.run.epochs=2", "--config.run.global_batch=128", "--config.schedule.warmup_epochs=0"]
    )
    cli.FLAGS(arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        assert command.execute(fields, cli.main) == 0
    # The first epoch's average is its weights; the last epoch's figures are the run's. Then --mode=evaluate.
    assert (len(evaluations), len(networks), len(programs)) == (4, 1, 1)
    trained, evaluated = (json.loads((tmp_path / f"{mode}.json").read_text()) for mode in ("train", "evaluate"))
    for name in ("top1", "top5", "loss"):
        assert trained[name] == evaluated[name] == evaluations[2][name]
    assert trained["top1_raw"] == evaluations[1]["top1"]
    assert (
        evaluate.kept(resolve.resolve(fields, "g16_ln_pn:demo,variant=NANO", "digits")[0], [32]) is None
    )  # it is over


def test_a_network_that_modes_share_has_the_weights_that_each_asks_for(tmp_path):
    config = tiny()
    devices, (source, test) = runtime.setup(config), assemble.open_sources(config)
    runs = {}
    for name in ("a", "b"):
        compat.set_seed(ord(name))
        config_of = config.copy_and_resolve_references()
        config_of.run.seed = ord(name)
        model = assemble.model(config_of, 10, 32)
        average = WeightAverage(model, 0.5)
        average.update()
        save(tmp_path / name, model, average, source)
        runs[name] = evaluate.Evaluator(config, model, test, devices)(32)
    assert runs["a"]["loss"] != runs["b"]["loss"]
    with evaluate.sharing():
        for name in ("a", "b", "a"):
            assert evaluate.evaluate(config, str(tmp_path / name))["loss"] == pytest.approx(runs[name]["loss"], 1e-6)
        other = config.copy_and_resolve_references()
        other.model.norm = "ln"
        assert evaluate.kept(recipe.resolve(other), [32]) is None


def test_figures_of_other_images_than_the_runs_own_say_so(tmp_path):
    own, other = tiny(), tiny()
    config_lib.save(own, str(tmp_path / "config.json"))
    other.eval.batch, other.data.eval_split, other.data.eval_crop = 7, "train", 1.0
    assert evaluate.changed_from_run(own, str(tmp_path)) == {}
    own.runtime.precision = "mixed_bfloat16"
    assert evaluate.changed_from_run(own, str(tmp_path)) == {"runtime.precision": "mixed_bfloat16"}
    own.runtime.precision = "float32"
    changed = {"data.eval_split": "train", "data.eval_crop": 1.0}
    assert evaluate.changed_from_run(other, str(tmp_path)) == changed
    own.data.name, own.data.dir = "folder", "/here/photos"
    config_lib.save(own, str(tmp_path / "config.json"))
    own.data.dir = "/there/photos/"  # moved
    assert evaluate.changed_from_run(own, str(tmp_path)) == {}
    own.data.dir, own.data.holdout = "/here/other", 0.5
    assert evaluate.changed_from_run(own, str(tmp_path)) == {"data.dir": "/here/other", "data.holdout": 0.5}


def test_another_folder_of_the_same_name_holds_other_images_unless_it_is_a_copy(tmp_path):
    config, workdir, folders = tiny(), str(tmp_path / "run"), {}
    for place, counts in {"first": (3, 4), "copy": (3, 4), "later": (3, 5)}.items():
        folders[place] = str(tmp_path / place / "photos")
        for split in ("train", "val"):
            class_folders(folders[place], dict(zip(("cat", "dog"), counts)), split)
    config.data.name, config.data.dir = "folder", folders["first"]
    os.makedirs(workdir)
    config_lib.save(config, os.path.join(workdir, "config.json"))
    run_data.keep(config, workdir, assemble.open_source_of(config, "train"))
    for place, changed in {"first": {}, "copy": {}, "later": {"data.dir": folders["later"]}}.items():
        config.data.dir = folders[place]
        assert evaluate.changed_from_run(config, workdir) == changed


def test_test_images_that_changed_since_the_training_are_not_the_runs_own(tmp_path, caplog):
    config, workdir, root = tiny(), str(tmp_path / "run"), str(tmp_path / "photos")
    for split in ("train", "val"):
        class_folders(root, {"cat": 3, "dog": 4}, split)
    config.data.name, config.data.dir = "folder", root
    os.makedirs(workdir)
    config_lib.save(config, os.path.join(workdir, "config.json"))

    def changed():
        assemble._open.cache_clear()
        return evaluate.changed_from_run(config, workdir, source=assemble.open_source_of(config, "eval"))

    run_data.keep(config, workdir, assemble.open_source_of(config, "train"))
    assert changed() == {}
    run_data.keep(config, workdir, *assemble.open_sources(config))
    assert changed() == {} and not caplog.records
    class_folders(root, {"dog": 5}, "val")
    assert changed() == {"data.images": assemble.open_source_of(config, "eval").contents()["digest"][:8]}
    assert "not the images that the run in" in caplog.text and "(7 then, 8 now)" in caplog.text
    config.data.eval_split = "train"
    assert changed() == {"data.eval_split": "train"}
    config.data.eval_split = ""
    shutil.rmtree(os.path.join(root, "val", "cat"))
    source = assemble.relabelled(assemble.open_source_of(config, "eval"), ["bird", "cat", "dog"])
    assert evaluate.changed_from_run(config, workdir, source=source) == {"data.images": "some classes"}
    run_data.keep(config, workdir, assemble.open_source_of(config, "train"))  # as versions that kept none
    assert changed() == {}


def test_the_runs_own_test_images_are_its_own_by_another_name_and_of_another_split_nothing_is_known(
    tmp_path, monkeypatch
):
    config, workdir, root = tiny(), str(tmp_path / "run"), str(tmp_path / "photos")
    for split in ("train", "val", "test"):
        class_folders(root, {"cat": 3, "dog": 4}, split)
    class_folders(root, {"cat": 5}, "test")
    config.data.name, config.data.dir = "folder", root
    os.makedirs(workdir)
    stored = config.to_dict()
    del stored["data"]["eval_resize"]  # as versions before this field
    records.write_json(os.path.join(workdir, "config.json"), stored)
    run_data.keep(config, workdir, *assemble.open_sources(config))

    def changed():
        return evaluate.changed_from_run(config, workdir, source=assemble.open_source_of(config, "eval"))

    os.rename(root, str(tmp_path / "flowers"))
    config.data.dir, config.data.eval_split = str(tmp_path / "flowers"), "val"
    assert changed() == {}
    config.data.eval_split = "test"
    assert changed() == {"data.dir": config.data.dir, "data.eval_split": "test"}
    config_lib.save(config, os.path.join(workdir, "config.json"))  # a run that shares the training of another
    assert changed() == {}
    monkeypatch.setattr(run_data, "finished", lambda config, workdir: True)
    run_data.keep(config, workdir, *assemble.open_sources(config))  # measured on it
    config.data.eval_split = "val"
    assert changed() == {"data.eval_split": "val"}


def save(workdir, model, average, source):
    from g16net.run import checkpoint, records

    workdir.mkdir()
    records.write_json(str(workdir / "classes.json"), list(source.class_names))
    variables = checkpoint.state(model, None, average)
    checkpoint.Checkpoints(str(workdir / "checkpoints"), variables, background=False).save(1, epoch=1)


def test_test_images_are_prepared_once_for_small_sets(monkeypatch):
    config = tiny()
    devices, source = runtime.setup(config), assemble.open_source_of(config, "eval")
    reads = tf.Variable(0)

    def read(row):
        reads.assign_add(1)
        return source.read(row)

    counting = source._replace(read=read)
    model = assemble.model(config, 10, 32)
    for kept, factor in ((2**28, 1), (0, 2)):
        monkeypatch.setattr(scoring, "KEPT_BYTES", kept)
        evaluator = evaluate.Evaluator(config, model, counting, devices)
        reads.assign(0)
        first = evaluator(32)
        for weight in model.trainable_weights:
            weight.assign(weight.numpy() + np.float32(0.01))
        second = evaluator(32)
        assert first["loss"] != second["loss"] and first["images"] == second["images"] == 359
        assert int(reads) == factor * 359
    monkeypatch.setattr(scoring, "KEPT_BYTES", 2**28)
    evaluator = evaluate.Evaluator(config, model, counting, devices)
    evaluator(32)
    evaluator.prepare_again()  # as mode evaluate does with what another mode has left
    evaluator(32)
    assert int(reads) == 4 * 359


def test_autograph_leaves_layers_as_they_are_written():
    class Here(tf.keras.layers.Layer):
        def call(self, inputs, training=None):
            self.ran = inspect.currentframe().f_code.co_filename
            return inputs

    cls = compat.register(Here)
    image = tf.keras.Input((2,))
    layer = cls()
    tf.keras.Model(image, layer(image))
    assert layer.ran == __file__
    assert list(inspect.signature(layer.call).parameters) == ["inputs", "training"]
    assert inspect.getfullargspec(layer.call).args[-2:] == ["inputs", "training"]


def test_the_worst_mistakes_are_the_models_own(tmp_path):
    """Their images, files, classes and probabilities, beside those of the model called on each test image."""
    config = helpers.tiny()
    workdir = helpers.untrained_run(tmp_path / "run", config)
    source = assemble.open_source_of(config, "eval")
    model, names = assemble.trained(config, workdir)
    rows = []
    figures = evaluate.Evaluator(config, model, source, runtime.setup(config))(32, rows)
    (examples,) = rows
    pictures, labels, weights = (np.concatenate(p) for p in zip(*assemble.eval_batches(config, source, 32)))
    probabilities = tf.nn.softmax(model(pictures.astype("float32"))).numpy()[:64]
    np.testing.assert_array_equal(examples[:, 0], labels[:64])
    np.testing.assert_array_equal(examples[:, 1], probabilities.argmax(1))
    np.testing.assert_allclose(examples[:, 2], probabilities.max(1), atol=1e-5)
    np.testing.assert_array_equal(examples[:, 3], weights[:64])
    assert figures["top1"] == pytest.approx(np.mean(examples[:, 0] == examples[:, 1]))
    examples[7, 3] = 0  # as of an image that cannot be read
    worst = evaluate.worst(config, source, 32, examples, most=10)
    wrong = [i for i in np.argsort(-examples[:, 2], kind="stable") if i != 7 and examples[i, 0] != examples[i, 1]]
    assert [one["probability"] for one in worst] == [examples[i, 2] for i in wrong[:10]]
    assert [one["file"] for one in worst] == [str(source.locate(np.array([i])).numpy()[0], "utf-8") for i in wrong[:10]]
    for one, place in zip(worst, wrong):
        np.testing.assert_array_equal(one["image"], pictures[place])
        assert one["true"] == names[labels[place]] != one["predicted"]


def test_rows_of_several_workers_come_in_the_order_of_the_source():
    """Two workers of three batches of four, the last of which is filled up: the first has 0..11, the other 12..20."""

    class Devices:
        shard = (0, 2)

    scorer = scoring.Scorer.__new__(scoring.Scorer)
    scorer.devices, scorer.source = Devices, assemble.open_source_of(helpers.tiny(), "eval")._replace(num_examples=21)
    place = np.arange(24).reshape(2, 3, 4)  # worker, step, image
    rows = [np.repeat(place[:, step].reshape(-1, 1), 4, axis=1) for step in range(3)]
    np.testing.assert_array_equal(scorer.in_order(rows)[:, 0], np.arange(21))

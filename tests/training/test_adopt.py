"""Published weights as a run without training: evaluated, asked, trained on, and refused for other classes."""

import contextlib
import io
import json

import numpy as np
import pytest

from g16net import compat
from g16net import config as config_lib
from g16net.cli import command
from g16net.cli import main as cli
from g16net.config import recipe
from g16net.errors import UserError
from g16net.models import efficientnet, portable
from g16net.run import assemble, checkpoint, resolve
from g16net.training import warm_start
from g16net.weights import own as own_weights
from g16net.weights import timm as timm_weights

pytestmark = pytest.mark.run

EXPERIMENT = "g1_bn:demo,variant=TINY"


@pytest.fixture
def weights(tmp_path):
    pytest.importorskip("safetensors")
    model = efficientnet.build("TINY", 1, 6, "bn", 10, mean=127.5, std=127.5, seed=2)
    path = str(tmp_path / "tf_efficientnet_b0.ap_in1k.safetensors")
    timm_weights.save(model, path)
    return path, model


def run(*arguments):
    arguments, fields = cli.split_assignments(["launch.py", *arguments])
    cli.FLAGS(arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        return command.execute(fields, cli.main)


def starting(path, workdir):
    start = f"--experiment={EXPERIMENT}", "--data=digits", f"--workdir={workdir}", f"--config.init.checkpoint={path}"
    return (*start, "--config.run.epochs=1", "--config.run.global_batch=512")


def test_weights_are_evaluated(weights, tmp_path):
    path, model = weights
    workdir = tmp_path / "run"
    start = starting(path, workdir)
    assert run(*start, "--mode=evaluate") == 0
    config = resolve.resolve([], None, workdir=str(workdir))[0]
    assert (config.data.eval_resize, config.model.std) == ("bicubic", (127.5,) * 3)
    prepare = assemble.eval_preprocessing(config, 32)
    assert (prepare["resize"], prepare["crop"]) == ("bicubic", 0.875)
    network, names = assemble.trained(config, str(workdir))
    assert names == [str(i) for i in range(10)]
    for ours, theirs in zip(network.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    _, test = assemble.open_sources(config)
    right = [(np.argmax(model(x), 1) == y)[w > 0] for x, y, w in assemble.eval_batches(config, test, 32)]
    figures = json.loads((workdir / "evaluate.json").read_text())
    assert figures["images"] == 359 and figures["top1"] == pytest.approx(np.concatenate(right).mean(), abs=2 / 359)
    assert checkpoint.newest_manifest(str(workdir / "checkpoints"))["step"] == 0
    # the weights themselves, as there is no average of no update; and what the network computes with them
    stored = warm_start.read(str(workdir), network, "average")
    for weight in network.weights:
        np.testing.assert_array_equal(stored[compat.name_of(weight)], weight.numpy())
    for place in (workdir, workdir / "checkpoints" / "00000000"):
        other = resolve.resolve([("init.checkpoint", str(place))], EXPERIMENT, "digits")[0]
        assert (other.data.eval_resize, other.model.std, other.model.mean) == ("bicubic", (127.5,) * 3, (127.5,) * 3)
    mine = [("init.checkpoint", str(workdir)), ("model.std", "1,2,3")]
    assert resolve.resolve(mine, EXPERIMENT, "digits")[0].model.std == (1.0, 2.0, 3.0)
    begun = tmp_path / "begun"  # before a start from a run brought its settings: the same command resumes it
    (begun / "checkpoints").mkdir(parents=True)
    config_lib.save(resolve.resolve([], EXPERIMENT, "digits")[0], str(begun / "config.json"))
    same = resolve.resolve(mine[:1], EXPERIMENT, "digits", str(begun))[0]
    assert (same.model.std, same.data.eval_resize) == ((1.0,) * 3, "bilinear")
    timm_weights.save(efficientnet.build("TINY", 1, 6, "bn", 10, seed=3), path)
    with pytest.raises(UserError, match="holds others now"):
        run(*start, "--mode=evaluate")


@pytest.mark.slow
def test_weights_are_trained_from(weights, tmp_path):
    path, workdir = weights[0], tmp_path / "run"
    for mode in ("evaluate", "train"):
        assert run(*starting(path, workdir), f"--mode={mode}") == 0
    trained = json.loads((workdir / "train.json").read_text())
    assert (trained["steps"], trained["resumed_from_step"]) == (2, 0)


@pytest.mark.parametrize("ending", ["keras", pytest.param("h5", marks=pytest.mark.slow)])
def test_a_file_of_ours_tells_its_input_and_norms(ending, tmp_path):
    path = str(tmp_path / f"mine.{ending}")
    model = efficientnet.build("TINY", 16, 4, "ln_pn", 10, mean=127.5, std=[60, 61, 62], norm_epsilon=1e-5,
                               proxy_epsilon=0.01, activation="relu")  # fmt: skip
    portable.save(model, path) if ending == "keras" else model.save(path)
    config = resolve.resolve([("init.checkpoint", path)], "g16_ln_pn:demo,variant=TINY", "digits")[0].model
    assert (config.mean, config.std, config.activation) == ((127.5,) * 3, (60.0, 61.0, 62.0), "relu")
    assert (config.norm_epsilon, config.proxy_epsilon) == (1e-5, 0.01)
    config = resolve.resolve([("init.checkpoint", path)], "g16_bn:demo,variant=TINY", "digits")[0].model
    assert (config.mean, config.norm_epsilon) == ((127.5,) * 3, 1e-3)  # the norm is another one
    for grouping, given, found in (
        ({"norm_groups": 8}, [], (8, None)),
        ({"norm_group_size": 8}, [], (4, 8)),
        ({"norm_group_size": 8}, [("model.norm_groups", "2")], (2, None)),
    ):
        path = str(tmp_path / "gn.keras")
        portable.save(efficientnet.build("TINY", 16, 4, "gn", 10, **grouping), path)
        config = resolve.resolve([("init.checkpoint", path), *given], "g16_gn:demo,variant=TINY", "digits")[0].model
        assert (config.norm_groups, config.norm_group_size) == found


def test_weights_of_other_classes_are_refused(tmp_path):
    pytest.importorskip("safetensors")
    path = str(tmp_path / "tf_efficientnet_b0.ap_in1k.safetensors")
    timm_weights.save(efficientnet.build("TINY", 1, 6, "bn", 7), path)
    start = f"--experiment={EXPERIMENT}", "--data=digits", f"--workdir={tmp_path}/run"
    with pytest.raises(UserError, match="no classifier for the 10 classes of digits.*--mode=train"):
        run(*start, f"--config.init.checkpoint={path}", "--mode=predict", f"--images={path}")
    with pytest.raises(UserError, match="needs the weights: --config.init.checkpoint=FILE"):
        run(*start, "--mode=adopt")


def test_where_a_run_is_it_is_not_adopted_again(weights, tmp_path):
    config = recipe.resolve(resolve.resolve([("init.checkpoint", weights[0])], EXPERIMENT, "digits")[0])
    assert command.adopts(["evaluate"], config, str(tmp_path / "new"))
    assert command.adopts(["costs", "export"], config, str(tmp_path / "new"))
    assert not command.adopts(["train", "evaluate"], config, str(tmp_path / "new"))
    assert not command.adopts(["costs"], config, str(tmp_path / "new"))
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    assert not command.adopts(["evaluate"], config, str(tmp_path / "old"))


def test_every_place_in_a_run_has_its_settings_and_another_says_that_it_has_none(tmp_path, caplog):
    own = resolve.resolve([("model.std", "1,2,3")], EXPERIMENT, "digits")[0]
    within = ("", "checkpoints/00000007", "finetune/32", "finetune/32/checkpoints", "finetune/32/checkpoints/00000008")
    for place in within:
        (tmp_path / "run" / place).mkdir(parents=True, exist_ok=True)
    config_lib.save(own, str(tmp_path / "run" / "config.json"))
    for place in within:
        assert own_weights.settings(str(tmp_path / "run" / place), "bn")["model.std"] == (1.0, 2.0, 3.0)
    assert not caplog.text
    alone = tmp_path / "00000007"
    alone.mkdir()
    (alone / "state.index").write_text("")
    resolve.resolve([("init.checkpoint", str(alone))], EXPERIMENT, "digits")
    assert "nothing in it or beside it tells what it was trained with" in caplog.text

"""Published weights as a run without training: evaluated, asked, trained on, and refused for other classes."""

import contextlib
import io
import json

import numpy as np
import pytest

from g16net.cli import command
from g16net.cli import main as cli
from g16net.config import recipe
from g16net.errors import UserError
from g16net.models import efficientnet
from g16net.run import assemble, checkpoint, resolve
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


def test_weights_are_evaluated_and_trained_from(weights, tmp_path):
    path, model = weights
    workdir = tmp_path / "run"
    start = f"--experiment={EXPERIMENT}", "--data=digits", f"--workdir={workdir}", f"--config.init.checkpoint={path}"
    start += "--config.run.epochs=1", "--config.run.global_batch=512"
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
    assert run(*start, "--mode=train") == 0
    trained = json.loads((workdir / "train.json").read_text())
    assert (trained["steps"], trained["resumed_from_step"]) == (2, 0)


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

"""The tutorial's commands, taken from the page and run in order in an empty folder."""

import os
import re
import subprocess
import sys

import pages
import pytest

from g16net import compat
from g16net.models import efficientnet
from g16net.weights import timm as timm_weights


def tutorial():
    """`(command, mark)` of each command of the page, in order."""
    for block in pages.blocks("docs/tutorial.md"):
        if block.language == "bash":
            for command in pages.commands(block):
                yield command, block.mark


def test_every_block_is_run_or_marked():
    marks = {mark.split(":")[0] for _, mark in tutorial()}
    assert marks == {"", "not run here", "dry run in the test"}
    assert sum(not mark for _, mark in tutorial()) >= 9


@pytest.mark.slow
@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="the export check needs newer runtimes")
def test_the_tutorial_runs(tmp_path):
    for module in ("safetensors", "onnx", "onnxruntime"):
        pytest.importorskip(module)
    (tmp_path / "bin").mkdir()
    for name, arguments in (("g16net", f"{pages.ROOT}/launch.py"), ("python", "")):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    environment.update(PATH=f"{tmp_path}/bin:{os.environ['PATH']}", PYTHONPATH=pages.ROOT)
    timm_weights.save(efficientnet.build("B0", 1, 6, "bn"), str(tmp_path / "tf_efficientnet_b0.safetensors"))
    for command, mark in tutorial():
        if mark.startswith("not run"):
            continue
        if mark:
            command += " --dry_run"
        result = subprocess.run(
            ["sh", "-c", command],
            cwd=str(tmp_path),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}"
        if "--config.init.checkpoint=runs/photos" in command:
            started = r"Started from runs/photos: (\d+) of \1 weights loaded; the classifier by name"
            assert re.search(started, result.stdout)
    for name in (
        "curves.png",
        "saved_model",
        "model.onnx",
        "predictions.jsonl",
        "classes/average-48px.html",
        "explain/index.html",
        "finetune/48/finetune.json",
    ):
        assert (tmp_path / "runs" / "photos" / name).exists(), name

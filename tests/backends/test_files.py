"""A `.keras` file written on one backend computes the same on every other; with Keras 3 the optimizer comes along."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from backends import exchange
from helpers import ROOT

pytestmark = [pytest.mark.backends, pytest.mark.run]

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
OTHERS = [{"KERAS_BACKEND": name} for name in ("jax", "torch") if importlib.util.find_spec(name)]
if HAS_TENSORFLOW:
    OTHERS += [{"KERAS_BACKEND": "tensorflow"}, {"TF_USE_LEGACY_KERAS": "1"}]
OTHERS = [one for one in OTHERS if one.get("KERAS_BACKEND") != os.environ["KERAS_BACKEND"]]


def run(task, folder, **environment):
    """The last line of `exchange.py` in a process of another backend."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")}
    path = os.pathsep.join([ROOT, os.path.join(ROOT, "tests")])
    command = [sys.executable, os.path.join(ROOT, "tests", "backends", "exchange.py"), task, str(folder)]
    env = {**inherited, "PYTHONPATH": path, **environment}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.rsplit("\n", 2)[-2] if done.stdout else ""


def check(differences, steps, files):
    assert len(differences) == files, sorted(differences)
    assert max(differences.values()) < 1e-4, differences
    assert set(steps.values()) <= {2}, steps


@pytest.mark.skipif(not OTHERS, reason="no other backend is installed")
def test_files_of_all_others_are_read_here_and_ours_there(tmp_path):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    for other in OTHERS:
        run("write", theirs, **other)
    whole = sum("TF_USE_LEGACY_KERAS" not in other for other in OTHERS)
    check(*exchange.read(str(theirs)), files=2 * (len(OTHERS) + whole))
    exchange.write(str(ours))
    for other in OTHERS:
        check(*json.loads(run("read", ours, **other)), files=2 if "TF_USE_LEGACY_KERAS" in other else 4)

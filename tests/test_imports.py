"""Imports point one way, and importing the package starts no TensorFlow."""

import ast
import configparser
import os
import subprocess
import sys

import made_runs
import pytest
from helpers import ROOT

pytestmark = pytest.mark.once

PACKAGE = os.path.join(ROOT, "g16net")

# What each part of the package may import of g16net; a missing part joins the others and may import anything.
ALLOWED = {
    "__init__": {"registration"},
    "registration": set(),
    "config": set(),
    "groups": set(),
    "extras": {"config"},
    "compat": set(),
    "layers": {"compat", "groups", "layers", "native"},
    "native": {"compat", "native"},
    "models": {"compat", "config", "extras", "groups", "layers", "models"},
    "optim": {"compat", "native", "optim"},
    "data": {"compat", "config", "data", "native"},
    "report": {"config", "records", "report"},
    "batches": {"config"},
    "recipe": {"config", "ipu", "models"},
    "records": {"__init__", "compat", "config"},
    "signals": set(),
    "workers": {"config"},
    "checkpoint": {"compat", "config", "records"},
    "experiments": {"config"},
    "run_data": {"checkpoint", "config", "data", "records"},
    "sweep": {"cli", "config", "experiments", "recipe", "records"},
    "sweep_imports": {"cli"},
}


def _files():
    for folder, _, names in os.walk(PACKAGE):
        for name in sorted(names):
            if name.endswith(".py"):
                yield os.path.join(folder, name)


def _part(path):
    return os.path.relpath(path, PACKAGE).split(os.sep)[0].replace(".py", "")


def _imports(path):
    with open(path, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "g16net":
                yield parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", [os.path.relpath(p, PACKAGE) for p in _files()])
def test_imports_point_one_way(path):
    allowed = ALLOWED.get(_part(os.path.join(PACKAGE, path)))
    if allowed is not None:
        assert set(_imports(os.path.join(PACKAGE, path))) <= allowed


def test_every_package_is_installed():
    parser = configparser.ConfigParser()
    parser.read(os.path.join(ROOT, "setup.cfg"))
    listed = set(parser["options"]["packages"].split())
    folders = {os.path.relpath(os.path.dirname(p), ROOT).replace(os.sep, ".") for p in _files()}
    assert listed == folders | {"g16net.experiment_files", "g16net.experiment_files.sweeps"}


WITHOUT_TENSORFLOW = """
import importlib, sys
for name in ["g16net", "g16net.config", "g16net.models", "g16net.recipe", "g16net.report", "g16net.sweep"]:
    importlib.import_module(name)
    assert not {"tensorflow", "keras", "tf_keras"} & set(sys.modules), name
from g16net import models
from g16net.models import costs
from g16net.report import page
costs.count(), models.list()
page.write([sys.argv[1]], sys.argv[2], quoted=False)
assert not {"tensorflow", "keras", "tf_keras"} & set(sys.modules)
"""


@pytest.mark.run
def test_importing_counting_and_reporting_start_no_tensorflow(tmp_path):
    made_runs.write(tmp_path / "run")
    arguments = [str(tmp_path / "run"), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments], check=True, cwd=ROOT)

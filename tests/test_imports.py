"""Imports point one way, and importing the package starts no TensorFlow."""

import ast
import configparser
import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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


@pytest.mark.parametrize(
    "module",
    [
        "g16net",
        "g16net.config",
        "g16net.models",
        "g16net.models.costs",
        "g16net.recipe",
        "g16net.report",
        "g16net.sweep",
    ],
)
def test_no_tensorflow(module):
    code = f"import sys, {module}; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

"""Imports point one way, also those inside functions, and importing the package starts no TensorFlow."""

import ast
import configparser
import importlib
import os
import subprocess
import sys

import made_runs
import pytest
from helpers import ROOT

from g16net import moved

pytestmark = pytest.mark.once

PACKAGE = os.path.join(ROOT, "g16net")

# What each room may import of g16net besides itself. The rooms are in order: each imports only those above it.
ALLOWED = {
    "errors": "",
    "groups": "",
    "host": "",
    "moved": "",
    "registration": "",
    "__init__": "moved registration",
    "compat": "",
    "extras": "errors",
    "native": "compat host",
    "layers": "compat groups native",
    "optim": "compat native",
    "data": "compat errors extras host native",
    "models": "compat groups layers",
    "costs": "models",
    "config": "errors models",
    "weights": "compat config errors extras layers models",
    "run": "__init__ compat config data errors host models native optim weights",
    "report": "config errors models run",
    "ipu": "compat config errors optim run",
    "training": "compat config costs data errors ipu models optim report run weights",
    "export": "compat data errors extras ipu layers models native run training",
    "diagnostics": "compat data errors layers report run training",
    "benchmark": "__init__ compat config costs data errors export extras host layers models native report run training",
    "sweep": "__init__ config errors extras run",
    "cli": "__init__ compat config costs data errors export report run sweep training",
    "search": "cli extras run sweep",
}


def _modules():
    """Each module of the package by its dotted name: its path."""
    found = {}
    for folder, _, names in os.walk(PACKAGE):
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                dotted = os.path.relpath(path, ROOT)[: -len(".py")].replace(os.sep, ".")
                found[dotted[: -len(".__init__")] if dotted.endswith(".__init__") else dotted] = path
    return found


MODULES = _modules()


def _room(module):
    return module.split(".")[1] if "." in module else "__init__"


def _imports(module):
    """The modules of the package that `module` imports, at its head or inside functions."""
    with open(MODULES[module], encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "g16net":
                assert name in MODULES, f"{module} imports {name}, which is no module: is it an old name?"
                yield name


def test_rooms_are_in_order():
    rooms = list(ALLOWED)
    assert set(rooms) == {_room(module) for module in MODULES}
    for room, allowed in ALLOWED.items():
        assert set(allowed.split()) <= set(rooms[: rooms.index(room)]), room


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_what_it_may(module):
    others = {_room(name) for name in _imports(module)} - {_room(module)}
    assert others <= set(ALLOWED[_room(module)].split())


def test_modules_import_each_other_in_no_circle():
    left = {module: set(_imports(module)) - {module} for module in MODULES}
    while left:
        ready = [module for module, imports in left.items() if not imports & set(left)]
        assert ready, f"in a circle, or behind one: {sorted(left)}"
        for module in ready:
            del left[module]


TYPED = ("config", "data", "diagnostics", "errors", "export", "layers", "models", "optim", "run", "training", "weights")
# Names by which Keras calls what is ours: their arguments are Keras'.
OF_KERAS = {"build", "call", "compute_output_shape", "compute_output_spec", "get_config", "set_model", "update_state"}


def _public(body, prefix=""):
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from _public(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith(("_", "on_")):
            if node.name not in OF_KERAS:
                yield f"{prefix}{node.name}", node


@pytest.mark.parametrize("module", [name for name in MODULES if _room(name) in TYPED])
def test_public_functions_have_type_hints(module):
    with open(MODULES[module], encoding="utf-8") as file:
        tree = ast.parse(file.read())
    for name, node in _public(tree.body):
        given = [one for one in node.args.args + node.args.kwonlyargs if one.arg not in ("self", "cls")]
        assert node.returns is not None, f"{module}.{name}"
        assert all(one.annotation is not None for one in given), f"{module}.{name}"


def test_old_names_are_those_of_their_modules():
    for old, new in moved.MOVED.items():
        assert importlib.import_module(old) is importlib.import_module(new)
        assert importlib.import_module(new).__name__ == new


def test_every_package_is_installed():
    parser = configparser.ConfigParser()
    parser.read(os.path.join(ROOT, "setup.cfg"))
    listed = set(parser["options"]["packages"].split())
    folders = {os.path.relpath(os.path.dirname(p), ROOT).replace(os.sep, ".") for p in MODULES.values()}
    assert listed == folders | {"g16net.experiment_files", "g16net.experiment_files.sweeps"}


WITHOUT_TENSORFLOW = """
import importlib, sys
for name in ["g16net", "g16net.config", "g16net.models", "g16net.config.recipe", "g16net.report", "g16net.sweep"]:
    importlib.import_module(name)
    assert not {"tensorflow", "keras", "tf_keras"} & set(sys.modules), name
from g16net import models
from g16net.costs import counts
from g16net.report import page
counts.count(), models.list()
page.write([sys.argv[1]], sys.argv[2], quoted=False)
assert not {"tensorflow", "keras", "tf_keras"} & set(sys.modules)
"""


@pytest.mark.run
def test_importing_counting_and_reporting_start_no_tensorflow(tmp_path):
    made_runs.write(tmp_path / "run")
    arguments = [str(tmp_path / "run"), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", WITHOUT_TENSORFLOW, *arguments], check=True, cwd=ROOT)

"""Finds and loads experiment files: Python files with `get_config(arg)` that returns a config.

By name in `experiments/` (of the checkout, or installed beside this module), or any `.py` file by its path. An
experiment file is the user's own Python and is run as such.
"""

import ast
import importlib.util
import os

from g16net import config as config_lib
from g16net.config import ConfigError

_HERE = os.path.dirname(os.path.abspath(__file__))
FOLDERS = (os.path.join(_HERE, "experiment_files"), os.path.join(os.path.dirname(_HERE), "experiments"))


def names():
    """The names of the experiments that ship with g16net, sorted."""
    folder = _folder()
    return sorted(name[:-3] for name in os.listdir(folder) if name.endswith(".py") and not name.startswith("_"))


def listing():
    """`(name, first line of its docstring)` of each experiment; no experiment is run for it."""
    rows = []
    for name in names():
        with open(_path(name), encoding="utf-8") as file:
            rows.append((name, (ast.get_docstring(ast.parse(file.read())) or "").split("\n")[0]))
    return rows


def load(text, **extra):
    """The config of the experiment `text`, as `NAME`, `NAME:ARG` or `FILE.py:ARG`; `extra` adds boolean arguments."""
    name, _, arg = text.partition(":")
    arg = ",".join(filter(None, [arg] + [key for key, value in extra.items() if value]))
    path = _path(name)
    spec = importlib.util.spec_from_file_location(f"g16net_experiment_{os.path.basename(path)[:-3]}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"experiment file {path!r} has no function get_config(arg); see experiments/g16_ln_pn.py")
    return module.get_config(arg)


def run_name(text, demo):
    """The default folder name of a run of `text`: `g16_ln_pn-variant=B2`."""
    name, _, arg = text.partition(":")
    parts = [os.path.basename(name)[:-3] if name.endswith(".py") else name] + ([arg] if arg else [])
    return "-".join(parts + (["demo"] if demo else [])).replace(",", "-").replace(os.sep, "_")


def _folder():
    for folder in FOLDERS:
        if os.path.isdir(folder):
            return folder
    raise FileNotFoundError(f"no experiments in {' or '.join(FOLDERS)}; is g16net installed whole?")


def _path(name):
    path = name if name.endswith(".py") else os.path.join(_folder(), f"{name}.py")
    if not os.path.isfile(path):
        where = f"no such file: {name}" if name.endswith(".py") else config_lib.suggest(name, names())
        raise ConfigError(f"unknown experiment {name!r}. {where}")
    return path

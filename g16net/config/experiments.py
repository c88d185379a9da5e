"""Finds and loads experiment files: Python files with `get_config(arg)` that returns a config.

By name in `experiments/` (of the checkout, or installed within the package), or any `.py` file by its path. An
experiment file is the user's own Python and is run as such.
"""

import ast
import importlib.util
import os

from g16net.errors import ConfigError, suggest

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the package
FOLDERS = (os.path.join(_HERE, "experiment_files"), os.path.join(os.path.dirname(_HERE), "experiments"))


def names(folder=""):
    """The names of the experiments that ship with g16net, sorted; with `folder` "sweeps" those of the sweeps."""
    folder = os.path.join(_folder(), folder)
    return sorted(name[:-3] for name in os.listdir(folder) if name.endswith(".py") and not name.startswith("_"))


def listing():
    """`(name, first line of its docstring)` of each experiment; no experiment is run for it."""
    rows = []
    for name in names():
        with open(_path(name), encoding="utf-8") as file:
            rows.append((name, (ast.get_docstring(ast.parse(file.read())) or "").split("\n")[0]))
    return rows


def load(text, arg="", **extra):
    """The config of the experiment `text`, as `NAME`, `NAME:ARG` or `FILE.py:ARG`.

    Args:
        arg: further arguments, as after the colon: an experiment that starts from another hands its own on.
        **extra: further boolean arguments.

    ConfigError where there is no such experiment, or no `get_config` in it.
    """
    loaded, own = module(text)
    arg = ",".join(filter(None, [own, arg] + [key for key, value in extra.items() if value]))
    if not hasattr(loaded, "get_config"):
        hint = "it is a sweep's: use --mode=sweep" if hasattr(loaded, "get_runs") else "see experiments/g16_ln_pn.py"
        raise ConfigError(f"experiment file {loaded.__file__!r} has no function get_config(arg); {hint}")
    return loaded.get_config(arg)


def module(text, folder=""):
    """`(module, ARG)` of `NAME:ARG` in `folder` of the experiments, or of `FILE.py:ARG`."""
    name, _, arg = text.partition(":")
    path = _path(name, folder)
    spec = importlib.util.spec_from_file_location(f"g16net_experiment_{os.path.basename(path)[:-3]}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded, arg


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


def _path(name, folder=""):
    path = name if name.endswith(".py") else os.path.join(_folder(), folder, f"{name}.py")
    if not os.path.isfile(path):
        where = f"no such file: {name}" if name.endswith(".py") else suggest(name, names(folder))
        raise ConfigError(f"unknown {folder[:-1] or 'experiment'} {name!r}. {where}")
    return path

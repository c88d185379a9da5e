"""Writes docs/api.md, the reference of the public names, from their docstrings.

python docs/make_api.py            writes the page; a test fails where it is not current
"""

import importlib
import inspect
import os
import re
import sys

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "api.md")

# Modules for users, by what one does with them; a name without underscore in them is public.
MODULES = {
    "Models": ("models", "models.efficientnet", "models.architecture", "models.costs", "models.split"),
    "Layers": (
        "layers.group_conv",
        "layers.norms",
        "layers.proxy_norm",
        "layers.norm_activation",
        "layers.normalize",
        "layers.squeeze_excite",
        "layers.stochastic_depth",
    ),
    "Training": ("optim.rmsprop", "optim.schedules", "optim.losses", "optim.weight_average", "checkpoint"),
    "Weights of others": (
        "warm_start",
        "foreign_weights",
        "models.timm_weights",
        "models.tf1_weights",
        "models.convert",
    ),
    "Data": ("data.sources", "data.sources.base", "data.pipeline", "data.order", "data.transforms", "data.augment"),
    "Data, on the way": ("data.mixing", "data.cache", "data.features", "data.make_set"),
    "Runs": ("config", "experiments", "recipe", "assemble", "sweep", "records"),
    "Modes": ("train", "finetune", "evaluate", "predict", "channels", "inspect_data"),
    "Export": ("export", "models.portable", "export.folding", "export.verify", "export.runners"),
}


def modules():
    """The modules of the reference, imported, in order."""
    for names in MODULES.values():
        for name in names:
            yield importlib.import_module(f"g16net.{name}")


def public(module):
    """`(name, object)` of the functions and classes that `module` defines for others, in the order of its text."""
    found = [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]
    return sorted(found, key=lambda item: _line(item[1]))


def methods(cls):
    """`(name, function)` of the documented public methods that `cls` itself defines."""
    for name, value in vars(cls).items():
        if not name.startswith("_") and inspect.isfunction(value) and inspect.getdoc(value) and value.__doc__:
            yield name, value


def text():
    """The page."""
    lines = [
        "# Reference",
        "",
        "Written by `python docs/make_api.py` from the docstrings; do not edit. Shapes are in brackets,",
        "`[batch, height, width, channels]`; sizes are pixels, times seconds.",
        "",
    ]
    for heading, names in MODULES.items():
        links = ", ".join(f"[`{name}`](#g16net{re.sub('[^a-z0-9_]', '', name)})" for name in names)
        lines.append(f"- {heading}: {links}")
    for module in modules():
        lines += ["", f"## {module.__name__}", "", *_fenced(module.__doc__)]
        for name, value in public(module):
            lines += ["", f"### {name}", "", *_fenced(f"{name}{_signature(value)}\n\n{inspect.getdoc(value)}")]
            if inspect.isclass(value):
                for method, function in methods(value):
                    doc = inspect.getdoc(function)
                    lines += ["", f"#### {name}.{method}", "", *_fenced(f"{method}{_signature(function)}\n\n{doc}")]
    return "\n".join(lines) + "\n"


def _signature(value):
    try:
        shown = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    shown = re.sub(r" at 0x[0-9a-f]+", "", shown)
    if len(shown) > 100:
        shown = "(\n    " + re.sub(r", (?=\w+[=,)]|\*)", ",\n    ", shown[1:-1]) + ",\n)"
    return shown


def _fenced(doc):
    return ["```text", inspect.cleandoc(doc or "").strip(), "```"]


def _line(value):
    try:
        return inspect.getsourcelines(value)[1]
    except OSError:
        return 0


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(PAGE)))
    with open(PAGE, "w", encoding="utf-8") as file:
        file.write(text())
    print(f"{PAGE}: {sum(len(public(module)) for module in modules())} names")

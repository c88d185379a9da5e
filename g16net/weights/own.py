"""What weights of ours were trained with that their shapes do not tell: by their run's `config.json`, or by the
`.keras` file that they are in.
"""

import json
import os
import zipfile
from typing import Any, Dict, Iterator

from g16net import config as config_lib

ALWAYS = ("model.mean", "model.std", "model.activation", "data.eval_resize", "data.eval_crop")
# Of the norms, and so taken over where the network has the same ones.
OF_NORM = (
    "model.norm_epsilon", "model.norm_groups", "model.norm_group_size", "model.strided_groups", "model.proxy_epsilon",
    "model.quadrature",
)  # fmt: skip
GROUPING = {"model.norm_groups", "model.norm_group_size"}
# The field of a setting of our layers.
OF_LAYERS = {"epsilon": "norm_epsilon", "strided": "strided_groups", "proxy_epsilon": "proxy_epsilon"}
OF_LAYERS["quadrature"] = "quadrature"


def settings(path: str, norm: str) -> Dict[str, Any]:
    """{field: value} for the weights at `path`, a workdir, a checkpoint or a `.keras` file, in a network with `norm`;
    empty where nothing tells them."""
    folder = os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))
    above = os.path.dirname(folder), os.path.dirname(os.path.dirname(folder))
    for place in (folder, *above):  # of a fine-tuning or a checkpoint two folders above
        try:
            config = config_lib.load(os.path.join(place, "config.json"))
        except (OSError, ValueError, AttributeError, KeyError, TypeError):  # none, or not of ours
            continue
        fields = ALWAYS + (OF_NORM if config.model.norm == norm else ())
        found = {field: config[field.split(".")[0]][field.split(".")[1]] for field in fields}
        break
    else:
        found = {}
    return {**found, **(_of_layers(path, norm) if os.path.isfile(path) and zipfile.is_zipfile(path) else {})}


def _of_layers(path, norm):
    with zipfile.ZipFile(path) as file:
        described = json.loads(file.read("config.json")) if "config.json" in file.namelist() else {}
    found, kinds, groups, sizes = {}, set(), set(), set()
    for layer, shape in _layers(described):
        if layer["name"] == "normalize":
            found.update({f"model.{key}": tuple(layer[key]) for key in ("mean", "std") if key in layer})
        elif "pooled" in layer and "epsilon" in layer:  # a norm, or its proxy
            found.update({f"model.{field}": layer[key] for key, field in OF_LAYERS.items() if key in layer})
            if isinstance(layer.get("activation"), str):
                found["model.activation"] = layer["activation"]
            kinds.add("pn" if "proxy_epsilon" in layer else "bn" if "momentum" in layer else
                      "gn" if "groups" in layer else "ln")  # fmt: skip
            if "groups" in layer and "proxy_epsilon" not in layer:
                groups.add(layer["groups"])
                sizes.add(shape[-1] // layer["groups"] if shape else None)
    if len(groups) == 1:
        found.update({"model.norm_groups": groups.pop(), "model.norm_group_size": None})
    elif len(sizes) == 1 and None not in sizes:
        found["model.norm_group_size"] = sizes.pop()
    same = kinds == set(norm.split("_"))
    return {field: value for field, value in found.items() if same or field not in OF_NORM}


def _layers(described: Any) -> Iterator[Any]:
    """`(settings, shape of the input or None)` of each layer in a file's description of a network, whatever it is
    within."""
    if isinstance(described, dict):
        inner = described.get("config")
        if isinstance(inner, dict) and "name" in inner:
            yield inner, (described.get("build_config") or {}).get("input_shape")
        described = list(described.values())
    if isinstance(described, list):
        for part in described:
            yield from _layers(part)

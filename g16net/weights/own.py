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
    """{field: value} for the weights at `path`, a workdir, a checkpoint, a `.keras` or `.h5` file, in a network with
    `norm`; empty where nothing tells them."""
    place = os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))
    places = [place]
    while len(places) < 5:  # the checkpoint of a fine-tuning lies four folders below its run
        places.append(os.path.dirname(places[-1]))
    for place in places:
        try:
            config = config_lib.load(os.path.join(place, "config.json"))
        except (OSError, ValueError, AttributeError, KeyError, TypeError):  # none, or not of ours
            continue
        fields = ALWAYS + (OF_NORM if config.model.norm == norm else ())
        found = {field: config[field.split(".")[0]][field.split(".")[1]] for field in fields}
        break
    else:
        found = {}
    return {**found, **(_of_layers(_described(path), norm) if os.path.isfile(path) else {})}


def _described(path):
    """The description of the model that a `.keras` file, or a whole model's `.h5`, holds beside its weights; or {}."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("config.json")) if "config.json" in file.namelist() else {}
    import h5py

    if not h5py.is_hdf5(path):
        return {}
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs["model_config"]) if "model_config" in file.attrs else {}


def _of_layers(described, norm):
    layers = {layer["config"]["name"]: layer for layer in _layers(described)}
    found, kinds, groups, sizes = {}, set(), set(), set()
    for name, layer in layers.items():
        of = layer["config"]
        if name == "normalize":
            found.update({f"model.{key}": tuple(of[key]) for key in ("mean", "std") if key in of})
        elif "pooled" in of and "epsilon" in of:  # a norm, or its proxy
            found.update({f"model.{field}": of[key] for key, field in OF_LAYERS.items() if key in of})
            if isinstance(of.get("activation"), str):
                found["model.activation"] = of["activation"]
            kinds.add("pn" if "proxy_epsilon" in of else "bn" if "momentum" in of else "gn" if "groups" in of else "ln")
            if "groups" in of and "proxy_epsilon" not in of:
                channels = _channels(layers, name)
                groups.add(of["groups"])
                sizes.add(channels and channels / of["groups"])
    if len(groups) == 1:
        found.update({"model.norm_groups": groups.pop(), "model.norm_group_size": None})
    elif len(sizes) == 1 and None not in sizes:
        found["model.norm_group_size"] = int(sizes.pop())
    same = kinds == set(norm.split("_"))
    return {field: value for field, value in found.items() if same or field not in OF_NORM}


def _layers(described: Any) -> Iterator[Any]:
    """The description of each layer in that of a network, whatever it is within."""
    if isinstance(described, dict):
        if isinstance(described.get("config"), dict) and "name" in described["config"]:
            yield described
        described = list(described.values())
    if isinstance(described, list):
        for part in described:
            yield from _layers(part)


def _channels(layers, name):
    """Channels of what goes into the layer `name`; None where that is not told."""
    shape = (layers[name].get("build_config") or {}).get("input_shape")
    while not shape and name in layers:
        nodes = layers[name].get("inbound_nodes")
        try:
            name = nodes[0][0][0]
        except (LookupError, TypeError):
            return None
        filters = layers.get(name, {}).get("config", {}).get("filters")
        shape = [filters] if filters else None
    return shape[-1] if shape else None

"""Which library's weights a file holds, the network they belong to, and their arrays by our names.

The kind is told by content, never by the ending: safetensors with timm's names, HDF5 or `.keras` with those of
keras.applications, TensorFlow 1 checkpoints with those of the authors' code. Nothing here runs code out of a file:
pickles (torch's `.pth`) are refused.
"""

import json
import os
import re
import struct
import zipfile
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from g16net import extras
from g16net.config import experiments, recipe
from g16net.errors import UserError
from g16net.models import architecture, norms
from g16net.weights import keras_applications, lukemelas, own, tf1, timm

NUMPY_DTYPES = {"F64", "F32", "F16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}  # of safetensors
KINDS = "a workdir, one of its checkpoints/STEP, a .keras or .h5 file, or weights of timm or EfficientNet-PyTorch "
KINDS += "(.safetensors), keras.applications (.h5, .keras) or the authors' TensorFlow 1 code (prefix or folder)"
TORCH = 'torch itself writes one without running code of the file: python -c "import torch, safetensors.torch as st; '
TORCH += "st.save_file({k: v.contiguous() for k, v in torch.load('FILE.pth', map_location='cpu', weights_only=True)"
TORCH += ".items()}, 'FILE.safetensors')\""


class Foreign(NamedTuple):
    """Weights of another library.

    Attributes:
        library: whose they are, in words.
        network: fields of the config that their shapes fix; a tuple holds what is possible.
        settings: fields that belong to these weights, such as the input's mean; a user may set others.
        values: our model -> {name of our weight: array}, and under their own names what has no place in it.
        assumed: {one of `settings`: why it is a guess}, which a user is told.
        symmetric: whether convolutions are padded alike on all sides, which ours are at some sizes only.
        check: looks at the loaded model and warns of what in the file contradicts it.
    """

    library: str
    network: Dict[str, Any]
    settings: Dict[str, Any]
    values: Callable[[Any], Dict[str, np.ndarray]]
    assumed: Dict[str, str] = {}
    symmetric: bool = False
    check: Callable[[Any], None] = lambda model: None


def settle(config: ConfigDict, given: Set[str], begun: Optional[str] = None) -> None:
    """Checks `init.checkpoint` against the network of `config`, and sets the fields that come with its weights: what
    the network computes with them that their shapes do not tell, such as the input's mean.

    Args:
        config: with `init.checkpoint` set; changed in place.
        given: the keys that the command line sets, which are left as they are.
        begun: the workdir of the run that goes on, which has what weights of ours brought it.

    Raises:
        UserError: nothing there, a file of an unknown kind, or weights of another network; with the remedy.
    """
    path = config.init.checkpoint
    foreign = inspect(path)
    if foreign is None:
        settings = own.settings(begun or path, config.model.norm)
        if given & own.GROUPING:  # one has no meaning with the other's
            settings = {key: value for key, value in settings.items() if key not in own.GROUPING}
        if not settings:
            fields = ", ".join(own.ALWAYS[:3])
            logging.warning(
                "init.checkpoint=%s: nothing in it or beside it tells what it was trained with; this run's %s and what "
                "its norms compute with are assumed", path, fields,
            )  # fmt: skip
        _take(config, given, settings, "the run that goes on" if begun else "the run they are of")
        return
    scaled = [f"model.{name}" for name in ("width", "depth") if config.model[name] is not None]
    wrong = []
    for key, wanted in foreign.network.items():
        value = config[key.split(".")[0]][key.split(".")[1]]
        if key == "model.variant":
            fits = _outline(recipe.variant_of(config)) == _outline(wanted)
            value = f"{value}{''.join(f' of {name}={config.model[name[6:]]:g}' for name in scaled)}"
        else:
            fits = value in wanted if isinstance(wanted, tuple) else value == wanted
        if not fits:
            wrong.append(f"{key}={wanted[0] if isinstance(wanted, tuple) else wanted}, here {value}")
    if wrong:
        without = f", without {' and '.join(scaled)}" if scaled else ""
        raise UserError(
            f"init.checkpoint={path} holds {foreign.library} weights of another network: {', '.join(wrong)}. "
            f"Start from {_experiment(foreign.network)}{without}"
        )
    possible = foreign.network["model.norm"]
    if isinstance(possible, tuple) and config.model.norm != possible[0]:
        logging.warning(
            "init.checkpoint=%s: its shapes fit %s alike; such weights are published with %s, and the run has "
            "model.norm=%s", path, " and ".join(possible), possible[0], config.model.norm,
        )  # fmt: skip
    settings = {"model.activation": recipe.variant_of(config).activation, **foreign.settings}
    _take(config, given, settings, f"{foreign.library} weights")
    for doubt in sorted(set(foreign.assumed.values())):
        keys = [key for key, why in foreign.assumed.items() if why == doubt and key not in given]
        if keys:
            logging.warning("init.checkpoint=%s: %s are assumed; others are set by %s",
                            path, doubt, " ".join(f"--config.{key}=..." for key in keys))  # fmt: skip
    if foreign.symmetric:
        _check_sizes(config, foreign)


def _take(config, given, settings, whose):
    """Sets the fields of `settings` that are not `given`, and warns of those given that differ."""
    for key, value in settings.items():
        section, name = key.split(".")
        now = config[section][name]
        now = recipe.variant_of(config).activation if key == "model.activation" and now is None else now
        if now == value:
            continue
        if key in given:
            logging.warning("init.checkpoint: %s=%s, as you set it, is not the %s of %s",
                            key, config[section][name], value, whose)  # fmt: skip
        else:
            logging.info("init.checkpoint: %s: %s -> %s, as in %s", key, now, value, whose)
            config[section][name] = value


def _check_sizes(config, foreign):
    """Warns of sizes at which 'SAME' padding, ours, shifts what was trained with padding alike on all sides."""
    resolved, stride = recipe.resolve(config), recipe.variant_of(config).stride
    chosen = {f"data.{name}": (resolved.data[name],) for name in ("train_size", "eval_size")}
    chosen.update({"eval.sizes": resolved.eval.sizes} if resolved.eval.sizes else {})

    def shown(nearest):
        return {key: ",".join(str(nearest(size)) for size in sizes) for key, sizes in chosen.items()}

    def fitting(size):
        return min(recipe.nearest_sizes(size, 1, stride), key=lambda fit: abs(fit - size))

    if any(size % stride != 1 for sizes in chosen.values() for size in sizes):
        logging.warning(
            "init.checkpoint=%s: %s network pads all sides alike, the one here as 'SAME'; the two are the "
            "same at sizes of %d m + 1 pixels only, and logits differ at %s. Take %s",
            config.init.checkpoint, foreign.library, stride,
            ", ".join(f"{key}={size}" for key, size in shown(int).items()),
            " ".join(f"--config.{key}={size}" for key, size in shown(fitting).items()),
        )  # fmt: skip


def _experiment(network):
    """The command-line arguments that give the network."""
    norm, size = network["model.norm"], network["model.group_size"]
    network = dict(network, **{"model.norm": norm[0] if isinstance(norm, tuple) else norm})
    name = f"g{size}_{network['model.norm']}"
    name = f"{name if name in experiments.names() else 'g16_ln_pn'}:variant={network['model.variant']}"
    model = experiments.load(name).model
    other = [f"--config.{key}={value}" for key, value in network.items() if model[key.split(".")[1]] != value]
    return " ".join([f"--experiment={name}"] + other)


def inspect(path: str) -> "Foreign":
    """The `Foreign` weights at `path`, or None where they are ours (a workdir, a checkpoint, a `.keras` file).

    UserError where nothing is there, or a file that is damaged or of another kind.
    """
    try:
        return _inspect(path)
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"init.checkpoint={path} cannot be read ({error}); is it whole? It takes {KINDS}") from error


def _inspect(path):
    if os.path.isdir(path):
        return _folder(path)
    if not os.path.exists(path):
        if os.path.exists(f"{path}.index"):
            return _tf1(path)
        raise UserError(
            f"init.checkpoint={path}: no such file or folder (looked at {os.path.abspath(path)}); it takes {KINDS}. "
            "A run that has begun goes on without it: name its --workdir alone"
        )
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"\x89HDF"):
        return _keras(path, *_hdf5(path))
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[8:9] == b"{":
        return _torch(path)
    if path.endswith(".index"):
        return _tf1(path[: -len(".index")])
    pickle = f"; it looks like a pickle, which could run code. {TORCH}" if head.startswith(b"\x80") else ""
    raise UserError(f"init.checkpoint={path} is no file of weights that can be read{pickle}; it takes {KINDS}")


def _folder(path):
    names = os.listdir(path)
    if "checkpoints" in names or "state.index" in names or any(re.fullmatch(r"\d{8,}", name) for name in names):
        return None
    if any(name.endswith(".index") for name in names):
        return _tf1(path)
    raise UserError(f"init.checkpoint={path} holds no whole checkpoint; it takes {KINDS}")


def _zip(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if not {"config.json", "model.weights.h5"} <= set(names):
            torch = any(name.endswith("data.pkl") for name in names)
            raise UserError(
                f"init.checkpoint={path} is "
                + ("a pickle of torch, which could run code and is not read" if torch else "no .keras file")
                + f". Of timm's weights take the .safetensors file. {TORCH}"
            )
        if archive.getinfo("config.json").file_size > 2**26:
            raise UserError(f"init.checkpoint={path}: its config.json is larger than 64 MiB, and no model's")
        config = json.loads(archive.read("config.json"))
        if '"g16net>' in json.dumps(config):
            return None
        return _keras(path, *_archive(archive))


def keras_arrays(path: str) -> Dict[str, List[Any]]:
    """{layer: arrays in the order of its weights} of a file of either Keras generation, `.keras` or HDF5.

    No object of the file is made, so that its layers may be such as this generation of Keras has not.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _archive(archive)[0]
    return _hdf5(path)[0]


# keras.applications


def _archive(archive):
    """As `_hdf5`, of an open `.keras` file."""
    layers = json.loads(archive.read("config.json")).get("config", {}).get("layers", [])
    with archive.open("model.weights.h5") as file:
        return _hdf5(file, layers)


def _hdf5(file, layers=()):
    """({layer: arrays in the order of its weights}, the layers of the model's config) of an HDF5 file of Keras.

    Of a model inside a model the layers stand beside the others.

    Args:
        file: path or file object.
        layers: of the config, in order, where it is in another file: weights of tf-keras count the layers of each class
            and name none. A model's `.h5` has its own, one of weights alone has none.
    """
    import h5py

    def arrays(group):
        return [np.asarray(group[name]) for name in sorted(filter(str.isdigit, group), key=int)]

    def inside(group, layers):
        found, counts = {}, {}
        groups = group.get("layers", group.get("_layer_checkpoint_dependencies", {}))
        order = {}  # of a layer in its group: the layers' classes are counted
        for layer in layers:
            kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", layer["class_name"]).lower()
            kind = re.sub(r"(\d)_d$", r"\1d", "functional" if kind == "model" else kind)
            number = counts[kind] = counts.get(kind, -1) + 1
            order[f"{kind}_{number}" if number else kind] = layer
        for key, part in groups.items():
            layer = order.get(key, {})
            if "vars" in part:
                name = part["vars"].attrs.get("name", layer.get("config", {}).get("name"))
                if name is not None:
                    found[_text(name)] = arrays(part["vars"])
            if "layers" in part or "_layer_checkpoint_dependencies" in part:
                found.update(inside(part, layer.get("config", {}).get("layers", ())))
        return found

    with h5py.File(file, "r") as store:
        if "model_config" in store.attrs:
            layers = json.loads(_text(store.attrs["model_config"]))["config"]["layers"]
        store = store.get("model_weights", store)
        if "layer_names" in store.attrs:
            found = {}
            for layer in (_text(name) for name in store.attrs["layer_names"]):
                names = [_text(name) for name in store[layer].attrs["weight_names"]]
                owners = [name.split("/")[-2] if "/" in name else layer for name in names]
                for name, owner in zip(names, owners):  # several owners: a model inside the model
                    key = owner if len(set(owners)) > 1 else layer
                    found.setdefault(key, []).append(np.asarray(store[layer][name]))
            return found, layers
        return inside(store, layers), layers


def _text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def _keras(path, arrays, layers):
    if "stem_conv" in arrays and "stem_norm" in arrays:
        return None  # ours
    if "stem_conv" not in arrays or "block1a_dwconv" not in arrays:
        if arrays:
            problem = f"its layers are {', '.join(list(arrays)[:4])}, ..."
        else:
            problem = "it does not name its layers; save the whole model as .keras, or its weights as .h5"
        raise UserError(f"init.checkpoint={path} holds no EfficientNet of keras.applications: {problem}")
    inside, expanded = arrays["block2a_expand_conv"][0].shape[2:] if "block2a_expand_conv" in arrays else (1, 1)
    blocks = {layer.split("_")[0] for layer in arrays if layer.startswith("block") and arrays[layer]}
    network = _network(
        path,
        arrays["stem_conv"][0].shape[-1],
        arrays["top_conv"][0].shape[-2:],
        blocks,
        any(layer.endswith("_se_reduce") for layer in arrays),
        1,
        expanded // inside,
        norms.published("keras.applications"),
    )

    def values(model):
        return keras_applications.find(arrays, model)

    mean, std, doubt = _keras_input(arrays, layers)
    assumed = {key: doubt for key in ("model.mean", "model.std") if doubt}
    # The authors' evaluation, from whose checkpoints these weights are; Keras brings none of its own.
    test = timm.preprocessing(f"tf_efficientnet_{network['model.variant'].lower()}")
    settings = _input(test._replace(mean=mean, std=std))
    return Foreign("keras.applications'", network, settings, values, assumed)


def _flat(layers):
    """The layers of a model's config in order, those of a model inside it in its place."""
    for layer in layers:
        inside = layer["config"].get("layers")
        yield from _flat(inside) if isinstance(inside, list) else [layer]


def _keras_input(arrays, layers):
    """`(mean, std, doubt)` of the input on the scale of 0..1, by the layers before the stem.

    Args:
        arrays: {layer: its arrays}.
        layers: of the model's config, in order; without them, the layers that keras.applications builds.

    `doubt` is None, or says what of it is not in the file.
    """
    stored = [v for name, v in arrays.items() if re.fullmatch(r"normalization(_\d+)?", name) and len(v) > 1]
    scale, offset = np.ones(3), np.zeros(3)  # of the input of 0..255
    if not layers:
        if not stored:
            return timm.MEAN, timm.STD, "the file has no normalization layer; ImageNet's values"
        mean, variance = (np.asarray(value, np.float64).ravel() for value in stored[0][:2])
        # ImageNet's weights have the deviation for the variance; the network divides by its root once more
        imagenet = variance.shape == (3,) and np.allclose(variance, timm.STD, atol=1e-5)
        doubt = "of several normalization layers, whose order the file does not tell, the first's values"
        return mean, variance if imagenet else np.sqrt(variance), doubt if len(stored) > 1 else None
    unknown, read, met = [], [], False
    for layer in _flat(layers):
        kind, form = layer["class_name"], layer["config"]
        if form["name"].startswith("stem_conv"):
            met = True
            break
        if kind == "Rescaling":
            factor = np.asarray(form["scale"], np.float64)
            scale, offset = scale * factor, offset * factor + np.asarray(form["offset"], np.float64)
        elif kind == "Normalization" and (form.get("mean") is not None or len(arrays.get(form["name"], ())) > 1):
            if form.get("mean") is None:
                read.append(form["name"])
            given = arrays[form["name"]][:2] if form.get("mean") is None else (form["mean"], form["variance"])
            mean, variance = (np.asarray(value, np.float64).ravel() for value in given)
            scale, offset = scale / np.sqrt(variance), (offset - mean) / np.sqrt(variance)
        elif kind != "InputLayer" and not kind.startswith("Random"):
            unknown.append(kind)
    if not met:  # a layer of a kind of its own holds the network
        return _keras_input(arrays, ())
    doubt = f"the layers {', '.join(unknown)} before the stem are not read; the others'" if unknown else None
    if len(set(read)) < len(read):  # one is within another model, and files name the layer alone
        doubt = f"two normalization layers are both named {max(read, key=read.count)}; the values of one for both"
    return -offset / scale / 255, 1 / scale / 255, doubt


# timm, and EfficientNet-PyTorch, which becomes it


def _torch(path):
    extras.need("safetensors.numpy", "weights", "reading weights of torch")
    shapes = _safetensors_shapes(path)
    if "_conv_stem.weight" not in shapes:
        return _timm(path, shapes)
    names = lukemelas.names(shapes)
    network, _ = _timm_network(path, {names[name]: shape for name, shape in shapes.items()})
    test, doubt = lukemelas.preprocessing(os.path.basename(path), network["model.variant"])
    settings = {**_input(test), "model.norm_epsilon": timm.NORM_EPSILON["tf_"]}
    assumed = dict.fromkeys(_input(test), doubt) if doubt else {}

    def values(model):
        return timm.find({names[name]: array for name, array in timm.read(path).items()}, model)

    return Foreign("EfficientNet-PyTorch's", network, settings, values, assumed)


def _timm_network(path, shapes):
    """`(network, whether the norm is batch norm)` of timm's weights with these `shapes`; UserError for others."""
    needed = ("conv_stem.weight", "conv_head.weight", "blocks.1.0.conv_pw.weight", "blocks.1.0.conv_dw.weight")
    if any(name not in shapes for name in needed):
        raise UserError(
            f"init.checkpoint={path} holds no EfficientNet of timm: it has no {needed[0]} and its kind, it begins with "
            f"{', '.join(list(shapes)[:3])}"
        )
    expanded, inside = shapes["blocks.1.0.conv_pw.weight"][:2]
    blocks = {tuple(name.split(".")[1:3]) for name in shapes if name.startswith("blocks.")}
    over_batch = "bn1.running_mean" in shapes
    network = _network(
        path, shapes["conv_stem.weight"][0], shapes["conv_head.weight"][1::-1], blocks,
        any(".se." in name for name in shapes), shapes["blocks.1.0.conv_dw.weight"][1], expanded // inside,
        norms.published("timm", over_batch=over_batch),
    )  # fmt: skip
    _check_timm(path, shapes, timm.shapes(*list(network.values())[:3], over_batch=over_batch))
    return network, over_batch


def _timm(path, shapes):
    network, over_batch = _timm_network(path, shapes)
    name, test, doubt = _timm_description(path, network["model.variant"])
    settings = _input(test)
    assumed = dict.fromkeys(("data.eval_crop",) if doubt == SQUASHED else settings, doubt) if doubt else {}
    kind = re.search("(tf_)?efficientnet_", name)
    symmetric = not over_batch or bool(kind and not kind[1])  # with group norm there are no tf_ models
    settings["model.norm_epsilon"] = timm.NORM_EPSILON[None if symmetric else "tf_"]
    if over_batch and not kind:
        assumed["model.norm_epsilon"] = "the name does not say whether it is a tf_ model; epsilon and padding of one"
    if not over_batch:
        settings["model.norm_group_size"] = timm.GROUP_NORM_SIZE
        settings["model.strided_groups"] = False

    def values(model):
        return timm.find(timm.read(path), model)

    return Foreign("timm's", network, settings, values, assumed, symmetric)


def _check_timm(path, shapes, ours):
    """UserError where the weights of a file, but for the classifier's, are not those of our network."""
    theirs = {
        name: shape
        for name, shape in shapes.items()
        if not name.startswith("classifier.") and not name.endswith("num_batches_tracked")
    }
    lacking = [f"{name} is missing" for name in ours if name not in theirs]
    other = [f"{n} is {theirs[n]}, not {shape}" for n, shape in ours.items() if theirs.get(n, shape) != shape]
    extra = [f"{name} has no place here" for name in theirs if name not in ours]
    if lacking or other or extra:
        some = [names[0] for names in (lacking, other, extra) if names]
        raise UserError(
            f"init.checkpoint={path} holds another kind of network of timm than there is here ({'; '.join(some)}; "
            f"{len(lacking) + len(other) + len(extra)} differences in all); it takes tf_efficientnet_b0 to b7 and "
            "lite0 to lite4, the same without tf_, efficientnet_b0_gn and efficientnet_b0_g8_gn"
        )


def _safetensors_shapes(path):
    """{name: shape} from a safetensors file's header, which is JSON."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(os.path.getsize(path), 2**26):
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length).decode())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if end != os.path.getsize(path):
            raise ValueError(f"by its header it has {end} bytes, and it has {os.path.getsize(path)}")
        foreign = sorted({str(entry["dtype"]) for entry in entries.values()} - NUMPY_DTYPES)
        if foreign:
            raise UserError(
                f"init.checkpoint={path} holds {', '.join(foreign)}, which NumPy has not; write it as float32: "
                "safetensors.torch.save_file({k: v.float() for k, v in state_dict.items()}, 'weights.safetensors')"
            )
        return {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"init.checkpoint={path} is no whole safetensors file: {error}") from error


SQUASHED = "timm fits these weights' images into a square without a crop, which is not to be had here; centre crops"


def _timm_description(path, variant):
    """`(timm's name, timm.Input, doubt)` by the hub's `config.json` beside the file, or by the file's own name.

    `doubt` is None, or says why the preprocessing is a guess.
    """
    described = {}
    try:
        with open(os.path.join(os.path.dirname(path), "config.json"), encoding="utf-8") as file:
            described = json.load(file)
    except (OSError, ValueError):
        pass
    described = described if isinstance(described, dict) else {}
    name = described.get("architecture")
    name = name if isinstance(name, str) else os.path.basename(path)
    file = os.path.basename(path)
    named = next((text for text in (file, name) if "efficientnet_" in text), f"tf_efficientnet_{variant.lower()}")
    test, squashed = timm.preprocessing(named), timm.SQUASHED in named
    form = described.get("pretrained_cfg", described)
    if isinstance(form, dict) and "architecture" in described:
        test = test._replace(resize=timm.RESIZES.get(str(form.get("interpolation")), test.resize))
        crop = form.get("crop_pct")
        if isinstance(crop, (int, float)) and 0 < crop <= 1:
            test = test._replace(crop=float(crop))
        given = form.get("mean"), form.get("std")
        if all(isinstance(v, list) and len(v) == 3 and all(isinstance(x, (int, float)) for x in v) for v in given):
            squashed = form.get("crop_mode") in ("squash", "border") or squashed and "crop_mode" not in form
            return name, test._replace(mean=given[0], std=given[1]), SQUASHED if squashed else None
    if squashed:
        return name, test, SQUASHED
    told = r"[._]\w*(in1k|in12k)\b|tf_efficientnet_\w+_(aa|ap|ns|ra)\b"  # the hub's names, and those of releases
    if timm.HALF_NAMES.search(file) or re.search(told, file):
        return name, test, None
    doubt = "neither a config.json beside the file nor its name has the preprocessing; values of such networks"
    return name, test, doubt


# TensorFlow 1


def _tf1(path):
    reader = tf1.open_reader(path)
    shapes = reader.get_variable_to_shape_map()
    shapes = {name: tuple(shapes[whole]) for name, whole in tf1.names(reader).items()}
    needed = [f"{scope}/conv/conv2d/kernel" for scope in ("block0", "Top", "block2a/a", "block2a/b")]
    if any(name not in shapes for name in needed):
        raise UserError(
            f"init.checkpoint={path} is a TensorFlow checkpoint, but not of the authors' code: it has no {needed[0]} "
            f"and its kind, it begins with {', '.join(sorted(reader.get_variable_to_shape_map())[:3])}"
        )
    if "Top/proxy" not in shapes and "Top/GroupNorm/gamma" not in shapes:
        raise UserError(
            f"init.checkpoint={path} has neither Top/GroupNorm/gamma nor Top/proxy: of the authors' checkpoints, those "
            "with group, layer or proxy norm are read, those with batch norm are not"
        )
    inside, expanded = shapes[needed[2]][2:]
    blocks = {name.split("/")[0] for name in shapes if re.match(r"block[1-7][a-z]/", name)}
    network = _network(
        path, shapes[needed[0]][-1], shapes[needed[1]][-2:], blocks, any("/SE/" in name for name in shapes),
        shapes[needed[3]][2], expanded // inside, norms.published("tf1", proxied="Top/proxy" in shapes),
    )  # fmt: skip
    return Foreign(
        "the authors' TensorFlow 1",
        network,
        {"model.strided_groups": True},
        lambda model: tf1.find(reader, model),
        check=lambda model: tf1.check_proxies(reader, model),
    )


# all


def _network(path, stem, top, blocks, excited, group_size, expand_ratio, possible):
    """The fields that shapes fix, with a norm out of those `possible`; UserError where no variant has these widths
    and this depth. `top`: the channels into the last 1x1 convolution and out of it."""
    outline = (stem, *top, len(blocks), excited)
    fitting = [name for name in architecture.VARIANTS if _outline(name) == outline]
    if not fitting:
        raise UserError(
            f"init.checkpoint={path}: no variant here has {stem} channels in the stem, {top[1]} at the top, {top[0]} "
            f"before it and {len(blocks)} blocks {'with' if excited else 'without'} squeeze-and-excite; "
            f"{', '.join(architecture.VARIANTS)} are known"
        )
    return {
        "model.variant": fitting[0],
        "model.group_size": int(group_size),
        "model.expand_ratio": int(expand_ratio),
        "model.norm": possible if len(possible) > 1 else possible[0],
    }


def _outline(variant):
    """What tells variants apart: the channels of the stem, into and out of the top, the number of blocks, and whether
    they have squeeze-and-excite."""
    blocks = architecture.blocks(variant)
    ends = architecture.stem_channels(variant), blocks[-1].out_channels, architecture.top_channels(variant)
    return (*ends, len(blocks), blocks[0].se_width > 0)


def _input(test):
    """The fields of a `timm.Input`, which is normalised on the scale of 0..1."""
    scale = {f"model.{name}": tuple(255.0 * float(v) for v in getattr(test, name)) for name in ("mean", "std")}
    return {**scale, "data.eval_resize": test.resize, "data.eval_crop": test.crop}

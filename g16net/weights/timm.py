"""Weights from and to timm's EfficientNets: their names, layouts and files (safetensors); torch is not needed.

    model = timm_weights.load("tf_efficientnet_b0.safetensors", "tf_efficientnet_b0")

What equals what, in float32 to rounding:

- `tf_efficientnet_b0` to `b7`, `tf_efficientnet_lite0` to `lite4` (batch norm, 'SAME' padding, epsilon 1e-3): our
  depthwise network with batch norm, at any image size.
- `efficientnet_b0` to `b7`, `efficientnet_lite0` to `lite4`, `efficientnet_b0_gn`, `efficientnet_b0_g8_gn`: the same
  networks but for epsilon 1e-5, group norms of 8 channels a group in `_gn`, and padding that is the same on all sides.
  Where a stride is 2, 'SAME' padding is the same on all sides for odd sizes only, so these are equal at sizes of
  32 m + 1 pixels (225, not 224) and shifted by up to half a pixel a stage at others. Networks with another rounding of
  widths (`efficientnet_b3_gn`) do not exist here.

timm's images are (image / 255 - mean) / std; `load` gives the model the same on the scale of 0..255.
"""

import re
from typing import Any, Dict, Mapping, NamedTuple, Tuple, Union

import numpy as np

from g16net import compat, extras, layers
from g16net.compat import keras
from g16net.errors import UserError
from g16net.models import architecture, efficientnet, norms
from g16net.models.architecture import Variant

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
HALF_NAMES = re.compile(r"efficientnet_b\d[._](ap|ra4)[._-]|tf_efficientnet_lite")  # models with images of -1..1
# Crop fractions of the tf_ models, which the TensorFlow code gives as size / (size + 32).
CROPS = {"b0": 0.875, "b1": 0.882, "b2": 0.89, "b3": 0.904, "b4": 0.922, "b5": 0.934, "b6": 0.942, "b7": 0.949}
CROPS.update(lite0=0.875, lite1=0.882, lite2=0.89, lite3=0.904, lite4=0.92)
# Of the other models by what their names say of their training; without: 0.875.
CROPS_OF_TRAINING = {"ra4_": 0.9, "sw_in12k_ft": 1.0, "sw_in12k": 0.95}
SQUASHED = "sw_in12k_ft"  # timm resizes these models' images to a square, whatever their shape
RESIZES = {"bicubic": "bicubic", "bilinear": "bilinear_antialias"}  # timm's interpolation: `data.eval_resize`
NORM_EPSILON = {"tf_": 1e-3, None: 1e-5}  # by the beginning of the name
GROUP_NORM_SIZE = 8  # channels in a group of the norms of efficientnet_b0_gn and _g8_gn
_NAME = re.compile(r"(tf_)?efficientnet_(b[0-7]|lite[0-4])(?:_g(\d+))?(_gn)?")


class Input(NamedTuple):
    """How images become the input: (image / 255 - mean) / std of the centre with the share `crop` of the short side,
    resized by `resize`, a `data.eval_resize`."""

    mean: Any
    std: Any
    resize: str
    crop: float


def preprocessing(name: str) -> Input:
    """That of timm's model `name`, such as "tf_efficientnet_b0.ap_in1k", as far as the name says it."""
    scale = (HALF, HALF) if HALF_NAMES.search(name) else (MEAN, STD)
    model = re.search(r"tf_efficientnet_(b[0-7]|lite[0-4])(?![0-9a-z])", name)
    if not model:
        known = [crop for training, crop in CROPS_OF_TRAINING.items() if re.search(f"[._]{training}", name)]
        return Input(*scale, "bicubic", known[0] if known else 0.875)
    return Input(*scale, RESIZES["bilinear" if model[1] in ("lite3", "lite4") else "bicubic"], CROPS[model[1]])


def load(weights: Any, name: str, mean: Any = None, std: Any = None, **overrides: Any) -> keras.Model:
    """A network of ours that computes what timm's model `name` computes with `weights`.

    Args:
        weights: path of a safetensors file, or a mapping of timm's names to arrays (a state dict of NumPy arrays).
        name: timm's name, such as "tf_efficientnet_b0" (also "tf_efficientnet_b0.ns_jft_in1k").
        mean, std: of timm's images, after division by 255; the model's `default_cfg` has them. None: by the name.
        **overrides: further arguments of `efficientnet.build`, such as `input_size` or `dropout`. With `num_classes`
            other than the file's, the dense layer keeps its new weights.

    Raises:
        ValueError: for a name or a weight that has no counterpart; names it, with its shape.
        UserError: where `safetensors` is missing.
    """
    arguments, known = parse(name), preprocessing(name)
    mean, std = known.mean if mean is None else mean, known.std if std is None else std
    weights = read(weights) if isinstance(weights, str) else weights
    if "classifier.bias" not in weights:
        raise ValueError(f"no classifier.bias among the weights; is it a state dict of timm's {name}?")
    classes = int(np.shape(weights["classifier.bias"])[0])
    scale = [tuple(255.0 * value for value in values) for values in (mean, std)]
    model = efficientnet.build(**{**arguments, "num_classes": classes, "mean": scale[0], "std": scale[1], **overrides})
    copy(weights, model, dense=overrides.get("num_classes", classes) == classes)
    return model


def parse(name: str) -> Dict[str, Any]:
    """The arguments of `efficientnet.build` for timm's model `name`; ValueError where there is no such network here."""
    match = _NAME.fullmatch(name.split(".")[0])
    if not match or (match[3] and not match[4]):
        raise ValueError(
            f"timm's {name!r} has no counterpart here; known are tf_efficientnet_b0 to b7 and lite0 to lite4, the same "
            "without tf_, efficientnet_b0_gn and efficientnet_b0_g8_gn"
        )
    return {
        "variant": match[2].upper(),
        "group_size": int(match[3] or 1),
        "expand_ratio": 6,
        "norm": norms.published("timm", over_batch=not match[4])[0],
        "norm_group_size": GROUP_NORM_SIZE if match[4] else None,
        "norm_epsilon": NORM_EPSILON[match[1]],
    }


def read(path: str) -> Dict[str, Any]:
    """The arrays of a safetensors file, by name; the format holds numbers alone and runs no code.

    UserError for a file that is cut or damaged, or of a type such as bfloat16 that NumPy has not.
    """
    safetensors, numpy = (
        extras.need(name, "weights", "reading timm's weights") for name in ("safetensors", "safetensors.numpy")
    )
    try:
        return numpy.load_file(path)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read as safetensors with types that NumPy has: {error}") from error


def copy(weights: Mapping, model: keras.Model, dense: bool = True) -> None:
    """Copies a state dict of timm into a model of `efficientnet.build`; all or nothing, with a ValueError.

    Args:
        weights: timm's names to arrays.
        model: with the same widths, group size and kind of norm, whose groups are of neighbouring channels.
        dense: whether the last layer is copied too.
    """
    found, ours = find(weights, model), []
    for layer, keys in _keys(model):
        _check_groups(layer)
        for key, weight in zip(keys, layer.weights):
            name, shape = compat.name_of(weight), tuple(weight.shape)
            ours.append((name, weight))
            if layer.name == "predictions" and not dense:
                found.pop(name, None)
            elif name not in found:
                raise ValueError(f"{layer.name}: the weights lack {key}; is the model's kind of norm theirs?")
            elif found[name].shape != shape:
                raise ValueError(
                    f"{layer.name} has the shape {shape}, {key} stands for {found[name].shape}; build the model with "
                    "the variant, group size and classes of the weights"
                )
    left = sorted(set(found) - {name for name, _ in ours})
    if left:
        raise ValueError(f"weights without a place in the model: {', '.join(left[:5])} ({len(left)} in all)")
    for name, weight in ours:
        if name in found:
            weight.assign(found[name])


def shapes(
    variant: Union[str, Variant], group_size: int, expand_ratio: int, over_batch: Any
) -> Dict[str, Tuple[int, ...]]:
    """{timm's name: shape} of the weights of a network of ours, but for the classifier's; no model is built for it.

    Args:
        variant, group_size, expand_ratio: as of `efficientnet.build`.
        over_batch: whether the norm is batch norm, which has moving statistics.
    """
    found = {}
    kinds = ("weight", "bias") + (("running_mean", "running_var") if over_batch else ())

    def convolution(names, kernel, inside, outside):
        found[f"{names[0]}.weight"] = (outside, inside, kernel, kernel)
        found.update({f"{names[1]}.{kind}": (outside,) for kind in kinds})

    convolution(("conv_stem", "bn1"), 3, 3, architecture.stem_channels(variant))
    indices: Dict[int, int] = {}
    for block in architecture.blocks(variant, group_size, expand_ratio):
        stage = int(block.name[0])
        index = indices[stage] = indices.get(stage, -1) + 1
        parts = PARTS_WITHOUT_EXPANSION if stage == 1 else PARTS
        names = {part: f"blocks.{stage - 1}.{index}.{name}" for part, name in parts.items()}
        inside, expanded = block.in_channels, block.expanded_channels
        if stage != 1:
            convolution((names["expand_conv"], names["expand_norm"]), 1, inside, expanded)
        convolution((names["conv"], names["norm"]), block.kernel, expanded // block.groups, expanded)
        excite = (("conv_reduce", (block.se_width, expanded)), ("conv_expand", (expanded, block.se_width)))
        for part, ends in excite if block.se_width else ():
            found[f"{names['se']}.{part}.weight"], found[f"{names['se']}.{part}.bias"] = (*ends, 1, 1), ends[:1]
        convolution((names["project_conv"], names["project_norm"]), 1, expanded, block.out_channels)
    convolution(("conv_head", "bn2"), 1, block.out_channels, architecture.top_channels(variant))
    return found


def find(weights: Mapping, model: keras.Model) -> Dict[str, Any]:
    """{name of our weight: array in our layout} of all that `weights` has for `model`; what has no place in it stands
    under its own name."""
    found, used = {}, set()
    for layer, keys in _keys(model):
        for key, weight in zip(keys, layer.weights):
            if key in weights:
                found[compat.name_of(weight)] = _ours(np.asarray(weights[key], np.float32), tuple(weight.shape))
                used.add(key)
    left = {key: weights[key] for key in weights if key not in used and not key.endswith("num_batches_tracked")}
    return {**found, **left}


def state_dict(model: keras.Model) -> Dict[str, Any]:
    """The weights of a model in timm's names and layouts, as float32 arrays.

    For batch, group and layer norm; timm's class for the last two is `GroupNormAct` with the same groups. Proxy norm
    and strided grouping do not exist there: ValueError.
    """
    result = {}
    known = {norms.NORMS[name].layer for name in norms.published("timm")}
    for layer, keys in _keys(model):
        _check_groups(layer)
        if layer.name.endswith("_norm") and type(layer).__name__ not in known:
            raise ValueError(f"{layer.name}: timm has no {type(layer).__name__}")
        for key, weight in zip(keys, layer.weights):
            result[key] = _theirs(np.asarray(weight).astype(np.float32), key)
        if isinstance(layer, layers.BatchNorm):
            result[keys[0].replace("weight", "num_batches_tracked")] = np.zeros((), np.int64)
    return result


def _check_groups(layer):
    if getattr(layer, "strided", False) and layer.used_groups > 1:
        raise ValueError(f"{layer.name}: timm has no strided norm; build the model with strided_groups=False")


def save(model: keras.Model, path: str) -> None:
    """Writes `state_dict(model)` as a safetensors file, for `timm.create_model(..., checkpoint_path=path)`."""
    extras.need("safetensors.numpy", "weights", "writing timm's weights").save_file(state_dict(model), path)


def _keys(model):
    """[(layer, timm's names of its weights)] of the layers with weights that are learnt, in order."""
    return [(layer, _names(layer)) for layer in efficientnet.learnt(model)]


def _names(layer):
    name = layer.name
    block = re.fullmatch(r"block(\d)([a-z]+)_(.*)", name)
    if block:
        letters = block[2]
        index = ord(letters) - ord("a") if len(letters) == 1 else None
        base, part = f"blocks.{int(block[1]) - 1}.{index}.", block[3]
        # timm's first stage has no expansion and counts its parts from there
        parts = PARTS_WITHOUT_EXPANSION if block[1] == "1" else PARTS
        base += parts[part]
    else:
        base = TOP_LEVEL[name]
    if isinstance(layer, layers.SqueezeExcite):
        return [
            f"{base}.{part}"
            for part in ("conv_reduce.weight", "conv_reduce.bias", "conv_expand.weight", "conv_expand.bias")
        ]
    kinds = [weight.name.split("/")[-1].split(":")[0] for weight in layer.weights]
    return [f"{base}.{KINDS[kind]}" for kind in kinds]


TOP_LEVEL = {"stem_conv": "conv_stem", "stem_norm": "bn1", "top_conv": "conv_head", "top_norm": "bn2"}
TOP_LEVEL["predictions"] = "classifier"
PARTS = {
    "expand_conv": "conv_pw",
    "expand_norm": "bn1",
    "conv": "conv_dw",
    "norm": "bn2",
    "se": "se",
    "project_conv": "conv_pwl",
    "project_norm": "bn3",
}
PARTS_WITHOUT_EXPANSION = {
    "conv": "conv_dw",
    "norm": "bn1",
    "se": "se",
    "project_conv": "conv_pw",
    "project_norm": "bn2",
}
KINDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
KINDS["proxy_gamma"] = KINDS["proxy_beta"] = "proxy"  # which timm does not have


def _ours(value, shape):
    """torch's [out, in, k, k] as [k, k, in, out], [out, in] as [in, out]."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T if len(shape) == 2 else value


def _theirs(value, key):
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value)

"""From a model to the steps of its forward pass, with everything folded that no longer changes: what formats write.

The statistics of the proxies become numbers a channel, and their scale goes into the kernel behind where that is next;
batch norm goes into the convolution before it, and what acts in training only is gone. Arrays are float32 NumPy; a
step's input is the result of the step before it.
"""

import re
from typing import Any, List, NamedTuple, Optional

import numpy as np
from tensorflow import keras

from g16net import layers


class Normalize(NamedTuple):
    """(images - mean) * inv_std of images 0..255 [batch, height, width, 3]."""

    mean: np.ndarray
    inv_std: np.ndarray


class Conv(NamedTuple):
    """Convolution with 'SAME' padding; kernel [k, k, channels / groups, filters], bias [filters] or None."""

    name: str
    kernel: np.ndarray
    bias: Optional[np.ndarray]
    stride: int
    groups: int
    lowering: str  # form that works on the machine of the export: a name in `layers.group_conv.LOWERINGS`


class Norm(NamedTuple):
    """activation(gamma * normalised + beta), minus `centre`, times `scale`, a number per channel each or None.

    Normalised over `groups` groups of channels of one sample; strided: channel c is in group c % groups.
    """

    name: str
    groups: int
    strided: bool
    epsilon: float
    gamma: np.ndarray
    beta: np.ndarray
    activation: Optional[str]
    centre: Optional[np.ndarray]
    scale: Optional[np.ndarray]


class Activation(NamedTuple):
    """An activation by itself, after a folded batch norm."""

    name: str
    activation: str


class Gate(NamedTuple):
    """Squeeze-and-excite: x * (sigmoid(expand(activation(reduce(means of x)))) * scale); `scale` [channels] or None."""

    name: str
    reduce_kernel: np.ndarray
    reduce_bias: np.ndarray
    expand_kernel: np.ndarray
    expand_bias: np.ndarray
    activation: str
    scale: Optional[np.ndarray]


class Keep(NamedTuple):
    """Keeps the present tensor for the next `Add`."""


class Add(NamedTuple):
    """Adds the tensor of the last `Keep`."""

    name: str


class Dense(NamedTuple):
    """Means over pixels, then means @ kernel + bias: the logits [batch, classes]."""

    name: str
    kernel: np.ndarray
    bias: np.ndarray


def fold(model: keras.Model) -> List[Any]:
    """The steps of a model from `efficientnet.build`, logits at the end, as a list.

    Raises:
        ValueError: for a layer that is none of that builder's.
    """
    steps, delayed = [], None
    skips = {name[: -len("add")] for name in (layer.name for layer in model.layers) if name.endswith("_add")}
    for layer in model.layers:
        found = re.match(r"block\d[a-z]+_", layer.name)
        prefix = found[0] if found else ""
        if prefix in skips:
            skips.remove(prefix)
            steps.append(Keep())
        step, delayed = _step(layer, steps, delayed)
        if step is not None:
            steps.append(_with_proxy(step, steps))
    return steps


def _with_proxy(step, steps):
    """`step` with as much of the centre and scale of a `Norm` before it, in the last of `steps`, as is exact.

    A convolution takes the scale; not the centre, for its zero padding comes after that. Means over pixels let both
    through to the last layer.
    """
    norm = steps[-1] if steps else None
    if not isinstance(norm, Norm) or not isinstance(step, (Conv, Dense)):
        return step
    kernel = np.float64(step.kernel)
    if norm.scale is not None:
        width = step.kernel.shape[-2]  # channels in a group; filter f sees those from first[f] on
        groups = step.groups if isinstance(step, Conv) else 1
        first = np.arange(kernel.shape[-1]) // (kernel.shape[-1] // groups) * width
        kernel *= norm.scale[first + np.arange(width)[:, None]]
    if isinstance(step, Conv):
        steps[-1] = norm._replace(scale=None)
        return step._replace(kernel=_array(kernel))
    bias = step.bias if norm.centre is None else step.bias - norm.centre @ kernel
    steps[-1] = norm._replace(scale=None, centre=None)
    return step._replace(kernel=_array(kernel), bias=_array(bias))


def _step(layer, steps, delayed):
    """`(step, delayed scale)` of a layer; no step where it leaves nothing, or goes into the last of `steps`."""
    name = layer.name
    if isinstance(layer, layers.Normalize):
        return Normalize(_array(layer.mean), _array([1 / value for value in layer.std])), None
    if isinstance(layer, layers.GroupConv2D):
        return Conv(name, _array(layer.kernel), None, layer.strides, layer.groups, layer.chosen[0]), None
    if isinstance(layer, layers.BatchNorm):
        conv = steps.pop()
        scale = 1 / np.sqrt(np.float64(_array(layer.moving_variance)) + layer.epsilon)
        scale = scale if layer.gamma is None else scale * _array(layer.gamma)
        bias = (0 if layer.beta is None else _array(layer.beta)) - _array(layer.moving_mean) * scale
        steps.append(conv._replace(kernel=_array(conv.kernel * scale), bias=_array(bias)))
        return layer.activation and Activation(name, layer.activation), None
    if isinstance(layer, layers.GroupNorm):
        return _norm(layer, layer.activation, None, None), None
    if isinstance(layer, layers.ProxyNormActivation) and layer.groups is not None:
        centre, inv_std = (_array(value) for value in layer.proxy_statistics())
        late = layer.delayed_scale
        return _norm(layer, layer.activation, centre, None if late else inv_std), inv_std if late else None
    if isinstance(layer, layers.SqueezeExcite):
        kernels = _array(layer.reduce_kernel)[0, 0], _array(layer.expand_kernel)[0, 0]
        biases = _array(layer.reduce_bias), _array(layer.expand_bias)
        return Gate(name, kernels[0], biases[0], kernels[1], biases[1], layer.activation, delayed), None
    kind = type(layer).__name__
    if kind == "Conv2D":
        return Conv(name, _array(layer.kernel), None, layer.strides[0], 1, "native"), None
    if kind == "Add":
        return Add(name), None
    if kind == "Dense":
        return Dense(name, _array(layer.kernel), _array(layer.bias)), None
    if kind in ("InputLayer", "StochasticDepth", "Dropout", "GlobalAveragePooling2D"):
        return None, None
    raise ValueError(f"layer {name!r} is a {kind}, which no export knows; export models of efficientnet.build")


def _norm(layer, activation, centre, scale):
    channels = layer.gamma.shape[0] if layer.gamma is not None else layer.beta.shape[0]
    gamma = np.ones(channels, np.float32) if layer.gamma is None else _array(layer.gamma)
    beta = np.zeros(channels, np.float32) if layer.beta is None else _array(layer.beta)
    groups, strided, epsilon = layer.used_groups, layer.strided, layer.epsilon
    return Norm(layer.name, groups, strided, epsilon, gamma, beta, activation, centre, scale)


def _array(value):
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value, np.float32)

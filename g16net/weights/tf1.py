"""Weights of the authors' published TensorFlow 1 code in our models: checkpoints `model.ckpt-N.index, .data-*`.

    model = tf1_weights.load("logs/weight_avg/ckpt", "B0", norm="ln_pn")

Its variables, for group norm (strided grouping, 4 groups), layer norm (one group) and proxy norm, below a scope `all`:

    ours                            theirs                                               shape
    stem_conv                       block0/conv/conv2d/kernel                            [3, 3, 3, C]
    block2b_expand_conv             block2b/a/conv/conv2d/kernel                         [1, 1, in, C]
    block2b_conv                    block2b/b/conv/conv2d/kernel                         [k, k, C / groups, C]
    block2b_se, reduce              block2b/b/block2b/SE/block2b/b/1/conv2d/kernel, bias [1, 1, C, reduced]
    block2b_se, expand              block2b/b/block2b/SE/block2b/b/2/conv2d/kernel, bias [1, 1, reduced, C]
    block2b_project_conv            block2b/c/conv/conv2d/kernel                         [1, 1, C, out]
    block2b_*norm: gamma, beta      block2b/[abc]/GroupNorm/gamma, beta                  [C]
    block2b_*norm: with proxy norm  block2b/[ab]/proxy                                   [6, 1, 1, C]
    top_conv, top_norm              Top/conv/..., Top/GroupNorm/..., Top/proxy           [1, 1, in, C], ...
    predictions                     Top/logits/dense/kernel, bias                        [C, classes], [classes]

`proxy` holds beta, gamma, the proxy's mean and inverse deviation (which follow from the others, and are recomputed),
beta~ and gamma~, in this order. With proxy norm only the norm after the projection, `c`, has a GroupNorm of its own,
with a gamma alone. Optimiser slots and counters are ignored, half-precision values become float32.
"""

import re
from typing import Any, Dict, Optional, Union

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow import keras

from g16net import compat, layers
from g16net.errors import UserError
from g16net.models import efficientnet, norms
from g16net.models.architecture import Variant

NORMS = norms.published("tf1")
PROXY_ROWS = {"beta": 0, "gamma": 1, "proxy_beta": 4, "proxy_gamma": 5}


def load(
    path: str,
    variant: Union[str, Variant] = "B0",
    norm: str = "ln_pn",
    group_size: int = 16,
    expand_ratio: Optional[int] = None,
    **overrides: Any,
) -> keras.Model:
    """A network of ours with the weights of a published TensorFlow 1 checkpoint.

    Args:
        path: the checkpoint's prefix, such as "logs/ckpts/ckpt-100"; a folder means its newest.
        variant, norm, group_size: of the published run ("B0-G16-LN_PN-Native": "B0", "ln_pn", 16).
        expand_ratio: by default the paper's: 6 for depthwise networks, 4 for others.
        **overrides: further arguments of `efficientnet.build`. Group norms are strided unless told otherwise, as the
            IPU library has them.

    Raises:
        UserError: where there is no checkpoint, or a variable is missing or of another shape; the message names it.
    """
    if norm not in NORMS:
        raise UserError(f"norm={norm!r}: published checkpoints load into {', '.join(NORMS)}")
    reader = open_reader(path)
    (classes,) = _find(reader, "Top/logits/dense/bias").shape
    arguments = {"expand_ratio": expand_ratio or (6 if group_size == 1 else 4), "strided_groups": True}
    model = efficientnet.build(
        variant, group_size, norm=norm, **{"num_classes": int(classes), **arguments, **overrides}
    )
    copy(reader, model)
    return model


def find(reader: Any, model: keras.Model) -> Dict[str, Any]:
    """{name of our weight: array} of all that a checkpoint's `reader` has for `model`; weights (kernels, biases, norms,
    proxies) without a place in it stand under their own names."""
    theirs = names(reader)
    found, used = {}, set()
    for _, weight, name in _keys(model):
        if name in theirs:
            value = np.asarray(reader.get_tensor(theirs[name]), np.float32)
            ours = compat.name_of(weight)
            found[ours] = value[PROXY_ROWS[_kind(weight)], 0, 0] if name.endswith("/proxy") else value
            used.add(name)
    return {**found, **{name: reader.get_tensor(theirs[name]) for name in theirs if name not in used}}


def names(reader: Any) -> Dict[str, str]:
    """{name without what stands around the network, `block0/conv/...`: name, `all/block0/conv/...`} of the weights.

    Weights are kernels, biases, norms and proxies. UserError where one is there more than once.
    """
    found: Dict[str, Any] = {}
    for name in sorted(reader.get_variable_to_shape_map()):
        if name.endswith(("/kernel", "/bias", "/gamma", "/beta", "/proxy")):
            inner = re.sub(r"^(?:.*?/)?(?=block\d[a-z]*/|Top/)", "", name)
            if inner in found:
                raise UserError(
                    f"the checkpoint has {inner} more than once: {found[inner]}, {name}; write one with one of them, "
                    "such as the averaged weights"
                )
            found[inner] = name
    return found


def copy(reader: Any, model: keras.Model) -> None:
    """Copies the variables of a checkpoint's `reader` into `model`; all or nothing, with a UserError."""
    found = find(reader, model)
    for layer, weight, name in _keys(model):
        value = found.get(compat.name_of(weight))
        if value is None:
            raise _missing(reader, name)
        if value.shape != tuple(weight.shape):
            raise UserError(
                f"{name} of the checkpoint has the shape {value.shape}, {layer.name} has {tuple(weight.shape)}; "
                "give the variant, group size and expand ratio of its run"
            )
    for _, weight, _ in _keys(model):
        weight.assign(found[compat.name_of(weight)])
    check_proxies(reader, model)


def _keys(model):
    """`(layer, its weight, the published name)` of each weight that is learnt, in order."""
    for layer in efficientnet.learnt(model):
        for weight in layer.weights:
            yield layer, weight, tf1_name(layer.name, _kind(weight), isinstance(layer, layers.ProxyNormActivation))


def _kind(weight):
    return weight.name.split("/")[-1].split(":")[0]


def tf1_name(layer: str, kind: str, proxy: bool) -> str:
    """The published name of the weight `kind` of our layer, without the outer scope.

    Args:
        layer: our layer's name.
        kind: "kernel", "bias", "gamma", "reduce_kernel", "proxy_beta", ...
        proxy: whether the layer is a proxy-normalised activation.
    """
    match = re.fullmatch(r"(block\d[a-z]+)_(expand_|project_)?(conv|norm|se)", layer)
    if layer == "predictions":
        return f"Top/logits/dense/{kind}"
    if match:
        block = match[1]
        scope = f"{block}/{ {'expand_': 'a', None: 'b', 'project_': 'c'}[match[2]] }"
    else:
        scope = {"stem": "block0", "top": "Top"}[layer.split("_")[0]]
    if layer.endswith("_se"):
        part, _, kind = kind.partition("_")
        return f"{scope}/{block}/SE/{scope}/{ {'reduce': 1, 'expand': 2}[part] }/conv2d/{kind}"
    if layer.endswith("conv"):
        return f"{scope}/conv/conv2d/{kind}"
    return f"{scope}/proxy" if proxy else f"{scope}/GroupNorm/{kind}"


def open_reader(path: str) -> Any:
    """A reader of the checkpoint with the prefix `path`, or of the newest in that folder; UserError where none is."""
    prefix = tf.train.latest_checkpoint(path) if tf.io.gfile.isdir(path) else path
    try:
        return tf.train.load_checkpoint(prefix)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        raise UserError(
            f"no TensorFlow checkpoint at {path!r}; give its prefix, for ckpt-100.index that is ckpt-100 ({error})"
        ) from error


def _find(reader, name):
    """The variable `name`, below any outer scope, as float32."""
    theirs = names(reader)
    if name not in theirs:
        raise _missing(reader, name)
    return np.asarray(reader.get_tensor(theirs[name]), np.float32)


def _missing(reader, name):
    some = ", ".join(sorted(reader.get_variable_to_shape_map())[:5])
    return UserError(f"the checkpoint has no variable {name}; it begins with {some}. Is the norm that of its run?")


def check_proxies(reader: Any, model: keras.Model) -> None:
    """Warns where the stored statistics of a proxy are not those of its parameters: another activation or epsilon."""
    for layer in model.layers:
        if isinstance(layer, layers.ProxyNormActivation):
            stored = _find(reader, tf1_name(layer.name, "gamma", True))[2:4, 0, 0]
            difference = np.abs(np.stack([np.asarray(v) for v in layer.proxy_statistics()]) - stored).max()
            if difference > 0.05 * max(1, np.abs(stored).max()):
                logging.warning(
                    "%s: the checkpoint's proxy statistics differ from those of its parameters by %.2g; was it trained "
                    "with another activation or proxy_epsilon, or averaged over distant checkpoints?",
                    layer.name, difference,
                )  # fmt: skip
                return

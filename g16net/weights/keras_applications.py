"""Weights of other libraries' EfficientNets in our models. The depthwise network with batch norm is the same network.

keras.applications: convolutions are padded to the 'SAME' result there by explicit layers, so features are equal when
the source was built for the size of the images; the spatial kernel is [k, k, channels, 1] there, [k, k, 1, channels]
here; squeeze-and-excite is two convolutions there, one layer here.
"""

import re
from typing import Any, Dict, Tuple

import numpy as np

from g16net import compat
from g16net.compat import keras
from g16net.models import efficientnet, norms


def _source_layers(name):
    """Names of the keras.applications layers whose weights, in this order, are those of our layer `name`."""
    if name.endswith("_se"):
        return [f"{name}_reduce", f"{name}_expand"]
    if name.endswith("norm"):
        return [re.sub("norm$", "bn", name)]
    return [re.sub(r"^(block\d[a-z]+)_conv$", r"\1_dwconv", name)]


def copy_keras_applications_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies all weights of a keras.applications EfficientNet into a model of ours, moving statistics included.

    Args:
        source: model from `keras.applications.EfficientNetB0` to `B7`.
        target: model from `efficientnet.build` of the same variant, with group_size=1, expand_ratio=6, norm="bn" and
            as many classes. Its input normalisation is not touched: see `keras_applications_normalization`.

    Raises:
        ValueError: if a layer of the target has no counterpart or another shape.
    """
    arrays = {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    found, learnt = find(arrays, target), efficientnet.learnt(target)
    for layer in learnt:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        if [np.shape(found.get(compat.name_of(weight), ())) for weight in layer.weights] != shapes:
            names = _source_layers(layer.name)
            raise ValueError(
                f"Layer {layer.name} has weights {shapes}, {' and '.join(names)} of {source.name} has "
                f"{[value.shape for name in names for value in arrays.get(name, ())]}. Build the target with the "
                'source\'s variant and classes and group_size=1, expand_ratio=6, norm="bn"'
            )
    for layer in learnt:  # all or nothing
        for weight in layer.weights:
            weight.assign(found[compat.name_of(weight)])


def find(arrays: Dict[str, Any], model: keras.Model) -> Dict[str, Any]:
    """{name of our weight: array} of what keras.applications' weights `arrays` ({their layer: its arrays}) have for
    `model`; layers without a place in it stand under their own names, but for the input's normalisation."""
    found, used = {}, {name for name in arrays if re.fullmatch(r"normalization(_\d+)?", name)}
    for layer in efficientnet.learnt(model):
        names = _source_layers(layer.name)
        values = [value for name in names for value in arrays.get(name, ())]
        if len(values) == len(layer.weights):
            used.update(names)
            for weight, value in zip(layer.weights, values):
                fits = value.size == np.prod(weight.shape)  # depthwise kernels have their axes in another order
                found[compat.name_of(weight)] = value.reshape(weight.shape) if fits else value
    left = {name: value for name, values in arrays.items() if name not in used for value in values}
    return {**found, **left}


def keras_applications_normalization(source: keras.Model) -> Tuple[Any, Any]:
    """The (mean, std) per channel with which a keras.applications EfficientNet normalises images of 0..255.

    Read off its first layers by two images, as how they are made of layers differs between releases.
    """
    first = keras.Model(source.input, source.get_layer("stem_conv_pad").input)
    shape = (1,) + tuple(n or 32 for n in source.input.shape[1:])
    black, white = (np.asarray(first(np.full(shape, value, "float32")))[0, 0, 0] for value in (0, 255))
    std = 255.0 / (white.astype("float64") - black)
    return tuple((-black * std).tolist()), tuple(std.tolist())


def from_keras_applications(weights: str = "imagenet", variant: str = "B0", **overrides: Any) -> keras.Model:
    """A network of ours (group size 1, batch norm) that computes what keras.applications' EfficientNet computes.

    Args:
        weights: "imagenet" (downloaded by Keras), the path of a file of their weights, or None for random ones.
        variant: "B0" to "B7".
        **overrides: further arguments of `efficientnet.build`, such as `input_size` or `dropout`.

    Raises:
        ValueError: for a variant that keras.applications has not.
    """
    name = f"EfficientNet{variant}"
    if not hasattr(keras.applications, name):
        raise ValueError(f"keras.applications has no {name}; it has the variants B0 to B7")
    source = getattr(keras.applications, name)(weights=weights, classifier_activation=None)
    mean, std = keras_applications_normalization(source)
    (norm,) = norms.published("keras.applications")
    arguments = {"group_size": 1, "expand_ratio": 6, "norm": norm, "mean": mean, "std": std}
    target = efficientnet.build(variant, **{**arguments, **overrides})
    copy_keras_applications_weights(source, target)
    return target

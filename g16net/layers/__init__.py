"""Keras layers of the networks. Images are `[batch, height, width, channels]`; weights are float32 under any policy."""

from g16net import compat  # noqa: F401  first, as it says in one sentence where Keras or TensorFlow is not there
from g16net.layers.conv import Conv2D
from g16net.layers.group_conv import GroupConv2D
from g16net.layers.normalize import Normalize
from g16net.layers.norms import BatchNorm, GroupNorm, LayerNorm
from g16net.layers.proxy_norm import ProxyNormActivation
from g16net.layers.squeeze_excite import SqueezeExcite
from g16net.layers.stochastic_depth import Dropout, StochasticDepth

__all__ = [
    "BatchNorm",
    "Conv2D",
    "Dropout",
    "GroupConv2D",
    "GroupNorm",
    "LayerNorm",
    "Normalize",
    "ProxyNormActivation",
    "SqueezeExcite",
    "StochasticDepth",
]

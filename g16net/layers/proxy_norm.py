"""Proxy-normalised activation: the channels that batch norm gives, without its batch (2106.03743, sec. 4).

After a norm without affine, y, the activation phi(gamma y + beta) has channels that drift from mean 0 and variance 1.
Batch norm would correct that with statistics of the batch; proxy norm takes the statistics of a proxy variable instead:

    p ~ N(proxy_beta, (1 + proxy_gamma)^2)
    out = (phi(gamma y + beta) - E[phi(gamma p + beta)]) / sqrt(Var[phi(gamma p + beta)] + proxy_epsilon)

The expectation is a weighted sum over fixed points of a standard normal. All of it is float32, and gradients flow
through the statistics to the four parameters.
"""

import functools
from statistics import NormalDist
from typing import Any, Tuple

import numpy as np

from g16net import compat, native
from g16net.compat import keras, ops
from g16net.layers.norm_activation import ACTIVATIONS, check_activation, norm_activation
from g16net.layers.norms import check_epsilon, check_groups

QUADRATURES = "quantile", "gauss_hermite"


@functools.lru_cache(maxsize=None)  # asked by every layer; cached, AutoGraph leaves it alone too
def quadrature_points(quadrature: str, points: int) -> Tuple[Any, Any]:
    """Points and weights, float64 arrays [points], whose weighted sum stands for the mean over a standard normal.

    "quantile": the quantiles of (i + 1/2) / points with equal weights, the published form.
    "gauss_hermite": the nodes of the Gauss-Hermite rule.

    Largest errors of the proxy's mean (absolute) and of its standard deviation (relative, proxy_epsilon 0.03) against
    exact integration, over gamma 0.3..2, beta -2..2, proxy_gamma -0.5..0.5 and proxy_beta -1..1:

        activation  quantile 200      Gauss-Hermite 8   16                32                64
        swish       1.3e-3, 2.5e-2    8e-3, 2.0e-2      3e-4, 2.1e-3      7e-6, 5e-5        3e-8, 3e-7
        relu        1.3e-3, 3.8e-2    6e-2, 4.5e-2      4e-2, 2.0e-2      1.2e-2, 9e-3      1.1e-2, 6e-3

    So 16 nodes serve swish better than the 200 quantiles, whose tails are cut off; the kink of ReLU suits no rule.
    """
    if quadrature == "quantile":
        normal = NormalDist()
        nodes = np.array([normal.inv_cdf((i + 0.5) / points) for i in range(points)])
        return nodes, np.full(points, 1 / points)
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return nodes, weights / weights.sum()


def proxy_moments(
    gamma: Any, beta: Any, proxy_gamma: Any, proxy_beta: Any, activation: str, nodes: Any, weights: Any
) -> Tuple[Any, Any]:
    """Mean and variance of `activation(gamma * p + beta)`, p ~ N(proxy_beta, (1 + proxy_gamma)^2); float32 [channels].

    `nodes` and `weights` are those of `quadrature_points`.
    """
    nodes = ops.constant(nodes[:, None], "float32")
    weights = ops.constant(weights[None, :], "float32")
    z = ACTIVATIONS[activation](nodes * (gamma * (1 + proxy_gamma)) + (gamma * proxy_beta + beta))
    mean = ops.matmul(weights, z)
    variance = ops.matmul(weights, ops.square(z - mean))
    return mean[0], variance[0]


@compat.register
class ProxyNormActivation(keras.layers.Layer):
    """Proxy-normalised activation, alone after a norm or fused with a group norm.

    `[batch, height, width, channels]` in and out. Weights, float32 `[channels]`: `gamma` (starts at 1), `beta`,
    `proxy_gamma`, `proxy_beta` (start at 0).

    Args:
        activation: a name in `norm_activation.ACTIVATIONS`.
        groups: None: the input is normalised already, by a norm without scale and shift. A number: the layer first
            normalises over so many groups, 1 being layer norm (as `GroupNorm(groups, scale=False, center=False)`).
        strided: grouping of that norm: channel c in group c % groups.
        epsilon: of that norm.
        proxy_epsilon: added to the proxy variance, inside the root.
        delayed_scale: True: the output is centred only, and the layer returns `(output, inv_std)` with `inv_std`
            float32 [channels], the scale, for a later layer to apply (`SqueezeExcite` multiplies it into its gate).
        pooled: True: the layer also returns, last, the means of the output over its pixels, float32 [batch, channels],
            for `SqueezeExcite`, which would have to read the output once more for them.
        quadrature: "quantile", as published, or "gauss_hermite" (see `quadrature_points`).
        points: number of points.

    Raises:
        ValueError: for a value out of range; when built, for groups that do not divide the channels.
    """

    def __init__(
        self,
        activation: str = "swish",
        groups: Any = None,
        strided: bool = False,
        epsilon: float = 1e-3,
        proxy_epsilon: float = 0.03,
        delayed_scale: bool = False,
        pooled: bool = False,
        quadrature: str = "quantile",
        points: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_activation(activation)
        if groups is not None and (not isinstance(groups, int) or groups < 1):
            raise ValueError(f"groups must be None (input normalised already) or a positive integer; got {groups!r}")
        check_epsilon("epsilon", epsilon)
        check_epsilon("proxy_epsilon", proxy_epsilon)
        if quadrature not in QUADRATURES:
            raise ValueError(f"quadrature must be one of {', '.join(QUADRATURES)}; got {quadrature!r}")
        if not isinstance(points, int) or points < 2:
            raise ValueError(f"points must be an integer of 2 or more, one point has no variance; got {points!r}")
        if quadrature == "gauss_hermite" and points > 256:
            raise ValueError(
                f"points must be at most 256 with gauss_hermite, whose nodes overflow; got {points}; use 32"
            )
        self.activation = activation
        self.groups = groups
        self.strided = strided
        self.epsilon = epsilon
        self.supports_jit = not native.enabled()  # Keras 3 asks: XLA does not know the native operations
        self.proxy_epsilon = proxy_epsilon
        self.delayed_scale = delayed_scale
        self.pooled = pooled
        self.quadrature = quadrature
        self.points = points

    def build(self, input_shape):
        channels = input_shape[-1]
        self.used_groups = None if self.groups is None else check_groups(self.groups, channels)
        for name in ("gamma", "beta", "proxy_gamma", "proxy_beta"):
            initializer = "ones" if name == "gamma" else "zeros"
            setattr(self, name, compat.add_weight(self, name, (channels,), initializer, autocast=False))
        super().build(input_shape)

    def proxy_statistics(self) -> Tuple[Any, Any]:
        """(mean, 1 / sqrt(variance + proxy_epsilon)) of the proxy activation: float32 [channels]."""
        weights: Any = [ops.convert_to_tensor(w) for w in (self.gamma, self.beta, self.proxy_gamma, self.proxy_beta)]
        nodes, shares = quadrature_points(self.quadrature, self.points)
        with ops.name_scope("proxy"):
            if native.enabled():
                return native.proxy_moments(*weights, self.activation, nodes, shares, self.proxy_epsilon)
            gamma, beta, proxy_gamma, proxy_beta = weights
            mean, variance = proxy_moments(gamma, beta, proxy_gamma, proxy_beta, self.activation, nodes, shares)
            return mean, ops.rsqrt(variance + self.proxy_epsilon)

    def call(self, inputs):
        inputs = compat.floating(self, inputs)
        mean, inv_std = self.proxy_statistics()
        gamma, beta = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        out = norm_activation(
            inputs,
            gamma,
            beta,
            self.used_groups,
            self.strided,
            self.epsilon,
            self.activation,
            centre=mean,
            scale=None if self.delayed_scale else inv_std,
            pooled=self.pooled,
        )
        out, *means = out if self.pooled else [out]
        results = [out, *([inv_std] if self.delayed_scale else []), *means]
        return tuple(results) if len(results) > 1 else out

    def normalised(self, x: Any) -> Any:
        """The float32 `x` normalised, before scale, shift and activation."""
        return norm_activation(x, None, None, self.used_groups, self.strided, self.epsilon, None)

    def compute_output_shape(self, input_shape):
        shapes = [input_shape]
        if self.delayed_scale:
            shapes.append((input_shape[-1],))
        if self.pooled:
            shapes.append((input_shape[0], input_shape[-1]))
        return tuple(shapes) if len(shapes) > 1 else input_shape

    def compute_output_spec(self, inputs):
        shapes = self.compute_output_shape(tuple(inputs.shape))
        if not (self.delayed_scale or self.pooled):
            return compat.output_spec(shapes, self.compute_dtype)
        dtypes = [self.compute_dtype] + ["float32"] * (len(shapes) - 1)
        return tuple(compat.output_spec(shape, dtype) for shape, dtype in zip(shapes, dtypes))

    def get_config(self):
        names = (
            "activation",
            "groups",
            "strided",
            "epsilon",
            "proxy_epsilon",
            "delayed_scale",
            "pooled",
            "quadrature",
            "points",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

"""Norms: over the batch (BatchNorm), over groups of channels of one sample (GroupNorm), over one sample (LayerNorm).

Images are `[batch, height, width, channels]`. Statistics, affine and the activation that a group or layer norm may own
are computed in float32 whatever the dtype policy is; the result has the compute dtype.
"""

from typing import Any, Optional

from g16net import compat, native
from g16net.compat import keras, ops, tf
from g16net.layers.norm_activation import ACTIVATIONS, check_activation, norm_activation, pixel_means


def check_epsilon(name: str, value: float) -> None:
    """Raises unless `value` is a positive number."""
    if not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} must be a number above 0, it keeps the root from 0; got {value!r}")


def check_groups(groups: int, channels: int) -> int:
    """min(channels, groups), the number of groups that a norm over `channels` channels uses; ValueError where it
    does not divide them."""
    groups = min(channels, groups)
    if channels % groups:
        valid = [n for n in range(1, channels + 1) if channels % n == 0]
        raise ValueError(
            f"groups must divide the channels; got {groups} for {channels} channels; valid counts: {valid}"
        )
    return groups


def output_spec(layer: Any, inputs: Any) -> Any:
    """What Keras 3 asks a norm: the output in the compute dtype, where `layer.pooled` with its float32 means."""
    out = compat.output_spec(inputs.shape, layer.compute_dtype)
    return (out, compat.output_spec((inputs.shape[0], inputs.shape[-1]), "float32")) if layer.pooled else out


@compat.register
class GroupNorm(keras.layers.Layer):
    """Group normalisation (1803.08494): statistics over the pixels and a group's channels of one sample.

    `[batch, height, width, channels]` in and out.

    With one group it is `LayerNorm`, with as many as there are channels instance norm; there are
    `min(channels, groups)` groups, which must divide the channels.

    Args:
        groups: number of groups, not their width.
        strided: False: groups of neighbouring channels. True: channel c belongs to group c % groups, the form of the
            IPU library and of the published GN networks.
        epsilon: added to the variance, inside the root.
        scale, center: whether there are `gamma` and `beta`, float32 `[channels]`.
        activation: None or a name in `ACTIVATIONS`, applied to the result.
        pooled: True: the layer returns `(output, means)`, the latter over the output's pixels, float32
            [batch, channels], for `SqueezeExcite`, which would have to read the output once more for them.

    Raises:
        ValueError: for a value out of range; when built, for groups that do not divide the channels.
    """

    def __init__(
        self,
        groups: Any = 4,
        strided: bool = False,
        epsilon: float = 1e-3,
        scale: Any = True,
        center: bool = True,
        activation: Optional[str] = None,
        pooled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(groups, int) or groups < 1:
            raise ValueError(f"groups must be a positive integer, 1 is layer norm; got {groups!r}")
        check_epsilon("epsilon", epsilon)
        check_activation(activation, optional=True)
        self.groups = groups
        self.strided = strided
        self.epsilon = epsilon
        self.supports_jit = not native.enabled()  # Keras 3 asks: XLA does not know the native operations
        self.scale = scale
        self.center = center
        self.activation = activation
        self.pooled = pooled

    def build(self, input_shape):
        channels = input_shape[-1]
        self.used_groups = check_groups(self.groups, channels)
        self.gamma = self.beta = None
        if self.scale:
            self.gamma = compat.add_weight(self, "gamma", (channels,), "ones", autocast=False)
        if self.center:
            self.beta = compat.add_weight(self, "beta", (channels,), "zeros", autocast=False)
        super().build(input_shape)

    def call(self, inputs):
        inputs = compat.floating(self, inputs)
        gamma, beta = (None if v is None else ops.convert_to_tensor(v) for v in (self.gamma, self.beta))
        settings = self.used_groups, self.strided, self.epsilon, self.activation
        return norm_activation(inputs, gamma, beta, *settings, pooled=self.pooled)

    def normalised(self, x: Any) -> Any:
        """The float32 `x` normalised, before scale, shift and activation."""
        return norm_activation(x, None, None, self.used_groups, self.strided, self.epsilon, None)

    def compute_output_shape(self, input_shape):
        return (input_shape, (input_shape[0], input_shape[-1])) if self.pooled else input_shape

    def compute_output_spec(self, inputs):
        return output_spec(self, inputs)

    def get_config(self):
        names = "groups", "strided", "epsilon", "scale", "center", "activation", "pooled"
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@compat.register
class LayerNorm(GroupNorm):
    """Layer normalisation over height, width and channels of one sample `[batch, height, width, channels]`:
    `GroupNorm` with one group."""

    def __init__(
        self,
        epsilon: float = 1e-3,
        scale: Any = True,
        center: bool = True,
        activation: Optional[str] = None,
        pooled: bool = False,
        **kwargs: Any,
    ) -> None:
        settings = {"epsilon": epsilon, "scale": scale, "center": center, "activation": activation, "pooled": pooled}
        super().__init__(groups=1, **settings, **kwargs)

    def get_config(self):
        config = super().get_config()
        del config["groups"], config["strided"]
        return config


def _over_batch(x, gamma, beta, epsilon):
    """(y, mean, unbiased variance): the float32 `x` normalised over the batch, and its moments."""
    if tf is not None:
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
        )
        return y, mean, variance
    mean = ops.mean(x, axis=[0, 1, 2])
    variance = ops.mean(ops.squared_difference(x, mean), axis=[0, 1, 2])
    count = ops.cast(ops.shape(x)[0] * ops.shape(x)[1] * ops.shape(x)[2], "float32")
    unbiased = variance * (count / ops.maximum(count - 1, 1))
    return _by_moments(x, gamma, beta, epsilon, mean, variance), mean, unbiased


def _by_moments(x, gamma, beta, epsilon, mean, variance):
    """The float32 `x` normalised by the `mean` and `variance` of each channel."""
    if tf is not None:
        y, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
        )
        return y
    return (x - mean) * (ops.rsqrt(variance + epsilon) * gamma) + beta


@compat.register
class BatchNorm(keras.layers.Layer):
    """Batch normalisation, on TensorFlow by its fused operation, which not every Keras generation uses.

    `[batch, height, width, channels]` in and out.

    In training the statistics are those of the batch; otherwise, or where the layer is frozen (`trainable=False`),
    their moving averages. As in TensorFlow 1 the moving variance averages the unbiased variance.

    Args:
        epsilon: added to the variance, inside the root.
        momentum: what the moving averages keep at each step.
        scale, center: whether there are `gamma` and `beta`, float32 `[channels]`.
        activation: None or a name in `ACTIVATIONS`, applied to the result.
        pooled: True: the layer returns `(output, means)`, the latter over the output's pixels, float32
            [batch, channels], for `SqueezeExcite`, which would have to read the output once more for them.

    Raises:
        ValueError: for a value out of range.
    """

    def __init__(
        self,
        epsilon: float = 1e-3,
        momentum: float = 0.97,
        scale: Any = True,
        center: bool = True,
        activation: Optional[str] = None,
        pooled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_epsilon("epsilon", epsilon)
        check_activation(activation, optional=True)
        if not isinstance(momentum, (int, float)) or not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), usually 0.9 or more; got {momentum!r}")
        self.epsilon = epsilon
        self.momentum = momentum
        self.scale = scale
        self.center = center
        self.activation = activation
        self.pooled = pooled
        self.supports_jit = not (activation and native.enabled())  # as in GroupNorm

    def build(self, input_shape):
        shape = (input_shape[-1],)
        self.gamma = self.beta = None
        if self.scale:
            self.gamma = compat.add_weight(self, "gamma", shape, "ones", autocast=False)
        if self.center:
            self.beta = compat.add_weight(self, "beta", shape, "zeros", autocast=False)
        self.moving_mean = compat.add_moving_average(self, "moving_mean", shape, "zeros")
        self.moving_variance = compat.add_moving_average(self, "moving_variance", shape, "ones")
        super().build(input_shape)

    def call(self, inputs, training=None, move=True):
        """`move`: whether moving averages follow, in training; a pass over the same batch must not move them twice."""
        inputs = compat.floating(self, inputs)
        channels = inputs.shape[-1]
        gamma = ops.ones([channels]) if self.gamma is None else ops.convert_to_tensor(self.gamma)
        beta = ops.zeros([channels]) if self.beta is None else ops.convert_to_tensor(self.beta)
        x = ops.cast(inputs, "float32")  # not every device has the fused operation in half precision

        def activated(y):
            y = ACTIVATIONS[self.activation](y) if self.activation else y
            return (y, pixel_means(y)) if self.pooled else y

        def trained():
            y, *moments = _over_batch(x, gamma, beta, self.epsilon)
            for average, value in zip((self.moving_mean, self.moving_variance), moments) if move else ():
                step = (ops.convert_to_tensor(average) - value) * (1 - self.momentum)
                if not inputs.shape[0]:  # a replica may get an empty part of the last batch, which has no moments
                    step = ops.where(ops.shape(inputs)[0] > 0, step, 0.0)
                average.assign_sub(step)
            y = ops.cast(y, inputs.dtype)
            if self.activation and native.enabled(y.dtype):  # its gradient takes a third of the passes over memory
                settings = None, False, self.epsilon, self.activation
                return norm_activation(y, None, None, *settings, pooled=self.pooled)
            return activated(y)

        def inferred():
            moments = ops.convert_to_tensor(self.moving_mean), ops.convert_to_tensor(self.moving_variance)
            y = _by_moments(x, gamma, beta, self.epsilon, *moments)
            return activated(ops.cast(y, inputs.dtype))  # TensorFlow makes all of it a part of the convolution before

        return compat.in_training(training, trained, inferred) if self.trainable else inferred()

    def normalised(self, x: Any) -> Any:
        """The float32 `x` normalised by the moving averages, before scale, shift and activation."""
        return (x - self.moving_mean) * ops.rsqrt(self.moving_variance + self.epsilon)

    def compute_output_shape(self, input_shape):
        return (input_shape, (input_shape[0], input_shape[-1])) if self.pooled else input_shape

    def compute_output_spec(self, inputs, training=None, move=True):
        return output_spec(self, inputs)

    def get_config(self):
        names = "epsilon", "momentum", "scale", "center", "activation", "pooled"
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

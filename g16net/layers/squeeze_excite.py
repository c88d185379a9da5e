"""Squeeze-and-excite (1709.01507): a gate a channel, computed from the channel means of one sample."""

from typing import Any, Optional

from g16net import compat, native
from g16net.compat import keras, ops
from g16net.layers.norm_activation import ACTIVATIONS, check_activation, pixel_means


def _image(input_shape):
    """The shape of the first input, of one shape or of several."""
    several = input_shape[0] is not None and not isinstance(input_shape[0], int)
    return input_shape[0] if several else input_shape


@compat.register
class SqueezeExcite(keras.layers.Layer):
    """x * sigmoid(expand(activation(reduce(mean of x over pixels)))).

    Called on `x` [batch, height, width, channels], or on `[x, inv_std]` with the delayed scale [channels] of a
    `ProxyNormActivation`: the branch then sees `x` unscaled, and the scale enters through the gate, which is far
    smaller than `x` (2106.03640, sec. 3.2). There is no norm inside. With `pooled`, the last of the inputs are the
    channel means, as the norm before it returns them.

    Weights, float32: `reduce_kernel` [1, 1, channels, reduced], `reduce_bias`, `expand_kernel`
    [1, 1, reduced, channels], `expand_bias`: those of the two 1x1 convolutions, in their layout.

    Args:
        reduced: channels inside.
        activation: a name in `norm_activation.ACTIVATIONS`.
        pooled: whether the channel means, float32 [batch, channels], are given, or computed here.
        seed: integer, makes the initial kernels repeatable, or None.

    Raises:
        ValueError: for a width that is no positive integer, or an unknown activation.
    """

    def __init__(
        self, reduced: Any, activation: str = "swish", pooled: bool = False, seed: Optional[int] = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("autocast", False)  # the scale stays float32
        super().__init__(**kwargs)
        if not isinstance(reduced, int) or reduced < 1:
            raise ValueError(f"reduced must be a positive integer, the channels inside; got {reduced!r}")
        check_activation(activation)
        self.reduced = reduced
        self.supports_jit = not native.enabled()  # Keras 3 asks: XLA does not know the native operations
        self.activation = activation
        self.pooled = pooled
        self.seed = seed

    def build(self, input_shape):
        channels = _image(input_shape)[-1]
        ends = (("reduce", channels, self.reduced), ("expand", self.reduced, channels))
        for index, (name, inputs, outputs) in enumerate(ends):
            seed = None if self.seed is None else self.seed + index
            initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal", seed=seed)
            kernel = compat.add_weight(self, name + "_kernel", (1, 1, inputs, outputs), initializer, autocast=False)
            setattr(self, name + "_kernel", kernel)
            bias = compat.add_weight(self, name + "_bias", (outputs,), "zeros", autocast=False)
            setattr(self, name + "_bias", bias)
        self.built = True

    def call(self, inputs):
        x, *others = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        x = ops.cast(x, compat.compute_dtype(self))
        means = ops.cast(others.pop() if self.pooled else pixel_means(x), x.dtype)
        inv_std = others[0] if others else None

        def dense(name, y):
            kernel, bias = (ops.cast(getattr(self, f"{name}_{part}"), x.dtype) for part in ("kernel", "bias"))
            return ops.matmul(y, kernel[0, 0]) + bias

        logits = dense("expand", ACTIVATIONS[self.activation](dense("reduce", means)))
        gate = ops.sigmoid(ops.cast(logits, "float32"))
        if inv_std is not None:
            gate = gate * ops.cast(inv_std, "float32")
        if native.enabled(x.dtype):
            return native.multiply(x, gate)
        return x * ops.cast(gate, x.dtype)[:, None, None, :]

    def compute_output_shape(self, input_shape):
        return _image(input_shape)

    def get_config(self):
        names = "reduced", "activation", "pooled", "seed"
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

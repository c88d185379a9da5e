"""Group convolution: the spatial convolution of every MBConv, in groups of `group_size` channels (2106.03640, 3.1).

TensorFlow's grouped `conv2d` is the fastest form where it trains, but on a CPU it has a gradient only with oneDNN and
only in some dtypes (none at all in TensorFlow 2.6). So what works is found out once for each dtype, on a few numbers,
when a layer is built, and the layer takes the first that does of

- `native`: `tf.nn.conv2d` with a grouped kernel; `depthwise`: `tf.nn.depthwise_conv2d`, for groups of one channel,
- the same, computed in float32 between casts,
- `split`: a `tf.nn.conv2d` for each group and a concatenation, in float32: it trains everywhere.

Above them all is this project's own operation (`native.group_conv`), where a CPU has it and it is faster.

Measured forward and backward on two AMD EPYC cores, batch 8, widths of B0: with oneDNN `native` takes 0.3 to 0.95 of
the time of `split`; without it dense convolutions over several groups take 0.9 to 2.7 times, batched matrix products 4
to 10 times as long as `split`. `depthwise` and `native` are level in float32 for groups of one channel; in bfloat16
their gradients take up to 10 times as long as in float32, hence float32 there.

Keras' own grouped `Conv2D` is no alternative: on a CPU it runs through XLA, two orders of magnitude slower. For the
same reason the layer tells Keras 3 not to compile a model that holds it.
"""

from typing import Any, Dict, Optional, Tuple

from g16net import compat, native
from g16net.compat import keras, ops, tf
from g16net.groups import num_groups


def grouped(x: Any, kernel: Any, strides: Any) -> Any:
    """One grouped convolution; the number of groups is the ratio of the channels of `x` and of `kernel[2]`."""
    return ops.conv(x, kernel, strides)


def depthwise(x: Any, kernel: Any, strides: Any) -> Any:
    """The operation for groups of one channel."""
    size, _, _, channels = kernel.shape
    return ops.depthwise_conv(x, ops.reshape(kernel, [size, size, channels, 1]), strides)


def split(x: Any, kernel: Any, strides: Any) -> Any:
    """One convolution a group."""
    groups = x.shape[-1] // kernel.shape[2]
    if groups == 1:
        return grouped(x, kernel, strides)
    pairs = zip(ops.split(x, groups, axis=-1), ops.split(kernel, groups, axis=-1))
    return ops.concatenate([ops.conv(part, weights, strides) for part, weights in pairs], axis=-1)


LOWERINGS = {"native": grouped, "depthwise": depthwise, "split": split}

_works: Dict[Tuple, bool] = {}  # (lowering, dtype, group width, strides, device) -> bool


def group_conv2d(x: Any, kernel: Any, strides: Any, lowering: str, dtype: Any) -> Any:
    """`x` [batch, height, width, channels] convolved with `kernel` [k, k, channels/groups, channels], by the named
    lowering in `dtype`; the result has the dtype of `x`."""
    y = LOWERINGS[lowering](ops.cast(x, dtype), ops.cast(kernel, dtype), strides)
    return ops.cast(y, x.dtype)


def works(lowering: str, dtype: Any, width: int, strides: Any) -> bool:
    """Whether `lowering` gives a result and a gradient in `dtype` for groups of `width` channels on this device."""
    with tf.init_scope():
        key = lowering, tf.as_dtype(dtype).name, width == 1, strides, tf.zeros([]).device
        if key not in _works:

            @tf.function
            def step(x, kernel):
                y = group_conv2d(x, kernel, strides, lowering, dtype)
                return tf.gradients(y, [x, kernel])

            try:
                width = min(width, 2)
                inputs = tf.ones([1, 4, 4, 2 * width], dtype), tf.ones([3, 3, width, 2 * width], dtype)
                step.get_concrete_function(*inputs)(*inputs)  # a graph also where functions run eagerly
                _works[key] = True
            except tf.errors.OpError:  # the kernel is missing or refuses groups
                _works[key] = False
    return _works[key]


def choose(dtype: Any, width: int, strides: Any, lowering: Optional[str] = None) -> Tuple[str, str]:
    """(lowering, dtype) in which groups of `width` channels are convolved for a layer that computes in `dtype`.

    ValueError where a `lowering` that was asked for cannot train here.
    """
    dtype = ops.dtype_name(dtype)
    fast = lowering or ("depthwise" if width == 1 else "native")
    if compat.compiled_device():
        return lowering or "native", dtype
    if tf is None:
        return fast, dtype  # JAX and PyTorch train each of them everywhere
    if width == 1 and compat.on_cpu():
        dtype = "float32"
    candidates = [(fast, dtype), (fast, "float32")]
    if lowering is None:
        candidates.append(("split", "float32"))
    for candidate in candidates:
        if works(*candidate, width, strides):
            return candidate
    raise ValueError(
        f"lowering={lowering!r} has no gradient here in {dtype} or float32 for groups of {width} channels; "
        "leave lowering=None, which finds one that does"
    )


@compat.register
class GroupConv2D(keras.layers.Layer):
    """Spatial convolution whose groups hold `group_size` channels each; as many channels out as in, no bias.

    With `group_size=1` it is a depthwise convolution. `[batch, height, width, channels]` in and out, 'SAME' padding.
    The kernel has the layout of `tf.nn.conv2d`, `[kernel_size, kernel_size, channels / groups, channels]`: group `g`
    reads and writes channels `g * width .. (g + 1) * width - 1`. The number of groups is
    `g16net.groups.num_groups(channels, group_size)`, which says what happens where `group_size` does not divide the
    channels.

    Args:
        kernel_size: side of the square kernel in pixels.
        strides: 1 or more, in both directions.
        group_size: channels in a group.
        kernel_initializer: default He normal over the inputs of a group (fan_in, scale 2).
        lowering: None for the fastest that trains on this device, or one of `LOWERINGS`, for tests.

    Raises:
        ValueError: for a size that is no positive integer, or an unknown lowering.
    """

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = 1,
        group_size: int = 1,
        kernel_initializer: Any = None,
        lowering: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("kernel_size", kernel_size), ("strides", strides), ("group_size", group_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}")
        if lowering is not None and lowering not in LOWERINGS:
            raise ValueError(f"lowering must be None or one of {', '.join(LOWERINGS)}; got {lowering!r}")
        self.kernel_size = kernel_size
        self.strides = strides
        self.group_size = group_size
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.VarianceScaling(2.0, "fan_in", "truncated_normal")
        )
        self.lowering = lowering
        # Keras 3 asks: XLA has no fast grouped convolution on a CPU. Without it JAX would do operation by operation.
        self.supports_jit = tf is None

    def build(self, input_shape):
        channels = input_shape[-1]
        if channels is None:
            raise ValueError(f"the channels of the input must be known; got shape {tuple(input_shape)}")
        self.groups = num_groups(channels, self.group_size)
        width = channels // self.groups
        if self.lowering == "depthwise" and width != 1:
            raise ValueError(f"lowering='depthwise' needs groups of one channel; got {width} channels in a group")
        shape = (self.kernel_size, self.kernel_size, width, channels)
        self.kernel = compat.add_weight(self, "kernel", shape, self.kernel_initializer, autocast=False)
        self.chosen = choose(compat.compute_dtype(self), width, self.strides, self.lowering)
        super().build(input_shape)

    def call(self, inputs):
        inputs = compat.floating(self, inputs)
        kernel = ops.convert_to_tensor(self.kernel)
        if self.lowering is None and native.convolves(inputs, kernel.shape[2]):
            return native.group_conv(inputs, kernel, self.strides)
        return group_conv2d(inputs, kernel, self.strides, *self.chosen)

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        height, width = (n and -(-n // self.strides) for n in (height, width))
        return batch, height, width, channels

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "group_size": self.group_size,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "lowering": self.lowering,
        }

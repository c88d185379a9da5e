"""The numerical core of every batch-independent norm: normalise, affine, activation, proxy centring and scaling.

    out = (activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta) - centre) * scale

with mean and variance over the pixels and channels of a group of one sample, and centre and scale a number per channel
(proxy normalisation, 2106.03743 sec. 4). All is computed in float32, whatever the dtype of `x`, and rounded once at the
end, as a fused batch norm does it. There are two forms with equal results:

- `plain`: plain operations and their gradients, on every backend.
- `fused`, on TensorFlow: a gradient by hand, which keeps nothing but `x` and numbers the size of the channels and
  computes the rest again. On a CPU a large tensor's operation costs its passes over memory, so the affine is folded
  into `x * a + b` and centring and scaling, with their gradients, are one inference-mode batch norm. Measured at [16,
  112, 112, 96] in float32 (two AMD EPYC cores), forward and backward take 0.65 times the time of `plain`, and six in a
  row 0.4 times its memory.

The folding costs `fused` an error of about 1e-7 * |mean| / std of a normalised value; the variance has no such error,
for it is the mean squared difference from the mean in both forms.
"""

from typing import Any, Optional

from g16net import compat, native
from g16net.compat import ops, tf

ACTIVATIONS = {"swish": ops.silu, "relu": ops.relu, "relu6": ops.relu6}


def check_activation(activation: Optional[str], optional: bool = False) -> None:
    """Raises unless `activation` is a name in `ACTIVATIONS` (or None, where optional)."""
    if activation not in ACTIVATIONS and not (optional and activation is None):
        names = ", ".join(repr(name) for name in ACTIVATIONS) + (" or None" if optional else "")
        raise ValueError(f"activation must be one of {names}; got {activation!r}")


def norm_activation(
    x: Any,
    gamma: Any,
    beta: Any,
    groups: Any,
    strided: bool,
    epsilon: float,
    activation: Optional[str],
    centre: Any = None,
    scale: Any = None,
    pooled: bool = False,
) -> Any:
    """See the module's head.

    Args:
        x: [batch, height, width, channels], any float dtype.
        gamma, beta: float32 [channels], or None.
        groups: number of groups, which divides the channels; None for an `x` that is normalised already.
        strided: False: a group is `channels / groups` neighbours; True: channel c belongs to group c % groups.
        epsilon: added to the variance.
        activation: a name in `ACTIVATIONS`, or None.
        centre, scale: float32 [channels], or None; no scale without a centre.
        pooled: whether to return `(y, pixel_means(y))`; the native operation has the means without a pass over y.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    if native.enabled(x.dtype):
        y, means = native.norm_activation(x, gamma, beta, groups, strided, epsilon, activation, centre, scale)
        return (y, means) if pooled else y
    form = plain if tf is None or compat.compiled_device() else fused  # a compiler fuses the plain form itself
    y = form(x, gamma, beta, groups, strided, epsilon, activation, centre, scale)
    return (y, pixel_means(y)) if pooled else y


def pixel_means(y: Any) -> Any:
    """The means of `y` [batch, height, width, channels] over its pixels, float32 [batch, channels]."""
    return ops.mean(ops.cast(y, "float32"), axis=[1, 2])


def pixel_sums(x: Any) -> Any:
    """The sums of `x` [batch, height, width, channels] over the pixels: [batch, 1, 1, channels]."""
    if compat.on_cpu():  # a matrix product reads memory faster than a reduction does, and is as exact
        batch, height, width, channels = tf.unstack(tf.shape(x))
        ones = tf.ones([batch, 1, height * width], x.dtype)
        sums = tf.matmul(ones, tf.reshape(x, [batch, height * width, channels]))
        return tf.reshape(sums, [batch, 1, 1, x.shape[-1]])
    return ops.sum(x, axis=[1, 2], keepdims=True)


def group_means(sums: Any, pixels: Any, groups: Any, strided: bool) -> Any:
    """From the `pixel_sums` the means over each group's pixels and channels, repeated for each of its channels."""
    channels = sums.shape[-1]
    width = channels // groups
    shape, axis = ([-1, width, groups], 1) if strided else ([-1, groups, width], 2)
    means = ops.mean(ops.reshape(sums / pixels, shape), axis=axis, keepdims=True)
    return ops.reshape(means + ops.zeros(shape[1:]), [-1, 1, 1, channels])


def _statistics(x, groups, strided, epsilon):
    """(mean, 1 / sqrt(variance + epsilon), pixels): [batch, 1, 1, channels] twice, and a number."""
    pixels = ops.cast(ops.shape(x)[1] * ops.shape(x)[2], "float32")
    mean = group_means(pixel_sums(x), pixels, groups, strided)
    variance = group_means(pixel_sums(ops.squared_difference(x, mean)), pixels, groups, strided)
    return mean, ops.rsqrt(variance + epsilon), pixels


def plain(
    x: Any,
    gamma: Any,
    beta: Any,
    groups: Any,
    strided: bool,
    epsilon: float,
    activation: Optional[str],
    centre: Any = None,
    scale: Any = None,
) -> Any:
    """`norm_activation` in plain operations."""
    y = ops.cast(x, "float32")
    if groups is not None:
        mean, inv_std, _ = _statistics(y, groups, strided, epsilon)
        y = (y - mean) * (inv_std if gamma is None else inv_std * gamma)
    elif gamma is not None:
        y = y * gamma
    if beta is not None:
        y = y + beta
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if centre is not None:
        y = y - centre
    if scale is not None:
        y = y * scale
    return ops.cast(y, x.dtype)


def _batch_norm(x, mean, scale, offset):
    """(x - mean) * scale + offset, a number per channel, in one pass: inference-mode batch norm with variance 1."""
    half = tf.fill([x.shape[-1]], 0.5)
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=mean, variance=half, epsilon=0.5, is_training=False
    )[0]


def _batch_norm_gradient(gradient, x, mean, scale):
    """The gradients of `_batch_norm` with respect to x, scale and offset, in one pass."""
    half = tf.fill([x.shape[-1]], 0.5)
    return tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=gradient,
        x=x,
        scale=scale,
        reserve_space_1=mean,
        reserve_space_2=half,
        reserve_space_3=half,
        epsilon=0.5,
        is_training=False,
    )[:3]


def _activation_and_slope(activation, u):
    """The activation of `u`, and a function that multiplies a gradient by its slope."""
    if activation == "swish":
        gate = tf.sigmoid(u)
        z = u * gate
        # the slope is gate + u * gate * (1 - gate); its second term is one operation
        return z, lambda dz: dz * (gate + tf.raw_ops.SigmoidGrad(y=gate, dy=u))
    if activation == "relu":
        z = tf.nn.relu(u)
        return z, lambda dz: tf.raw_ops.ReluGrad(gradients=dz, features=z)
    if activation == "relu6":
        z = tf.nn.relu6(u)
        return z, lambda dz: tf.where((z > 0) & (z < 6), dz, tf.zeros_like(dz))
    return u, lambda dz: dz


def fused(
    x: Any,
    gamma: Any,
    beta: Any,
    groups: Any,
    strided: bool,
    epsilon: float,
    activation: Optional[str],
    centre: Any = None,
    scale: Any = None,
) -> Any:
    """`norm_activation` with a gradient by hand."""
    dtype, channels = x.dtype, x.shape[-1]
    given = [value is not None for value in (gamma, beta, centre, scale)]
    gamma = tf.ones([channels]) if gamma is None else gamma
    beta = tf.zeros([channels]) if beta is None else beta
    centre = tf.zeros([channels]) if centre is None else centre
    none = tf.zeros([channels])

    @tf.custom_gradient
    def core(x, gamma, beta, centre, *scale):
        y = tf.cast(x, tf.float32)
        if groups is None:
            a, b = gamma, beta
            u = _batch_norm(y, none, a, b) if given[0] or given[1] else y
        else:
            mean, inv_std, pixels = _statistics(y, groups, strided, epsilon)
            a = inv_std * gamma
            b = beta - mean * a
            u = y * a + b
        out = u if activation is None else ACTIVATIONS[activation](u)
        if scale:
            out = _batch_norm(out, centre, scale[0], none)
        elif given[2]:
            out = out - centre

        def gradients(gradient):
            # Without this dependency the recomputation would run, or be merged, with the forward pass.
            with tf.control_dependencies([gradient]):
                y = tf.cast(tf.identity(x), tf.float32)
                gradient = tf.cast(gradient, tf.float32)
                if groups is None:
                    u = _batch_norm(y, none, a, b) if given[0] or given[1] else y
                else:
                    u = y * a + b
                z, times_slope = _activation_and_slope(activation, u)
                dcentre, dscale = None, []
                if scale:
                    dz, ds, doffset = _batch_norm_gradient(gradient, z, centre, scale[0])
                    dcentre, dscale = -doffset * scale[0], [ds]
                else:
                    dz = gradient
                    dcentre = -tf.reduce_sum(pixel_sums(dz), axis=[0, 1, 2]) if given[2] else None
                du = times_slope(dz)
                if groups is None:
                    dx, dgamma, dbeta = _batch_norm_gradient(du, y, none, gamma)
                    return [tf.cast(dx, dtype), dgamma, dbeta, dcentre] + dscale
                # With n = (x - mean) * inv_std and means over the group:
                # dx = inv_std * (gamma * du - mean(gamma * du) - n * mean(gamma * du * n))
                sums = pixel_sums(du)
                sums_n = (pixel_sums(du * y) - mean * sums) * inv_std
                mean_du = inv_std * group_means(gamma * sums, pixels, groups, strided)
                mean_dun = tf.square(inv_std) * group_means(gamma * sums_n, pixels, groups, strided)
                dx = du * a - (y * mean_dun + (mean_du - mean * mean_dun))
                dgamma, dbeta = (tf.reduce_sum(value, axis=[0, 1, 2]) for value in (sums_n, sums))
                return [tf.cast(dx, dtype), dgamma, dbeta, dcentre] + dscale

        return tf.cast(out, dtype), gradients

    return core(x, gamma, beta, centre, *([] if scale is None else [scale]))

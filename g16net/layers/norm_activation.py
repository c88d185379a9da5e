"""The numerical core of every batch-independent norm: normalise, affine, activation, proxy centring and scaling.

    out = (activation(gamma * (x - mean) / sqrt(variance + epsilon) + beta) - centre) * scale

with mean and variance over the pixels and channels of a group of one sample, and centre and scale a number a channel
(proxy normalisation, 2106.03743 sec. 4). Everything a channel or a sample small is folded before it meets the large
tensor: norm, gamma and beta become one `x * a + b`. All is computed in float32, whatever the dtype of `x`, and rounded
once at the end, as a fused batch norm does it.
"""

import tensorflow as tf

ACTIVATIONS = {"swish": tf.nn.silu, "relu": tf.nn.relu}


def check_activation(activation, optional=False):
    """Raises unless `activation` is a name in `ACTIVATIONS` (or None, where optional)."""
    if activation not in ACTIVATIONS and not (optional and activation is None):
        names = ", ".join(repr(name) for name in ACTIVATIONS) + (" or None" if optional else "")
        raise ValueError(f"activation must be one of {names}; got {activation!r}")


def group_means(x, groups, strided):
    """The means of `x` [batch, height, width, channels] over pixels and the channels of a group, a copy a channel:
    [batch, 1, 1, channels]. Pixels first, then the few numbers left, so that any grouping costs the same."""
    channels = x.shape[-1]
    means = tf.reduce_mean(x, axis=[1, 2])
    if groups == 1:
        return tf.reduce_mean(means, axis=1)[:, None, None, None] * tf.ones([channels])
    width = channels // groups
    shape, axis, copies = (
        ([-1, width, groups], 1, [1, width, 1]) if strided else ([-1, groups, width], 2, [1, 1, width])
    )
    means = tf.tile(tf.reduce_mean(tf.reshape(means, shape), axis=axis, keepdims=True), copies)
    return tf.reshape(means, [-1, 1, 1, channels])


def norm_activation(x, gamma, beta, groups, strided, epsilon, activation, centre=None, scale=None):
    """See the module's head.

    Args:
        x: [batch, height, width, channels], any float dtype.
        gamma, beta: float32 [channels], or None.
        groups: number of groups, which divides the channels; None for an `x` that is normalised already.
        strided: False: a group is `channels / groups` neighbours; True: channel c belongs to group c % groups.
        epsilon: added to the variance.
        activation: a name in `ACTIVATIONS`, or None.
        centre, scale: float32 [channels], or None.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    y = tf.cast(x, tf.float32)
    a, b = gamma, beta
    if groups is not None:
        mean = group_means(y, groups, strided)
        y = y - mean
        inv_std = tf.math.rsqrt(group_means(tf.square(y), groups, strided) + epsilon)
        a = inv_std if gamma is None else inv_std * gamma
    if a is not None:
        y = y * a
    if b is not None:
        y = y + b
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    if centre is not None:
        y = y - centre
    if scale is not None:
        y = y * scale
    return tf.cast(y, x.dtype)

"""The folded steps as TensorFlow operations: the network of the SavedModel and of TFLite."""

from typing import Any, List, Optional

import tensorflow as tf

from g16net import compat
from g16net.export import folding
from g16net.layers import group_conv

# Swish is written out: the gradient of TensorFlow's own is a function, one for each layer, which would be traced and
# saved too.
ACTIVATIONS = {"swish": lambda x: x * tf.sigmoid(x), "relu": tf.nn.relu, "relu6": tf.nn.relu6}


class Network:
    """A callable of images [batch, height, width, 3], 0..255 in any dtype, that returns float32 logits.

    Args:
        steps: what `folding.fold` returns.
        lowering: form of every grouped convolution, a name in `group_conv.LOWERINGS`; None: the step's own.
        matmul_sums: sum over pixels by a matrix product, which a CPU with TensorFlow does faster (TFLite does not).

    Attributes:
        variables: of the kernels; whoever saves the network has to track them.
    """

    def __init__(self, steps: List[Any], lowering: Optional[str] = None, matmul_sums: bool = True) -> None:
        self.steps = steps
        self.lowering = lowering
        self.matmul_sums = matmul_sums
        # Kernels are variables, which a SavedModel holds once and beside its graph; a number per channel is a constant.
        arrays = [a for step in self.steps for a in step if getattr(a, "ndim", 0) > 1]
        self.variables = [tf.Variable(array, trainable=False) for array in arrays]
        self._variable_of = {id(array): variable for array, variable in zip(arrays, self.variables)}

    def __call__(self, images):
        kept, x, self._pixels = None, tf.cast(images, tf.float32), None
        for step in self.steps:
            if isinstance(step, folding.Keep):
                kept = x
            elif isinstance(step, folding.Add):
                x = x + kept
            else:
                x = getattr(self, f"_{type(step).__name__.lower()}")(step, x)
        return x

    def _kernel(self, array):
        return self._variable_of[id(array)].read_value()

    def _normalize(self, step, x):
        x = x - step.mean
        return x if (step.inv_std == 1).all() else x * step.inv_std

    def _conv(self, step, x):
        lowering = "native" if step.groups == 1 else self.lowering or step.lowering
        x = group_conv.LOWERINGS[lowering](x, self._kernel(step.kernel), step.stride)
        if step.stride > 1:
            self._pixels = None
        return x if step.bias is None else tf.nn.bias_add(x, step.bias)

    def _means(self, x):
        """Means over the pixels, [batch, 1, 1, channels]."""
        if not self.matmul_sums or not compat.on_cpu():
            return tf.reduce_mean(x, axis=[1, 2], keepdims=True)
        if self._pixels is None:  # once for all layers of one height and width: it is half of the graph otherwise
            batch, height, width, _ = tf.unstack(tf.shape(x))
            pixels = height * width
            self._pixels = batch, pixels, tf.ones([batch, 1, pixels]), tf.cast(pixels, tf.float32)
        batch, pixels, ones, count = self._pixels
        sums = tf.matmul(ones, tf.reshape(x, [batch, pixels, x.shape[-1]]))
        return tf.reshape(sums / count, [batch, 1, 1, x.shape[-1]])

    def _group_means(self, x, step):
        """Means over the pixels and channels of each group, for each of its channels."""
        means, channels = self._means(x), x.shape[-1]
        if step.groups == 1:
            return tf.reduce_mean(means, axis=3, keepdims=True)
        width = channels // step.groups
        shape, axis = ([-1, width, step.groups], 1) if step.strided else ([-1, step.groups, width], 2)
        means = tf.reduce_mean(tf.reshape(means, shape), axis=axis, keepdims=True)
        return tf.reshape(means + tf.zeros(shape[1:]), [-1, 1, 1, channels])

    def _norm(self, step, x):
        mean = self._group_means(x, step)
        variance = self._group_means(tf.math.squared_difference(x, mean), step)
        a = tf.math.rsqrt(variance + step.epsilon) * step.gamma
        x = x * a + (step.beta - mean * a)
        if step.activation:
            x = ACTIVATIONS[step.activation](x)
        x = x if step.centre is None else x - step.centre
        return x if step.scale is None else x * step.scale

    def _activation(self, step, x):
        return ACTIVATIONS[step.activation](x)

    def _gate(self, step, x):
        means = self._means(x)[:, 0, 0]
        reduced = tf.matmul(means, self._kernel(step.reduce_kernel)) + step.reduce_bias
        gate = tf.matmul(ACTIVATIONS[step.activation](reduced), self._kernel(step.expand_kernel)) + step.expand_bias
        gate = tf.sigmoid(gate)
        gate = gate if step.scale is None else gate * step.scale
        return x * gate[:, tf.newaxis, tf.newaxis]

    def _dense(self, step, x):
        return tf.matmul(self._means(x)[:, 0, 0], self._kernel(step.kernel)) + step.bias

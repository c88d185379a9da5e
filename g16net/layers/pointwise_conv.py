"""The 1 x 1 convolutions of a network, which expand and project (2106.03640, 3.1).

On CPUs without AVX-512 oneDNN computes their gradients slowly: as matrix products those for the input take 0.3 to 1.1
of the time, those for the kernel 0.7 to 1.0 (B0's maps, batch 16, two threads of AMD EPYC cores). So in training they
are matrix products there, and convolutions everywhere else: forward both take as long, and at inference TensorFlow
fuses a convolution with the batch norm after it.
"""

import functools
from typing import Any

from g16net import compat, native
from g16net.compat import keras, ops

ONLY = {"kernel_size": (1, 1), "strides": (1, 1), "groups": 1, "data_format": "channels_last"}


@compat.register
class PointwiseConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with a 1 x 1 kernel, which it equals to rounding; its weights and saved form are the same.

    `[batch, height, width, channels]` to `[batch, height, width, filters]`.

    Args:
        filters: channels out.
        **kwargs: as of `Conv2D`.

    Raises:
        ValueError: for another kernel, strides, groups or an order of axes that is not channels_last.
    """

    def __init__(self, filters: Any, kernel_size: Any = 1, **kwargs: Any) -> None:
        super().__init__(filters, kernel_size, **kwargs)
        for name, only in ONLY.items():
            if getattr(self, name) != only:
                raise ValueError(f"{name} of a PointwiseConv2D must be {only!r}; got {getattr(self, name)!r}")

    def call(self, inputs, training=None):
        convolved = functools.partial(super().call, inputs)
        if not native.multiplies(inputs):
            return convolved()
        return compat.in_training(training, lambda: self._multiplied(inputs), convolved)

    def _multiplied(self, x):
        channels, (height, width) = x.shape[-1], (x.shape[i] or ops.shape(x)[i] for i in (1, 2))
        y = ops.matmul(ops.reshape(x, [-1, channels]), ops.convert_to_tensor(self.kernel)[0, 0])
        y = ops.reshape(y, [-1, height, width, self.filters])
        return self.activation(y + self.bias if self.use_bias else y)

"""The ordinary convolutions of a network: the stem's, and those of 1 x 1, which expand and project (2106.03640, 3.1).

On CPUs without AVX-512 oneDNN computes the gradients of the latter slowly: the gradient for the input takes 0.3 to 1.1
of the time as a matrix product, that for the kernel 0.7 to 1.0 (B0's maps, batch 16, two threads of AMD EPYC cores). So
in training they are matrix products there, and convolutions everywhere else: forward both take as long, and at
inference TensorFlow fuses a convolution with the batch norm after it.
"""

import functools

from g16net import compat, native
from g16net.compat import keras, ops


@compat.register
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, which it equals to rounding, and faster where kernels of 1 x 1 train on a CPU.

    `[batch, height, width, channels]` to `[batch, out_height, out_width, filters]`. Arguments, weights and saved form
    are Keras' own, and either class reads the weights of the other.
    """

    def call(self, inputs, training=None):
        convolved = functools.partial(super().call, inputs)
        if not self._pointwise or len(inputs.shape) != 4 or not native.multiplies(inputs):
            return convolved()
        return compat.in_training(training, lambda: self._multiplied(inputs), convolved)

    @property
    def _pointwise(self):
        plain = self.kernel_size == self.strides == (1, 1) and self.groups == 1
        return plain and self.data_format == "channels_last"

    def _multiplied(self, x):
        rows = [known if known is not None else ops.shape(x)[axis] for axis, known in enumerate(x.shape[:-1])]
        y = ops.matmul(ops.reshape(x, [-1, x.shape[-1]]), ops.convert_to_tensor(self.kernel)[0, 0])
        y = ops.reshape(y, [*rows, self.filters])
        return self.activation(y + self.bias if self.use_bias else y)

"""Normalisation of images inside the model, so that they can travel as uint8 and every export holds it."""

from typing import Any

from g16net import compat
from g16net.compat import keras, ops


@compat.register
class Normalize(keras.layers.Layer):
    """(images - mean) / std of images 0..255 `[batch, height, width, channels]`, in float32, then the compute dtype.

    Args:
        mean, std: a number each channel, on the scale 0..255; lists, so that the config can be written as JSON.

    Raises:
        ValueError: for lists of other lengths, or a std that is not above 0.
    """

    def __init__(self, mean: Any, std: Any, **kwargs: Any) -> None:
        kwargs.setdefault("autocast", False)  # 8 bits of an image do not fit bfloat16 once the mean is taken off
        super().__init__(**kwargs)
        self.mean = [float(value) for value in mean]
        self.std = [float(value) for value in std]
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean and std must have one number each channel; got {self.mean} and {self.std}")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"every std must be above 0, on the scale of 0..255; got {self.std}")

    def build(self, input_shape):
        if input_shape[-1] != len(self.mean):
            raise ValueError(f"mean has {len(self.mean)} channels, the images have {input_shape[-1]}")
        self.built = True

    def call(self, inputs):
        x = ops.cast(inputs, "float32") - ops.constant(self.mean)
        x = x * ops.constant([1 / value for value in self.std])
        return ops.cast(x, compat.compute_dtype(self))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "std": self.std}

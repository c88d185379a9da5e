"""Layers that draw: stochastic depth (1603.09382) and dropout, with a random state that checkpoints hold."""

from typing import Any, Optional

from g16net import compat
from g16net.compat import keras, ops


class _Keep(keras.layers.Layer):
    """Keeps parts of its input with the probability `keep`, divided by it, and sets the others to 0, in training."""

    def __init__(self, keep, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.keep = keep
        self.seed = seed
        self.random = compat.Random(self, seed)

    def mask_shape(self, x):
        raise NotImplementedError

    @compat.as_written
    def call(self, inputs, training=None):
        inputs = compat.floating(self, inputs)
        if self.keep == 1:
            return inputs

        def drawn():
            kept = ops.floor(self.random.uniform(self.mask_shape(inputs)) + self.keep)
            return inputs * ops.cast(kept / self.keep, inputs.dtype)

        return compat.in_training(training, drawn, lambda: ops.identity(inputs))

    def compute_output_shape(self, input_shape):
        return input_shape


@compat.register
class StochasticDepth(_Keep):
    """Drops the whole residual branch of a sample with probability `1 - survival_prob`, in training.

    `[batch, height, width, channels]` in and out. What survives is divided by `survival_prob`, so that the mean stays.

    Args:
        survival_prob: in (0, 1], else ValueError.
        seed: integer, or None for a state that differs from run to run.
    """

    def __init__(self, survival_prob: float, seed: Optional[int] = None, **kwargs: Any) -> None:
        if not isinstance(survival_prob, (int, float)) or not 0 < survival_prob <= 1:
            raise ValueError(f"survival_prob must lie in (0, 1], 1 drops nothing; got {survival_prob!r}")
        super().__init__(survival_prob, seed, **kwargs)
        self.survival_prob = survival_prob

    def mask_shape(self, x: Any) -> Any:
        return [ops.shape(x)[0]] + [1] * (len(x.shape) - 1)

    def get_config(self):
        return {**super().get_config(), "survival_prob": self.survival_prob, "seed": self.seed}


@compat.register
class Dropout(_Keep):
    """Drops single elements with probability `rate`, in training; what is kept is divided by `1 - rate`.

    Any shape `[...]` in, the same out.

    Args:
        rate: in [0, 1), else ValueError.
        seed: integer, or None for a state that differs from run to run.
    """

    def __init__(self, rate: float, seed: Optional[int] = None, **kwargs: Any) -> None:
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(f"rate must lie in [0, 1), 0 drops nothing; got {rate!r}")
        super().__init__(1 - rate, seed, **kwargs)
        self.rate = rate

    def mask_shape(self, x: Any) -> Any:
        return ops.shape(x)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}

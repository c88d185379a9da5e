"""Learning rates of the recipe: an exponential staircase for training, a cosine for fine-tuning, both with warm-up.

Steps are weight updates, counted from 0. The warm-up multiplies whatever the decay gives by step / warmup_steps, as
the published code does: drops happen during the warm-up too, and a warm-up longer than the run never ends.

A schedule is called inside the training program in float32, where integers carry the step, so that a drop falls on
its exact step however long the run is. `curve` gives the same values in float64 NumPy, for plots.
"""

import math
from typing import Any

import numpy as np

from g16net import compat
from g16net.compat import keras, ops


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A decay over `steps` weight updates times a linear warm-up; after the last step the rate stays.

    Args:
        base: learning rate before decay and warm-up.
        steps: weight updates of the run.
        warmup_steps: length of the warm-up, 0 for none. May be a fraction: 5 of the recipe's 350 epochs are 8340.93
            steps of batch 768.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(self, base: float, steps: int, warmup_steps: float = 0.0) -> None:
        if not 0 <= base < math.inf:
            raise ValueError(f"base must be a finite learning rate of at least 0, got {base}")
        if steps < 1 or steps != int(steps):
            raise ValueError(f"steps must be a whole number of weight updates above 0, got {steps}")
        if not 0 <= warmup_steps < math.inf:
            raise ValueError(f"warmup_steps must be finite and at least 0, got {warmup_steps}; 0 means no warm-up")
        self.base = float(base)
        self.steps = int(steps)
        self.warmup_steps = float(warmup_steps)

    def __call__(self, step):
        """The learning rate at `step` (scalar tensor, variable or number) as a float32 scalar."""
        step = ops.minimum(ops.cast(step, ops.WHOLE), self.steps)
        rate = self.decay(step)
        if self.warmup_steps:
            rate *= ops.minimum(ops.cast(step, "float32") / self.warmup_steps, 1.0)
        return rate

    def curve(self, steps: Any) -> Any:
        """The learning rates at an array of steps, as float64 NumPy."""
        steps = np.minimum(np.asarray(steps, np.int64), self.steps)
        warmup = np.minimum(steps / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return self.decay_curve(steps) * warmup

    def get_config(self):
        return {"base": self.base, "steps": self.steps, "warmup_steps": self.warmup_steps}


@compat.register
class ExponentialStaircase(Schedule):
    """`drops` equal stairs over the run, each multiplying the rate by `rate` (paper, training section).

    The last drop falls on the end of the run, so that a run sees one drop less. `rate=1` gives a constant rate.
    ValueError for drops or a rate out of range.
    """

    def __init__(
        self, base: float, steps: int, warmup_steps: float = 0.0, drops: Any = 146, rate: float = 0.97
    ) -> None:
        super().__init__(base, steps, warmup_steps)
        if drops < 1 or drops != int(drops):
            raise ValueError(f"drops must be a whole number above 0, got {drops}; the recipe has 146")
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1, got {rate}; the recipe has 0.97")
        if self.steps * int(drops) >= np.iinfo(ops.WHOLE).max:
            raise ValueError(
                f"steps * drops must fit {ops.WHOLE}, the whole numbers of this backend, got {steps} * {drops}; "
                "take fewer drops"
            )
        self.drops = int(drops)
        self.rate = float(rate)

    def drops_made(self, step: Any) -> Any:
        """How many drops have happened at `step`, in whole numbers (a number, array or tensor)."""
        return step * self.drops // self.steps

    def decay(self, step: Any) -> Any:
        # A table, because 0.97^145 in float32 is off by more than the last few digits.
        stairs = ops.constant(self.base * self.rate ** np.arange(self.drops + 1), "float32")
        return ops.take(stairs, self.drops_made(step))

    def decay_curve(self, steps: Any) -> Any:
        return self.base * self.rate ** self.drops_made(steps)

    def get_config(self):
        return dict(super().get_config(), drops=self.drops, rate=self.rate)


@compat.register
class Cosine(Schedule):
    """Half a cosine from `base` to 0 at the end of the run: the fine-tuning of the recipe.

    The published fine-tuning command leaves the warm-up at 5 epochs, longer than its 2-epoch run, so that its rate
    peaks at a tenth of `base`; `warmup_steps=2.5 * steps` gives that curve, the default is the documented one.
    """

    def decay(self, step: Any) -> Any:
        # sin^2 of half the angle that is left keeps its digits near the end, where 1 + cos cancels.
        left = ops.cast(self.steps - step, "float32") / self.steps
        return self.base * ops.square(ops.sin(math.pi / 2 * left))

    def decay_curve(self, steps: Any) -> Any:
        return self.base * np.sin(np.pi / 2 * (self.steps - steps) / self.steps) ** 2

"""Callbacks of Keras that ask a metric which way is better."""

import functools
import inspect

import numpy as np

from g16net.compat.versions import KERAS3, keras, tf


def steps_per_execution(model):
    """Batches after which Keras calls its callbacks, of a compiled model."""
    steps = model.steps_per_execution if KERAS3 else model._steps_per_execution
    return int(steps.numpy() if hasattr(steps, "numpy") else steps or 1)


def accumulation(optimizer):
    """Batches of a weight update of an optimizer, which may scale the loss."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    ours, keras3 = (getattr(optimizer, name, None) for name in ("accumulation", "gradient_accumulation_steps"))
    return ours or keras3 or 1


def follow_directions():
    """Makes callbacks with mode="auto" (early stopping and its like) ask the monitored metric which way is better.

    Keras 3 asks the metric's `_direction`. Older generations go by the name alone, take "top1" for a loss and keep the
    lowest. Here theirs ask too, where the metric has an answer; a mode of "min" or "max" stands. In those generations
    Keras' own metrics have none, so nothing else changes.
    """
    if KERAS3:
        return
    for name in ("EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"):
        kind = getattr(keras.callbacks, name)
        if not hasattr(kind, "_g16net_follows"):
            _follow_direction(kind)
            kind._g16net_follows = True


def _follow_direction(kind):
    initialise, set_model = kind.__init__, kind.set_model

    @functools.wraps(initialise)
    def with_mode(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        self._given_mode = inspect.signature(initialise).bind(self, *args, **kwargs).arguments.get("mode", "auto")

    @functools.wraps(set_model)
    def with_direction(self, model):
        set_model(self, model)
        if getattr(self, "_given_mode", "auto") not in ("min", "max") and _rises(model, self.monitor):
            self.mode = "max"  # read by ReduceLROnPlateau when training begins
            self.monitor_op = np.greater
            if getattr(self, "min_delta", None) is not None:
                self.min_delta = abs(self.min_delta)
            if getattr(self, "best", None) == np.inf:
                self.best = -np.inf

    kind.__init__, kind.set_model = with_mode, with_direction


def _rises(model, monitor):
    """Whether `monitor` is a metric of the compiled `model` that says of itself that more is better."""
    compiled = getattr(
        model, "compiled_metrics", None
    )  # built with the first batch only, so what the user gave is read
    given = [getattr(compiled, f"_user_{kind}", None) for kind in ("metrics", "weighted_metrics")]
    rising = {metric.name for metric in tf.nest.flatten(given) if getattr(metric, "_direction", None) == "up"}
    monitor = monitor[len("val_") :] if monitor.startswith("val_") else monitor
    outputs = getattr(model, "output_names", None) or []
    return monitor in rising or monitor in {f"{output}_{name}" for output in outputs for name in rising}

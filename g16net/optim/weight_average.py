"""Exponential average of the weights, evaluated and exported in their place (paper, training section).

Over epochs, as published, it starts from the first epoch's weights without bias correction: after n epochs the first
one still has the share decay^(n - 1). Over weight updates, as TensorFlow's and timm's, it begins with shorter memory:
update n keeps min(decay, (1 + n) / (10 + n)). Moving statistics of batch norm are averaged with the rest.
"""

import contextlib
import functools
from typing import Any, Callable, Dict, Iterator, Optional

import numpy as np

from g16net import compat, native
from g16net.compat import keras, ops, tf

_Base: Any = object if tf is None else tf.Module  # which a tf.train.Checkpoint looks into


def exponential(values: Any, decay: float = 0.97) -> Any:
    """The average of an iterable of arrays: the first, then decay * average + (1 - decay) * next, in float64.

    ValueError where there is none.
    """
    average = None
    for value in values:
        value = np.asarray(value, np.float64)
        average = value if average is None else decay * average + (1 - decay) * value
    if average is None:
        raise ValueError("nothing to average; give at least one array")
    return average


def mean(values: Any) -> Any:
    """The plain mean of an iterable of arrays, in float64."""
    return np.mean([np.asarray(value, np.float64) for value in values], axis=0)


class WeightAverage(_Base):
    """The running average of a model's floating-point weights, in float32 variables of its own.

    A `tf.train.Checkpoint` holds it beside the model and can restore it before the first update.

    Args:
        model: a built model; another of the same architecture may be given to the methods.
        decay: share that the average keeps when weights are taken into it, in [0, 1); 0 turns it off: nothing is
            stored, and `applied` leaves the weights as they are.
        over: "epochs" or "updates", after which of them `update` is called.

    Raises:
        ValueError: for a decay out of range and for a model without weights.
    """

    def __init__(self, model: keras.Model, decay: float = 0.97, over: str = "epochs") -> None:
        if tf is not None:
            super().__init__(name="weight_average")
        if over not in ("epochs", "updates"):
            raise ValueError(f'over must be "epochs" or "updates", got {over!r}')
        if over == "updates" and tf is None:  # JAX gives callbacks the new weights at the ends of epochs only
            raise ValueError(
                f'over="updates" works on TensorFlow alone, and the backend is {compat.BACKEND!r}; take over="epochs", '
                "or an optimizer of Keras with use_ema=True"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}; the recipe has 0.97 per epoch, 0 turns it off")
        if not model.weights:
            raise ValueError(f"the model {model.name} has no weights yet; build it before averaging it")
        self.decay, self.over = float(decay), over
        self._model = lambda: model  # as a function: a checkpoint of the average shall not hold the model again
        self._program: Optional[Callable] = None
        self.updates = compat.fixed_variable(0, "updates", ops.WHOLE)
        # One name for all: for each new one TensorFlow makes another kernel, which takes four times as long.
        self.averages = [
            compat.fixed_variable(ops.zeros(weight.shape), "average") for weight in (_averaged(model) if decay else [])
        ]

    def named(self) -> Dict[str, Any]:
        """{name: variable} of the average, by the names of the weights.

        Raises:
            ValueError: where several weights have one name.
        """
        names = compat.names_of(_averaged(self._model())) if self.decay else []
        return {"updates": self.updates, **dict(zip(names, self.averages))}

    def update(self, model: Optional[keras.Model] = None) -> None:
        """Takes the weights of `model` (by default the model given first) into the average."""
        if not self.decay:
            return
        if self.over == "updates":
            program = self._program
            if model is not None or program is None:
                self._program = program = tf.function(
                    functools.partial(self._take, self._pairs(model)), autograph=False
                )
            program()
            return
        decay = self.decay if int(self.updates.numpy()) else 0.0
        for average, weight in self._pairs(model):
            average.assign(decay * average.numpy() + (1 - decay) * weight.numpy().astype(np.float32))
        self.updates.assign_add(1)

    def follow(self, optimizer: Any) -> None:
        """Lets an optimizer of g16net do what `update` does after each weight update, as a part of it, however many of
        them `fit` makes in one call of the device.

        Raises:
            ValueError: for an average over epochs, and for an optimizer that would not do it: one of Keras' own, and
                any on Keras 3.
        """
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of one that scales the loss
        if self.over != "updates":
            raise ValueError('an average over epochs follows no optimizer; make it with over="updates"')
        if not hasattr(type(optimizer), "after_update"):
            raise ValueError(
                f"{type(optimizer).__name__} of Keras {compat.KERAS_VERSION} cannot take averages; give an "
                "optimizer of g16net on tf-keras, or use the callback AverageWeights"
            )
        if self.decay:
            optimizer.after_update = functools.partial(self._take, self._pairs(None))

    def _take(self, pairs):
        """Takes the weights into their averages as one program, on the device."""
        done = tf.cast(self.updates, tf.float32)
        share = 1.0 - tf.where(done > 0, tf.minimum(self.decay, (1.0 + done) / (10.0 + done)), 0.0)
        averages, weights = zip(*[map(tf.convert_to_tensor, pair) for pair in pairs])
        weights = [tf.cast(weight, tf.float32) for weight in weights]
        if native.enabled():
            new, _, _ = native.update("average", [share], gradients=weights, values=averages)
        else:
            new = [average + share * (weight - average) for average, weight in zip(averages, weights)]
        for (average, _), value in zip(pairs, new):
            average.assign(value, read_value=False)
        self.updates.assign_add(1)

    def copy_to(self, model: Optional[keras.Model] = None) -> None:
        """Overwrites the weights of `model` with their average; does nothing where the average is off.

        Raises:
            ValueError: before the first update.
        """
        if not self.decay:
            return
        if not int(self.updates.numpy()):
            raise ValueError("the weight average is empty; call update (at an epoch's end) or restore it first")
        for average, weight in self._pairs(model):
            weight.assign(ops.cast(ops.convert_to_tensor(average), weight.dtype))

    @contextlib.contextmanager
    def applied(self, model: Optional[keras.Model] = None) -> Iterator[None]:
        """Context in which `model` has its averaged weights; the raw ones come back at its end, whatever happens."""
        raw = [weight.numpy() for _, weight in self._pairs(model)]
        try:
            self.copy_to(model)
            yield
        finally:
            for (_, weight), value in zip(self._pairs(model), raw):
                weight.assign(value)

    def _pairs(self, model):
        if not self.decay:
            return []
        weights = _averaged(model or self._model())
        if [tuple(w.shape) for w in weights] != [tuple(a.shape) for a in self.averages]:
            raise ValueError(
                f"the average was made for {len(self.averages)} weights of other shapes than the {len(weights)} of the "
                "given model; make a new WeightAverage for it"
            )
        return list(zip(self.averages, weights))


def _averaged(model):
    """The weights that an average makes sense for: not counters or seeds."""
    return [weight for weight in model.weights if "float" in ops.dtype_name(weight.dtype)]


class AverageWeights(keras.callbacks.Callback):
    """Updates a `WeightAverage` at the end of each epoch of `fit`, or after each weight update, as it is over.

    Raises:
        ValueError: when training begins, where Keras calls it more or less often than once a weight update.
    """

    def __init__(self, average: Any) -> None:
        super().__init__()
        self.average = average
        self._supports_tf_logs = True  # or Keras fetches the losses from the device after every step

    def on_train_begin(self, logs=None):
        steps, passes = compat.steps_per_execution(self.model), compat.accumulation(self.model.optimizer)
        if self.average.over == "updates" and steps != passes:
            raise ValueError(
                f"an average over updates is taken once a weight update, for which the optimizer has {passes} "
                f"batches; the model was compiled with steps_per_execution={steps}. Compile it with "
                f"steps_per_execution={passes}, or with tf-keras leave this callback out and call "
                "average.follow(optimizer)"
            )

    def on_train_batch_end(self, batch, logs=None):
        if self.average.over == "updates":
            self.average.update()

    def on_epoch_end(self, epoch, logs=None):
        if self.average.over == "epochs":
            self.average.update(self.model)

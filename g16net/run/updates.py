"""The one place where micro-batches become weight updates.

Everything of g16net counts weight updates; Keras' `fit` counts the batches that it draws. `Updates` stands between:
it cuts batches, turns numbers of updates into Keras' steps, and hands Keras' calls on to callbacks as updates.
"""

from typing import Any, List, NamedTuple, Optional

import tensorflow as tf
from tensorflow import keras


class Updates(NamedTuple):
    """How the passes of this process make weight updates.

    Attributes:
        micro_batch: images in one pass of a replica.
        accumulation: passes of each replica in one weight update.
        replicas: those of this process, which take micro-batches in turn.
        per_execution: weight updates in one call of the device.
        draws_each: Keras counts the micro-batch of each replica as a step (the IPU's does), not one for all.
        in_optimizer: our optimizer adds up the gradients of the passes; otherwise something else does.
    """

    micro_batch: int
    accumulation: int = 1
    replicas: int = 1
    per_execution: int = 1
    draws_each: bool = False
    in_optimizer: bool = True

    @property
    def optimizer_accumulation(self) -> int:
        """Passes that our optimizer adds up."""
        return self.accumulation if self.in_optimizer else 1

    def steps(self, updates: int) -> int:
        """Keras' steps in so many weight updates."""
        return updates * self.accumulation * (self.replicas if self.draws_each else 1)

    @property
    def steps_per_execution(self) -> int:
        """Keras' steps per call of the device."""
        return self.per_execution * self.accumulation

    def cut(self, data: Any) -> Any:
        """From batches of this process's images of a weight update to micro-batches of static shape."""
        if self.accumulation * self.replicas == 1:
            return data
        return cut(data, self.micro_batch).prefetch(2 * self.replicas)

    def callbacks(self, callbacks: List[keras.callbacks.Callback]) -> List[keras.callbacks.Callback]:
        """Callbacks that count weight updates, as `fit` takes them."""
        return callbacks if self.accumulation == 1 else [CountUpdates(callbacks, self.accumulation)]


def cut(data: Any, size: int) -> Any:
    """Cuts batches into smaller ones of static shape."""

    def reshape(*batch):
        return tf.nest.map_structure(lambda x: tf.reshape(x, [-1, size] + x.shape[1:].as_list()), batch)

    return data.map(reshape).unbatch()


class Callback(keras.callbacks.Callback):
    """A callback that takes a step's loss and metrics as the device's tensors. Keras fetches them from the device after
    every step, and so waits for it, where any callback does not."""

    def __init__(self) -> None:
        super().__init__()
        self._supports_tf_logs = True


class CountUpdates(Callback):
    """Hands Keras' calls, which count micro-batches, to callbacks that count weight updates."""

    def __init__(self, callbacks: List[keras.callbacks.Callback], accumulation: Optional[int]) -> None:
        super().__init__()
        self.callbacks, self.accumulation = callbacks, accumulation

    def set_model(self, model):
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(model)

    def _each(self, name, *arguments):
        for callback in self.callbacks:
            getattr(callback, name)(*arguments)

    def on_train_begin(self, logs=None):
        self._each("on_train_begin", logs)

    def on_epoch_begin(self, epoch, logs=None):
        self._each("on_epoch_begin", epoch, logs)

    def on_train_batch_begin(self, batch, logs=None):
        self._each("on_train_batch_begin", batch // self.accumulation, logs)

    def on_train_batch_end(self, batch, logs=None):
        self._each("on_train_batch_end", batch // self.accumulation, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._each("on_epoch_end", epoch, logs)

    def on_train_end(self, logs=None):
        self._each("on_train_end", logs)

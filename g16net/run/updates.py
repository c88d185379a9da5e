"""Micro-batches and weight updates: how batches are cut, and how callbacks count."""

import tensorflow as tf
from tensorflow import keras


def cut(data, size):
    """Cuts batches into smaller ones of static shape."""

    def reshape(*batch):
        return tf.nest.map_structure(lambda x: tf.reshape(x, [-1, size] + x.shape[1:].as_list()), batch)

    return data.map(reshape).unbatch()


class CountUpdates(keras.callbacks.Callback):
    """Hands Keras' calls, which count micro-batches, to callbacks that count weight updates."""

    def __init__(self, callbacks, accumulation):
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

"""Layers: weights, draws, dtypes and saved forms."""

import contextlib
import random

import numpy as np

from g16net.compat.graphs import as_written
from g16net.compat.versions import KERAS3, TF_VERSION, keras, tf


def register(cls):
    """Class decorator: makes `cls` loadable from a saved model under the name `g16net>Class`, and leaves its own `call`
    `as_written`."""
    if "call" in vars(cls):
        cls.call = as_written(cls.call)
    cls = keras.utils.register_keras_serializable(package="g16net")(cls)
    if not KERAS3 and issubclass(cls, getattr(keras.optimizers, "legacy", keras.optimizers).Optimizer):
        # For the inner optimizer of a loss scale tf-keras' `.h5` loader has this name alone, and takes what reads
        # `rmsprop` in small letters for its own.
        cls.__name__ = f"g16net>{cls.__name__}"
    return cls


def serialized(thing):
    """The dict from which any Keras generation and file format makes the registered `thing` again.

    In `.h5` files tf-keras looks classes up by `class_name` alone, in `.keras` files by `registered_name`.
    """
    name = f"g16net>{type(thing).__name__}" if type(thing).__module__.startswith("g16net.") else type(thing).__name__
    return {
        "class_name": name,
        "config": thing.get_config(),
        "module": type(thing).__module__,
        "registered_name": name,
    }


def add_weight(layer, name, shape, initializer, trainable=True, autocast=True):
    """`layer.add_weight` with a float32 variable.

    With `autocast=False` the layer reads the variable in float32 whatever the policy is; otherwise it is read in the
    layer's compute dtype.
    """
    kwargs = {"autocast": autocast} if KERAS3 else {"experimental_autocast": autocast}
    return layer.add_weight(
        name=name, shape=shape, initializer=initializer, trainable=trainable, dtype="float32", **kwargs
    )


def add_moving_average(layer, name, shape, initializer):
    """A float32 variable that is no parameter and that replicas average, for moving statistics."""
    if KERAS3:
        return layer.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="mean",
        )
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        trainable=False,
        dtype="float32",
        experimental_autocast=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN,
    )


def fixed_variable(value, name, dtype="float32"):
    """A variable of no layer, that is not trained."""
    if tf is None:
        return keras.Variable(value, dtype=dtype, trainable=False, name=name)
    return tf.Variable(value, trainable=False, name=name, dtype=dtype)


def output_spec(shape, dtype):
    """What Keras 3's `compute_output_spec` returns; the older generations never ask for it."""
    return keras.KerasTensor(shape, dtype=dtype)


def compute_dtype(layer):
    """The dtype in which `layer` computes, as a tf.DType, or its name on other backends."""
    return layer.compute_dtype if tf is None else tf.as_dtype(layer.compute_dtype)


class Random:
    """Uniform draws whose state a checkpoint holds, so that a resumed run draws what the uninterrupted one would.

    Keras 3 keeps the state in its seed generator, tf-keras in a `tf.random.Generator`; TensorFlow 2.6 (IPU) has
    neither on the device and draws from its stateful operation. Assign it to an attribute of the layer, named
    `random`, before the layer is built; the layer then tracks `random.state`.
    """

    def __init__(self, layer, seed=None):
        self.seed = seed
        self.state = None
        if KERAS3:
            self.state = keras.random.SeedGenerator(seed)
            if tf is not None:
                layer.random_holder = tf.Module()  # tf.train.Checkpoint does not look into a seed generator
                layer.random_holder.state = self.state.state
        elif TF_VERSION >= (2, 11):
            # As Keras 3 does: Python's generator, so that `set_random_seed` and deterministic operations hold here too.
            self.state = tf.random.Generator.from_seed(random.randint(1, 10**9) if seed is None else seed)
        layer.random_state = self.state

    def variables(self):
        """{name: tf.Variable} of the state."""
        if self.state is None:
            return {}
        return {"state": self.state.state.value if KERAS3 else self.state.state}

    def uniform(self, shape):
        """Float32 draws in [0, 1) of the given shape (a tensor or a tuple)."""
        if KERAS3:
            return keras.random.uniform(shape, dtype="float32", seed=self.state)
        if self.state is not None:
            return self.state.uniform(shape, dtype=tf.float32)
        return tf.random.uniform(shape, dtype=tf.float32, seed=self.seed)


def set_seed(seed):
    """Seeds Python, NumPy and what computes."""
    if hasattr(keras.utils, "set_random_seed"):
        keras.utils.set_random_seed(seed)
    else:
        random.seed(seed)
        np.random.seed(seed)
        tf.random.set_seed(seed)


@contextlib.contextmanager
def policy(name):
    """Context in which layers and models are made with the dtype policy `name`; then the previous one holds again."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def name_of(variable):
    """`block1a_conv/kernel`: the name of a variable, the same in every Keras generation."""
    return getattr(variable, "path", variable.name).split(":")[0]

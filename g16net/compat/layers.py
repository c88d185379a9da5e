"""Layers: weights, draws, dtypes and saved forms."""

import collections
import contextlib
import functools
import random

import numpy as np

from g16net.compat.graphs import as_written
from g16net.compat.versions import BACKEND, KERAS3, TF_VERSION, keras, tf

if BACKEND == "tensorflow":
    from g16net.compat import ops_tensorflow as ops
else:
    from g16net.compat import ops_keras as ops  # type: ignore[no-redef]


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
    name = keras.utils.get_registered_name(type(thing))
    return {
        "class_name": name,
        "config": thing.get_config(),
        "module": type(thing).__module__,
        "registered_name": name,
    }


def of_keras_config(optimizer, config):
    """The arguments of a class of `keras_optimizer`, from what Keras' own class would write: it has Keras' defaults."""
    names = "accumulation", "guard", "clip_norm"
    rest = {key: getattr(optimizer, key) for key in names}
    return {"name": config["name"], "learning_rate": config["learning_rate"], "weight_decay": optimizer.l2, **rest}


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


def floating(layer, inputs):
    """`inputs` in the dtype in which `layer` computes where they are whole numbers, such as images read from files:
    Keras casts floats alone, and a result cast back would lose its fractions."""
    return inputs if "float" in ops.dtype_name(inputs.dtype) else ops.cast(inputs, compute_dtype(layer))


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


def names_of(variables):
    """The names of `variables`, which tell them apart.

    Raises:
        ValueError: where several have one name.
    """
    names = [name_of(variable) for variable in variables]
    (name, times), *_ = collections.Counter(names).most_common(1) or [("", 0)]
    if times > 1:
        raise ValueError(
            f"variables are told apart by their names, and {times} of {len(names)} are called {name!r}; build each in "
            "a layer that has a name of its own"
        )
    return names


def _name_loaded_variables():
    """Lets tf-keras name the variables of a layer from a `.keras` file as those of any other, `block1a_conv/kernel`.

    It builds such layers outside of their scopes: all kernels of a model were called `kernel`.
    """
    layer = keras.layers.Layer
    build = getattr(layer, "build_from_config", None)  # came with the format
    if build is None or hasattr(layer, "_g16net_names_variables"):
        return

    @functools.wraps(build)
    def build_from_config(self, config):
        with tf.name_scope(self.name):
            build(self, config)

    layer.build_from_config = build_from_config
    layer._g16net_names_variables = True


if not KERAS3:
    _name_loaded_variables()

"""What differs between the Keras generations, in one place.

g16net runs on Keras 2.6 (the IPU SDK), on tf-keras and on Keras 3 with TensorFlow below. Layers and models use the
API common to all three and take the few things that differ from here.
"""

import random

import numpy as np
import tensorflow as tf
from tensorflow import keras

if hasattr(keras, "__version__"):
    KERAS_VERSION = keras.__version__
else:  # tf-keras does not pass its version on to `tf.keras`
    import tf_keras

    KERAS_VERSION = tf_keras.__version__
KERAS3 = int(KERAS_VERSION.split(".")[0]) >= 3
TF_VERSION = tuple(int(part) for part in tf.__version__.split(".")[:2])


def register(cls):
    """Class decorator: makes `cls` loadable from a saved model under the name `g16net>Class`."""
    return keras.utils.register_keras_serializable(package="g16net")(cls)


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


def output_spec(shape, dtype):
    """What Keras 3's `compute_output_spec` returns; the older generations never ask for it."""
    return keras.KerasTensor(shape, dtype=dtype)


def compiled_device():
    """True where the strategy in scope runs on a device whose XLA compiler takes every operation (IPU, TPU)."""
    kind = type(tf.distribute.get_strategy()).__name__
    if kind.startswith(("IPU", "PopDist")):
        return bool(tf.config.list_logical_devices("IPU"))
    return kind.startswith("TPU")


def on_cpu():
    """True where there is nothing but CPUs to compute on."""
    return all(device.device_type.endswith("CPU") for device in tf.config.list_physical_devices())


def in_training(training, trained, inferred):
    """`trained()` where a layer is called with `training` true, `inferred()` otherwise; a tensor makes both."""
    if tf.is_tensor(training):
        return tf.cond(tf.cast(training, tf.bool), trained, inferred)
    return trained() if training else inferred()


def compute_dtype(layer):
    """The dtype in which `layer` computes, as a tf.DType."""
    return tf.as_dtype(layer.compute_dtype)


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
            layer.random_holder = tf.Module()  # tf.train.Checkpoint does not look into a seed generator
            layer.random_holder.state = self.state.state
        elif TF_VERSION >= (2, 11):
            self.state = (
                tf.random.Generator.from_non_deterministic_state()
                if seed is None
                else tf.random.Generator.from_seed(seed)
            )
        layer.random_state = self.state

    def uniform(self, shape):
        """Float32 draws in [0, 1) of the given shape (a tensor or a tuple)."""
        if KERAS3:
            return keras.random.uniform(shape, dtype="float32", seed=self.state)
        if self.state is not None:
            return self.state.uniform(shape, dtype=tf.float32)
        return tf.random.uniform(shape, dtype=tf.float32, seed=self.seed)


def set_seed(seed):
    """Seeds Python, NumPy and TensorFlow."""
    if hasattr(keras.utils, "set_random_seed"):
        keras.utils.set_random_seed(seed)
    else:
        random.seed(seed)
        np.random.seed(seed)
        tf.random.set_seed(seed)


def set_policy(name):
    """Sets the dtype policy of layers made from now on."""
    keras.mixed_precision.set_global_policy(name)


if KERAS3:

    class Optimizer(keras.optimizers.Optimizer):
        """Base optimiser with one interface on every generation.

        A subclass names its per-variable state in `slots` (name to initialiser) and implements
        `update(variable, gradient, learning_rate, **slots)` on `tf.Variable`s and a dense gradient. `minimize`,
        `apply_gradients` and their reduction over replicas stay the framework's own, as the IPU and the distribution
        strategies demand. Sparse gradients become dense ones.
        """

        slots = {}

        def __init__(self, learning_rate, name, **kwargs):
            super().__init__(learning_rate=learning_rate, name=name, **kwargs)

        def check_variables(self, variables):
            """Raises for variables that the optimiser cannot train; for subclasses."""

        def build(self, variables):
            if self.built:
                return
            self.check_variables(variables)
            super().build(variables)
            self._slots = {
                name: [self.add_variable_from_reference(v, name=name, initializer=initializer) for v in variables]
                for name, initializer in self.slots.items()
            }

        def update_step(self, gradient, variable, learning_rate):
            index = self._get_variable_index(variable)
            slots = {name: variables[index].value for name, variables in self._slots.items()}
            variable = variable.value if isinstance(variable, keras.Variable) else variable
            self.update(variable, tf.convert_to_tensor(gradient), tf.cast(learning_rate, variable.dtype), **slots)

else:
    # Keras 2.6 has OptimizerV2, which the IPU needs, as `keras.optimizers.Optimizer`; tf-keras moved it to `legacy`.
    class Optimizer(getattr(keras.optimizers, "legacy", keras.optimizers).Optimizer):
        """Base optimiser with one interface on every generation: see the class of Keras 3 above."""

        slots = {}

        def __init__(self, learning_rate, name, **kwargs):
            super().__init__(name=name, **kwargs)
            self._set_hyper("learning_rate", learning_rate)
            self._set_hyper("decay", self._initial_decay)  # read by the base class

        def check_variables(self, variables):
            """Raises for variables that the optimiser cannot train; for subclasses."""

        def get_config(self):
            return dict(super().get_config(), learning_rate=self._serialize_hyperparameter("learning_rate"))

        def _create_slots(self, var_list):
            self.check_variables(var_list)
            for name, initializer in self.slots.items():
                for variable in var_list:
                    self.add_slot(variable, name, initializer)

        def _resource_apply_dense(self, grad, var, apply_state=None):
            key = (var.device, var.dtype.base_dtype)
            coefficients = (apply_state or {}).get(key) or self._fallback_apply_state(*key)
            return self.update(
                var, grad, coefficients["lr_t"], **{name: self.get_slot(var, name) for name in self.slots}
            )

        def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
            dense = tf.convert_to_tensor(tf.IndexedSlices(grad, indices, tf.shape(var)))
            return self._resource_apply_dense(dense, var, apply_state)


def build_optimizer(optimizer, variables):
    """Makes the optimizer's state for `variables` where the generation can, so that a checkpoint restores into it."""
    if KERAS3:
        optimizer.build(variables)


def ignore_errors(dataset):
    """`dataset` without the elements that raise; each error is logged."""
    if hasattr(dataset, "ignore_errors"):
        return dataset.ignore_errors(log_warning=True)
    return dataset.apply(tf.data.experimental.ignore_errors(log_warning=True))


def set_deterministic(options, value):
    """Sets whether a tf.data.Dataset keeps its order."""
    name = "deterministic" if TF_VERSION >= (2, 7) else "experimental_deterministic"
    setattr(options, name, value)

"""What differs between the Keras generations, in one place.

g16net runs on Keras 2.6 (the IPU SDK), on tf-keras and on Keras 3 with TensorFlow below. Layers and models use the
API common to all three and take the few things that differ from here.
"""

import tensorflow as tf
from tensorflow import keras

KERAS_VERSION = getattr(keras, "__version__", None) or tf.keras.__version__
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

"""One call that holds a layer to what every layer owes: shapes, dtypes, weights, config, saving and training."""

import inspect
import json
import os

import numpy as np
import tensorflow as tf
from tensorflow import keras

from g16net import compat

POLICIES = "float32", "mixed_float16", "mixed_bfloat16"


def values(variables):
    """The variables' values as arrays."""
    return [np.array(tf.convert_to_tensor(v)) for v in variables]


def gradients(function, tensors, weights=(), eager=False):
    """(result, gradients of `function`'s first result, the loss, to tensors and to weights), in a `tf.function`."""

    def step(tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = function(*tensors)
        sources = list(tensors) + [v.value if compat.KERAS3 else v for v in weights]
        return result, tape.gradient(tf.nest.flatten(result)[0], sources)

    result, found = (step if eager else tf.function(step))([tf.convert_to_tensor(t) for t in tensors])
    return tf.nest.map_structure(np.array, result), [None if g is None else np.array(g) for g in found]


def save_and_load(model, folder):
    """The model again, from a file: `.keras` where the generation has it, else a SavedModel and h5 weights."""
    if compat.TF_VERSION >= (2, 13):
        path = os.path.join(str(folder), "model.keras")
        model.save(path)
        return keras.models.load_model(path)
    path = os.path.join(str(folder), "model")
    model.save(path)
    loaded = keras.models.load_model(path)
    model.save_weights(path + ".h5")
    loaded.load_weights(path + ".h5")
    return loaded


def check_layer(cls, config, inputs, folder, trainable=0, fixed=0, output_shape=None, policies=POLICIES, changes=True):
    """Checks `cls(**config)` on `inputs` (an array, or a list of arrays of which the first is the image).

    Outputs and gradients are checked in every policy; training and saving, which see its name only, in the first.

    Args:
        trainable, fixed: how many weights of each kind it must have.
        output_shape: default: that of the (first) input.
        changes: whether every trainable weight must get a gradient that is not 0.
    """
    several = isinstance(inputs, list)
    arrays = inputs if several else [inputs]
    output_shape = output_shape or arrays[0].shape

    for policy in policies:
        keras.mixed_precision.set_global_policy(policy)
        try:
            tensors = [tf.constant(a) for a in arrays]
            layer = cls(**config)

            described = layer.get_config()
            described = json.loads(json.dumps(described))
            again = cls.from_config(described)
            assert json.loads(json.dumps(again.get_config())) == described
            for name, parameter in inspect.signature(cls.__init__).parameters.items():
                assert name == "self" or parameter.kind == parameter.VAR_KEYWORD or name in described, name

            result = layer(tensors if several else tensors[0])
            first = result[0] if isinstance(result, tuple) else result
            assert first.shape == output_shape
            assert first.dtype == compat.compute_dtype(layer)
            shapes = [tuple(a.shape) for a in arrays]
            computed = layer.compute_output_shape(shapes if several else shapes[0])
            computed = computed[0] if isinstance(result, tuple) else computed
            assert tuple(computed) == output_shape

            assert len(layer.trainable_weights) == trainable
            assert len(layer.non_trainable_weights) == fixed
            assert all(tf.as_dtype(w.dtype) == tf.float32 for w in layer.weights)

            def loss(*tensors):
                result = layer(list(tensors) if several else tensors[0], training=True)  # noqa: B023
                result = result if isinstance(result, tuple) else (result,)
                return tf.add_n([tf.reduce_sum(tf.cast(r, tf.float32) ** 2) for r in result])

            for gradient in gradients(loss, tensors, layer.trainable_weights, eager=True)[1][len(tensors) :]:
                assert np.isfinite(gradient).all()
                assert np.abs(gradient).max() > 0 or not changes

            if policy != policies[0]:
                continue
            # in a model of free image size, trained and saved
            image = keras.Input((None, None, arrays[0].shape[-1]), dtype="float32")
            x = layer([image] + tensors[1:] if several else image)
            x = x[0] if isinstance(x, tuple) else x
            x = keras.layers.GlobalAveragePooling2D(dtype="float32")(x)
            model = keras.Model(image, keras.layers.Dense(3, dtype="float32")(x))
            model.compile("sgd", "mse")
            count = len(arrays[0])
            history = model.fit(arrays[0], np.ones([count, 3], "float32"), batch_size=count, epochs=1, verbose=0)
            assert np.isfinite(history.history["loss"]).all()
            loaded = save_and_load(model, folder)
            assert [w.shape for w in loaded.weights] == [w.shape for w in model.weights]
            np.testing.assert_allclose(loaded(arrays[0]), model(arrays[0]), rtol=1e-5, atol=1e-6)
        finally:
            keras.mixed_precision.set_global_policy("float32")

"""A model for each of Keras' layers that the two generations describe in different words, to be read by the other."""

import numpy as np
from tensorflow import keras

from g16net.models import portable

IMAGE, SEQUENCE = (6, 6, 4), (6, 4)


def made():
    """{name: model}, with weights that are no generation's initial ones."""
    layers = keras.layers
    of_images = {
        "BatchNormalization": layers.BatchNormalization(),
        "Conv2DTranspose": layers.Conv2DTranspose(3, 3),
        "DepthwiseConv2D": layers.DepthwiseConv2D(3),
        "LeakyReLU": layers.LeakyReLU(),
        "SeparableConv2D": layers.SeparableConv2D(3, 3),
        "SpatialDropout2D": layers.SpatialDropout2D(0.5),
        "Discretization": layers.Discretization([0.0, 1.0]),
    }
    of_sequences = {
        "LSTM": layers.LSTM(3),
        "GRU": layers.Bidirectional(layers.GRU(3)),
        "RNN": layers.RNN(layers.LSTMCell(3)),
        "DepthwiseConv1D": layers.DepthwiseConv1D(3),
        "SpatialDropout1D": layers.SpatialDropout1D(0.5),
        "Embedding": lambda x: layers.Embedding(3, 2)(layers.Flatten()(layers.ReLU(2.0)(x))),
    }
    found = {}
    for shape, kinds in ((IMAGE, of_images), (SEQUENCE, of_sequences)):
        for name, layer in kinds.items():
            given = keras.Input(shape)
            found[name] = keras.Model(given, layer(given))
            draw = np.random.default_rng(0)
            found[name].set_weights([draw.uniform(0.1, 1, weight.shape) for weight in found[name].get_weights()])
    return found


def outputs(model):
    """What `model` computes of the same numbers in every process."""
    given = np.random.default_rng(1).normal(size=(2, *model.input_shape[1:])).astype(np.float32)
    return np.asarray(model(given, training=False), np.float32)


def write(prefix):
    """Portable files, their names after `prefix`, and what they compute."""
    for name, model in made().items():
        portable.save(model, f"{prefix}{name}.keras")
        np.save(f"{prefix}{name}.npy", outputs(model))


def read(prefix):
    """Checks that the files of the other generation compute the same in this one."""
    for name in made():
        model = keras.models.load_model(f"{prefix}{name}.keras")
        np.testing.assert_allclose(outputs(model), np.load(f"{prefix}{name}.npy"), atol=1e-5, err_msg=name)

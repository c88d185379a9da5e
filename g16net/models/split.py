"""Cuts a network in two at a layer: a trunk from the image to a feature map, a head from there to the output.

Both use the layers of the network itself, so that what trains the head trains the network.
"""

from typing import Any, Sequence, Tuple

from g16net import compat
from g16net.compat import keras


def first_layer(model: keras.Model, prefixes: Sequence[str]) -> str:
    """The name of the model's first layer that bears one of `prefixes`, such as ("top", "block7")."""
    starts = tuple(f"{prefix}_" if not prefix.startswith("block") else prefix for prefix in prefixes)
    return next(layer.name for layer in model.layers if layer.name.startswith(starts))


def split(model: keras.Model, name: str) -> Tuple[keras.Model, keras.Model]:
    """`(trunk, head)` of the flat functional `model`, cut in front of the layer `name`.

    trunk: image -> feature map [batch, height, width, channels]; head: that -> the model's output. Layers keep their
    weights and are shared by all three models. No other tensor may cross the cut: ValueError where one does.
    """
    # Layers that lie on the new graph too have two inputs from then on, so they are asked before it is made.
    wiring = [
        (layer, layer.input, layer.output) for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)
    ]
    cut = model.get_layer(name).input
    features = keras.Input(cut.shape[1:], dtype=cut.dtype, name="features")
    made = {id(cut): features}

    for layer, inputs, outputs in wiring:
        given = _flat(inputs)
        if not all(id(tensor) in made for tensor in given):
            continue
        new = [made[id(tensor)] for tensor in given]
        result = layer(new if isinstance(inputs, (list, tuple)) else new[0])
        made.update({id(old): tensor for old, tensor in zip(_flat(outputs), _flat(result))})
    if id(model.output) not in made:
        raise ValueError(f"{model.name} cannot be cut in front of {name!r}: other tensors pass it by")
    trunk = keras.Model(model.input, cut, name=f"{model.name}_trunk")
    return trunk, keras.Model(features, made[id(model.output)], name=f"{model.name}_head")


class Inference(keras.layers.Layer):
    """Calls `model` as in inference, also within a model that trains: Keras 3 passes `training` on to nested models.

    `[batch, height, width, 3]` in, what the model gives out. For use within a program, not for saving.
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.model = model

    @compat.as_written
    def call(self, inputs):
        return self.model(inputs, training=False)


def _flat(tensors):
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]

"""Training a network in less memory: of each block only the input is kept, the rest is computed again (1604.06174).

The stem is one such part, and each block from its input up to and with its last norm: what follows that draws at random
(stochastic depth) and is cheap to keep. The results are those of the network itself.
"""

import functools
import inspect
from typing import Any, List

from g16net import compat
from g16net.compat import keras
from g16net.layers.recompute import recomputed


class Recomputed(keras.layers.Layer):
    """Calls the flat functional `network` layer by layer, with recomputation.

    For use within a program, not for saving.
    """

    def __init__(self, network: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = network
        self.supports_jit = all(getattr(layer, "supports_jit", True) for layer in network.layers)
        steps = [
            (layer, [id(t) for t in _flat(layer.input)], isinstance(layer.input, (list, tuple)), _ids(layer.output))
            for layer in network.layers
            if not isinstance(layer, keras.layers.InputLayer)
        ]
        self._ends = id(network.input), id(network.output)
        self._parts = parts(steps)  # pairs (whether to compute again, steps): Keras looks into neither

    @compat.as_written
    def call(self, inputs, training=None):
        values = {self._ends[0]: inputs}
        for twice, steps in self._parts:
            if twice:
                (first, *_), last = steps[0][1], steps[-1][3][0]
                values[last] = recomputed(functools.partial(through, steps, first, last, training), values[first])
            else:
                values = run(steps, values, training)
        return values[self._ends[1]]

    def compute_output_shape(self, input_shape):
        return (input_shape[0], *self.network.output_shape[1:])

    def compute_output_spec(self, inputs, training=None):
        return compat.output_spec((inputs.shape[0], *self.network.output_shape[1:]), self.network.output.dtype)


def recomputing(network: keras.Model) -> keras.Model:
    """A model that does what `network` does and trains its weights, with recomputation."""
    image = keras.Input(network.input_shape[1:], dtype="float32", name="image")
    return keras.Model(image, Recomputed(network, name="recomputed", dtype="float32")(image), name=network.name)


def parts(steps: Any) -> Any:
    """`steps` cut into `(whether to compute again, steps)` by the names of their layers."""
    found: List[Any] = []
    inside = None
    for step in steps:
        name = step[0].name
        prefix = name.split("_")[0]
        starts = prefix == "stem" or prefix.startswith("block")
        if starts and prefix != inside and not name.endswith(("_drop", "_add")):
            found.append((True, []))
            inside = prefix
        elif not starts or name.endswith(("_drop", "_add")):
            if not found or found[-1][0]:
                found.append((False, []))
        found[-1][1].append(step)
    return tuple(found)


def run(steps: Any, values: Any, training: Any, again: bool = False) -> Any:
    """`values`, tensors by the keys of the network's own, with the results of `steps`; where they are computed `again`
    no moving average moves."""
    values, arguments = dict(values), {"training": training, "move": not again}
    for layer, inputs, several, outputs in steps:
        given = [values[key] for key in inputs]
        taken = inspect.signature(layer.call).parameters
        phase = {name: value for name, value in arguments.items() if name in taken}
        results = layer(given if several else given[0], **phase)
        values.update(zip(outputs, _flat(results)))
    return values


def through(steps: Any, first: int, last: int, training: Any, x: Any, again: bool) -> Any:
    """The tensor `last` that `steps` make of `x` in the place of `first`, for the first time or `again`."""
    return run(steps, {first: x}, training, again)[last]


def _flat(tensors):
    return list(tensors) if isinstance(tensors, (list, tuple)) else [tensors]


def _ids(tensors):
    return [id(tensor) for tensor in _flat(tensors)]

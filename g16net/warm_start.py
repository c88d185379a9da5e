"""Initial weights from another run, or from a file of another library (`foreign_weights`): everything that has the
same name and shape.

The order is one for every run: the workdir's own newest checkpoint, then `init.checkpoint`, then scratch.
"""

import os
import zipfile

import numpy as np
import tensorflow as tf
from absl import logging

from g16net import checkpoint, compat, foreign_weights
from g16net.config import UserError


def load(config, model):
    """Overwrites the weights of `model` with those of `init.checkpoint` that fit; the log lists what did not.

    Raises:
        UserError: there is nothing to read, or not one weight fits; of another library's weights, all but the last
            layer's must.
    """
    path = config.init.checkpoint
    foreign = foreign_weights.inspect(path)
    try:
        stored = foreign.values(model) if foreign else read(path, model, config.init.weights)
    except UserError:
        raise
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, tf.errors.OpError) as error:
        raise UserError(f"init.checkpoint={path} cannot be read ({error}); is it whole?") from error
    loaded, kept = [], []
    for variable in checkpoint.model_state(model).values():
        name = compat.name_of(variable)
        if name in stored and stored[name].shape == tuple(variable.shape):
            variable.assign(stored[name])
            loaded.append(name)
        else:
            kept.append(f"{name} ({'shape ' + str(stored[name].shape) if name in stored else 'not'} there)")
    if not loaded:
        raise UserError(
            f"init.checkpoint={path}: not one of its {len(stored)} weights fits this {model.name}; its names are "
            f"{', '.join(list(stored)[:3])}, ..."
        )
    lacking = [text for text in kept if not text.startswith("predictions/")]
    if foreign and lacking:
        raise UserError(
            f"init.checkpoint={path}: {foreign.library} weights there are of another network: {len(lacking)} weights "
            f"of this {model.name} besides the last layer's do not come with it: {_few(lacking)}"
        )
    if foreign:
        foreign.check(model)
    unused = sorted(set(stored) - set(loaded))
    logging.info(
        "Started from %s%s: %d of %d weights loaded%s%s",
        path,
        f" ({foreign.library} weights)" if foreign else "",
        len(loaded),
        len(loaded) + len(kept),
        f"; new: {_few(kept)}" if kept else "",
        f"; not used: {_few(unused)}" if unused else "",
    )
    return loaded, kept


def read(path, model, weights="average"):
    """{name: array} of the weights for `model` in `path`: a workdir, a checkpoint's folder, or a file of Keras.

    UserError where none is there.
    """
    if os.path.isfile(path):
        return _from_keras(path, model)
    folder = path
    if not os.path.exists(os.path.join(path, "state.index")):
        inner = os.path.join(path, "checkpoints")
        folder, _ = checkpoint.newest_whole(inner if os.path.isdir(inner) else path)
    if folder is None:
        raise UserError(f"init.checkpoint={path} holds no whole checkpoint; it takes {foreign_weights.KINDS}")
    stored = tf.train.load_checkpoint(os.path.join(folder, "state"))
    names = stored.get_variable_to_shape_map()
    averaged = weights == "average" and any(name.startswith("average/") and "/" in name[8:] for name in names)
    prefix = "average/" if averaged else "model/"
    return {
        name[len(prefix) :]: stored.get_tensor(name)
        for name in sorted(names)
        if name.startswith(prefix) and name != "average/updates"
    }


def _from_keras(path, model):
    """Arrays by layer, from a file of either generation of Keras: each layer's weights have the same order in both."""
    arrays, found = foreign_weights.keras_arrays(path), {}
    for layer in model.layers:
        weights = [weight for weight in layer.weights if tf.as_dtype(weight.dtype).is_floating]
        if weights and len(arrays.get(layer.name, ())) == len(weights):
            found.update(zip(map(compat.name_of, weights), arrays.pop(layer.name)))
    left = {f"{name}/{index}": value for name, values in arrays.items() for index, value in enumerate(values)}
    return {**left, **{name: np.asarray(value) for name, value in found.items()}}


def _few(names, most=6):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

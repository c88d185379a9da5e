"""Initial weights from another run, or from a file of another library (`foreign_weights`): everything that has the
same name and shape.

The order is one for every run: the workdir's own newest checkpoint, then `init.checkpoint`, then scratch.
"""

import os
import zipfile
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tensorflow import keras

from g16net import compat
from g16net.data import identity
from g16net.errors import UserError
from g16net.run import checkpoint, run_data
from g16net.run.workdir import Workdir
from g16net.weights import detect as foreign_weights

CLASSIFIER = "predictions/"  # its weights have the classes as their last axis


def load(
    config: ConfigDict, model: keras.Model, class_names: Optional[Sequence[str]] = None
) -> Tuple[List[str], List[str]]:
    """Overwrites the weights of `model` with those of `init.checkpoint` that fit; the log lists what did not.

    Of the classifier each class takes the weights of the class of its name; classes that the other run did not have
    keep their initial ones. Where nobody tells the other run's classes, or `class_names` are None, a classifier of as
    many classes is taken as it is.

    Args:
        class_names: one per logit of `model`.

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
    others = None if foreign or not class_names else run_data.class_names_of_weights(path)
    about = "" if foreign or not class_names else _match_classifier(stored, model, others, class_names)
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
        "Started from %s%s: %d of %d weights loaded%s%s%s",
        path,
        f" ({foreign.library} weights)" if foreign else "",
        len(loaded),
        len(loaded) + len(kept),
        about,
        f"; new: {_few(kept)}" if kept else "",
        f"; not used: {_few(unused)}" if unused else "",
    )
    return loaded, kept


def _match_classifier(stored, model, others, class_names):
    """Brings the classifier's arrays in `stored` from the classes `others` to `class_names`, by name; takes them out
    where they have none in common. Returns what to say of it."""
    variables = {compat.name_of(v): v for v in checkpoint.model_state(model).values()}
    mine = [name for name in variables if name.startswith(CLASSIFIER) and name in stored]
    if not mine:
        return ""
    if others is None or any(stored[name].shape[-1] != len(others) for name in mine):
        fits = all(stored[name].shape == tuple(variables[name].shape) for name in mine)
        return "; the classifier by position, as nothing there names its classes" if fits else ""
    place = {identity.plain(name): i for i, name in enumerate(others)}
    pairs = [(i, place[identity.plain(n)]) for i, n in enumerate(class_names) if identity.plain(n) in place]
    unique = len(place) == len(others) and len(set(class_names)) == len(class_names)
    if not unique:
        if list(others) == list(class_names):
            return ""
        pairs = []
    for name in mine:
        array = stored.pop(name)
        fresh = variables[name].numpy().copy()
        if pairs and array.shape[:-1] == fresh.shape[:-1]:
            to, of = (list(column) for column in zip(*pairs))
            fresh[..., to] = array[..., of]
            stored[name] = fresh
    if not pairs:
        return "; the classifier starts over, as none of its classes has the name of one there"
    new = [name for name in class_names if identity.plain(name) not in place]
    text = f"; the classifier by name, {len(pairs)} of {len(class_names)} classes"
    return text + (f" ({identity.quoted(new)} new)" if new else "")


def read(path: str, model: keras.Model, weights: str = "average") -> Dict[str, Any]:
    """{name: array} of the weights for `model` in `path`: a workdir, a checkpoint's folder, or a file of Keras.

    UserError where none is there.
    """
    if os.path.isfile(path):
        return _from_keras(path, model)
    folder: Optional[str] = path
    if not os.path.exists(os.path.join(path, "state.index")):
        inner = Workdir(path).checkpoints
        folder, _ = checkpoint.newest_whole(inner if os.path.isdir(inner) else path)
    if folder is None:
        raise UserError(f"init.checkpoint={path} holds no whole checkpoint; it takes {foreign_weights.KINDS}")
    stored = tf.train.load_checkpoint(os.path.join(folder, "state"))
    names = stored.get_variable_to_shape_map()
    # an average of nothing, as adopted runs and those stopped in their first epoch have, is zeros
    averaged = weights == "average" and "average/updates" in names and stored.get_tensor("average/updates") > 0
    averaged = averaged and any(name.startswith("average/") and "/" in name[8:] for name in names)
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

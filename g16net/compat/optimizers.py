"""Optimizers: one base class, loss scales, and files."""

import functools
import importlib
import inspect

from g16net.compat.state import read_optimizer_state, write_optimizer_state
from g16net.compat.versions import KERAS3, keras

if KERAS3:
    from g16net.compat.optimizer_keras3 import Optimizer, keras_optimizer, keras_optimizers  # noqa: F401
else:
    from g16net.compat.optimizer_keras2 import (  # type: ignore  # noqa: F401
        Optimizer,
        Updates,
        keras_optimizer,
        keras_optimizers,
    )


def scale_loss(optimizer, scale, dynamic):
    """`optimizer` for float16: the loss is multiplied by `scale`, which `dynamic` halves after an overflow, skipping
    that update, and doubles after 2,000 updates without one."""
    if not KERAS3:
        return keras.mixed_precision.LossScaleOptimizer(optimizer, dynamic=dynamic, initial_scale=scale)
    if dynamic:
        return keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=scale)
    optimizer.loss_scale_factor = scale
    return optimizer


def _keep_optimizers_in_files():
    """Lets tf-keras write our optimizer into `.keras` and `.weights.h5` files, and read it.

    Its writer takes optimizers of its newer base class alone and leaves others out without a word: loaded models began
    their schedule again with empty slots. Before Keras 2.12 there are no such files.
    """
    root = keras.Model.__module__.split(".engine")[0]
    try:
        library = importlib.import_module(f"{root}.saving.saving_lib")
        save, load = library._save_state, library._load_state
    except (ImportError, AttributeError):
        return
    if hasattr(library, "_g16net_keeps_optimizers"):
        return

    def found(function, args, kwargs):
        """`(model, its store)` where a whole model is saved or loaded that has our optimizer."""
        given = inspect.signature(function).bind(*args, **kwargs).arguments
        model, store = list(given.values())[:2]
        optimizer = getattr(model, "optimizer", None) if given["inner_path"] == "" else None
        ours = isinstance(getattr(optimizer, "inner_optimizer", optimizer), Updates)
        return (model, store) if ours and model.built else (None, None)

    @functools.wraps(save)
    def save_state(*args, **kwargs):
        save(*args, **kwargs)
        model, store = found(save, args, kwargs)
        inner = model and getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if inner and (inner.get_slot_names() or inner._iterations is not None):  # plain SGD has its step alone
            write_optimizer_state(model.optimizer, model.trainable_variables, store.make("optimizer"))

    @functools.wraps(load)
    def load_state(*args, **kwargs):
        load(*args, **kwargs)
        model, store = found(load, args, kwargs)
        kept = {} if model is None else store.get("optimizer")
        if len(kept):
            read_optimizer_state(model.optimizer, model.trainable_variables, kept)

    library._save_state, library._load_state = save_state, load_state
    library._g16net_keeps_optimizers = True


if not KERAS3:
    _keep_optimizers_in_files()

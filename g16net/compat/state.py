"""What an optimizer keeps for its variables, by name, and in files."""

import json
import warnings

import numpy as np

from g16net.compat.layers import name_of, names_of
from g16net.compat.versions import KERAS3, tf


def optimizer_state(optimizer, variables, names=None):
    """{name: variable} of all that `optimizer` keeps for `variables`, created where it is not yet; on TensorFlow each a
    tf.Variable.

    The names are the same in every Keras generation: `rms/NAME` with `names`, by default the variables' own.

    Raises:
        ValueError: where several variables have one name, and no `names` are given.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    named = list(zip(names_of(variables) if names is None else names, variables))
    if KERAS3:
        optimizer.build(variables)
        state = {"step": inner._iterations}
        for slot, values in inner._slots.items():
            of = [name for name, _ in named] if slot in inner.slots else range(len(values))
            state.update({f"{slot}/{name}": value for name, value in zip(of, values)})
        for (name, _), value in zip(named, getattr(inner, "_accumulated_gradients", ())):
            state[f"accumulated/{name}"] = value
        if inner is not optimizer:
            state.update(loss_scale=optimizer.dynamic_scale, good_steps=optimizer.step_counter)
        return state if tf is None else {name: variable.value for name, variable in state.items()}
    inner._create_all_weights(variables)
    state = {"step": inner.iterations}
    for slot in inner.get_slot_names():
        state.update({f"{slot}/{name}": inner.get_slot(v, slot) for name, v in named})
    if hasattr(inner, "_m_cache"):  # Nadam's product of its momentums, which is no variable's
        state["momentum_cache"] = inner._m_cache
    if inner.accumulation > 1:
        state["micro_batches"] = inner.micro_batches
    if getattr(optimizer, "dynamic", False):
        state.update(loss_scale=optimizer._loss_scale.current_loss_scale, good_steps=optimizer.dynamic_counter)
    return state


# Of the names of `optimizer_state` in a checkpoint those that hold something within an update only.
ACCUMULATORS = ("optimizer/accumulated/", "optimizer/micro_batches")
# Those that a run may begin to keep later: with `runtime.dynamic_loss_scale`, or a version that knows more of Nadam.
LATE = ("optimizer/loss_scale", "optimizer/good_steps", "optimizer/momentum_cache")


def recount(optimizer, before, now):
    """Sets the steps of a restored optimizer, made with `before` passes an update, to `now`: Keras 3 counts passes."""
    if KERAS3 and before != now:
        optimizer._iterations.assign(int(optimizer._iterations.numpy()) // before * now)


def write_optimizer_state(optimizer, variables, store):
    """Writes all that `optimizer` keeps for `variables` into the HDF5 group `store`; see `read_optimizer_state`."""
    for name, variable in optimizer_state(optimizer, variables, range(len(variables))).items():
        store[name.replace("/", ".")] = np.asarray(variable.numpy())
    store["names"] = np.frombuffer(json.dumps([name_of(v) for v in variables]).encode(), np.uint8)


def read_optimizer_state(optimizer, variables, store):
    """Gives `optimizer` what `write_optimizer_state` wrote for `variables`, by their names or else by their order.

    Warns, and leaves the optimizer as it is, where the variables or the optimizer were others.
    """
    problem = "it is of another optimizer"
    if "names" in store:
        names, own = json.loads(np.asarray(store["names"]).tobytes().decode()), [name_of(v) for v in variables]
        by_name = sorted(set(names)) == sorted(own) and len(names) == len(own)
        places = [names.index(name) for name in own] if by_name else list(range(len(own)))
        state = optimizer_state(optimizer, variables, places)
        values = {name: np.asarray(store[key]) for name in state for key in [name.replace("/", ".")] if key in store}
        fits = len(names) == len(own) and all(values[name].shape == tuple(state[name].shape) for name in values)
        if fits and len(values) == len(state):
            for name, value in values.items():
                state[name].assign(value)
            return
        problem = f"it is of {len(names)} variables or of other settings, and there are {len(own)}"
    warnings.warn(f"The optimizer's state in the file was not loaded, and it starts over: {problem}.", stacklevel=2)

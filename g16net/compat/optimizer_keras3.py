"""The base class of optimizers on Keras 3."""

import warnings
from typing import Any, Dict

import numpy as np

from g16net.compat.layers import of_keras_config, register
from g16net.compat.state import read_optimizer_state
from g16net.compat.versions import BACKEND, keras, tf

if BACKEND == "tensorflow":
    from g16net.compat.gradients import note_finite, placed, which_finite


class _Guarded:
    """What any optimizer does with `guard`: see `Optimizer`. Before Keras' class among the bases."""

    slots: Dict[str, Any] = {}

    def _add_counts(self, variables):
        if self.guard != "none":
            self.not_finite = tf.Variable(tf.zeros([len(variables)], tf.int32), trainable=False)
            self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False)

    def _get_current_learning_rate(self):
        if self.accumulation > 1 and isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)  # Keras 3 gives it passes, several an update
        return super()._get_current_learning_rate()

    def apply(self, grads, trainable_variables=None):
        if tf is not None and not self.built:
            with tf.init_scope():
                self.build(trainable_variables)
        if self.guard == "none":
            return super().apply(grads, trainable_variables)
        grads, known = list(grads), len(self._trainable_variables)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self._check_variables_are_known(trainable_variables)
        of = self._trainable_variables if trainable_variables is None else trainable_variables
        places = [self._get_variable_index(variable) for variable in of]
        good = note_finite(self, placed(which_finite(grads), places, known))
        if self.guard == "report":
            return super().apply(grads, trainable_variables)
        if self.accumulation > 1:  # a pass that adds nothing is one too: updates fall where they would
            grads = [g if g is None else tf.where(good, g, tf.zeros_like(g)) for g in grads]
            return super().apply(grads, trainable_variables)
        apply = super().apply

        def update():
            apply(grads, trainable_variables)
            return True

        return tf.cond(good, update, lambda: False)


def _check_guard(guard):
    if guard != "none" and tf is None:
        raise ValueError(
            f"guard={guard!r} works on TensorFlow alone, and Keras' backend is {BACKEND!r}; leave guard='none', "
            "and let keras.callbacks.TerminateOnNaN watch the loss"
        )


class Optimizer(_Guarded, keras.optimizers.Optimizer):
    """Base optimiser with one interface on every generation.

    A subclass names its per-variable state in `slots` (name to initialiser) and implements
    `update(variable, gradient, learning_rate, **slots)` on `tf.Variable`s (on other backends Keras' own) and a dense
    gradient. It may implement `update_all` for all variables at once too, which is asked on TensorFlow and one device.
    `minimize`, `apply_gradients` and their reduction over replicas stay the framework's own, as the IPU and the
    distribution strategies demand. Sparse gradients become dense ones.

    Args:
        accumulation: gradients of so many calls are averaged for one update.
        guard: of gradients that are not finite: "none"; "report" counts such updates in `skipped` and keeps in
            `not_finite` which variables' they were; "skip" also leaves the update out. On TensorFlow alone.
        clip_norm: the gradients of a whole update are scaled down to this norm of them all, where it is larger;
            None or 0: never.
    """

    def __init__(self, learning_rate, name, accumulation=1, guard="none", clip_norm=None, **kwargs):
        _check_guard(guard)
        if accumulation > 1:
            kwargs["gradient_accumulation_steps"] = accumulation
        if clip_norm:
            kwargs["global_clipnorm"] = clip_norm
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.accumulation, self.guard, self.clip_norm = accumulation, guard, clip_norm
        self._late, self._asked_early = None, False

    def check_variables(self, variables):
        """Raises for variables that the optimiser cannot train; for subclasses."""

    def rate_factor(self, variable):
        """Factor of the learning rate for `variable`, a number; for subclasses."""
        return 1.0

    def as_built(self, variable):
        """`variable` as it was given to `build`: a bare or a replica's tf.Variable does not know its layer's path."""
        place = self._trainable_variables_indices.get(self._var_key(variable)) if self.built else None
        return variable if place is None else self._trainable_variables[place]

    def update_all(self, variables, gradients, learning_rate, **slots):
        """Updates all variables and returns bool [variables], whether their gradients are finite; or does nothing
        and returns None, the default."""

    def build(self, variables):
        if self.built or not variables:
            self._asked_early = not self.built  # by Keras' loader of .h5 files, which builds for no variables
            return
        self.check_variables(variables)
        super().build(variables)
        self._add_counts(variables)
        self._slots = {
            name: [self.add_variable_from_reference(v, name=name, initializer=initializer) for v in variables]
            for name, initializer in self.slots.items()
        }
        if self._late is not None:
            late, self._late = self._late, None
            self.set_weights(late)
        elif self._asked_early:
            warnings.warn(
                "The optimizer's state in the .h5 file was not loaded, and it starts over: with a loss scale "
                "Keras' own loader leaves it out. Save such models as .keras.",
                stacklevel=2,
            )

    def set_weights(self, weights):
        """As Keras', but before `build` too: what belongs to variables yet unknown is set when they come."""
        if self.built:
            super().set_weights(weights)
            return
        self._late = [np.asarray(weight) for weight in weights]
        for variable, weight in zip(self.variables, self._late):
            variable.assign(weight)

    def load_own_variables(self, store):
        if "names" in store.keys() and self.built:  # written by tf-keras
            read_optimizer_state(self, self._trainable_variables, {key: store[key] for key in store.keys()})
        else:
            super().load_own_variables(store)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        alone = tf is not None and not tf.distribute.has_strategy()
        if not alone or self._all_at_once(grads, trainable_variables, learning_rate) is None:
            super()._backend_update_step(grads, trainable_variables, learning_rate)

    def _all_at_once(self, gradients, variables, learning_rate):
        places = [self._get_variable_index(variable) for variable in variables]
        variables = [_of_tensorflow(variable) for variable in variables]
        slots = {name: [slot[place].value for place in places] for name, slot in self._slots.items()}
        return self.update_all(variables, gradients, tf.cast(learning_rate, tf.float32), **slots)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        learning_rate = learning_rate * self.rate_factor(variable)
        if tf is None:
            slots = {name: variables[index] for name, variables in self._slots.items()}
            self.update(variable, gradient, keras.ops.cast(learning_rate, variable.dtype), **slots)
            return
        slots = {name: variables[index].value for name, variables in self._slots.items()}
        variable = _of_tensorflow(variable)
        self.update(variable, tf.convert_to_tensor(gradient), tf.cast(learning_rate, variable.dtype), **slots)


def _of_tensorflow(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable


def keras_optimizers():
    """{name: class} of Keras' own optimizers that `keras_optimizer` takes."""
    base = keras.optimizers.Optimizer
    return {
        n: c for n, c in vars(keras.optimizers).items() if isinstance(c, type) and issubclass(c, base) and c is not base
    }


def keras_optimizer(kind, name, penalised):
    """The class `kind` of `keras_optimizers`, with what ours have, under a `name` of its own;
    `penalised(weight_decay, variable, gradient)` is the gradient that it gets."""

    class Made(_Guarded, kind):
        def __init__(self, learning_rate, weight_decay=0.0, accumulation=1, guard="none", clip_norm=None, name=None):
            _check_guard(guard)
            arguments = {} if name is None else {"name": name}
            if accumulation > 1:
                arguments["gradient_accumulation_steps"] = accumulation
            if clip_norm:
                arguments["global_clipnorm"] = clip_norm
            super().__init__(learning_rate, **arguments)
            self.l2, self.accumulation, self.guard, self.clip_norm = weight_decay, accumulation, guard, clip_norm

        def get_config(self):
            return of_keras_config(self, super().get_config())

        def build(self, variables):
            if not self.built and variables:
                super().build(variables)
                self._add_counts(variables)

        def update_step(self, gradient, variable, learning_rate):
            if self._use_weight_decay(variable):
                gradient = penalised(self.l2, variable, keras.ops.convert_to_tensor(gradient))
            super().update_step(gradient, variable, learning_rate)

        @property
        def _slots(self):
            """{name: variables in order} of what it keeps, whatever it calls them, for `optimizer_state`."""
            sums = {id(v) for v in getattr(self, "_accumulated_gradients", ())}
            known = {id(self._iterations), id(self._learning_rate)} | sums
            return {"kept": [v for v in self.variables if id(v) not in known]}

    Made.__name__ = Made.__qualname__ = name
    return register(Made)

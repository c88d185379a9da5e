"""The base class of optimizers on Keras 3."""

import warnings
from typing import Any, Dict

import numpy as np

from g16net.compat.state import read_optimizer_state
from g16net.compat.versions import BACKEND, keras, tf

if BACKEND == "tensorflow":
    from g16net.compat.gradients import note_finite, which_finite


class Optimizer(keras.optimizers.Optimizer):
    """Base optimiser with one interface on every generation.

    A subclass names its per-variable state in `slots` (name to initialiser) and implements
    `update(variable, gradient, learning_rate, **slots)` on `tf.Variable`s (on other backends Keras' own) and a dense
    gradient. It may implement
    `update_all` for all variables at once too, which older generations of Keras ask on one device. `minimize`,
    `apply_gradients` and their reduction over replicas stay the framework's own, as the IPU and the distribution
    strategies demand. Sparse gradients become dense ones.

    Args:
        accumulation: gradients of so many calls are averaged for one update.
        guard: of gradients that are not finite: "none"; "report" counts such updates in `skipped` and keeps in
            `not_finite` which variables' they were; "skip" also leaves the update out. On TensorFlow alone.
    """

    slots: Dict[str, Any] = {}

    def __init__(self, learning_rate, name, accumulation=1, guard="none", **kwargs):
        if guard != "none" and tf is None:
            raise ValueError(
                f"guard={guard!r} works on TensorFlow alone, and Keras' backend is {BACKEND!r}; leave guard='none', "
                "and let keras.callbacks.TerminateOnNaN watch the loss"
            )
        if accumulation > 1:
            kwargs["gradient_accumulation_steps"] = accumulation
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.accumulation, self.guard = accumulation, guard
        self._late, self._asked_early = None, False

    def check_variables(self, variables):
        """Raises for variables that the optimiser cannot train; for subclasses."""

    def build(self, variables):
        if self.built or not variables:
            self._asked_early = not self.built  # by Keras' loader of .h5 files, which builds for no variables
            return
        self.check_variables(variables)
        super().build(variables)
        if self.guard != "none":
            self.not_finite = tf.Variable(tf.zeros([len(variables)], tf.int32), trainable=False)
            self.skipped = tf.Variable(0, dtype=tf.int64, trainable=False)
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

    def _get_current_learning_rate(self):
        if self.accumulation > 1 and isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)  # Keras 3 gives it passes, several an update
        return super()._get_current_learning_rate()

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        if tf is None:
            slots = {name: variables[index] for name, variables in self._slots.items()}
            self.update(variable, gradient, keras.ops.cast(learning_rate, variable.dtype), **slots)
            return
        slots = {name: variables[index].value for name, variables in self._slots.items()}
        variable = variable.value if isinstance(variable, keras.Variable) else variable
        self.update(variable, tf.convert_to_tensor(gradient), tf.cast(learning_rate, variable.dtype), **slots)

    def apply(self, grads, trainable_variables=None):
        if tf is not None and not self.built:
            with tf.init_scope():
                self.build(trainable_variables)
        if self.guard == "none":
            return super().apply(grads, trainable_variables)
        good = note_finite(self, which_finite(grads))
        if self.guard == "report":
            return super().apply(grads, trainable_variables)
        apply = super().apply

        def update():
            apply(grads, trainable_variables)
            return True

        return tf.cond(good, update, lambda: False)

"""The base class of optimizers on Keras 2.6 and tf-keras."""

import sys
from typing import Any, Dict

import tensorflow as tf
from tensorflow import keras

from g16net.compat.gradients import group, note_finite, placed, which_finite
from g16net.compat.layers import of_keras_config, register, serialized

# Keras 2.6 has OptimizerV2, which the IPU needs, as `keras.optimizers.Optimizer`; tf-keras moved it to `legacy`.
_OptimizerV2: Any = getattr(keras.optimizers, "legacy", keras.optimizers).Optimizer
_key: Any = vars(sys.modules[_OptimizerV2.__module__])["_var_key"]  # by which slots are kept


class Updates:
    """What any optimizer of these generations does with `accumulation`, `guard` and `clip_norm`: see `Optimizer` of
    Keras 3. Beside `_OptimizerV2` among the base classes."""

    slots: Dict[str, Any] = {}
    _factor = None  # of the update that is being traced
    after_update = None  # called behind each weight update

    def rate_factor(self, variable):
        """Factor of the learning rate for `variable`, a number; for subclasses."""
        return 1.0

    def as_built(self, variable):
        return variable

    def _use_weight_decay(self, variable):
        return True  # Keras 3 has `exclude_from_weight_decay`

    def update_all(self, variables, gradients, learning_rate, **slots):
        """Updates all variables and returns bool [variables], whether their gradients are finite; or does nothing
        and returns None, the default."""

    def get_config(self):
        rate = self._serialize_hyperparameter("learning_rate")
        hyper = self._get_hyper("learning_rate")
        if callable(hyper) and hasattr(hyper, "get_config"):
            rate = serialized(hyper)
        return dict(super().get_config(), learning_rate=rate)

    def _create_slots(self, var_list):
        super()._create_slots(var_list)
        if self.accumulation > 1:
            for variable in var_list:
                self.add_slot(variable, "accumulated", "zeros")

    def _create_all_weights(self, var_list):
        super()._create_all_weights(var_list)
        if self.accumulation > 1 and not hasattr(self, "micro_batches"):
            self.micro_batches = self._counter("micro_batches", [], tf.int64)
            self._weights.append(self.micro_batches)  # what .h5 files keep
        if self.guard != "none":
            self._count_not_finite(var_list)

    def _count_not_finite(self, var_list):
        """An entry of `not_finite` for each variable, of later updates too, as after layers are unfrozen."""
        if not hasattr(self, "skipped"):
            self.skipped, self._places = self._counter("skipped", [], tf.int64), {}
        before = len(self._places)
        for variable in var_list:
            self._places.setdefault(_key(variable), len(self._places))
        if len(self._places) > before:
            self.not_finite = self._counter("not_finite", [len(self._places)], tf.int32)

    def _note_finite(self, finite, variables):
        return note_finite(self, placed(finite, [self._places[_key(v)] for v in variables], len(self._places)))

    def _counter(self, name, shape, dtype):
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        return self.add_weight(name, shape=shape, dtype=dtype, trainable=False, aggregation=first)

    def _distributed_apply(self, distribution, grads_and_vars, name, apply_state):
        """The update from gradients that are reduced over replicas, which thus all decide alike."""

        def count():
            return self.iterations.assign_add(1, read_value=False)

        def followed(done):
            if self.after_update is None:
                return done
            with tf.control_dependencies(tf.nest.flatten([done])):
                self.after_update()
            return done

        def apply(pairs):
            self._factor = self._shrink(distribution, pairs)
            if self._update_all(pairs, apply_state, name) is not None:
                return followed(count())
            return followed(
                super(Updates, self)._distributed_apply(distribution, pairs, apply_state=apply_state, name=name)
            )

        variables = [variable for _, variable in grads_and_vars]
        if self.accumulation == 1 and self.guard == "none":
            return apply(grads_and_vars)
        if self.accumulation == 1 and self.guard == "report" and not self.clip_norm:
            finite = self._update_all(grads_and_vars, apply_state, name)
            if finite is not None:
                self._note_finite(finite, variables)
                return followed(count())
        good = tf.constant(True)
        if self.guard != "none":
            local = distribution.experimental_local_results
            finite = which_finite([local(gradient)[0] for gradient, _ in grads_and_vars])
            all_finite = self._note_finite(finite, variables)
            good = all_finite if self.guard == "skip" else good
        if self.accumulation > 1:
            return self._accumulate(distribution, grads_and_vars, good, apply)
        if self.guard == "report":
            return apply(grads_and_vars)
        return tf.cond(good, lambda: group(apply(grads_and_vars)), tf.no_op)

    def _shrink(self, distribution, grads_and_vars):
        """The factor that brings the norm of all gradients of an update down to `clip_norm`, a scalar or None."""
        if not self.clip_norm:
            return None
        local = distribution.experimental_local_results
        norm = tf.linalg.global_norm([local(gradient)[0] for gradient, _ in grads_and_vars])
        return self.clip_norm / tf.maximum(norm, self.clip_norm)

    def clipped(self, gradient):
        """The gradient of a whole update as it is applied, within it."""
        return gradient if self._factor is None else gradient * tf.cast(self._factor, gradient.dtype)

    def _update_all(self, grads_and_vars, apply_state, name):
        """`update_all` where it can be asked: without replicas and constraints."""
        gradients, variables = zip(*grads_and_vars)
        if tf.distribute.has_strategy() or any(variable.constraint is not None for variable in variables):
            return None
        gradients = [self.clipped(gradient) for gradient in gradients]
        slots = {slot: [self.get_slot(variable, slot) for variable in variables] for slot in self.slots}
        with tf.name_scope(name or self._name):
            rate = self._coefficients(variables[0], apply_state)["lr_t"]
            return self.update_all(variables, gradients, rate, **slots)

    def _accumulate(self, distribution, grads_and_vars, good, apply):
        """Adds the gradients of one micro-batch, where they are `good`; after the last one, updates."""
        variables = [variable for _, variable in grads_and_vars]
        sums = [self.get_slot(variable, "accumulated") for variable in variables]
        update = distribution.extended.update

        def add(total, gradient):
            share = tf.where(good, gradient / self.accumulation, tf.zeros_like(gradient))
            return total.assign_add(tf.cast(share, total.dtype))

        added = [update(total, add, args=(g,), group=False) for total, (g, _) in zip(sums, grads_and_vars)]
        with tf.control_dependencies(tf.nest.flatten(added)):
            count = tf.convert_to_tensor(self.micro_batches.assign_add(1))

        def last():
            done = apply(list(zip(sums, variables)))
            with tf.control_dependencies([group(done)]):
                return group([update(total, lambda t: t.assign(tf.zeros_like(t)), group=False) for total in sums])

        return tf.cond(tf.equal(count % self.accumulation, 0), last, tf.no_op)

    def _coefficients(self, var, apply_state):
        key = (var.device, var.dtype.base_dtype)
        return (apply_state or {}).get(key) or self._fallback_apply_state(*key)


class Optimizer(Updates, _OptimizerV2):
    """Base optimiser with one interface on every generation: see that of Keras 3."""

    def __init__(self, learning_rate, name, accumulation=1, guard="none", clip_norm=None, **kwargs):
        super().__init__(name=name, **kwargs)
        self._set_hyper("learning_rate", learning_rate)
        self._set_hyper("decay", self._initial_decay)  # read by the base class
        self.accumulation, self.guard, self.clip_norm = accumulation, guard, clip_norm

    def check_variables(self, variables):
        """Raises for variables that the optimiser cannot train; for subclasses."""

    def _create_slots(self, var_list):
        self.check_variables(var_list)
        for name, initializer in self.slots.items():
            for variable in var_list:
                self.add_slot(variable, name, initializer)
        super()._create_slots(var_list)

    def _resource_apply_dense(self, grad, var, apply_state=None):
        rate = self._coefficients(var, apply_state)["lr_t"] * self.rate_factor(var)
        return self.update(var, self.clipped(grad), rate, **{name: self.get_slot(var, name) for name in self.slots})

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        dense = tf.convert_to_tensor(tf.IndexedSlices(grad, indices, tf.shape(var)))
        return self._resource_apply_dense(dense, var, apply_state)


def keras_optimizers():
    """{name: class} of Keras' own optimizers that `keras_optimizer` takes."""
    own = vars(getattr(keras.optimizers, "legacy", keras.optimizers)).items()
    return {n: c for n, c in own if isinstance(c, type) and issubclass(c, _OptimizerV2) and c is not _OptimizerV2}


def keras_optimizer(kind, name, penalised):
    """The class `kind` of `keras_optimizers`, with what ours have, under a `name` of its own;
    `penalised(weight_decay, variable, gradient)` is the gradient that it gets.

    Making one raises ValueError for `accumulation` or `guard="skip"` with an optimizer (Nadam) that counts passes.
    """

    class Made(Updates, kind):
        def __init__(self, learning_rate, weight_decay=0.0, accumulation=1, guard="none", clip_norm=None, name=None):
            super().__init__(learning_rate, **({} if name is None else {"name": name}))
            if hasattr(self, "_m_cache") and (accumulation > 1 or guard == "skip"):
                raise ValueError(
                    f"tf-keras' {kind.__name__} multiplies up its momentums in passes without an update, too, and "
                    f"would train otherwise with accumulation={accumulation}, guard={guard!r}; make every pass an "
                    "update (no runtime.micro_batch, grad_accumulation or max_skipped), or take another optimizer"
                )
            self.l2, self.accumulation, self.guard, self.clip_norm = weight_decay, accumulation, guard, clip_norm

        def get_config(self):
            return of_keras_config(self, super().get_config())

        def _resource_apply_dense(self, grad, var, apply_state=None):
            return super()._resource_apply_dense(penalised(self.l2, var, self.clipped(grad)), var, apply_state)

    Made.__name__ = Made.__qualname__ = name
    return register(Made)

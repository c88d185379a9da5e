"""What differs between the Keras generations, in one place.

g16net runs on Keras 2.6 (the IPU SDK), on tf-keras and on Keras 3 with TensorFlow below. Layers and models use the
API common to all three and take the few things that differ from here.
"""

import contextlib
import functools
import importlib
import inspect
import json
import os
import random
import re
import warnings

import numpy as np

try:
    import tensorflow as tf
    from tensorflow import keras
except ImportError as error:
    raise ImportError(
        f"g16net's layers, models, optimizer and losses need TensorFlow, which cannot be imported ({error}): "
        "pip install tensorflow tf-keras. Costs (g16net.costs.counts) and reports work without it"
    ) from error


def _keras_version():
    """The version of TensorFlow's Keras; ImportError where it computes with another backend than TensorFlow."""
    try:
        version = getattr(keras, "__version__", None)  # loads it
        backend = keras.backend.backend() if version and int(version.split(".")[0]) >= 3 else "tensorflow"
        cause = None
    except ImportError as error:  # such as a backend that is not installed
        backend, cause = _chosen_backend(), error
        if backend == "tensorflow":
            raise
    if backend != "tensorflow":
        raise ImportError(
            f"g16net needs Keras with TensorFlow below it, and Keras' backend is set to {backend!r}. Set "
            'KERAS_BACKEND=tensorflow in the environment before Python imports Keras (or "backend": "tensorflow" in '
            "~/.keras/keras.json), or take tf-keras with TF_USE_LEGACY_KERAS=1"
        ) from cause
    if version is None:  # tf-keras does not pass its version on to `tf.keras`
        import tf_keras

        version = tf_keras.__version__
    return version


def _chosen_backend():
    """The backend that Keras 3 would take, which reads its environment variable and then its file."""
    folder = os.environ.get("KERAS_HOME", os.path.join(os.path.expanduser("~"), ".keras"))
    chosen = os.environ.get("KERAS_BACKEND")
    try:
        with open(os.path.join(folder, "keras.json"), encoding="utf-8") as file:
            return chosen or json.load(file).get("backend", "tensorflow")
    except (OSError, ValueError):
        return chosen or "tensorflow"


KERAS_VERSION = _keras_version()
KERAS3 = int(KERAS_VERSION.split(".")[0]) >= 3
TF_VERSION = tuple(int(part) for part in tf.__version__.split(".")[:2])


def as_written(function):
    """Decorator: AutoGraph leaves `function`, and all that it calls, as it is.

    Keras' layers and tf.data's `map` convert what they are given, which takes longer than to trace it; nothing here
    branches on the value of a tensor but by `tf.cond` and `tf.while_loop`.
    """
    wrapper = tf.autograph.experimental.do_not_convert(function)
    wrapper.__signature__ = inspect.signature(function)  # Keras asks it which arguments there are
    return wrapper


def register(cls):
    """Class decorator: makes `cls` loadable from a saved model under the name `g16net>Class`, and leaves its own `call`
    `as_written`."""
    if "call" in vars(cls):
        cls.call = as_written(cls.call)
    cls = keras.utils.register_keras_serializable(package="g16net")(cls)
    if not KERAS3 and issubclass(cls, Optimizer):
        # For the inner optimizer of a loss scale tf-keras' `.h5` loader has this name alone, and takes what reads
        # `rmsprop` in small letters for its own.
        cls.__name__ = f"g16net>{cls.__name__}"
    return cls


def serialized(thing):
    """The dict from which any Keras generation and file format makes the registered `thing` again.

    In `.h5` files tf-keras looks classes up by `class_name` alone, in `.keras` files by `registered_name`.
    """
    name = f"g16net>{type(thing).__name__}" if type(thing).__module__.startswith("g16net.") else type(thing).__name__
    return {
        "class_name": name,
        "config": thing.get_config(),
        "module": type(thing).__module__,
        "registered_name": name,
    }


def add_weight(layer, name, shape, initializer, trainable=True, autocast=True):
    """`layer.add_weight` with a float32 variable.

    With `autocast=False` the layer reads the variable in float32 whatever the policy is; otherwise it is read in the
    layer's compute dtype.
    """
    kwargs = {"autocast": autocast} if KERAS3 else {"experimental_autocast": autocast}
    return layer.add_weight(
        name=name, shape=shape, initializer=initializer, trainable=trainable, dtype="float32", **kwargs
    )


def add_moving_average(layer, name, shape, initializer):
    """A float32 variable that is no parameter and that replicas average, for moving statistics."""
    if KERAS3:
        return layer.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            trainable=False,
            dtype="float32",
            autocast=False,
            aggregation="mean",
        )
    return layer.add_weight(
        name=name,
        shape=shape,
        initializer=initializer,
        trainable=False,
        dtype="float32",
        experimental_autocast=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN,
    )


def output_spec(shape, dtype):
    """What Keras 3's `compute_output_spec` returns; the older generations never ask for it."""
    return keras.KerasTensor(shape, dtype=dtype)


def compiled_device():
    """True where the strategy in scope runs on a device whose XLA compiler takes every operation (IPU, TPU)."""
    kind = type(tf.distribute.get_strategy()).__name__
    if kind.startswith(("IPU", "PopDist")):
        return bool(tf.config.list_logical_devices("IPU"))
    return kind.startswith("TPU")


def on_cpu():
    """True where there is nothing but CPUs to compute on."""
    return all(device.device_type.endswith("CPU") for device in tf.config.list_physical_devices())


def in_training(training, trained, inferred):
    """`trained()` where a layer is called with `training` true, `inferred()` otherwise; a tensor makes both."""
    if tf.is_tensor(training):
        return tf.cond(tf.cast(training, tf.bool), trained, inferred)
    return trained() if training else inferred()


def compute_dtype(layer):
    """The dtype in which `layer` computes, as a tf.DType."""
    return tf.as_dtype(layer.compute_dtype)


class Random:
    """Uniform draws whose state a checkpoint holds, so that a resumed run draws what the uninterrupted one would.

    Keras 3 keeps the state in its seed generator, tf-keras in a `tf.random.Generator`; TensorFlow 2.6 (IPU) has
    neither on the device and draws from its stateful operation. Assign it to an attribute of the layer, named
    `random`, before the layer is built; the layer then tracks `random.state`.
    """

    def __init__(self, layer, seed=None):
        self.seed = seed
        self.state = None
        if KERAS3:
            self.state = keras.random.SeedGenerator(seed)
            layer.random_holder = tf.Module()  # tf.train.Checkpoint does not look into a seed generator
            layer.random_holder.state = self.state.state
        elif TF_VERSION >= (2, 11):
            # As Keras 3 does: Python's generator, so that `set_random_seed` and deterministic operations hold here too.
            self.state = tf.random.Generator.from_seed(random.randint(1, 10**9) if seed is None else seed)
        layer.random_state = self.state

    def variables(self):
        """{name: tf.Variable} of the state."""
        if self.state is None:
            return {}
        return {"state": self.state.state.value if KERAS3 else self.state.state}

    def uniform(self, shape):
        """Float32 draws in [0, 1) of the given shape (a tensor or a tuple)."""
        if KERAS3:
            return keras.random.uniform(shape, dtype="float32", seed=self.state)
        if self.state is not None:
            return self.state.uniform(shape, dtype=tf.float32)
        return tf.random.uniform(shape, dtype=tf.float32, seed=self.seed)


def set_seed(seed):
    """Seeds Python, NumPy and TensorFlow."""
    if hasattr(keras.utils, "set_random_seed"):
        keras.utils.set_random_seed(seed)
    else:
        random.seed(seed)
        np.random.seed(seed)
        tf.random.set_seed(seed)


@contextlib.contextmanager
def policy(name):
    """Context in which layers and models are made with the dtype policy `name`; then the previous one holds again."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def optimizer_state(optimizer, variables, names=None):
    """{name: tf.Variable} of all that `optimizer` keeps for `variables`, created where it is not yet.

    The names are the same in every Keras generation: `rms/NAME` with `names`, by default the variables' own.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    named = list(zip([name_of(v) for v in variables] if names is None else names, variables))
    if KERAS3:
        optimizer.build(variables)
        state = {"step": inner._iterations.value}
        for slot, values in inner._slots.items():
            state.update({f"{slot}/{name}": value.value for (name, _), value in zip(named, values)})
        for (name, _), value in zip(named, getattr(inner, "_accumulated_gradients", ())):
            state[f"accumulated/{name}"] = value.value
        if inner is not optimizer:
            state.update(loss_scale=optimizer.dynamic_scale.value, good_steps=optimizer.step_counter.value)
        return state
    inner._create_all_weights(variables)
    state = {"step": inner.iterations}
    for slot in inner.get_slot_names():
        state.update({f"{slot}/{name}": inner.get_slot(v, slot) for name, v in named})
    if inner.accumulation > 1:
        state["micro_batches"] = inner.micro_batches
    if getattr(optimizer, "dynamic", False):
        state.update(loss_scale=optimizer._loss_scale.current_loss_scale, good_steps=optimizer.dynamic_counter)
    return state


# Of the names of `optimizer_state` in a checkpoint those that hold something within an update only.
ACCUMULATORS = ("optimizer/accumulated/", "optimizer/micro_batches")


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
    warnings.warn(f"The optimizer's state in the file was not loaded, and it starts anew: {problem}.", stacklevel=2)


def scale_loss(optimizer, scale, dynamic):
    """`optimizer` for float16: the loss is multiplied by `scale`, which `dynamic` halves after an overflow, skipping
    that update, and doubles after 2,000 updates without one."""
    if not KERAS3:
        return keras.mixed_precision.LossScaleOptimizer(optimizer, dynamic=dynamic, initial_scale=scale)
    if dynamic:
        return keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=scale)
    optimizer.loss_scale_factor = scale
    return optimizer


def follow_directions():
    """Makes callbacks with mode="auto" (early stopping and its like) ask the monitored metric which way is better.

    Keras 3 asks the metric's `_direction`. Older generations go by the name alone, take "top1" for a loss and keep the
    lowest. Here theirs ask too, where the metric has an answer; a mode of "min" or "max" stands. In those generations
    Keras' own metrics have none, so nothing else changes.
    """
    if KERAS3:
        return
    for name in ("EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau"):
        kind = getattr(keras.callbacks, name)
        if not hasattr(kind, "_g16net_follows"):
            _follow_direction(kind)
            kind._g16net_follows = True


def _follow_direction(kind):
    initialise, set_model = kind.__init__, kind.set_model

    @functools.wraps(initialise)
    def with_mode(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        self._given_mode = inspect.signature(initialise).bind(self, *args, **kwargs).arguments.get("mode", "auto")

    @functools.wraps(set_model)
    def with_direction(self, model):
        set_model(self, model)
        if getattr(self, "_given_mode", "auto") not in ("min", "max") and _rises(model, self.monitor):
            self.mode = "max"  # read by ReduceLROnPlateau when training begins
            self.monitor_op = np.greater
            if getattr(self, "min_delta", None) is not None:
                self.min_delta = abs(self.min_delta)
            if getattr(self, "best", None) == np.inf:
                self.best = -np.inf

    kind.__init__, kind.set_model = with_mode, with_direction


def _rises(model, monitor):
    """Whether `monitor` is a metric of the compiled `model` that says of itself that more is better."""
    compiled = getattr(
        model, "compiled_metrics", None
    )  # built with the first batch only, so what the user gave is read
    given = [getattr(compiled, f"_user_{kind}", None) for kind in ("metrics", "weighted_metrics")]
    rising = {metric.name for metric in tf.nest.flatten(given) if getattr(metric, "_direction", None) == "up"}
    monitor = monitor[len("val_") :] if monitor.startswith("val_") else monitor
    outputs = getattr(model, "output_names", None) or []
    return monitor in rising or monitor in {f"{output}_{name}" for output in outputs for name in rising}


def name_of(variable):
    """`block1a_conv/kernel`: the name of a variable, the same in every Keras generation."""
    return getattr(variable, "path", variable.name).split(":")[0]


if KERAS3:

    class Optimizer(keras.optimizers.Optimizer):
        """Base optimiser with one interface on every generation.

        A subclass names its per-variable state in `slots` (name to initialiser) and implements
        `update(variable, gradient, learning_rate, **slots)` on `tf.Variable`s and a dense gradient. It may implement
        `update_all` for all variables at once too, which older generations of Keras ask on one device. `minimize`,
        `apply_gradients` and their reduction over replicas stay the framework's own, as the IPU and the distribution
        strategies demand. Sparse gradients become dense ones.

        Args:
            accumulation: gradients of so many calls are averaged for one update.
            guard: of gradients that are not finite: "none"; "report" counts such updates in `skipped` and keeps in
                `not_finite` which variables' they were; "skip" also leaves the update out.
        """

        slots = {}

        def __init__(self, learning_rate, name, accumulation=1, guard="none", **kwargs):
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
                    "The optimizer's state in the .h5 file was not loaded, and it starts anew: with a loss scale "
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
            if self.accumulation > 1 and isinstance(
                self._learning_rate, keras.optimizers.schedules.LearningRateSchedule
            ):
                return self._learning_rate(self.iterations)  # Keras 3 gives it passes, several an update
            return super()._get_current_learning_rate()

        def update_step(self, gradient, variable, learning_rate):
            index = self._get_variable_index(variable)
            slots = {name: variables[index].value for name, variables in self._slots.items()}
            variable = variable.value if isinstance(variable, keras.Variable) else variable
            self.update(variable, tf.convert_to_tensor(gradient), tf.cast(learning_rate, variable.dtype), **slots)

        def apply(self, grads, trainable_variables=None):
            if not self.built:
                with tf.init_scope():
                    self.build(trainable_variables)
            if self.guard == "none":
                return super().apply(grads, trainable_variables)
            good = note_finite(self, _finite(grads))
            if self.guard == "report":
                return super().apply(grads, trainable_variables)
            apply = super().apply

            def update():
                apply(grads, trainable_variables)
                return True

            return tf.cond(good, update, lambda: False)

else:
    # Keras 2.6 has OptimizerV2, which the IPU needs, as `keras.optimizers.Optimizer`; tf-keras moved it to `legacy`.
    _OptimizerV2 = getattr(keras.optimizers, "legacy", keras.optimizers).Optimizer

    class Optimizer(_OptimizerV2):
        """Base optimiser with one interface on every generation: see the class of Keras 3 above."""

        slots = {}

        def __init__(self, learning_rate, name, accumulation=1, guard="none", **kwargs):
            super().__init__(name=name, **kwargs)
            self._set_hyper("learning_rate", learning_rate)
            self._set_hyper("decay", self._initial_decay)  # read by the base class
            self.accumulation, self.guard = accumulation, guard

        def check_variables(self, variables):
            """Raises for variables that the optimiser cannot train; for subclasses."""

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
            self.check_variables(var_list)
            for name, initializer in self.slots.items():
                for variable in var_list:
                    self.add_slot(variable, name, initializer)
            if self.accumulation > 1:
                for variable in var_list:
                    self.add_slot(variable, "accumulated", "zeros")

        def _create_all_weights(self, var_list):
            super()._create_all_weights(var_list)
            if self.accumulation > 1 and not hasattr(self, "micro_batches"):
                self.micro_batches = self._counter("micro_batches", [], tf.int64)
                self._weights.append(self.micro_batches)  # what .h5 files keep
            if self.guard != "none" and not hasattr(self, "skipped"):
                self.not_finite = self._counter("not_finite", [len(var_list)], tf.int32)
                self.skipped = self._counter("skipped", [], tf.int64)

        def _counter(self, name, shape, dtype):
            first = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return self.add_weight(name, shape=shape, dtype=dtype, trainable=False, aggregation=first)

        def _distributed_apply(self, distribution, grads_and_vars, name, apply_state):
            """The update from gradients that are reduced over replicas, which thus all decide alike."""

            def count():
                return self.iterations.assign_add(1, read_value=False)

            def apply(pairs):
                if self._update_all(pairs, apply_state, name) is not None:
                    return count()
                return _OptimizerV2._distributed_apply(self, distribution, pairs, apply_state=apply_state, name=name)

            if self.accumulation == 1 and self.guard == "none":
                return apply(grads_and_vars)
            if self.accumulation == 1 and self.guard == "report":
                finite = self._update_all(grads_and_vars, apply_state, name)
                if finite is not None:
                    note_finite(self, finite)
                    return count()
            good = tf.constant(True)
            if self.guard != "none":
                local = distribution.experimental_local_results
                finite = _finite([local(gradient)[0] for gradient, _ in grads_and_vars])
                all_finite = note_finite(self, finite)
                good = all_finite if self.guard == "skip" else good
            if self.accumulation > 1:
                return self._accumulate(distribution, grads_and_vars, good, apply)
            if self.guard == "report":
                return apply(grads_and_vars)
            return tf.cond(good, lambda: _group(apply(grads_and_vars)), tf.no_op)

        def _update_all(self, grads_and_vars, apply_state, name):
            """`update_all` where it can be asked: without replicas and constraints."""
            gradients, variables = zip(*grads_and_vars)
            if tf.distribute.has_strategy() or any(variable.constraint is not None for variable in variables):
                return None
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
                with tf.control_dependencies([_group(done)]):
                    return _group([update(total, lambda t: t.assign(tf.zeros_like(t)), group=False) for total in sums])

            return tf.cond(tf.equal(count % self.accumulation, 0), last, tf.no_op)

        def _resource_apply_dense(self, grad, var, apply_state=None):
            rate = self._coefficients(var, apply_state)["lr_t"]
            return self.update(var, grad, rate, **{name: self.get_slot(var, name) for name in self.slots})

        def _coefficients(self, var, apply_state):
            key = (var.device, var.dtype.base_dtype)
            return (apply_state or {}).get(key) or self._fallback_apply_state(*key)

        def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
            dense = tf.convert_to_tensor(tf.IndexedSlices(grad, indices, tf.shape(var)))
            return self._resource_apply_dense(dense, var, apply_state)


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
        ours = isinstance(getattr(optimizer, "inner_optimizer", optimizer), Optimizer)
        return (model, store) if ours and model.built else (None, None)

    @functools.wraps(save)
    def save_state(*args, **kwargs):
        save(*args, **kwargs)
        model, store = found(save, args, kwargs)
        if model is not None and getattr(model.optimizer, "inner_optimizer", model.optimizer).get_slot_names():
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


def _finite(gradients):
    """Which of the gradients are finite in all their elements: bool [gradients]."""
    return tf.stack([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])


def note_finite(optimizer, finite):
    """Counts an update whose gradients are not all finite, and keeps which were not. Returns whether all are."""
    all_finite = tf.reduce_all(finite)
    known = tf.convert_to_tensor(optimizer.not_finite)
    optimizer.not_finite.assign(tf.where(all_finite, known, 1 - tf.cast(finite, tf.int32)))
    optimizer.skipped.assign_add(1 - tf.cast(all_finite, tf.int64))
    return all_finite


def _group(operations):
    return tf.group(*tf.nest.flatten([operations]))


def ignore_errors(dataset, log=True):
    """`dataset` without the elements that raise; each error is logged, unless `log` is false."""
    if hasattr(dataset, "ignore_errors"):
        return dataset.ignore_errors(log_warning=log)
    return dataset.apply(tf.data.experimental.ignore_errors(log_warning=log))


def outlined(function, *signature):
    """`function` as a `tf.function` that a graph calls as one operation, so that a branch that is not taken costs
    nothing: TensorFlow otherwise passes through every operation of it. TensorFlow before 2.12 has no such mark."""
    known = "experimental_attributes" in inspect.signature(tf.function).parameters
    options = {"experimental_attributes": {"_noinline": True}} if known else {}
    return tf.function(function, autograph=False, input_signature=signature, **options)


def single_element(dataset):
    """The one element of `dataset`."""
    if hasattr(dataset, "get_single_element"):
        return dataset.get_single_element()
    return tf.data.experimental.get_single_element(dataset)


def set_deterministic(options, value):
    """Sets whether a tf.data.Dataset keeps its order."""
    name = "deterministic" if TF_VERSION >= (2, 7) else "experimental_deterministic"
    setattr(options, name, value)


def reason(error):
    """What an error says to a person: without the names of graph nodes in which TensorFlow wraps it."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    lines = []
    for line in re.sub(r"\{\{[^}]*\}\}|\[Op:[^]]*\]", "", text).splitlines():
        line = line.strip()
        if line and not re.match(
            r"Graph execution error|Detected at node|<stack traces|\[\[|\d+ root error|\(\d+\)", line
        ):
            asserted = re.match(r"assertion failed: \[(.*)\]$", line)
            lines.append(" ".join(asserted[1].split("] [")) if asserted else line)
    return " ".join(lines) or type(error).__name__

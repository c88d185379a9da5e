"""What the IPU SDK adds to functional Keras models, executed on the CPU: stages, replicas and accumulation included.

A program of the device draws micro-batches as the SDK does, each replica in turn, and adds up gradients of micro-
batches
and then of replicas; each replica has metrics of its own, of which the last one's are reported.
"""

import ctypes
import functools
import math
import os
import shutil

import numpy as np
import tensorflow as tf
from tensorflow import keras

from ipu_double import API, ROOT, check_call

ENTRY = API["symbols"]["keras.Functional"]


class Assignment:
    """One call of a layer and its pipeline stage."""

    def __init__(self, layer, node_index, pipeline_stage=None):
        self._layer, self._node_index, self.pipeline_stage = layer, node_index, pipeline_stage

    @property
    def layer(self):
        return self._layer

    @property
    def node_index(self):
        return self._node_index

    @property
    def is_nested_model(self):
        return False


class _State:
    """The options of one model."""

    def __init__(self, strategy):
        self.strategy, self.double = strategy, strategy.ipu_double
        self.assignment = []
        self.accumulation = self.pipeline_accumulation = None
        self.reduction = "SUM"
        self.schedule = "Grouped"
        self.device_mapping = None
        self.step = self.apply = self.infer = None


def extend(model, strategy):
    """Gives a model made in the scope of `strategy` the SDK's methods."""
    if not hasattr(model, "_ipu"):
        model._ipu = _State(strategy)
        model.__class__ = _extended(type(model))


@functools.lru_cache(maxsize=None)
def _extended(base):
    return type(base.__name__, (IPUModel, base), {})


def checked(method):
    """Checks each call against the table and notes the name."""
    name = method.__name__
    entry = ENTRY["methods"].get(name) or ENTRY["standard_methods"][name]

    @functools.wraps(method)
    def call(self, *arguments, **keywords):
        check_call(f"Functional.{name}", entry, arguments, keywords)
        self._ipu.double.used.add(f"keras.Functional.{name}")
        return method(self, *arguments, **keywords)

    return call


class IPUModel:
    """The methods, in front of those of `keras.Model`."""

    @checked
    def get_pipeline_stage_assignment(self):
        made = self._ipu.double.symbol("keras.ipu.FunctionalLayerPipelineStageAssignment")
        return list(self._ipu.assignment) or [
            made(node.layer, node.layer._inbound_nodes.index(node)) for node in self._post_order()
        ]

    @checked
    def set_pipeline_stage_assignment(self, pipeline_stage_assignment):
        self._check_stages(pipeline_stage_assignment)
        self._ipu.assignment = pipeline_stage_assignment

    @checked
    def set_pipelining_options(
        self,
        gradient_accumulation_steps_per_replica=None,
        device_mapping=None,
        accumulate_outfeed=None,
        gradient_accumulation_reduction_method="sum",
        **keywords,
    ):
        state = self._ipu
        state.pipeline_accumulation = _positive(gradient_accumulation_steps_per_replica)
        state.device_mapping = device_mapping
        state.reduction = self._reduction(gradient_accumulation_reduction_method)
        schedule = keywords.get("pipeline_schedule")
        kind = state.double.symbol(f"{ROOT}.ops.pipelining_ops.PipelineSchedule")
        if schedule is not None and not isinstance(schedule, kind):
            raise TypeError(f"pipeline_schedule must be a PipelineSchedule, got {schedule!r}")
        state.schedule = schedule.name if schedule is not None else "Grouped"

    @checked
    def set_gradient_accumulation_options(
        self,
        gradient_accumulation_steps_per_replica=None,
        gradient_accumulation_reduction_method="sum",
        use_v2_gradient_accumulation_optimizer=False,
        **keywords,
    ):
        self._ipu.accumulation = _positive(gradient_accumulation_steps_per_replica)
        self._ipu.reduction = self._reduction(gradient_accumulation_reduction_method)

    @checked
    def compile(self, *arguments, **keywords):
        if keywords.get("run_eagerly"):
            raise RuntimeError("Keras models cannot run eagerly when using `IPUStrategy`")
        super().compile(*arguments, **keywords)

    @checked
    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        initial_epoch=0,
        steps_per_epoch=None,
        **others,
    ):
        if y is not None or batch_size is not None or others:
            raise NotImplementedError("the double fits tf.data.Dataset only")
        for name in ("train_step", "make_train_function"):
            if getattr(type(self), name) is not getattr(keras.Model, name):
                raise RuntimeError(f"The function `{name}` for the model {self.name} has been overridden")
        accumulation = self._accumulation()
        data, steps, calls = self._feed(x, steps_per_epoch, "fit", accumulation)
        if calls % accumulation:
            raise RuntimeError(
                f"steps_per_execution={calls} is not divisible by "
                f"gradient_accumulation_steps_per_replica={accumulation}"
            )
        self._check_optimizer()
        self._make_programs()
        for variable in self._device_variables():  # buffers of the device, which no array of the host shares
            variable.assign(variable.numpy().copy())
        batches = _elements(self._ipu.double.iterate(data))
        with self._ipu.strategy.scope():  # where callbacks find themselves, too
            callbacks = keras.callbacks.CallbackList(
                callbacks, add_history=True, model=self, epochs=epochs, steps=steps
            )
            callbacks.on_train_begin()
            logs = None
            for epoch in range(initial_epoch, epochs):
                callbacks.on_epoch_begin(epoch)
                metrics = [None] * self._replicas()
                for step in range(0, steps, calls):
                    callbacks.on_train_batch_begin(step)
                    for _ in range(calls // accumulation):
                        self._update(batches, metrics, accumulation)
                    logs = self._results(metrics)
                    callbacks.on_train_batch_end(step + calls - 1, logs)
                callbacks.on_epoch_end(epoch, dict(logs))
            callbacks.on_train_end(logs)
        return self.history

    @checked
    def predict(self, x, batch_size=None, verbose=0, steps=None, callbacks=None, **others):
        if batch_size is not None or callbacks or others:
            raise NotImplementedError("the double predicts tf.data.Dataset only")
        data, steps, calls = self._feed(x, steps, "predict", None)
        self._check_count("predict", calls)
        state = self._ipu
        if state.infer is None:
            state.infer = tf.function(lambda inputs: self(inputs, training=False))
        outputs = []
        fed = _elements(state.double.iterate(data.take(steps * self._replicas())))
        with state.strategy.scope():
            for element in fed:
                inputs = element[0] if isinstance(element, tuple) else element
                outputs.append(state.strategy.run(state.infer, args=(inputs,)).numpy())
        return np.concatenate(outputs)

    @checked
    def evaluate(self, *arguments, **keywords):
        raise NotImplementedError("the double does not execute evaluate")

    @checked
    def export_for_ipu_serving(
        self,
        export_dir,
        batch_size=None,
        output_names=None,
        preprocessing_step=None,
        preprocessing_step_signature=None,
        postprocessing_step=None,
        postprocessing_step_signature=None,
        purge_export_dir=False,
    ):
        if os.path.isdir(export_dir) and os.listdir(export_dir):
            if not purge_export_dir:
                raise ValueError(f'Directory "{export_dir}" is not empty')
            shutil.rmtree(export_dir)
        shape = [batch_size or self.inputs[0].shape[0]] + self.inputs[0].shape[1:].as_list()
        if None in shape:
            raise ValueError("Not all dimensions of inputs can be determined")
        self._check_count("predict", int(self._steps_per_execution.numpy()))
        spec = [tf.TensorSpec(shape, self.inputs[0].dtype)]
        if preprocessing_step is not None:
            made = preprocessing_step.get_concrete_function(*(preprocessing_step_signature or ()))
            (out,) = tf.nest.flatten(made.structured_outputs)
            if out.shape.as_list() != shape or out.dtype != self.inputs[0].dtype:
                raise ValueError("`preprocessing_step` outputs do not fit the model's inputs")
            spec = preprocessing_step_signature or preprocessing_step.input_signature

        class Served(tf.Module):
            pass

        served = Served()
        served.model = self

        @tf.function(input_signature=spec)
        def serve(images):
            out = self(preprocessing_step(images) if preprocessing_step else images, training=False)
            return {output_names[0] if output_names else "output_0": out}

        tf.saved_model.save(served, export_dir, signatures=serve)
        return serve

    # what the SDK does inside

    def _reduction(self, value):
        name = f"{ROOT}.gradient_accumulation.GradientAccumulationReductionMethod"
        return self._ipu.double.symbol(name).parse(value).name

    def _post_order(self):
        nodes = [node for depth in sorted(self._nodes_by_depth, reverse=True) for node in self._nodes_by_depth[depth]]
        return [node for node in nodes if not node.is_input]

    def _check_stages(self, assignment):
        if not isinstance(assignment, list):
            raise ValueError("`pipeline_stage_assignment` needs to be a list.")
        order = self._post_order()
        if len(assignment) != len(order):
            raise ValueError(f"{len(assignment)} assignments for {len(order)} layers")
        stage_of = {}
        for part, node in zip(assignment, order):
            if not isinstance(part, Assignment) or part.layer is not node.layer:
                raise ValueError("The order of `pipeline_stage_assignment` does not match the post-order of the graph")
            if type(part.pipeline_stage) is not int or part.pipeline_stage < 0:
                raise ValueError(f"Layer {part.layer.name} has not been assigned a pipeline stage")
            for tensor in tf.nest.flatten(node.keras_inputs):
                if stage_of.get(id(tensor), 0) > part.pipeline_stage:
                    raise ValueError(f"Layer {part.layer.name} uses the output of a later pipeline stage")
            for tensor in tf.nest.flatten(node.outputs):
                stage_of[id(tensor)] = part.pipeline_stage

    def _stages(self):
        """The number of stages; 1 without a pipeline."""
        used = {part.pipeline_stage for part in self._ipu.assignment}
        if not used:
            return 1
        if used != set(range(max(used) + 1)):
            raise RuntimeError(f"All stages in a pipeline must have at least one layer assigned to them, got {used}")
        if len(used) < 2:
            raise RuntimeError("a pipeline needs at least two stages")
        return len(used)

    def _replicas(self):
        double, devices = self._ipu.double, self._stages()
        if double.config is None:
            raise RuntimeError("the IPU system was not configured")
        if self._ipu.device_mapping:
            devices = max(self._ipu.device_mapping) + 1
        needed = 2 ** math.ceil(math.log2(devices))
        if needed > double.local_ipus:
            raise ValueError(
                f"Current device has {double.local_ipus} IPUs attached, however the current model requires a multiple "
                f"of {needed} IPUs."
            )
        return double.local_ipus // needed

    def _accumulation(self):
        if self._stages() == 1:
            return self._ipu.accumulation or 1
        if self._ipu.pipeline_accumulation is None:
            raise ValueError("the model is pipelined, but `gradient_accumulation_steps_per_replica` has not been set")
        self._check_count("fit", self._ipu.pipeline_accumulation)
        return self._ipu.pipeline_accumulation

    def _check_count(self, mode, count):
        stages = self._stages()
        if stages == 1:
            return
        rule = API["rules"]["pipelining"]["count_multiple"][self._ipu.schedule][mode]
        step = {"2 * stages": 2 * stages, "stages": stages, "1": 1}[rule]
        config = self._ipu.double.config
        if self._ipu.schedule == "Grouped" and config is not None and config.value("io_tiles.num_io_tiles"):
            if count < step + 2:
                raise tf.errors.FailedPreconditionError(
                    None,
                    None,
                    f"The number of iterations of the pipeline must be at least {step + 2}, but it is {count}",
                )
        elif count % step:
            raise RuntimeError(
                f"The number of iterations of the pipeline must be a multiple of {step}, but it is {count}"
            )

    def _feed(self, data, steps, mode, accumulation):
        """`(data, steps of a replica, steps in one program)`, or the SDK's errors about the data."""
        if not isinstance(data, tf.data.Dataset):
            raise ValueError(f"data of the type {type(data).__name__} is not supported: its shapes are not known")
        dtypes = API["device_dtypes"]
        for spec in tf.nest.flatten(data.element_spec):
            if not spec.shape.is_fully_defined():
                raise ValueError(f"The provided set of data contains a shape {spec.shape} which is not fully defined")
            if spec.dtype.name not in dtypes["compute"] + dtypes["feed_cast_and_reshape_only"] + ["float64"]:
                raise TypeError(f"an IPU has no {spec.dtype.name}")
        for weight in self.weights:
            if tf.as_dtype(weight.dtype).name not in dtypes["compute"]:
                raise TypeError(f"an IPU has no {weight.dtype}, the type of {weight.name}")
        if steps is None:
            raise ValueError("Could not infer the size of the data")
        replicas = self._replicas()
        steps, calls = steps // replicas, int(self._steps_per_execution.numpy())
        calls = min(calls, steps)
        if not steps or steps % calls:
            raise ValueError(f"`steps_per_execution` ({calls}) must be a divisor of the number of batches ({steps})")
        return data, steps, calls

    def _check_optimizer(self):
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        classes = type(optimizer).__mro__
        if len(classes) > 2 and classes[0].minimize is not classes[1].minimize:
            raise ValueError("the provided optimizer must not override OptimizerV2.minimize")

    def _make_programs(self):
        """Gradients of one micro-batch and the weight update: `get_gradients`, then `apply_gradients`."""
        state = self._ipu
        if state.step is not None:
            return
        variables = self.trainable_variables

        def step(images, targets):
            outputs = self(images, training=True)
            loss = self.compiled_loss(targets, outputs, None, regularization_losses=self.losses)
            self.compiled_metrics.update_state(targets, outputs, None)
            return self.optimizer.get_gradients(loss, variables)

        def apply(gradients):
            self.optimizer.apply_gradients(list(zip(gradients, variables)))

        state.step, state.apply = tf.function(step), tf.function(apply)

    def _update(self, batches, metrics, accumulation):
        """One weight update: all micro-batches of all replicas, replicas taking them in turn."""
        state = self._ipu
        total = None
        for _ in range(accumulation):
            for replica in range(len(metrics)):
                self._set_metrics(metrics[replica])
                images, targets = next(batches)
                gradients = state.strategy.run(state.step, args=(images, targets))
                total = gradients if total is None else [a + g for a, g in zip(total, gradients)]
                metrics[replica] = [v.numpy() for v in self._metric_variables()]
        if state.reduction != "SUM":
            total = [gradient / accumulation for gradient in total]
        self._in_place(lambda: state.strategy.run(state.apply, args=(total,)))

    def _device_variables(self):
        return list(self.weights) + list(self.optimizer.weights)

    def _in_place(self, update):
        """Runs an update as the device does: in the buffers that whoever has read the variables shares."""
        read = [(variable, tf.convert_to_tensor(variable)) for variable in self._device_variables()]
        update()
        for variable, value in read:
            if value.shape.rank:  # scalars come as copies
                new = np.ascontiguousarray(variable.numpy())
                ctypes.memmove(value._numpy().ctypes.data, new.ctypes.data, new.nbytes)
                variable.assign(value)  # takes the tensor as it is, with its buffer

    def _metric_variables(self):
        return [variable for metric in self.metrics for variable in metric.variables]

    def _set_metrics(self, values):
        if values is None:
            return self.reset_metrics()
        for variable, value in zip(self._metric_variables(), values):
            variable.assign(value)

    def _results(self, metrics):
        """The last replica's metrics by name, or means where the metric itself reduced its result."""
        replicas, means = [], self._ipu.double.means
        for values in metrics:
            self._set_metrics(values)
            results = {}
            for metric in self.metrics:
                means.clear()
                results[metric.name] = float(metric.result()), bool(means)
            replicas.append(results)
        return {
            name: float(np.mean([results[name][0] for results in replicas])) if reduced else value
            for name, (value, reduced) in replicas[-1].items()
        }


def _elements(iterator):
    """The elements of a data set, as the device draws them: an error ends the process."""
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise Aborted(f"An infeed dataset iterator has failed with status: {error}") from None


class Aborted(BaseException):
    """Stands for `LOG(FATAL)`, after which no Python runs."""


def _positive(value):
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"Expected `gradient_accumulation_steps_per_replica` to be a positive integer, got {value}")
    return value

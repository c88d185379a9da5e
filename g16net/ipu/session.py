"""Training, evaluation and serving export on IPUs through the Poplar SDK's TensorFlow and Keras.

The SDK is imported when a run asks for it and nowhere else. It runs `fit` and `predict` of a model that was made under
its strategy as whole programs on the device: pipelined, replicated and accumulating, with options set on the model.
What it leaves to us, with the reason, is in the functions below; how a run is divided is in `settings.Plan`.

Graphcore's documentation: "Targeting the IPU from TensorFlow 2", "Keras with IPUs".
"""

import contextlib
import os
import shutil

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow import keras

from g16net import compat
from g16net.config import ipu as settings
from g16net.errors import ConfigError, RunError, UserError
from g16net.optim.losses import SmoothedCrossEntropy, Top1, in_top
from g16net.run import assemble
from g16net.run.devices import Devices
from g16net.run.updates import Updates, cut
from g16net.run.workdir import Workdir

# Bytes up to which the device merges the reductions of single variables over replicas and within one.
MERGED_REDUCTION = 10 * 2**20


def sdk():
    """The SDK's module `tensorflow.python.ipu`. UserError where it cannot be had."""
    if compat.KERAS3:
        raise UserError(
            f"IPUs need the SDK's Keras 2.6, this is Keras {compat.KERAS_VERSION}; install the SDK's tensorflow and "
            "keras wheels as docs/ipu.md says"
        )
    try:
        from tensorflow.python import ipu
    except ImportError as error:
        raise UserError(
            f"IPUs need the TensorFlow of Graphcore's Poplar SDK, and this TensorFlow {tf.__version__} has no "
            "`tensorflow.python.ipu`. Install the wheels tensorflow-2.6.3+gc3.4 and keras-2.6.0+gc3.4 from the SDK's "
            "folder, or use its image graphcore/tensorflow:2 (docs/ipu.md); elsewhere leave runtime.strategy at default"
        ) from error
    return ipu


def poprun():
    """The SDK's module `popdist`, in a process that `poprun` started. UserError otherwise."""
    try:
        import popdist
        import popdist.tensorflow
    except ImportError as error:
        raise UserError(
            "runtime.strategy=popdist needs the package popdist of Graphcore's Poplar SDK; source the SDK's enable.sh "
            "(docs/ipu.md), or use runtime.strategy=ipu in a single process"
        ) from error
    if not popdist.isPopdistEnvSet():
        raise UserError(
            "runtime.strategy=popdist works under poprun only: poprun --num-instances 2 --num-replicas 8 "
            "--ipus-per-replica 2 python3 launch.py ...; in a single process use runtime.strategy=ipu"
        )
    return popdist


def instance():
    """The index of this process among those of poprun; 0 without poprun."""
    try:
        import popdist
    except ImportError:
        return 0
    return popdist.getInstanceIndex() if popdist.isPopdistEnvSet() else 0


def device_config(ipu, config, plan):
    """The SDK's `IPUConfig` for a run, not yet applied."""
    cfg = ipu.config.IPUConfig()
    cfg.allow_recompute = config.ipu.recompute
    options = {"partialsType": config.ipu.partials}  # Poplar takes texts only; it ignores "half" for float32 results
    if config.ipu.available_memory_proportion is not None:
        options["availableMemoryProportion"] = str(config.ipu.available_memory_proportion)
    cfg.convolutions.poplar_options = dict(options)
    cfg.matmuls.poplar_options = dict(options)
    rounding = ipu.config.StochasticRoundingBehaviour.from_bool(config.ipu.stochastic_rounding)
    cfg.floating_point_behaviour.esr = rounding
    if config.ipu.stochastic_rounding and plan.replicas > 1:
        cfg.experimental.enable_prng_stability = True  # keeps the replicas' weights equal
    cfg.optimizations.maximum_cross_replica_sum_buffer_size = MERGED_REDUCTION
    cfg.optimizations.maximum_reduce_many_buffer_size = MERGED_REDUCTION
    if config.ipu.io_tiles:
        cfg.io_tiles.num_io_tiles = config.ipu.io_tiles
        cfg.io_tiles.place_ops_on_io_tiles = True
    if config.ipu.connection != "ALWAYS":
        cfg.device_connection.type = ipu.config.DeviceConnectionType[config.ipu.connection]
        # No device is there to be asked while programs are compiled; where one is, the SDK ignores this.
        cfg.device_connection.enable_remote_buffers = config.ipu.offload
    if config.ipu.connection == "PRE_COMPILE":
        cfg.device_connection.version = config.ipu.version
    if config.runtime.deterministic:
        cfg.compilation_poplar_options = {"target.deterministicWorkers": "portable"}
    return cfg


class Session(Devices):
    """The IPUs of this process: device configured, strategy made. There can be one in a process."""

    def __init__(self, config, plan=None):
        self.config = config
        self.plan = plan or settings.plan(config)
        self.ipu = ipu = sdk()
        self.instances = 1
        cfg = device_config(ipu, config, self.plan)
        if config.runtime.strategy == "popdist":
            popdist = poprun()
            self.instances = popdist.getNumInstances()
            self.shard = popdist.getInstanceIndex(), self.instances
            self._check_poprun(popdist.getNumTotalReplicas(), popdist.getNumIpusPerReplica())
            popdist.tensorflow.set_ipu_config(cfg, ipus_per_replica=self.plan.ipus_per_replica, configure_device=True)
        else:
            cfg.auto_select_ipus = self.plan.ipus
        cfg.configure_ipu_system()
        self.strategy = self._strategy()
        ipu.utils.reset_ipu_seed(settings.device_seed(config.run.seed, self.shard[0]))

    def _strategy(self):
        if self.config.runtime.strategy == "popdist":
            from tensorflow.python.ipu.distributed.popdist_strategy import PopDistStrategy

            return PopDistStrategy()
        return self.ipu.ipu_strategy.IPUStrategy()

    def _check_poprun(self, replicas, ipus_per_replica):
        asked = self.plan.replicas, self.plan.ipus_per_replica
        if asked != (replicas, ipus_per_replica) or replicas % self.instances:
            raise ConfigError(
                f"the run wants {asked[0]} replicas of {asked[1]} IPUs, poprun has {replicas} of {ipus_per_replica} in "
                f"{self.instances} processes; start with --num-replicas {asked[0]} --ipus-per-replica {asked[1]} and "
                f"a --num-instances that divides {asked[0]}, or change ipu.replicas"
            )

    @property
    def local_replicas(self):
        return self.plan.replicas // self.instances

    def check(self, updates_per_epoch):
        settings.check_steps(self.config, updates_per_epoch)

    def check_rest(self, updates_per_epoch, done):
        settings.check_rest(self.config, updates_per_epoch, done)

    def prepare(self, model):
        """Assigns the layers of a new model to pipeline stages and sets how gradients are accumulated."""
        options = {
            "gradient_accumulation_steps_per_replica": self.plan.accumulation,
            "gradient_accumulation_reduction_method": "mean",  # a sum would change what the learning rate means
            "offload_weight_update_variables": self.config.ipu.offload,
        }
        if self.plan.pipelined:
            self.assign_stages(model)
            schedule = self.ipu.pipelining_ops.PipelineSchedule[self.config.ipu.schedule]
            model.set_pipelining_options(pipeline_schedule=schedule, **options)
        elif self.plan.accumulation > 1:
            model.set_gradient_accumulation_options(**options)

    def assign_stages(self, model):
        """Cuts a flat model into the plan's pipeline stages."""
        assignment = model.get_pipeline_stage_assignment()
        stages = settings.split_stages([part.layer.name for part in assignment], self.plan.splits)
        for part in assignment:
            part.pipeline_stage = stages[part.layer.name]
        model.set_pipeline_stage_assignment(assignment)

    on_ipu = True
    looks = 1  # a call of the device is as many updates as the user wants to wait for

    @property
    def per_execution(self):
        return self.config.runtime.steps_per_execution or 1

    @property
    def updates(self):
        """The SDK adds up gradients itself, and divides the steps of `fit` by the replicas of this process."""
        return Updates(
            self.plan.micro_batch,
            self.plan.accumulation,
            self.local_replicas,
            self.per_execution,
            draws_each=True,
            in_optimizer=False,
        )

    def evaluation_scope(self):
        return contextlib.nullcontext()  # on the host: the evaluator has models of its own on the device

    def optimizer(self, optimizer):
        """Makes the update a mean over replicas and, in float16, scales the loss by a constant.

        The SDK sums gradients over replicas. Under `PopDistStrategy` Keras has divided the loss by their number;
        under `IPUStrategy` it counts one replica and divides by nothing.

        A dynamic loss scale waits for overflows, and float16 on an IPU saturates instead: hence the constant one.
        """
        replicas = self.plan.replicas
        if replicas > 1 and self.config.runtime.strategy == "ipu":
            optimizer.gradient_transformers.append(
                lambda grads_and_vars: [(gradient / replicas, variable) for gradient, variable in grads_and_vars]
            )
        if self.config.runtime.precision == "mixed_float16":
            optimizer = keras.mixed_precision.LossScaleOptimizer(
                optimizer, dynamic=False, initial_scale=self.config.runtime.loss_scale
            )
        return optimizer

    def metrics(self, loss):
        """Loss and top-1 as means over all replicas.

        What Keras itself reports, its own `loss` included, is the last replica's. Logs are made by name, and these
        metrics come after Keras' own.
        """
        mean = self.ipu.cross_replica_ops.cross_replica_mean if self.plan.replicas > 1 else None
        return [LossOverReplicas(loss, mean), Top1OverReplicas(mean)]

    def feed(self, data):
        """Cuts batches into micro-batches of static shape. Replicas take them in turn."""
        if not self.config.data.service:  # which gives each batch once
            check_first(data, "training")
        return cut(data, self.plan.micro_batch).prefetch(2 * self.local_replicas)

    def scorer(self, model, source, batches=None):
        return Scorer(self, model, source)

    def sum_over_workers(self, values):
        """The sum of a float32 vector over all processes."""
        if self.instances == 1:
            return values
        from tensorflow.python.ipu import distributed

        return distributed.allreduce(tf.constant(values, tf.float32), tf.distribute.ReduceOp.SUM).numpy()

    def failed(self, error):
        """None: Poplar's own errors come as INTERNAL, and where a process is lost, poprun ends the others."""
        return None

    def __str__(self):
        return f"{self.plan}" + (f" in {self.instances} processes" if self.instances > 1 else "")


def check_first(data, what):
    """Draws the first batch on the host. RunError where it cannot be had.

    Within a feed of the device such an error would abort the process, without a word from Python (`LOG(FATAL)`). The
    data sets of a strategy's scope cannot be drawn from by the host: call it outside.
    """
    try:
        for _ in data.take(1):
            pass
    except tf.errors.OpError as error:
        raise RunError(
            f"the first batch of the {what} images cannot be made: {compat.reason(error)}. Nothing was fed to the "
            "IPUs; see what is wrong with all of them with --mode=inspect_data"
        ) from error


class LossOverReplicas(keras.metrics.Mean):
    """The mean loss since the start of the epoch, reduced over replicas by `mean` (None: there is one)."""

    def __init__(self, loss, mean=None):
        super().__init__(name="loss")
        self._loss, self._mean = loss, mean

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(self._loss.call(y_true, y_pred), sample_weight=sample_weight)

    def result(self):
        return super().result() if self._mean is None else self._mean(super().result())


class Top1OverReplicas(Top1):
    """Top-1 reduced over replicas, which have equal numbers of images, by `mean` (None: there is one)."""

    def __init__(self, mean=None):
        super().__init__()
        self._mean = mean

    def result(self):
        return super().result() if self._mean is None else self._mean(super().result())


@compat.register
class Score(keras.layers.Layer):
    """From (logits [batch, classes], labels [batch, 1], weights [batch, 1]) to what an evaluation adds up.

    `[batch, 4]`, float32: top-1, top-5, cross-entropy, 1, each times the image's weight. So the device sends four
    numbers an image instead of all logits, and replicas need no reduction.
    """

    def __init__(self, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)

    def call(self, inputs):
        logits, labels, weights = inputs
        cross_entropy = SmoothedCrossEntropy(logits.shape[-1], label_smoothing=0.0, reduction="none")
        rows = [in_top(labels, logits, 1), in_top(labels, logits, 5), cross_entropy.call(labels, logits)]
        return tf.stack(rows + [tf.ones_like(rows[0])], axis=1) * weights


class Scorer:
    """Adds up the figures of a model's present weights on the IPUs, by a second model of each test size.

    Args:
      session: the running `Session`.
      model: of the run's architecture; any image size, on the host or the device.
      source: the evaluation source.
    """

    def __init__(self, session, model, source):
        self.session, self.model, self.source = session, model, source
        self._models = {}
        config = session.config
        check_first(
            assemble.eval_batches(config, source, config.data.eval_size, self._micro_batch, session.shard), "test"
        )

    @property
    def _micro_batch(self):
        return self.session.config.ipu.eval_micro_batch or self.session.plan.micro_batch

    def __call__(self, size, each=False):
        """Yields the sums over all images of `size` pixels, as `scoring.Scorer` does of each batch."""
        session = self.session
        data, micro_batches = self._data(size)
        steps = settings.forward_steps(session.config, session.plan.stages, micro_batches)
        micro_batches = settings.up_to_multiple(micro_batches, steps)
        if size not in self._models:
            self._models[size] = self._build(size, steps)
        scorer = self._models[size]
        scorer.set_weights(self.model.get_weights())
        rows = scorer.predict(data, steps=micro_batches * session.local_replicas)
        yield [session.sum_over_workers(np.sum(rows, axis=0, dtype=np.float64))]

    def _data(self, size):
        """`(batches, micro-batches of a replica)`: the images of this process, then blanks of weight 0 without end."""
        config, session, micro_batch = self.session.config, self.session, self._micro_batch
        data = assemble.eval_batches(config, self.source, size, batch=micro_batch, shard=session.shard)
        blank = tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), data.element_spec)
        data = data.concatenate(tf.data.Dataset.from_tensors(blank).repeat())
        data = data.map(lambda images, labels, weights: ((images, labels[:, tf.newaxis], weights[:, tf.newaxis]),))
        images = -(-self.source.num_examples // session.instances)
        return data, -(-images // (micro_batch * session.local_replicas))

    def _build(self, size, steps):
        session = self.session
        with session.strategy.scope():
            network = assemble.model(session.config, self.source.num_classes, size)
            label = keras.Input((1,), dtype="int32", name="label")
            weight = keras.Input((1,), dtype="float32", name="weight")
            score = Score(name="score")([network.output, label, weight])
            scorer = keras.Model([network.input, label, weight], score)
            if session.plan.pipelined:
                session.assign_stages(scorer)
            scorer.compile("sgd", steps_per_execution=steps)
        return scorer


def export(config, workdir):
    """Writes the trained weights of `workdir` to `WORKDIR/ipu_serving`, compiled for one replica of the plan's IPUs.

    It holds a program for this SDK's version and hardware: TensorFlow Serving of the same SDK runs it, nothing else
    does. Input: uint8 images [micro batch, size, size, 3] of `data.eval_size`; output: `logits`. The batch is fixed.
    Layers compute in `runtime.precision`, as they did in training and evaluation.
    """
    plan = settings.plan(config)._replace(replicas=1)
    with compat.policy(config.runtime.precision):
        model, class_names = assemble.trained(config, workdir)
    session = Session(config, plan)
    size, batch = config.data.eval_size, config.ipu.eval_micro_batch or plan.micro_batch
    path = Workdir(workdir).file("ipu_serving")
    partial = f"{path}.partial"

    @tf.function(input_signature=[tf.TensorSpec([batch, size, size, 3], tf.uint8, name="images")])
    def to_float(images):
        return tf.cast(images, tf.float32)

    with session.strategy.scope(), compat.policy(config.runtime.precision):
        served = assemble.model(config, len(class_names), size)
        served.set_weights(model.get_weights())
        if plan.pipelined:
            session.assign_stages(served)
        served.compile("sgd", steps_per_execution=settings.forward_steps(config, plan.stages))
        served.export_for_ipu_serving(
            partial, batch_size=batch, output_names=["logits"], preprocessing_step=to_float, purge_export_dir=True
        )
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)
    logging.info("Exported for IPU serving: %s", path)
    return {
        "format": "ipu_serving",
        "path": path,
        "batch": batch,
        "size": size,
        "ipus": plan.ipus,
        "classes": len(class_names),
        "weights": config.eval.weights,
    }

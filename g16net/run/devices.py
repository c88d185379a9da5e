"""The devices that train together, as far as TensorFlow itself runs them: CPUs, GPUs, TPUs, several processes."""

import contextlib
import functools
import json
import os
import re
import secrets
from typing import Any, Callable, Dict, List, Optional

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tensorflow import keras

from g16net import compat, host, native
from g16net.config import batches, recipe
from g16net.data.sources.base import Source
from g16net.errors import ConfigError, RunError, UserError
from g16net.native.build import cpu_features
from g16net.optim.losses import Top1
from g16net.run import scoring, workers
from g16net.run.updates import Updates

# Of an accelerator, which runs ahead of this process as long as nobody asks for a value:
PER_EXECUTION = 16  # weight updates in a call, where the config says nothing
LOOKS = 64  # weight updates between two looks at the loss and the flags of gradients that are not finite
# By precision, features of x86 CPUs with any of which oneDNN computes in it, as TensorFlow asks for them
FAST = {"mixed_bfloat16": ("avx512f", "avx_ne_convert"), "mixed_float16": ("avx512_fp16", "avx_ne_convert")}


def connect(config: ConfigDict) -> None:
    """What must come before anything else is asked of TensorFlow: devices are cut, other processes joined."""
    if config.runtime.strategy == "mirrored":
        _local_devices(config.runtime.virtual_cpus)
    elif config.runtime.strategy == "multiworker":
        _multiworker(*_cluster(config))
    elif config.runtime.strategy == "tpu":
        _tpu(config.runtime.tpu)


def _strategy(config):
    """The `tf.distribute` strategy of the run."""
    name = config.runtime.strategy
    if name == "default":
        return tf.distribute.get_strategy()
    check_keras(name)
    if name == "mirrored":
        if not config.runtime.virtual_cpus and not tf.config.list_physical_devices("GPU"):
            logging.warning(
                "runtime.strategy=mirrored: TensorFlow finds no GPU, so that the CPU trains alone. For NVIDIA's: pip "
                "install 'tensorflow[and-cuda]'"
            )
        return tf.distribute.MirroredStrategy(_local_devices(config.runtime.virtual_cpus))
    if name == "multiworker":
        return _multiworker(*_cluster(config))
    return _tpu(config.runtime.tpu)


def check_keras(name: str) -> None:
    """UserError where this process's Keras cannot train with the strategy `name`."""
    if compat.KERAS3:
        raise UserError(
            f"runtime.strategy={name} needs tf-keras, and this process runs Keras {compat.KERAS_VERSION}, which cannot "
            "fit on several workers (keras-team/keras#20585); set TF_USE_LEGACY_KERAS=1, which launch.py does itself"
        )


def _local_devices(virtual_cpus):
    """The names of the devices to mirror on; None: TensorFlow's choice, all GPUs."""
    if not virtual_cpus:
        return None
    (cpu,) = tf.config.list_physical_devices("CPU")
    present = len(tf.config.get_logical_device_configuration(cpu) or [cpu])
    if present != virtual_cpus:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * virtual_cpus)
        except RuntimeError as error:
            raise UserError(
                f"runtime.virtual_cpus={virtual_cpus} comes too late: this process has started TensorFlow with "
                f"{present}; set it in a new process"
            ) from error
    return [f"CPU:{i}" for i in range(virtual_cpus)]


def _cluster(config):
    addresses, index = workers.cluster(config)
    return tuple(addresses), index


@functools.lru_cache(maxsize=None)  # a process can join one cluster once
def _multiworker(addresses, index):
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}}
    )
    logging.info("Worker %d of %d at %s waits for the others", index, len(addresses), addresses[index])
    return tf.distribute.MultiWorkerMirroredStrategy()


@functools.lru_cache(maxsize=None)
def _tpu(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise UserError(
            f"runtime.strategy=tpu found no TPU by runtime.tpu={name!r} ({compat.reason(error)}); give the TPU's "
            "name, or `local` on a TPU virtual machine"
        ) from error


def compile_options(config: ConfigDict) -> Dict[str, Any]:
    """Arguments of `compile` and `tf.function` for `runtime.jit`; ConfigError where that cannot be."""
    if not config.runtime.jit:
        return {}
    if compat.TF_VERSION < (2, 8):
        raise ConfigError(f"runtime.jit needs TensorFlow 2.8 or newer, and this is {tf.__version__}; leave it false")
    if native.enabled():
        raise ConfigError(
            "runtime.jit is for GPUs: XLA does not know the native operations of CPUs, and compiles grouped "
            "convolutions to slow code there; leave it false, or try it with the environment variable G16NET_NATIVE=0"
        )
    return {"jit_compile": True}


def check_scale(config: ConfigDict, passes: int) -> None:
    """Raises ConfigError where a loss scale that leaves out passes would shift updates of several `passes`."""
    if passes > 1 and config.runtime.dynamic_loss_scale:
        raise ConfigError(
            "runtime.dynamic_loss_scale leaves out passes, and runtime.grad_accumulation or micro_batch make "
            f"{passes} of them one update, of which the others would be left: set "
            "--config.runtime.dynamic_loss_scale=false"
        )


@functools.lru_cache(maxsize=None)  # once for all modes of a process
def warn_of_slow(precision: str, features: Optional[str] = None) -> None:
    """A warning where this CPU computes `precision` more slowly than float32, or one of these `features`, words with
    blanks between. Of CPUs whose features are not known nothing is said."""
    words = (cpu_features() if features is None else features).split()
    if "sse2" in words and not set(FAST.get(precision, words)) & set(words):
        logging.warning(
            "runtime.precision=%s is slower than float32 here: this CPU has none of the instructions by which "
            "TensorFlow computes it (%s). On such a CPU training of B0 took 2 to 4 times as long; set "
            "--config.runtime.precision=float32",
            precision,
            " or ".join(FAST[precision]),
        )


class Devices:
    """What differs between kinds of hardware in the one training loop; here everything that TensorFlow itself runs.

    Attributes:
        strategy: the `tf.distribute` strategy under whose scope to build, compile and restore.
        replicas: copies of the model that train together, over all workers.
        shard: `(index, count)` of this process's part of the data.
        chief: whether this process writes the run's files.
        updates: how passes make weight updates, see `updates.Updates`.
    """

    shard = (0, 1)
    on_ipu = False

    def __init__(self, config: ConfigDict) -> None:
        self.config = config
        self.strategy = _strategy(config)
        self.replicas = self.strategy.num_replicas_in_sync
        if config.runtime.strategy == "multiworker":
            addresses, index = _cluster(config)
            self.shard = index, len(addresses)

    @functools.cached_property
    def updates(self) -> Updates:
        """How this process's passes make weight updates. Only training asks: a run may be evaluated elsewhere.

        Raises:
            ConfigError: the global batch does not divide.
        """
        runtime = self.config.runtime
        parts = batches.split(
            self.config.run.global_batch, self.replicas, runtime.micro_batch, runtime.grad_accumulation
        )
        return Updates(*parts, replicas=self.local_replicas, per_execution=self.per_execution)

    @property
    def per_execution(self) -> int:
        """Weight updates in one call of the device."""
        runs_ahead = (
            not compat.on_cpu() and not compat.KERAS3 and (self.averages_inside or not self.config.regularise.ema)
        )
        return self.config.runtime.steps_per_execution or (PER_EXECUTION if runs_ahead else 1)

    @property
    def looks(self) -> int:
        """Weight updates between two looks at values that live on the device: where they cost nothing, 1."""
        return 1 if compat.on_cpu() else LOOKS

    @property
    def averages_inside(self) -> bool:
        """Whether the optimizer itself can take each update's weights into their average, which lies beside them."""
        return not compat.KERAS3 and self.config.runtime.strategy not in recipe.COMPILED

    @property
    def chief(self) -> bool:
        return self.shard[0] == 0

    @property
    def local_replicas(self) -> int:
        """Replicas of this process."""
        return self.replicas // self.shard[1]

    def check(self, updates_per_epoch: int) -> None:
        """Raises ConfigError where an epoch of so many weight updates cannot be run; before a model is built."""
        self.updates, compile_options(self.config)  # noqa: B018
        if self.config.regularise.ema and self.per_execution > 1 and not self.averages_inside:
            raise ConfigError(
                f"regularise.ema averages after each weight update, and runtime.steps_per_execution="
                f"{self.per_execution} makes several in one call, which Keras {compat.KERAS_VERSION} takes as one: "
                "leave it 1, or train with tf-keras"
            )
        check_scale(self.config, self.updates.accumulation)
        self.check_rest(updates_per_epoch, 0)

    def check_rest(self, updates_per_epoch: int, done: int) -> None:
        """Raises ConfigError where an epoch cannot be continued after `done` weight updates. Keras 2 shortens the last
        call of an epoch, Keras 3 would make all of its updates."""
        left = updates_per_epoch - done
        if compat.KERAS3 and left % self.per_execution:
            raise ConfigError(
                f"runtime.steps_per_execution={self.per_execution} does not divide the {left} weight updates "
                f"{'that are left of the' if done else 'of an'} epoch, as Keras {compat.KERAS_VERSION} asks for: take "
                "1, or train with tf-keras"
            )

    def prepare(self, model: keras.Model) -> None:
        """Readies a new model for training."""

    def evaluation_scope(self) -> Any:
        """Context in which to build a model that is only evaluated."""
        return self.strategy.scope()

    def optimizer(self, optimizer: Any) -> Any:
        """The optimizer to compile with: in float16 the loss is scaled up and its gradients down."""
        if self.config.runtime.precision != "mixed_float16":
            return optimizer
        return compat.scale_loss(optimizer, self.config.runtime.loss_scale, self.config.runtime.dynamic_loss_scale)

    def metrics(self, loss: Any) -> List[Any]:
        """The metrics to compile with."""
        return [Top1()]

    def compile(self, model: keras.Model, optimizer: Any, loss: Any, updates: Updates) -> None:
        """Readies `model` for `fit`, in which `updates` are made."""
        # Keras reads the number of steps in a call before each, which would wait for an accelerator that keeps it.
        host = tf.device("CPU:0") if self.config.runtime.strategy == "default" else contextlib.nullcontext()
        with host:
            model.compile(
                optimizer,
                loss=loss,
                metrics=self.metrics(loss),
                steps_per_execution=updates.steps_per_execution,
                **compile_options(self.config),
            )

    def feed(self, data: Any) -> Any:
        """From batches of this process's images of a weight update to what `fit` takes."""
        return self.distributed(self.updates.cut(data))

    def distributed(self, data: Any) -> Any:
        """From batches of one replica to those of all; the replicas of a process take them in turn."""
        if self.config.runtime.strategy == "default":
            return data
        return self.strategy.distribute_datasets_from_function(lambda _: data)

    def scorer(self, model: keras.Model, source: Source, batches: Optional[Callable] = None) -> Callable:
        """What adds up an evaluation of the model's present weights: see `scoring.Scorer`."""
        return scoring.Scorer(self.config, model, source, self, batches)

    def sum_over_workers(self, values: Any) -> Any:
        """The sum of a float32 vector over all processes, which must ask for it at the same time."""
        if self.shard[1] == 1:
            return values
        return self._sum(tf.constant(values, tf.float32)).numpy() / self.local_replicas

    @functools.cached_property
    def _sum(self):
        strategy = self.strategy
        return tf.function(lambda v: strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: v), axis=None))

    def any(self, flag: Any) -> bool:
        """Whether `flag` is true in any process."""
        return bool(self.sum_over_workers([float(bool(flag))])[0])

    def equal(self, value: int) -> bool:
        """Whether a whole number is the same in all processes; false in at least one of them otherwise."""
        return round(float(self.sum_over_workers([float(value)])[0])) == value * self.shard[1]

    def drawn(self) -> str:
        """A new name that no other run has, the same one in all processes, which must ask for it at the same time."""
        parts = [float(secrets.randbelow(2**16)) if self.chief else 0.0 for _ in range(6)]  # whole in float32
        return "".join(f"{round(float(part)):04x}" for part in self.sum_over_workers(parts))

    def failed(self, error: Exception) -> Optional[RunError]:
        """The RunError that says what ended a run of several workers, or None where `error` is of another kind."""
        if self.shard[1] > 1 and lost_worker(error):
            return RunError(
                f"worker {self.shard[0]} of {self.shard[1]} lost the others ({compat.reason(error)[:200]}); "
                "start all workers again with the same command: they go on from the newest checkpoint"
            )
        return None

    def __str__(self):
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            text = f"{len(gpus)} GPU"
        else:
            text = f"CPU, {host.cores()} cores"
        if self.replicas > 1:
            text += f", {self.replicas} replicas in {self.shard[1]} process{'es' if self.shard[1] > 1 else ''}"
        if self.updates.accumulation > 1:
            text += f", micro batch {self.updates.micro_batch} x {self.updates.accumulation} accumulated"
        return text


def lost_worker(error: Exception) -> bool:
    """Whether an error in a run of several workers says that another of them is gone.

    A device's own failures (cuDNN, XLA, Poplar) are INTERNAL too, and files of a bucket or batches of a data service
    can be UNAVAILABLE: those are this worker's.
    """
    gone = (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
    )
    if isinstance(error, tf.errors.InternalError):
        return _OF_WORKERS.search(str(error)) is not None
    return isinstance(error, gone) and _OF_DATA.search(str(error)) is None


_OF_WORKERS = re.compile(r"collective|nccl|rpc\b|remote peer|coordination|heartbeat|barrier|connection reset", re.I)
_OF_DATA = re.compile(r"dispatcher|data service|tf\.data|http request|libcurl", re.I)

"""The hardware of a run: seeds, precision and the devices that train together. The only place that knows hardware."""

import os

import tensorflow as tf

from g16net import compat
from g16net.ipu.settings import STRATEGIES as IPU_STRATEGIES
from g16net.optim.losses import Top1


def setup(config):
    """Prepares this process for `config` and returns the `Devices` on which to build and train."""
    if config.runtime.deterministic and hasattr(tf.config.experimental, "enable_op_determinism"):
        tf.config.experimental.enable_op_determinism()
    compat.set_seed(config.run.seed)
    compat.set_policy(config.runtime.precision)
    if config.runtime.strategy in IPU_STRATEGIES:
        from g16net.ipu import session

        return session.Session(config)
    return Devices(config)


class Devices:
    """What differs between kinds of hardware in the one training loop; here the one device that TensorFlow picks.

    Attributes:
        strategy: the `tf.distribute` strategy under whose scope to build, compile and restore.
        shard: `(index, count)` of this process's part of the data.
        chief: whether this process writes the run's files.
    """

    shard = (0, 1)
    chief = True

    def __init__(self, config):
        self.config = config
        self.strategy = tf.distribute.get_strategy()

    def check(self, updates_per_epoch):
        """Raises ConfigError where an epoch of so many weight updates cannot be run; before a model is built."""

    def prepare(self, model):
        """Readies a new model for training."""

    def optimizer(self, optimizer):
        """The optimizer to compile with."""
        return optimizer

    def metrics(self, loss):
        """The metrics to compile with."""
        return [Top1()]

    @property
    def steps_per_execution(self):
        """Keras' steps in one call of the device."""
        return self.config.runtime.steps_per_execution

    def steps(self, updates):
        """What `fit` has to be told to make so many weight updates an epoch."""
        return updates

    def feed(self, data):
        """From batches of this process's images of a weight update to what `fit` takes."""
        return data

    def callbacks(self, callbacks):
        """Callbacks that count weight updates, as `fit` takes them."""
        return callbacks

    def evaluator(self, model, source):
        """`size -> figures` of the model's present weights."""
        from g16net import evaluate

        return evaluate.Evaluator(self.config, model, source)

    def __str__(self):
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            return f"{len(gpus)} GPU"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"CPU, {cores} cores"

"""The hardware of a run: seeds, precision and the devices that train together. The only place that knows hardware."""

import os

import tensorflow as tf

from g16net import compat


def setup(config):
    """Prepares this process for `config` and returns the `tf.distribute` strategy under which to build and train."""
    if config.runtime.deterministic and hasattr(tf.config.experimental, "enable_op_determinism"):
        tf.config.experimental.enable_op_determinism()
    compat.set_seed(config.run.seed)
    compat.set_policy(config.runtime.precision)
    return tf.distribute.get_strategy()


def is_chief():
    """Whether this process writes the run's files."""
    return True


def device_line():
    """The devices in words, for a run's first line."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return f"{len(gpus)} GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU, {cores} cores"

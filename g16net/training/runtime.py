"""Which hardware a run has: seeds, precision, and the `Devices` for its `runtime.strategy`."""

import functools
from typing import Callable

import tensorflow as tf
from ml_collections import ConfigDict

from g16net import compat
from g16net.config.ipu import STRATEGIES as IPU_STRATEGIES
from g16net.ipu import session
from g16net.run import workers
from g16net.run.devices import Devices, check_keras, connect, warn_of_slow


def setup(config: ConfigDict) -> Devices:
    """Prepares this process for `config` and returns the `Devices` on which to build and train."""
    connect(config)
    if config.runtime.deterministic and hasattr(tf.config.experimental, "enable_op_determinism"):
        tf.config.experimental.enable_op_determinism()
    compat.set_seed(config.run.seed)
    if config.runtime.strategy in IPU_STRATEGIES:
        return session.Session(config)
    if compat.on_cpu():
        warn_of_slow(config.runtime.precision)
    return Devices(config)


def in_precision(mode: Callable) -> Callable:
    """Decorator of a function of a config and more: what it builds computes in `runtime.precision`."""

    @functools.wraps(mode)
    def within(config, *args, **kwargs):
        with compat.policy(config.runtime.precision):
            return mode(config, *args, **kwargs)

    return within


def check(config: ConfigDict, updates_per_epoch: int) -> None:
    """UserError where training cannot be done on the devices of `config`, as far as that is known without them."""
    strategy = config.runtime.strategy
    if strategy in IPU_STRATEGIES:
        session.sdk()
        session.settings.check_steps(config, updates_per_epoch)
    elif strategy == "default":
        Devices(config).check(updates_per_epoch)
    else:
        check_keras(strategy)
        if strategy == "multiworker":
            workers.cluster(config)


def chief(config: ConfigDict, all_workers: bool = True) -> bool:
    """Whether this process writes the run's files; known before devices are touched.

    Without modes of `all_workers`, a run of poprun is used on the host, in one process: within poprun its first.
    """
    if config.runtime.strategy == "multiworker":
        return workers.cluster(config)[1] == 0
    if config.runtime.strategy == "popdist":
        return (session.poprun().getInstanceIndex() if all_workers else session.instance()) == 0
    return True

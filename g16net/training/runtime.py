"""Which hardware a run has: seeds, precision, and the `Devices` for its `runtime.strategy`."""

import functools
from typing import Callable

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from g16net import compat
from g16net.config.ipu import STRATEGIES as IPU_STRATEGIES
from g16net.ipu import session
from g16net.native import build
from g16net.run import workers
from g16net.run.devices import Devices, check_keras, connect

# By precision, features of x86 CPUs with any of which oneDNN computes in it, as TensorFlow asks for them
FAST = {"mixed_bfloat16": ("avx512f", "avx_ne_convert"), "mixed_float16": ("avx512_fp16", "avx_ne_convert")}


def setup(config: ConfigDict) -> Devices:
    """Prepares this process for `config` and returns the `Devices` on which to build and train."""
    connect(config)
    if config.runtime.deterministic and hasattr(tf.config.experimental, "enable_op_determinism"):
        tf.config.experimental.enable_op_determinism()
    compat.set_seed(config.run.seed)
    if config.runtime.strategy in IPU_STRATEGIES:
        return session.Session(config)
    if compat.on_cpu():
        warn_of_slow(config.runtime.precision, build.cpu_features())
    return Devices(config)


@functools.lru_cache(maxsize=None)  # once for all modes of a process
def warn_of_slow(precision: str, features: str) -> None:
    """A warning where a CPU of those `features`, words with blanks between, computes `precision` more slowly than
    float32. Of CPUs whose features are not known nothing is said."""
    words = features.split()
    if "sse2" in words and not set(FAST.get(precision, words)) & set(words):
        logging.warning(
            "runtime.precision=%s is slower than float32 here: this CPU has none of the instructions by which "
            "TensorFlow computes it (%s). On such a CPU training of B0 took 2 to 4 times as long; set "
            "--config.runtime.precision=float32",
            precision,
            " or ".join(FAST[precision]),
        )


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


def chief(config: ConfigDict) -> bool:
    """Whether this process writes the run's files; known before devices are touched."""
    if config.runtime.strategy == "multiworker":
        return workers.cluster(config)[1] == 0
    if config.runtime.strategy == "popdist":
        return session.poprun().getInstanceIndex() == 0
    return True

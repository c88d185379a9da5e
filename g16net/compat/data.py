"""tf.data, and what an error says."""

import atexit
import functools
import gc
import re

import tensorflow as tf

from g16net.compat.versions import TF_VERSION


def ignore_errors(dataset, log=True):
    """`dataset` without the elements that raise; each error is logged, unless `log` is false."""
    if hasattr(dataset, "ignore_errors"):
        return dataset.ignore_errors(log_warning=log)
    return dataset.apply(tf.data.experimental.ignore_errors(log_warning=log))


def single_element(dataset):
    """The one element of `dataset`."""
    if hasattr(dataset, "get_single_element"):
        return dataset.get_single_element()
    return tf.data.experimental.get_single_element(dataset)


def set_deterministic(options, value):
    """Sets whether a tf.data.Dataset keeps its order."""
    name = "deterministic" if TF_VERSION >= (2, 7) else "experimental_deterministic"
    setattr(options, name, value)


def set_untuned(options):
    """Sets that TensorFlow changes nothing in a tf.data.Dataset while it is read; each stage says how parallel it is.

    Otherwise an iterator that is freed may wait for the thread that adjusts it, which sleeps for as long as the
    iterator has lived, up to a minute, and at times is not woken: an evaluation then ends late, and so does a process.
    """
    if hasattr(options, "autotune"):
        options.autotune.enabled = False
    else:  # TensorFlow 2.6
        options.experimental_optimization.autotune = False


def numpy_function(function, inputs, dtype):
    """`tf.numpy_function` in a pipeline: a process ends although an iterator of it has not come to its end."""
    _end_iterators_at_exit()
    return tf.numpy_function(function, inputs, dtype)


@functools.lru_cache(maxsize=None)  # once
def _end_iterators_at_exit():
    atexit.register(_end_iterators)


def _end_iterators():
    """Frees the iterators that are still there, while Python runs.

    Freed by the interpreter's own end, one waits for its pipeline, whose Python functions then wait for the
    interpreter: the process would never end.
    """
    for one in gc.get_objects():
        if tf.data.Iterator in type(one).__mro__:
            vars(one).clear()


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

"""A look at all rows of a source: a cache being filled, features, an inspection."""

from typing import Any, Callable

import tensorflow as tf

from g16net import compat, host


def each(rows: Any, function: Callable[[Any], Any], skip: bool = True) -> Any:
    """Dataset of `function(row)` in the order of `rows`, on all cores; `skip`: without those that raise."""
    options = tf.data.Options()
    compat.set_untuned(options)
    done = rows.map(function, num_parallel_calls=2 * host.cores())
    return (compat.ignore_errors(done) if skip else done).with_options(options)

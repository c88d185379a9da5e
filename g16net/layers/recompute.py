"""Gradients by computing again: a function keeps its input and nothing else until its gradient is asked for.

"Training Deep Nets with Sublinear Memory Cost", 1604.06174. `tf.recompute_grad` does the same for functions without
state; here what a layer keeps for later (moving statistics) is written in the first pass only, see `again`.
"""

import contextlib

import tensorflow as tf

_again = False


def again():
    """Whether a layer is called to compute once more what it has computed."""
    return _again


@contextlib.contextmanager
def _second_pass():
    global _again
    before, _again = _again, True
    try:
        yield
    finally:
        _again = before


def recomputed(function, x):
    """`function(x)`, tensor to tensor, whose gradient calls `function` again. It must not draw at random."""

    @tf.custom_gradient
    def once(x):
        def gradient(dy, variables=None):
            variables = list(variables or ())
            with tf.control_dependencies([dy]):  # otherwise it would run, or be merged, with the forward pass
                kept = tf.identity(x)
                with _second_pass(), tf.GradientTape() as tape:
                    tape.watch(kept)
                    y = function(kept)
            dx, *dvariables = tape.gradient(y, [kept, *variables], dy)
            return (dx, dvariables) if variables else dx

        return function(x), gradient

    return once(x)

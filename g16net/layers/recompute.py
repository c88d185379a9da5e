"""Gradients by computing again: a function keeps its input and nothing else until its gradient is asked for.

"Training Deep Nets with Sublinear Memory Cost", 1604.06174. `tf.recompute_grad` does the same for functions without
state; here a function is told which pass it is, as what layers keep for later (moving statistics) must be written once.
"""

from typing import Any, Callable

from g16net import compat
from g16net.compat import tf


def recomputed(function: Callable, x: Any) -> Any:
    """`function(x, again=False)`, tensor to tensor, whose gradient calls `function(x, again=True)`.

    The function must not draw at random, and must change no variable where `again` is true. ImportError on another
    backend than TensorFlow.
    """
    compat.need_tensorflow("models of less memory (recomputation)")

    @tf.custom_gradient
    def once(x):
        def gradient(dy, variables=None):
            variables = list(variables or ())
            with tf.control_dependencies([dy]):  # otherwise it would run, or be merged, with the forward pass
                kept = tf.identity(x)
                with tf.GradientTape() as tape:
                    tape.watch(kept)
                    y = function(kept, again=True)
            dx, *dvariables = tape.gradient(y, [kept, *variables], dy)
            return (dx, dvariables) if variables else dx

        return function(x, again=False), gradient

    return once(x)

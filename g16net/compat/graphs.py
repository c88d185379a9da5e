"""Graphs: how they are traced, and for which device."""

import inspect

from g16net.compat.versions import tf


def as_written(function):
    """Decorator: AutoGraph leaves `function`, and all that it calls, as it is.

    Keras' layers and tf.data's `map` convert what they are given, which takes longer than to trace it; nothing here
    branches on the value of a tensor but by `tf.cond` and `tf.while_loop`. Other backends have no AutoGraph.
    """
    if tf is None:
        return function
    wrapper = tf.autograph.experimental.do_not_convert(function)
    wrapper.__signature__ = inspect.signature(function)  # Keras asks it which arguments there are
    return wrapper


def compiled_device():
    """True where the strategy in scope runs on a device whose XLA compiler takes every operation (IPU, TPU)."""
    if tf is None:
        return False
    kind = type(tf.distribute.get_strategy()).__name__
    if kind.startswith(("IPU", "PopDist")):
        return bool(tf.config.list_logical_devices("IPU"))
    return kind.startswith("TPU")


def compiling():
    """True where what is traced will be compiled by XLA: in a `tf.function` of `jit_compile=True`.

    And in what it calls, but for a `tf.function` that was traced before elsewhere: TensorFlow takes that as it is.
    """
    if tf is None or tf.executing_eagerly():
        return False
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False


def on_cpu():
    """True where there is nothing but CPUs for TensorFlow to compute on."""
    if tf is None:
        return False
    return all(device.device_type.endswith("CPU") for device in tf.config.list_physical_devices())


def in_training(training, trained, inferred):
    """`trained()` where a layer is called with `training` true, `inferred()` otherwise; a tensor makes both."""
    if tf is not None and tf.is_tensor(training):
        return tf.cond(tf.cast(training, tf.bool), trained, inferred)
    return trained() if training else inferred()


def outlined(function, *signature):
    """`function` as a `tf.function` that a graph calls as one operation, so that a branch that is not taken costs
    nothing: TensorFlow otherwise passes through every operation of it. TensorFlow before 2.12 has no such mark."""
    known = "experimental_attributes" in inspect.signature(tf.function).parameters
    options = {"experimental_attributes": {"_noinline": True}} if known else {}
    return tf.function(function, autograph=False, input_signature=signature, **options)

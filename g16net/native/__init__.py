"""Native CPU operations for what costs the most passes over memory, the norm-activation and the gate of SE layers; for
the most nodes of the graph, the proxy's moments and the optimizer's update; for the grouped convolution;
and for the resize and the small images of the input side.

They are compiled on first use, where there is a C++ compiler (see `build`), and give what TensorFlow's operations give:
the input side's byte for byte, the others to rounding. Layers ask `enabled` and go the plain way otherwise: without a
compiler, on accelerators, in float16, and in what TensorFlow traces while it writes a SavedModel, which so needs
nothing but TensorFlow to load. A function that was traced before is written as it is: trace what other programs shall
load within `disabled()`. The input side, which has the CPU beside any accelerator, asks `available`. The environment
variable `G16NET_NATIVE` set to 0 switches them off.

XLA cannot compile them: a `tf.function` of `jit_compile=True` is traced without them.
"""

import contextlib
import ctypes
import os
import threading

from absl import logging

from g16net import compat, host
from g16net.compat import tf

try:  # not public, and the only way to know
    if tf is None:
        raise ImportError("another backend has none")
    from tensorflow.python.saved_model.save_context import in_save_context
except ImportError:

    def in_save_context():
        return False


DTYPES = () if tf is None else (tf.float32, tf.bfloat16)
_lock = threading.Lock()
_library = None  # False: tried in vain
_vector = 0  # numbers in a vector of the grouped convolution, 0 where there is none
_disabled = 0


def library():
    """The module of the operations; None where they cannot be had, for which the log gives the reason once."""
    global _library, _vector
    with _lock:
        if _library is None:
            from g16net.native import build  # here, so that `python -m g16net.native.build` imports it once

            try:
                path = build.build()
                _library = tf.load_op_library(path)
                threads = tf.config.threading.get_intra_op_parallelism_threads() or host.cores()
                functions = ctypes.CDLL(path)
                functions.g16_set_threads(threads)
                _vector = functions.g16_conv_vector()
            except (OSError, ImportError, tf.errors.OpError) as error:
                logging.info("No native operations, TensorFlow's own do the work: %s", error)
                _library = False
    return _library or None


def _gradient_of(operation):
    """Decorator: the function gives the gradient of `operation`."""
    return tf.RegisterGradient(operation) if tf is not None else lambda function: function


@contextlib.contextmanager
def disabled():
    """Within it, functions are traced without native operations: for graphs that other programs load.

    with native.disabled():
        signature = serve.get_concrete_function()
    tf.saved_model.save(model, "served", signatures=signature)
    """
    global _disabled
    _disabled += 1
    try:
        yield
    finally:
        _disabled -= 1


@compat.as_written
def available():
    """Whether what runs on the CPU shall use the native operations, here and now."""
    return (
        tf is not None
        and os.environ.get("G16NET_NATIVE", "1") != "0"
        and not _disabled
        and not in_save_context()
        and not compat.compiled_device()
        and not compat.compiling()
        and library() is not None
    )


@compat.as_written
def enabled(dtype="float32"):
    """Whether a layer shall use the native operations on tensors of `dtype`, here and now."""
    return tf is not None and tf.as_dtype(dtype) in DTYPES and compat.on_cpu() and available()


@compat.as_written
def norm_activation(x, gamma, beta, groups, strided, epsilon, activation, centre=None, scale=None):
    """`(y, means)`: y as by `layers.norm_activation.norm_activation`, and its means over height and width, float32
    [batch, channels], which cost no pass over it."""
    channels = x.shape[-1]
    ones, zeros = tf.ones([channels]), tf.zeros([channels])
    y, _, _, pooled = library().g16_norm_activation(
        x=x,
        gamma=ones if gamma is None else gamma,
        beta=zeros if beta is None else beta,
        centre=zeros if centre is None else centre,
        scale=ones if scale is None else scale,
        groups=groups or 0,
        strided=strided,
        epsilon=epsilon,
        activation=activation or "none",
    )
    pooled.set_shape([x.shape[0], channels])
    return y, pooled


@compat.as_written
def multiply(x, gate):
    """x [batch, height, width, channels] * gate, float32 [batch, channels]."""
    return library().g16_gate(x=x, gate=gate)


@compat.as_written
def convolves(x, width):
    """Whether `group_conv` can be used on x [batch, height, width, channels] in groups of `width` channels, and is
    faster than TensorFlow's, in float32: with AVX2 on all maps (0.2 to 0.9 of oneDNN's time, forward and backward, the
    least on the smallest; 0.8 to 1.1 with one image), with AVX-512 on large ones (forward 0.7 to 0.95, gradients 0.4 to
    0.75), where oneDNN waits for memory; on small ones oneDNN's loops win with AVX-512."""
    large = None not in x.shape[1:3] and x.shape[1] * x.shape[2] >= 32 * 32
    return width == 16 and enabled() and x.dtype == tf.float32 and (_vector == 8 or _vector == 16 and large)


@compat.as_written
def multiplies(x):
    """Whether the gradients of a 1 x 1 convolution of x are faster as TensorFlow's matrix products than as oneDNN's
    convolutions: in float32 with AVX2, see `layers.conv`; with AVX-512 they gain little."""
    return enabled() and x.dtype == tf.float32 and _vector == 8


@compat.as_written
def group_conv(x, kernel, strides):
    """Grouped 'SAME' convolution of x [batch, height, width, channels] with kernel [k, k, 16, channels], float32."""
    y = library().g16_group_conv(x=x, kernel=kernel, strides=strides)
    height, width = (n and -(-n // strides) for n in x.shape[1:3])
    y.set_shape([x.shape[0], height, width, x.shape[3]])
    return y


@compat.as_written
def proxy_moments(gamma, beta, proxy_gamma, proxy_beta, activation, nodes, weights, epsilon):
    """(mean, 1 / sqrt(variance + epsilon)) by `layers.proxy_norm.proxy_moments`, of whose arguments there is `epsilon`
    more."""
    moments = library().g16_proxy_moments(
        gamma=gamma,
        beta=beta,
        proxy_gamma=proxy_gamma,
        proxy_beta=proxy_beta,
        nodes=tf.constant(nodes, tf.float32),
        weights=tf.constant(weights, tf.float32),
        activation=activation,
        epsilon=epsilon,
    )
    return _shaped(moments, [gamma] * 2)


@compat.as_written
def update(rule, numbers, gradients, values, slots=(), rates=None, decays=None):
    """A step of all variables by a rule of `update.h`.

    Args:
        rule: its name there.
        numbers: its scalars.
        gradients, values: lists of float32 tensors, one of each for a variable.
        slots: such a list for each slot of the rule.
        rates, decays: factor of the learning rate and weight decay of each variable, by default 1 and 0.

    Returns:
        New values, a list of the new slots' lists, and bool [variables], whether each gradient is finite.
    """
    count = len(gradients)
    new_values, new_slots, finite = library().g16_update(
        rule=rule,
        numbers=tf.stack([tf.cast(number, tf.float32) for number in numbers]),
        rates=tf.constant([1.0] * count if rates is None else rates, tf.float32),
        decays=tf.constant([0.0] * count if decays is None else decays, tf.float32),
        gradients=gradients,
        values=values,
        slots=[tensor for slot in slots for tensor in slot],
    )
    finite.set_shape([count])
    by_slot = [_shaped(new_slots[i * count : (i + 1) * count], values) for i in range(len(slots))]
    return _shaped(new_values, values), by_slot, finite


@compat.as_written
def resize(image, extent, half_pixel_centers, flip=False):
    """As `data.transforms.scale`: uint8 [height, width, channels] to `extent`, mirrored left to right where `flip`."""
    extent = tf.convert_to_tensor(extent, tf.int32)
    resized = library().g16_resize(image=image, size=extent, flip=flip, half_pixel_centers=half_pixel_centers)
    known = tf.get_static_value(extent)
    resized.set_shape([*([None, None] if known is None else known), image.shape[2]])
    return resized


@compat.as_written
def mixup(images, kept):
    """As `data.mixing.mix`: uint8 images [batch, ...], of which each keeps so much, float32 [batch]."""
    return library().g16_mixup(images=images, kept=kept)


@compat.as_written
def small_images(images, seeds, pad, flip, reflect, flip_stream):
    """As `data.transforms.small_images`; `flip_stream`: what is xored to a seed to draw whether to mirror."""
    return library().g16_small_images(
        images=images, seeds=seeds, pad=pad, flip=flip, reflect=reflect, flip_stream=flip_stream
    )


@compat.as_written
def small_boxes(images, seeds, size, **options):
    """As `data.transforms.small_boxes`; the options are the attributes of the operation."""
    boxes = library().g16_small_boxes(images=images, seeds=seeds, size=size, **options)
    return tf.ensure_shape(boxes, [images.shape[0], size, size, 3])


@_gradient_of("G16NormActivation")
def _norm_activation_gradient(op, dy, _mean, _inv_std, dpooled):
    x, gamma, beta, centre, scale = op.inputs
    gradients = library().g16_norm_activation_grad(
        dy=dy,
        dpooled=dpooled,
        x=x,
        gamma=gamma,
        beta=beta,
        centre=centre,
        scale=scale,
        mean=op.outputs[1],
        inv_std=op.outputs[2],
        **{name: op.get_attr(name) for name in ("groups", "strided", "epsilon", "activation")},
    )
    return _shaped(gradients, op.inputs)


def _shaped(gradients, values):
    for gradient, value in zip(gradients, values):
        gradient.set_shape(value.shape)
    return gradients


@_gradient_of("G16ProxyMoments")
def _proxy_moments_gradient(op, dmean, dinv_std):
    parameters = "gamma", "beta", "proxy_gamma", "proxy_beta", "nodes", "weights"
    gradients = library().g16_proxy_moments_grad(
        dmean=dmean,
        dinv_std=dinv_std,
        mean=op.outputs[0],
        inv_std=op.outputs[1],
        **dict(zip(parameters, op.inputs)),
        **{name: op.get_attr(name) for name in ("epsilon", "activation")},
    )
    return [*_shaped(gradients, op.inputs), None, None]


@_gradient_of("G16GroupConv")
def _group_conv_gradient(op, dy):
    x, kernel = op.inputs
    gradients = library().g16_group_conv_grad(dy=dy, x=x, kernel=kernel, strides=op.get_attr("strides"))
    return _shaped(gradients, op.inputs)


@_gradient_of("G16Gate")
def _multiply_gradient(op, dy):
    gradients = library().g16_gate_grad(dy=dy, x=op.inputs[0], gate=op.inputs[1])
    return _shaped(gradients, op.inputs)


@_gradient_of("G16GroupConvGrad")
def _group_conv_second_gradient(op, ddx, ddkernel):
    dy, x, kernel = op.inputs
    strides = op.get_attr("strides")
    ddy = group_conv(ddx, kernel, strides) + group_conv(x, ddkernel, strides)
    gradients = library().g16_group_conv_grad(dy=dy, x=ddx, kernel=ddkernel, strides=strides)
    return [ddy, *_shaped(gradients, op.inputs[1:])]


@_gradient_of("G16GateGrad")
def _multiply_second_gradient(op, ddx, ddgate):
    dy, x, gate = op.inputs
    gradients = library().g16_gate_grad(dy=dy, x=ddx, gate=ddgate)
    return [multiply(ddx, gate) + multiply(x, ddgate), *_shaped(gradients, op.inputs[1:])]


@_gradient_of("G16NormActivationGrad")
@_gradient_of("G16ProxyMomentsGrad")
def _no_second_gradient(op, *_):
    raise LookupError(
        f"the native operation {op.type} has no gradient of its own, which a gradient of gradients needs: set the "
        "environment variable G16NET_NATIVE=0, which takes TensorFlow's operations instead"
    )

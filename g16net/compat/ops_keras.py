"""The tensor operations of layers, losses and schedules on JAX and PyTorch: those of `keras.ops`, and a few that it has
in another form or not at all. `ops_tensorflow` has the same names.
"""

import contextlib
from typing import Any, ContextManager

import keras
from keras.ops import (  # noqa: F401
    all,
    any,
    argmax,
    cast,
    concatenate,
    convert_to_tensor,
    equal,
    floor,
    log_softmax,
    matmul,
    maximum,
    mean,
    minimum,
    ones,
    ones_like,
    relu,
    relu6,
    reshape,
    rsqrt,
    shape,
    sigmoid,
    sign,
    silu,
    sin,
    split,
    sqrt,
    square,
    sum,
    where,
    zeros,
)

constant = convert_to_tensor

# The dtype of whole numbers that count steps: JAX has no other unless it is told.
WHOLE = keras.backend.standardize_dtype("int") if keras.config.backend() == "jax" else "int64"


def conv(x: Any, kernel: Any, strides: int) -> Any:
    """'SAME' convolution of x [batch, height, width, channels] with kernel [k, k, width, channels], whose shape says
    how many groups there are."""
    return keras.ops.conv(x, kernel, strides, "same", "channels_last")


def depthwise_conv(x: Any, kernel: Any, strides: int) -> Any:
    """The same with kernel [k, k, channels, 1] and a group for each channel."""
    return keras.ops.depthwise_conv(x, kernel, strides, "same", "channels_last")


def dtype_name(dtype: Any) -> str:
    """Such as "bfloat16", of a dtype in any form."""
    return keras.backend.standardize_dtype(dtype)


def identity(x: Any) -> Any:
    return x


def name_scope(name: str) -> ContextManager:
    """Names operations of a graph, which there is on TensorFlow alone."""
    return contextlib.nullcontext()


def of_each_row(x: Any, indices: Any) -> Any:
    """x[i, indices[i, j]] for indices [rows, j], x[i, indices[i]] for indices [rows]."""
    if len(indices.shape) == 1:
        return keras.ops.take_along_axis(x, indices[:, None], axis=1)[:, 0]
    return keras.ops.take_along_axis(x, indices, axis=1)


def one_hot(indices: Any, depth: int) -> Any:
    return keras.ops.one_hot(indices, depth, dtype="float32")


def rank(x: Any) -> Any:
    """Number of dimensions; on TensorFlow None where it is unknown."""
    return len(x.shape)


def squared_difference(x: Any, y: Any) -> Any:
    return keras.ops.square(x - y)


def take(x: Any, indices: Any) -> Any:
    """x[indices], along the first axis."""
    return keras.ops.take(x, indices, axis=0)


def top_indices(x: Any, k: int) -> Any:
    """Of each row the places of its `k` largest, of equal ones the first first, which torch.topk does not promise."""
    return keras.ops.argsort(-x, axis=-1)[:, :k]

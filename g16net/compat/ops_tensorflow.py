"""The tensor operations of layers, losses and schedules on TensorFlow, by the names of `keras.ops`: see `ops_keras`.

Each is TensorFlow's own function: graphs are what they would be if it were called directly, and Keras 2, which has no
`keras.ops`, has them too.
"""

from typing import Any

import tensorflow as tf

all = tf.reduce_all
any = tf.reduce_any
cast = tf.cast
concatenate = tf.concat
constant = tf.constant
convert_to_tensor = tf.convert_to_tensor
equal = tf.equal
floor = tf.floor
identity = tf.identity
log_softmax = tf.nn.log_softmax
matmul = tf.matmul
maximum = tf.maximum
mean = tf.reduce_mean
minimum = tf.minimum
name_scope = tf.name_scope
one_hot = tf.one_hot
ones = tf.ones
ones_like = tf.ones_like
relu = tf.nn.relu
relu6 = tf.nn.relu6
reshape = tf.reshape
rsqrt = tf.math.rsqrt
shape = tf.shape
sigmoid = tf.sigmoid
sign = tf.sign
silu = tf.nn.silu
sin = tf.sin
split = tf.split
sqrt = tf.sqrt
square = tf.square
squared_difference = tf.math.squared_difference
sum = tf.reduce_sum
take = tf.gather
where = tf.where
zeros = tf.zeros

WHOLE = "int64"  # the dtype of whole numbers that count steps


def argmax(x: Any, axis: int) -> Any:
    return tf.argmax(x, axis=axis, output_type=tf.int32)


def conv(x: Any, kernel: Any, strides: int) -> Any:
    return tf.nn.conv2d(x, kernel, strides, "SAME")


def depthwise_conv(x: Any, kernel: Any, strides: int) -> Any:
    return tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], "SAME")


def dtype_name(dtype: Any) -> str:
    return tf.as_dtype(dtype).name


def of_each_row(x: Any, indices: Any) -> Any:
    return tf.gather(x, indices, batch_dims=1)


def rank(x: Any) -> Any:
    return x.shape.rank


def top_indices(x: Any, k: int) -> Any:
    return tf.math.top_k(x, k).indices

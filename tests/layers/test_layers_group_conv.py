import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from layer_check import check_layer, gradients
from tensorflow import keras

from g16net import compat, native
from g16net.layers import GroupConv2D, group_conv


def image(channels, size=7, batch=2):
    return np.random.RandomState(0).randn(batch, size, size, channels).astype("float32")


def dense_kernel(kernel):
    """The block-diagonal kernel of the ordinary convolution that equals the grouped one."""
    size, _, width, channels = kernel.shape
    dense = np.zeros([size, size, channels, channels], kernel.dtype)
    for out in range(channels):
        first = out // width * width
        dense[:, :, first : first + width, out] = kernel[:, :, :, out]
    return dense


@pytest.mark.parametrize("group_size, strides", [(1, 1), (4, 2)])
def test_layer(tmp_path, group_size, strides):
    config = dict(kernel_size=3, strides=strides, group_size=group_size)
    shape = (2, 7, 7, 8) if strides == 1 else (2, 4, 4, 8)
    check_layer(GroupConv2D, config, image(8), tmp_path, trainable=1, output_shape=shape)


@pytest.mark.parametrize("lowering", [None, "split"])
@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize("group_size, kernel_size, strides", [(1, 3, 1), (1, 5, 2), (4, 3, 2), (4, 5, 1), (8, 3, 1)])
def test_equals_dense_convolution(group_size, kernel_size, strides, size, lowering):
    layer = GroupConv2D(kernel_size, strides, group_size, lowering=lowering)
    x = tf.constant(image(8, size))
    layer(x)
    kernel = np.array(tf.convert_to_tensor(layer.kernel))
    dense = tf.constant(dense_kernel(kernel))
    y, (dx, dkernel) = gradients(lambda x: tf.reduce_sum(layer(x) ** 3), [x], layer.weights, eager=True)
    expected, (dx_expected, ddense) = gradients(
        lambda x, k: tf.reduce_sum(tf.nn.conv2d(x, k, strides, "SAME") ** 3), [x, dense], eager=True
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4)
    np.testing.assert_allclose(dx, dx_expected, rtol=1e-3, atol=1e-4 * np.abs(dx).max())
    np.testing.assert_allclose(
        dense_kernel(dkernel), ddense * (dense_kernel(np.ones_like(kernel)) > 0), atol=1e-4 * np.abs(ddense).max()
    )


def test_group_size_1_is_depthwise():
    layer = GroupConv2D(3)
    x = tf.constant(image(6))
    y = layer(x)
    kernel = tf.transpose(tf.convert_to_tensor(layer.kernel), [0, 1, 3, 2])
    np.testing.assert_allclose(y, tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "channels, group_size, width", [(64, 16, 16), (20, 16, 20), (24, 16, 24), (56, 16, 28), (8, 1, 1)]
)
def test_width_of_groups(channels, group_size, width):
    layer = GroupConv2D(3, group_size=group_size)
    layer.build((None, None, None, channels))
    assert tuple(layer.kernel.shape) == (3, 3, width, channels)
    assert layer.groups == channels // width


def test_initial_scale():
    layer = GroupConv2D(3, group_size=16)
    layer.build((None, None, None, 256))
    assert np.std(np.array(tf.convert_to_tensor(layer.kernel))) == pytest.approx(np.sqrt(2 / (9 * 16)), rel=0.05)


def test_lowering_without_gradient_is_passed_over(monkeypatch):
    monkeypatch.setattr(group_conv, "works", lambda lowering, dtype, width, strides: lowering == "split")
    assert group_conv.choose("float16", 16, 1) == ("split", "float32")
    with pytest.raises(ValueError, match="lowering='native' has no gradient"):
        group_conv.choose("float16", 16, 1, "native")


@pytest.mark.skipif(not hasattr(native.library(), "g16_group_conv"), reason="for CPUs with AVX2, and a compiler")
def test_a_layer_is_built_and_trains_where_functions_run_eagerly(monkeypatch):
    monkeypatch.setattr(group_conv, "_works", {})
    tf.config.run_functions_eagerly(True)
    try:
        layer = GroupConv2D(3, group_size=4)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(image(8)) ** 2)
        assert np.any(tape.gradient(loss, layer.trainable_weights)[0])
    finally:
        tf.config.run_functions_eagerly(False)
    assert group_conv._works


def test_maps_in_float32_take_the_native_operation_where_it_is_faster(monkeypatch):
    assert native.convolves(tf.zeros([1, 32, 32, 32]), 16)
    assert native.convolves(tf.zeros([1, 28, 28, 32]), 16) == (native._vector == 8)
    assert not native.convolves(tf.zeros([1, 32, 32, 32], tf.bfloat16), 16)
    assert not native.convolves(tf.zeros([1, 32, 32, 32]), 32)
    layer = GroupConv2D(3, group_size=16)
    x = tf.random.stateless_normal([1, 40, 40, 32], [1, 2])
    own = layer(x)
    monkeypatch.setenv("G16NET_NATIVE", "0")
    assert not native.convolves(x, 16)
    np.testing.assert_allclose(own, layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not compat.KERAS3, reason="only Keras 3 compiles with XLA unasked")
def test_keras_3_does_not_compile_it():
    model = keras.Sequential([keras.Input((4, 4, 4)), GroupConv2D(3)])
    model.compile("sgd", "mse")
    assert not model.jit_compile


WITHOUT_ONEDNN = """
import numpy as np, tensorflow as tf
from g16net.layers import group_conv

x, kernel = (np.random.RandomState(0).randn(*shape) for shape in ((2, 6, 6, 32), (3, 3, 16, 32)))
for group_size in (1, 16):
    k = kernel[:, :, :group_size]
    dense = np.stack([np.where(np.arange(32)[:, None] // group_size == np.arange(32) // group_size,
                               np.tile(k[i, j], (32 // group_size, 1)), 0) for i in range(3) for j in range(3)])
    dense = tf.constant(dense.reshape(3, 3, 32, 32), tf.float32)
    for dtype, tolerance in (("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 4e-2)):
        choice = group_conv.choose(dtype, group_size, 2)

        @tf.function
        def step(x, k, dense):
            y = tf.cast(group_conv.group_conv2d(tf.cast(x, dtype), tf.cast(k, dtype), 2, *choice), tf.float32)
            e = tf.nn.conv2d(x, dense, 2, "SAME")
            return y, e, tf.gradients(y, x)[0], tf.gradients(e, x)[0], tf.gradients(y, k)[0]

        y, e, dy, de, dk = step(tf.constant(x, tf.float32), tf.constant(k, tf.float32), dense)
        for a, b in ((y, e), (dy, de)):
            error = float(tf.reduce_max(abs(a - b)) / tf.reduce_max(abs(b)))
            assert error < tolerance, (dtype, group_size, choice, error)
        assert np.isfinite(dk.numpy()).all() and np.abs(dk.numpy()).max() > 0
        print(dtype, group_size, *choice)
"""


@pytest.mark.slow
@pytest.mark.once
def test_trains_without_onednn():
    env = dict(os.environ, TF_ENABLE_ONEDNN_OPTS="0", CUDA_VISIBLE_DEVICES="-1")
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_ONEDNN], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.returncode == 0, run.stderr.decode()[-3000:]
    assert b"float32 16 split float32" in run.stdout  # the day this fails the framework has learnt it: see `choose`


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(kernel_size=0), "kernel_size must be a positive integer; got 0"),
        (dict(kernel_size=3, strides=1.5), "strides must be"),
        (dict(kernel_size=3, group_size=0), "group_size must be"),
        (dict(kernel_size=3, lowering="im2col"), "native, depthwise, split; got 'im2col'"),
    ],
)
def test_refuses(config, message):
    with pytest.raises(ValueError, match=message):
        GroupConv2D(**config)


def test_refuses_depthwise_of_wide_groups():
    with pytest.raises(ValueError, match="got 4 channels in a group"):
        GroupConv2D(3, group_size=4, lowering="depthwise").build((None, 8, 8, 8))

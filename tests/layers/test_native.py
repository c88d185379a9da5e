"""The native operations against TensorFlow's, forward and gradients."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import pairs

from g16net import compat, native
from g16net.data import transforms
from g16net.layers import norm_activation as forms
from g16net.layers import proxy_norm
from g16net.layers.norm_activation import norm_activation
from g16net.native import build

pytestmark = pytest.mark.once

needs_native = pytest.mark.skipif(not native.enabled(), reason="no C++ compiler, or not a CPU")
NAMES = "y", "pooled", "dx", "dgamma", "dbeta", "dcentre", "dscale"
# errors relative to the largest value: float32 sums in another order, and one rounding of a bfloat16 result
TOLERANCE = {tf.float32: 3e-6, tf.bfloat16: 2**-8}


def case(shape, dtype, seed=0):
    """x, a gradient, one of the pooled means, and gamma, beta, centre and scale."""
    random = np.random.RandomState(seed)
    channels = shape[-1]
    x = random.randn(*shape) * random.uniform(0.5, 2, channels) + random.randn(channels)
    dy, dpooled = random.randn(*shape), random.randn(shape[0], channels)
    parameters = [random.randn(channels) * 0.3 + start for start in (1, 0, 0, 1)]
    constants = [tf.constant(value, tf.float32) for value in (x, dy, dpooled, *parameters)]
    return [tf.cast(value, dtype) for value in constants[:2]] + constants[2:]


def plain(*arguments, **options):
    y = forms.plain(*arguments, **options)
    return y, tf.reduce_mean(tf.cast(y, tf.float32), [1, 2])


def pooling(*arguments, **options):
    return norm_activation(*arguments, pooled=True, **options)


def run(function, values, groups=1, strided=False, epsilon=1e-3, activation="swish"):
    """`NAMES`, as arrays."""

    @tf.function
    def step(x, dy, dpooled, *parameters):
        with tf.GradientTape() as tape:
            tape.watch([x, *parameters])
            gamma, beta, centre, scale = parameters
            y, pooled = function(x, gamma, beta, groups, strided, epsilon, activation, centre=centre, scale=scale)
        return [y, pooled] + tape.gradient([y, pooled], [x, *parameters], [dy, dpooled])

    return [np.array(tf.cast(value, tf.float32)) for value in step(*values)]


@needs_native
@pytest.mark.parametrize("dtype", native.DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    "shape, groups, strided, activation",
    [
        ((2, 5, 3, 1), 1, False, "swish"),
        ((1, 4, 4, 3), 3, False, "swish"),
        ((3, 7, 5, 20), 4, True, "swish"),
        ((2, 6, 6, 24), 1, False, "relu"),
        ((2, 6, 6, 24), 1, False, "relu6"),
        ((2, 9, 4, 48), 4, False, "swish"),
        ((2, 9, 4, 48), 4, True, None),
        ((1, 40, 40, 96), 1, False, "swish"),  # several chunks a sample, one sample
        ((9, 2, 2, 640), 2, True, "swish"),
        ((2, 3, 3, 521), 1, False, None),
        ((2, 5, 4, 24), None, False, "swish"),
        ((2, 1, 1, 16), 1, False, "swish"),
    ],
)
def test_equals_plain(shape, groups, strided, activation, dtype):
    values = case(shape, dtype)
    settings = dict(groups=groups, strided=strided, activation=activation)
    found = run(pooling, values, **settings)
    expected = run(plain, [tf.cast(value, tf.float32) for value in values], **settings)
    for name, value, right in zip(NAMES, found, expected):
        assert value.shape == right.shape, name
        tolerance = TOLERANCE[dtype if name in ("y", "dx") else tf.float32]
        np.testing.assert_allclose(value, right, rtol=0, atol=tolerance * max(1, np.abs(right).max()), err_msg=name)


@needs_native
def test_without_parameters():
    x = case((2, 4, 4, 8), tf.float32)[0]
    found, pooled = pooling(x, None, None, 1, False, 1e-3, None)
    expected = forms.plain(x, None, None, 1, False, 1e-3, None)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(pooled, tf.reduce_mean(expected, [1, 2]), atol=1e-6)


@needs_native
def test_statistics_of_a_distant_mean():
    """Mean 1000, deviation 1: one pass of plain squares in float32 would leave nothing of the variance."""
    x = np.random.RandomState(1).randn(2, 32, 32, 24).astype("float32") + np.float32(1000)
    found = np.array(native.norm_activation(tf.constant(x), None, None, 1, False, 1e-3, None)[0], "float64")
    exact = x.astype("float64")
    exact = (exact - exact.mean((1, 2, 3), keepdims=True)) / np.sqrt(exact.var((1, 2, 3), keepdims=True) + 1e-3)
    np.testing.assert_allclose(found.std((1, 2, 3)), exact.std((1, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found, exact, atol=1e-4)  # the mean itself rounds to float32: half of 6e-5


@needs_native
def test_swish_to_the_last_digits():
    u = np.concatenate([np.linspace(-87, 87, 400001), np.linspace(-1, 1, 100001)]).astype("float32")
    u = u[: len(u) // 16 * 16].reshape(1, 1, -1, 16)
    found = np.array(native.norm_activation(tf.constant(u), None, None, None, False, 1e-3, "swish")[0], "float64")
    exact = u / (1 + np.exp(-u.astype("float64")))
    normal = np.abs(exact) > 1e-37
    units = np.abs(found - exact)[normal] / np.spacing(np.abs(exact[normal]).astype("float32"))
    assert units.max() < 4


@needs_native
def test_extremes():
    u = tf.reshape(tf.constant([-1e30, -1000.0, -90.0, 90.0, 1000.0, 1e30, np.nan, np.inf]), [1, 1, 1, 8])
    for dtype in native.DTYPES:
        y, _ = native.norm_activation(tf.cast(u, dtype), None, None, None, False, 1e-3, "swish")
        y = np.array(tf.cast(y, tf.float32)).ravel()
        np.testing.assert_allclose(y[1:5], [0, 0, 90, 1000], rtol=4e-3, atol=1e-30)
        assert y[5] > 9e29 and np.isnan(y[6]) and np.isinf(y[7])


@needs_native
@pytest.mark.parametrize("shape", [(9, 5, 5, 24), (9, 40, 40, 48)])
def test_batch_mates_and_threads_change_no_bit(shape):
    values = case(shape, tf.float32)
    whole = run(pooling, values)
    again = run(pooling, values)
    for name, value, same in zip(NAMES, whole, again):
        np.testing.assert_array_equal(value, same, err_msg=name)
    for part in (slice(0, 1), slice(4, 6)):  # few samples are cut into chunks, many are not
        alone = run(pooling, [value[part] for value in values[:3]] + values[3:])
        for name, value, same in zip(NAMES[:3], whole, alone):
            np.testing.assert_array_equal(value[part], same, err_msg=name)


@needs_native
@pytest.mark.parametrize("activation", ["swish", "relu", "relu6", None])
def test_not_a_number_stays_in_its_sample_and_is_seen(activation):
    x, _, _, *parameters = case((4, 6, 6, 24), tf.float32)
    gamma, beta, centre, scale = parameters
    spoilt = tf.tensor_scatter_nd_update(x, [[1, 2, 3, 4]], [np.nan])
    settings = gamma, beta, 1, False, 1e-3, activation, centre, scale
    before, after = (np.array(native.norm_activation(v, *settings)[0]) for v in (x, spoilt))
    assert np.isnan(after[1]).all()
    np.testing.assert_array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0))


@needs_native
@pytest.mark.parametrize("dtype", native.DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(2, 5, 3, 20), (1, 40, 40, 96)])
def test_multiply(shape, dtype):
    x, dy, gate, *_ = case(shape, dtype)

    def both(function):
        with tf.GradientTape() as tape:
            tape.watch([x, gate])
            y = function()
        return [np.array(tf.cast(v, tf.float32)) for v in [y, *tape.gradient(y, [x, gate], dy)]]

    found = both(lambda: native.multiply(x, gate))
    expected = both(lambda: tf.cast(tf.cast(x, tf.float32) * gate[:, None, None], dtype))
    for value, right in zip(found, expected):
        np.testing.assert_allclose(value, right, atol=TOLERANCE[dtype] * np.abs(right).max())


convolves = pytest.mark.skipif(
    native.library() is None or not hasattr(native.library(), "g16_group_conv"), reason="for CPUs with AVX2"
)


def convolution(x, kernel, strides, function):
    """Result and gradients of a fixed function of the convolution."""
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = function(x, kernel, strides)
        loss = tf.reduce_sum(y * tf.cos(tf.reshape(tf.range(tf.size(y), dtype=tf.float32), tf.shape(y))))
    return [y, *tape.gradient(loss, [x, kernel])]


def by_groups(x, kernel, strides):
    parts = zip(tf.split(x, x.shape[-1] // 16, axis=-1), tf.split(kernel, x.shape[-1] // 16, axis=-1))
    return tf.concat([tf.nn.conv2d(part, weights, strides, "SAME") for part, weights in parts], axis=-1)


@convolves
@pytest.mark.parametrize(
    "shape, kernel, strides",
    pairs(
        [
            *[(2, 9, 7, 32), (1, 1, 1, 16), (3, 4, 31, 48), (1, 70, 30, 32), (1, 2, 300, 16), (9, 9, 9, 16)],
            *[(5, 16, 15, 16), (23, 2, 3, 64), (7, 1, 1, 16)],
        ],
        [1, 2, 3, 5],
        [1, 2, 3],
    ),
)
def test_group_conv_equals_a_convolution_by_groups(shape, kernel, strides):
    x = case(shape, tf.float32)[0]
    weights = tf.constant(np.random.RandomState(1).randn(kernel, kernel, 16, shape[-1]) / 4 / kernel, tf.float32)
    expected = convolution(x, weights, strides, by_groups)
    found = convolution(x, weights, strides, native.group_conv)
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())


def penalty(function, values):
    """The gradients of a function of `function(*values)`'s gradients."""
    with tf.GradientTape() as outer:
        outer.watch(values)
        with tf.GradientTape() as inner:
            inner.watch(values)
            loss = tf.reduce_sum(function(*values) ** 3)
        total = tf.add_n([tf.reduce_sum(gradient**2) for gradient in inner.gradient(loss, values)])
    return outer.gradient(total, values)


@convolves
@pytest.mark.parametrize("strides", [1, 2])
def test_second_gradients_of_a_group_conv(strides):
    values = [case((3, 5, 6, 32), tf.float32)[0], tf.random.stateless_normal([3, 3, 16, 32], [3, 4]) / 12]
    found = penalty(lambda x, kernel: native.group_conv(x, kernel, strides), values)
    expected = penalty(lambda x, kernel: by_groups(x, kernel, strides), values)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@needs_native
def test_second_gradients_of_the_gate():
    values = [case((3, 5, 6, 32), tf.float32)[0], tf.random.stateless_uniform([3, 32], [1, 2])]
    expected = penalty(lambda x, gate: x * gate[:, None, None], values)
    for a, b in zip(penalty(native.multiply, values), expected):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_second_gradients_of_a_norm_need_the_plain_operations():
    x, gamma, beta = case((3, 5, 6, 32), tf.float32)[0], tf.ones([32]), tf.zeros([32])

    def norm(x, gamma, beta):
        return norm_activation(x, gamma, beta, 1, False, 1e-3, "swish")

    if native.enabled():
        with pytest.raises(LookupError, match="G16NET_NATIVE=0"):
            penalty(norm, [x, gamma, beta])
    with native.disabled():
        assert all(np.isfinite(value).all() for value in penalty(norm, [x, gamma, beta]))


@convolves
def test_group_conv_of_a_result_too_large_for_the_cache():
    x = tf.random.stateless_normal([9, 128, 128, 16], [1, 2])  # 9 MB
    weights = tf.random.stateless_normal([3, 3, 16, 16], [3, 4]) / 12
    for a, b in zip(*(convolution(x, weights, 1, function) for function in (native.group_conv, by_groups))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@convolves
@pytest.mark.parametrize("size", [7, 14])
def test_batch_mates_change_no_bit_of_a_group_conv(size):
    x = tf.random.stateless_normal([9, size, size, 32], [1, 2])
    weights = tf.random.stateless_normal([5, 5, 16, 32], [3, 4])
    alone = tf.concat([native.group_conv(x[n : n + 1], weights, 1) for n in range(9)], 0)
    np.testing.assert_array_equal(native.group_conv(x, weights, 1), alone)


@convolves
def test_not_a_number_passes_a_group_conv():
    x = tf.tensor_scatter_nd_update(tf.zeros([1, 8, 8, 32]), [[0, 4, 4, 20]], [np.nan])
    y, _, dkernel = convolution(x, tf.ones([3, 3, 16, 32]), 1, native.group_conv)
    assert np.isnan(y[0, 3:6, 3:6, 16:]).all() and not np.isnan(y[..., :16]).any()
    assert np.isnan(dkernel[:, :, 4, 16:]).all() and not np.isnan(dkernel[..., :16]).any()


@convolves
@pytest.mark.parametrize("shape", [(3, 3, 8, 32), (3, 5, 16, 32), (3, 3, 16, 48), (3, 3, 16), (0, 0, 16, 32)])
def test_group_conv_refuses(shape):
    with pytest.raises(tf.errors.InvalidArgumentError, match="the kernel must be"):
        native.library().g16_group_conv(x=tf.zeros([1, 8, 8, 32]), kernel=tf.zeros(shape), strides=1)


@convolves
@pytest.mark.parametrize("shape", [(0, 8, 8), (4, 0, 8), (1, 0, 8), (1, 8, 0)])
def test_group_conv_of_no_images_or_pixels(shape):
    samples, height, width = shape
    y, dx, dkernel = convolution(tf.zeros([*shape, 32]), tf.ones([3, 3, 16, 32]), 2, native.group_conv)
    assert y.shape == (samples, height // 2, width // 2, 32) and dx.shape == (*shape, 32)
    assert not dkernel.numpy().any()


@needs_native
@pytest.mark.parametrize("quadrature", [("quantile", 200), ("gauss_hermite", 32)], ids=lambda pair: pair[0])
@pytest.mark.parametrize("channels, activation", [(1, "swish"), (20, "relu"), (24, "relu6"), (97, "swish")])
def test_proxy_moments(channels, activation, quadrature):
    random = np.random.RandomState(0)
    parameters = [tf.constant(random.randn(channels) * 0.3 + start, tf.float32) for start in (1, 0, 0, 0)]
    gradients = [tf.constant(random.randn(channels), tf.float32) for _ in range(2)]
    points = proxy_norm.quadrature_points(*quadrature)

    @tf.function
    def plain(*parameters):
        mean, variance = proxy_norm.proxy_moments(*parameters, activation, *points)
        moments = mean, tf.math.rsqrt(variance + 0.03)
        return [*moments, *tf.gradients(moments, parameters, gradients)]

    @tf.function
    def fast(*parameters):
        moments = native.proxy_moments(*parameters, activation, *points, epsilon=0.03)
        assert moments[0].shape == moments[1].shape == [channels]
        return [*moments, *tf.gradients(moments, parameters, gradients)]

    for value, right in zip(fast(*parameters), plain(*parameters)):
        np.testing.assert_allclose(value, right, rtol=0, atol=3e-6 * np.abs(right).max())


@needs_native
@pytest.mark.parametrize("activation", ["swish", "relu"])
def test_proxy_moments_of_one_channel_do_not_depend_on_the_others(activation):
    random = np.random.RandomState(1)
    parameters = [tf.constant(random.randn(70) * 0.3 + start, tf.float32) for start in (1, 0, 0, 0)]
    points = proxy_norm.quadrature_points("quantile", 200)
    whole = native.proxy_moments(*parameters, activation, *points, epsilon=0.03)
    part = native.proxy_moments(*[value[41:] for value in parameters], activation, *points, epsilon=0.03)
    for value, right in zip(part, whole):
        np.testing.assert_array_equal(value, right[41:])
    broken = [tf.where(tf.range(70) == 7, np.nan, parameters[0]), *parameters[1:]]
    for value, right in zip(native.proxy_moments(*broken, activation, *points, epsilon=0.03), whole):
        assert np.isnan(value[7])
        np.testing.assert_array_equal(np.delete(value, 7), np.delete(right, 7))


@needs_native
@pytest.mark.parametrize("wrong", range(4))
def test_proxy_moments_refuses_parameters_of_another_length(wrong):
    parameters = [tf.ones([5 + (index == wrong)]) for index in range(4)]
    with pytest.raises(tf.errors.InvalidArgumentError, match="does not fit"):
        native.proxy_moments(*parameters, "swish", *proxy_norm.quadrature_points("quantile", 8), epsilon=0.03)


@needs_native
def test_inputs_survive():
    """An operation may write over an input only where nobody reads it any more."""
    x, dy, gate, *_ = case((2, 8, 8, 16), tf.float32)
    kept = np.array(x)

    @tf.function
    def used_later(x):
        once = x + 1.0
        y, _ = native.norm_activation(once, None, None, 1, False, 1e-3, "swish")
        z = native.multiply(y, gate)
        return once, y, z

    once, y, z = used_later(x)
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(once, kept + 1)
    np.testing.assert_allclose(z, y * gate[:, None, None], rtol=1e-6)


@needs_native
@pytest.mark.parametrize("shape", [(0, 4, 4, 8), (0, 0, 0, 8), (2, 0, 4, 8), (2, 4, 4, 0)])
def test_no_images_or_pixels_or_channels(shape):
    x, gate = tf.zeros(shape), tf.ones([shape[0], shape[-1]])
    with tf.GradientTape() as tape:
        tape.watch([x, gate])
        y, pooled = pooling(x, None, None, 1, False, 1e-3, "swish")
        z = native.multiply(y, gate)
    assert z.shape == shape and pooled.shape == gate.shape
    assert np.isnan(pooled).all() or shape[1:3] == (4, 4)
    dx, dgate = tape.gradient(z, [x, gate])
    assert dx.shape == shape and not np.any(dgate)


@needs_native
def test_graph_gradients():
    """tf.gradients, which the optimisers of Keras 2.6 call, and static shapes in a graph of free sizes."""
    with tf.Graph().as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 8])
        y, pooled = pooling(x, None, None, 1, False, 1e-3, "swish")
        y = native.multiply(y, pooled)
        assert y.shape.as_list() == [None, None, None, 8] and pooled.shape.as_list() == [None, 8]
        (gradient,) = tf.compat.v1.gradients(y, x)
        assert gradient.shape.as_list() == [None, None, None, 8]


@needs_native
@pytest.mark.parametrize(
    "shape, groups, error", [((2, 4, 4, 6), 4, "groups must divide"), ((2, 4, 6), 1, "batch, height, width|rank 4")]
)
def test_refuses(shape, groups, error):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=error):
        native.norm_activation(tf.zeros(shape), None, None, groups, False, 1e-3, "swish")


@needs_native
@pytest.mark.parametrize("wrong", ["gamma", "beta", "centre", "scale"])
def test_refuses_parameters_of_another_length(wrong):
    parameters = {name: tf.ones([5 if name == wrong else 8]) for name in ("gamma", "beta", "centre", "scale")}
    with pytest.raises(tf.errors.InvalidArgumentError, match="does not fit"):
        settings = dict(groups=1, strided=False, epsilon=1e-3, activation="swish")
        native.norm_activation(tf.zeros([2, 4, 4, 8]), **settings, **parameters)


@needs_native
@pytest.mark.parametrize("channels, resize", [(1, "tf1"), (3, "bilinear"), (3, "tf1"), (4, "bilinear")])
def test_resize_equals_plain_byte_for_byte(channels, resize):
    random = np.random.RandomState(channels)
    extents = random.randint(1, 70, [60, 4])
    extents[:12, random.randint(4, size=12)] = 1
    extents[12:18, 2:] = extents[12:18, :2]
    for height, width, *extent in [*extents.tolist(), (306, 411, 224, 224), (224, 500, 256, 571), (9, 3, 160, 2)]:
        image = tf.constant(random.randint(0, 256, [height, width, channels]), tf.uint8)
        for flip in (None, tf.constant(False), tf.constant(True)):
            found = transforms.scale(image, extent, resize, flip)
            with native.disabled():
                right = transforms.scale(image, extent, resize, flip)
            np.testing.assert_array_equal(found, right, err_msg=f"{height}, {width} to {extent}, flip {flip}")


@needs_native
@pytest.mark.parametrize(
    "shape, size",
    [
        ((0, 5, 3), [4, 4]),
        ((5, 0, 3), [4, 4]),
        ((5, 5, 0), [4, 4]),
        ((5, 5), [4, 4]),
        ((1, 5, 5, 3), [4, 4]),
        ((5, 5, 3), [0, 4]),
        ((5, 5, 3), [4, -1]),
        ((5, 5, 3), [2**31 - 1, 4]),
        ((5, 5, 3), [1, 2**31 - 1]),
        ((5, 5, 3), [4, 4, 3]),
        ((5, 5, 3), 4),
    ],
)
def test_resize_refuses(shape, size):
    image, size = tf.zeros(shape, tf.uint8), tf.constant(size)
    with pytest.raises(tf.errors.InvalidArgumentError):
        native.library().g16_resize(image=image, size=size, flip=False, half_pixel_centers=True)


@needs_native
def test_resize_in_graphs():
    """Static shapes as far as they are known, an extent that is a tensor, and a flip for each image."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.bool)])
    def both(image, flip):
        fixed, free = (native.resize(image, extent, True, flip) for extent in ([4, 5], tf.shape(image)[:2]))
        assert fixed.shape.as_list() == [4, 5, 3] and free.shape.as_list() == [None, None, 3]
        return fixed, free

    image = tf.constant(np.random.RandomState(0).randint(0, 256, [7, 6, 3]), tf.uint8)
    plain, mirrored = both(image, False), both(image, True)
    np.testing.assert_array_equal(plain[1], image)
    for value, other in zip(plain, mirrored):
        np.testing.assert_array_equal(value, other[:, ::-1])


def test_switches(monkeypatch):
    with native.disabled():
        assert not native.enabled() and not native.available()
    assert not native.enabled(tf.float16)
    monkeypatch.setenv("G16NET_NATIVE", "0")
    assert not native.enabled() and not native.available()


@needs_native
def test_beside_an_accelerator_the_input_side_stays_native(monkeypatch):
    monkeypatch.setattr(compat, "on_cpu", lambda: False)
    assert native.available() and not native.enabled()
    monkeypatch.setattr(compat, "compiled_device", lambda: True)
    assert not native.available()


@needs_native
def test_saved_model_holds_none(tmp_path):
    class Served(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 8])])
        def __call__(self, x):
            if native.enabled():
                return native.norm_activation(x, None, None, 1, False, 1e-3, "swish")[0]
            return forms.plain(x, None, None, 1, False, 1e-3, "swish")

        @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
        def prepare(self, image):
            return transforms.eval_image(image, 32)

    module = Served()
    with native.disabled():  # TensorFlow writes a concrete function as it is
        concrete = Served().__call__.get_concrete_function()
    for name, signatures in (("traced by TensorFlow", None), ("traced before", concrete)):
        tf.saved_model.save(module, str(tmp_path / name), signatures=signatures)
        graph = (tmp_path / name / "saved_model.pb").read_bytes()
        assert b"G16NormActivation" not in graph and b"G16Resize" not in graph


def start(code, **environment):
    """Runs Python code in a fresh process; its output."""
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **environment}, check=False
    )
    return result.stdout.decode()


@pytest.mark.run
def test_no_compiler(tmp_path):
    """One line in the log, and the plain way."""
    code = "from absl import logging; logging.set_verbosity('info'); from g16net import native; "
    code += "print('enabled', native.enabled(), native.enabled())"
    output = start(code, CXX="no-such-compiler", XDG_CACHE_HOME=str(tmp_path))
    assert "enabled False False" in output
    assert output.count("no C++ compiler found") == 1


@pytest.mark.run
def test_failing_compiler_is_asked_once(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\necho broken\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match="failed, see .*log"):
        build.build()
    compiles = len((tmp_path / "calls").read_text().splitlines())
    with pytest.raises(OSError, match="failed before, see .*log; try again by"):
        build.build()
    assert len((tmp_path / "calls").read_text().splitlines()) == compiles + 1  # it was asked for its version only
    (log,) = (tmp_path / "g16net" / "native").glob("*.log")
    assert "broken" in log.read_text()


def test_library_path_depends_on_the_cpu(monkeypatch):
    if build.compiler() is None:
        pytest.skip("no C++ compiler")
    here = build.library_path(build.compiler())
    assert here == build.library_path(build.compiler())
    monkeypatch.setattr(build, "cpu_features", lambda: "sse2")
    assert here != build.library_path(build.compiler())

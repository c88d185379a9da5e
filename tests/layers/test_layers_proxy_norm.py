import helpers
import numpy as np
import pytest
import tensorflow as tf
from layer_check import check_layer, gradients

from g16net.layers import GroupNorm, ProxyNormActivation
from g16net.layers.proxy_norm import proxy_moments, quadrature_points

GOLDEN = dict(np.load(helpers.GOLDEN / "proxy_norm_layer.npz"))
NAMES = "gamma", "beta", "proxy_gamma", "proxy_beta"
ACTIVATIONS = {"swish": lambda u: u / (1 + np.exp(-u)), "relu": lambda u: np.maximum(u, 0)}
ACTIVATIONS["relu6"] = lambda u: np.clip(u, 0, 6)


def built(shape, parameters, **config):
    """A layer with the given parameters."""
    layer = ProxyNormActivation(**config)
    layer.build(shape)
    for name, value in zip(NAMES, parameters):
        getattr(layer, name).assign(value.astype("float32"))
    return layer


@pytest.mark.parametrize("groups, delayed", [(None, False), (1, True), (4, False)])
def test_layer(tmp_path, groups, delayed):
    config = dict(groups=groups, delayed_scale=delayed, strided=bool(groups))
    x = GOLDEN["a/x"]
    check_layer(ProxyNormActivation, config, x, tmp_path, trainable=4)


@pytest.mark.parametrize("case", [str(case) for case in GOLDEN["cases"]])
def test_golden(case):
    inputs, _, kind = case.partition("/")
    activation, groups, *flags = kind.split("_")
    delayed = "delayed" in flags
    x = GOLDEN[f"{inputs}/x"]
    parameters = [GOLDEN[f"{inputs}/{name}"] for name in NAMES]
    layer = built(
        x.shape,
        parameters,
        activation=activation,
        groups=int(groups[1:]),
        strided="strided" in flags,
        delayed_scale=delayed,
    )

    def function(x):
        out = layer(x)
        mean, inv_std = layer.proxy_statistics()
        if not delayed:
            return tf.reduce_sum(out * GOLDEN[f"{inputs}/cotangent"]), out, mean, inv_std
        out, returned = out
        loss = tf.reduce_sum(out * GOLDEN[f"{inputs}/cotangent"])
        return loss + tf.reduce_sum(returned * GOLDEN[f"{inputs}/cotangent_inv_std"]), out, mean, returned

    weights = [getattr(layer, name) for name in NAMES]
    (_, out, mean, inv_std), slopes = gradients(function, [x], weights, eager=True)
    found = dict(out=out, mean=mean, inv_std=inv_std, dx=slopes[0])
    for name, value in found.items():
        expected = GOLDEN[f"{case}/{name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)
    for name, value in zip(NAMES, slopes[1:]):
        expected = GOLDEN[f"{case}/d{name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=3e-5 * np.abs(expected).max(), err_msg=name)


def test_points():
    nodes, weights = quadrature_points("quantile", 200)
    np.testing.assert_allclose(nodes, GOLDEN["proxy_points"], atol=1e-6)
    assert weights.sum() == pytest.approx(1)


def float64_layer(x, parameters, activation, groups, strided):
    """The layer in float64 NumPy, written from the definition."""
    gamma, beta, proxy_gamma, proxy_beta = parameters
    batch, height, width, channels = x.shape
    order = np.arange(channels).reshape(-1, groups).T.ravel() if strided else np.arange(channels)
    y = np.empty_like(x)
    for members in order.reshape(groups, -1):
        part = x[..., members]
        mean = part.mean(axis=(1, 2, 3), keepdims=True)
        variance = ((part - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True)
        y[..., members] = (part - mean) / np.sqrt(variance + 1e-3)
    phi = ACTIVATIONS[activation]
    nodes, _ = quadrature_points("quantile", 200)
    proxy = phi(gamma * (proxy_beta + (1 + proxy_gamma) * nodes[:, None]) + beta)
    return (phi(gamma * y + beta) - proxy.mean(0)) / np.sqrt(proxy.var(0) + 0.03)


@pytest.mark.parametrize("activation, groups, strided", [("swish", 1, False), ("swish", 2, True), ("relu", 4, False)])
def test_finite_differences(activation, groups, strided):
    random = np.random.RandomState(2)
    x = random.randn(2, 3, 3, 8) * 1.5 + 0.3
    parameters = [random.randn(8) * 0.3 + start for start in (1, 0, 0, 0)]
    x, *parameters = (value.astype("float32").astype("float64") for value in (x, *parameters))
    cotangent = random.randn(*x.shape)

    def objective(*values):
        return (float64_layer(values[0], values[1:], activation, groups, strided) * cotangent).sum()

    layer = built(x.shape, parameters, activation=activation, groups=groups, strided=strided)
    (loss, out), slopes = gradients(
        lambda x: (tf.reduce_sum(layer(x) * tf.constant(cotangent, tf.float32)), layer(x)),
        [x.astype("float32")],
        [getattr(layer, name) for name in NAMES],
        eager=True,
    )
    np.testing.assert_allclose(out, float64_layer(x, parameters, activation, groups, strided), atol=3e-6)
    assert loss == pytest.approx(objective(x, *parameters), abs=1e-4)

    arguments = [x, *parameters]
    for which, slope in enumerate(slopes):
        numeric = np.empty(arguments[which].size)
        for i in range(numeric.size):
            up, down = ([a.copy() for a in arguments] for _ in range(2))
            up[which].flat[i] += 1e-5
            down[which].flat[i] -= 1e-5
            numeric[i] = (objective(*up) - objective(*down)) / 2e-5
        np.testing.assert_allclose(slope.ravel(), numeric, atol=2e-5 * np.abs(numeric).max())


def exact_moments(gamma, beta, proxy_gamma, proxy_beta, activation):
    """Mean and variance of the proxy activation by a fine sum over the density."""
    p = np.linspace(-9, 9, 20001)
    weights = np.exp(-p * p / 2)
    weights /= weights.sum()
    z = ACTIVATIONS[activation](gamma * (proxy_beta + (1 + proxy_gamma) * p) + beta)
    mean = (weights * z).sum()
    return mean, (weights * (z - mean) ** 2).sum()


@pytest.mark.parametrize(
    "activation, quadrature, points, mean_error, std_error",
    [
        ("swish", "quantile", 200, 1.4e-3, 2.8e-2),
        ("swish", "gauss_hermite", 8, 1.2e-2, 2.8e-2),
        ("swish", "gauss_hermite", 16, 5e-4, 3e-3),
        ("swish", "gauss_hermite", 32, 1.5e-5, 8e-5),
        ("relu", "quantile", 200, 1.4e-3, 4e-2),
        ("relu", "gauss_hermite", 32, 3e-2, 1.5e-2),
        ("relu6", "quantile", 200, 1.4e-3, 4e-2),
    ],
)
def test_error_against_exact_integration(activation, quadrature, points, mean_error, std_error):
    random = np.random.RandomState(3)
    ranges = (0.3, 2), (-2, 2), (-0.5, 0.5), (-1, 1)
    parameters = np.array([random.uniform(low, high, 40) for low, high in ranges])
    parameters[:, 0] = 1, 0, 0, 0
    mean, variance = proxy_moments(
        *tf.constant(parameters, tf.float32), activation, *quadrature_points(quadrature, points)
    )
    exact = np.array([exact_moments(*p, activation) for p in parameters.T])
    assert np.abs(mean - exact[:, 0]).max() < mean_error
    assert np.abs(np.sqrt((variance + 0.03) / (exact[:, 1] + 0.03)) - 1).max() < std_error


def test_normal_input_comes_out_standardised():
    """Normal channels, which the proxy describes exactly, have mean 0 and variance near 1."""
    x = tf.random.stateless_normal([8, 64, 64, 4], [1, 2])
    layer = ProxyNormActivation(quadrature="gauss_hermite", points=32, proxy_epsilon=1e-6)
    y = np.array(layer(x))
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=0.02)


def test_fused_equals_norm_then_activation():
    x = tf.constant(GOLDEN["a/x"])
    alone = ProxyNormActivation()(GroupNorm(4, scale=False, center=False)(x))
    np.testing.assert_allclose(ProxyNormActivation(groups=4)(x), alone, atol=2e-6)


def test_delayed_scale_is_the_scale():
    x = tf.constant(GOLDEN["a/x"])
    out, inv_std = ProxyNormActivation(groups=1, delayed_scale=True)(x)
    assert inv_std.dtype == tf.float32
    np.testing.assert_allclose(out * inv_std, ProxyNormActivation(groups=1)(x), atol=2e-6)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(activation="gelu"), "'swish', 'relu', 'relu6'; got 'gelu'"),
        (dict(activation=None), "got None"),
        (dict(groups=0), "groups must be None .* or a positive integer; got 0"),
        (dict(proxy_epsilon=0.0), "proxy_epsilon must be a number above 0.*got 0.0"),
        (dict(epsilon=-1), "epsilon must be"),
        (dict(quadrature="simpson"), "quantile, gauss_hermite; got 'simpson'"),
        (dict(points=1), "points must be an integer of 2 or more"),
        (dict(quadrature="gauss_hermite", points=400), "at most 256"),
    ],
)
def test_refuses(config, message):
    with pytest.raises(ValueError, match=message):
        ProxyNormActivation(**config)


@pytest.mark.parametrize("native", ["0", "1"])
def test_statistics_are_those_of_the_formula_with_and_without_native_operations(native, monkeypatch):
    monkeypatch.setenv("G16NET_NATIVE", native)
    layer = ProxyNormActivation(groups=1, proxy_epsilon=0.03)
    layer.build((None, 4, 4, 6))
    gamma, beta, proxy_gamma, proxy_beta = values = np.random.default_rng(0).normal(size=(4, 6)) * 0.3
    layer.set_weights(list(values))
    nodes, weights = quadrature_points("quantile", 200)
    u = gamma * (proxy_beta + (1 + proxy_gamma) * nodes[:, np.newaxis]) + beta
    z = u / (1 + np.exp(-u))
    mean = weights @ z
    found = layer.proxy_statistics()
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    np.testing.assert_allclose(found[1], 1 / np.sqrt(weights @ (z - mean) ** 2 + 0.03), rtol=1e-5)

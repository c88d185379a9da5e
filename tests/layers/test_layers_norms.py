import numpy as np
import pytest
import tensorflow as tf
from helpers import pairs
from layer_check import check_layer, gradients, values
from tensorflow import keras

from g16net import compat
from g16net.layers import BatchNorm, GroupNorm, LayerNorm, ProxyNormActivation
from g16net.layers.norm_activation import ACTIVATIONS, fused, norm_activation, plain

RANDOM = np.random.RandomState(0)
X = (RANDOM.randn(3, 5, 6, 8) * RANDOM.uniform(0.5, 2, [3, 1, 1, 8]) + RANDOM.randn(8)).astype("float32")


def reference(x, groups, strided, epsilon=1e-3):
    """The norm in float64, channel by channel."""
    x = x.astype("float64")
    out = np.empty_like(x)
    channels = x.shape[-1]
    for g in range(groups):
        members = [c for c in range(channels) if (c % groups if strided else c * groups // channels) == g]
        part = x[..., members]
        mean, variance = (f(part, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.var))
        out[..., members] = (part - mean) / np.sqrt(variance + epsilon)
    return out


@pytest.mark.parametrize("cls", [GroupNorm, LayerNorm])
def test_layer(tmp_path, cls):
    check_layer(cls, dict(activation="swish"), X, tmp_path, trainable=2)


def test_batch_norm_layer(tmp_path):
    check_layer(BatchNorm, {}, X, tmp_path, trainable=2, fixed=2, changes=False)  # gamma and beta can cancel in a sum


@pytest.mark.parametrize("scale, center", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("cls", [GroupNorm, LayerNorm, BatchNorm])
def test_scale_and_center_are_optional(cls, scale, center):
    layer = cls(scale=scale, center=center)
    layer(tf.constant(X))
    assert [w.name.split("/")[-1].split(":")[0] for w in layer.trainable_weights] == ["gamma"] * scale + [
        "beta"
    ] * center


@pytest.mark.parametrize("form", [plain, fused])
@pytest.mark.parametrize("groups, strided", [(1, False), (2, False), (4, False), (4, True), (8, True)])
def test_statistics(groups, strided, form):
    y = form(tf.constant(X), None, None, groups, strided, 1e-3, None)
    np.testing.assert_allclose(y, reference(X, groups, strided), atol=2e-6)


@pytest.mark.parametrize("form", [plain, fused])
def test_large_mean_and_small_numbers(form):
    for x in (X + 1000, X * 1e-4, X * 1e4):
        y = form(tf.constant(x), None, None, 1, False, 1e-12, None)
        np.testing.assert_allclose(y, reference(x, 1, False, 1e-12), atol=3e-4)


@pytest.mark.parametrize(
    "dtype, activation, norm, keep",
    pairs(
        ["float32", "float16", "bfloat16"],
        ["swish", "relu", "relu6", None],
        [(None, False), (1, False), (2, True)],
        ["gbcs", "gc", "b", ""],  # gamma, beta, centre, scale
    ),
)
def test_fused_equals_plain(dtype, activation, norm, keep):
    groups, strided = norm
    random = np.random.RandomState(1)
    small = {name: (random.randn(8) * 0.5 + one).astype("float32") for name, one in zip("gbcs", (1, 0, 0, 1))}
    weight = tf.constant(random.randn(*X.shape), tf.float32)

    def run(form):
        def function(x, *parameters):
            p = dict(zip(keep, parameters))
            y = form(x, p.get("g"), p.get("b"), groups, strided, 1e-3, activation, p.get("c"), p.get("s"))
            return tf.reduce_sum(tf.cast(y, tf.float32) * weight), y

        return gradients(function, [tf.cast(X, dtype)] + [small[name] for name in keep], eager=True)

    ((_, y), dy), ((_, y_plain), dy_plain) = run(fused), run(plain)
    assert y.dtype == y_plain.dtype == tf.as_dtype(dtype).as_numpy_dtype
    # both round once, so they differ by rounding up or down at most
    rounding = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert len(dy) == len(dy_plain) == 1 + len(keep) and dy[0].dtype == y.dtype
    for a, b in [(y, y_plain)] + list(zip(dy, dy_plain)):
        a, b = a.astype("float32"), b.astype("float32")
        np.testing.assert_allclose(a, b, atol=rounding * max(np.abs(b).max(), 1e-3), rtol=rounding)


def test_rounds_once_as_batch_norm_does():
    """In half precision the result is the float32 result, rounded."""
    x = tf.cast(X, tf.bfloat16)
    gamma, beta = tf.constant(RANDOM.randn(2, 8), tf.float32)
    args = (gamma, beta, 4, False, 1e-3, "swish")
    full = norm_activation(tf.cast(x, tf.float32), *args)
    np.testing.assert_array_equal(
        tf.cast(norm_activation(x, *args), tf.float32), tf.cast(tf.cast(full, tf.bfloat16), tf.float32)
    )


@pytest.mark.parametrize(
    "layer",
    [
        GroupNorm(4),
        GroupNorm(2, strided=True, activation="swish"),
        LayerNorm(),
        ProxyNormActivation(groups=1),
        ProxyNormActivation("relu", groups=4),
    ],
    ids=lambda layer: layer.name,
)
def test_samples_do_not_see_each_other(layer):
    x = tf.constant(X)
    together = layer(x, training=True) if isinstance(layer, BatchNorm) else layer(x)
    for i in range(3):
        np.testing.assert_allclose(layer(x[i : i + 1])[0], together[i], atol=2e-6)
        other = tf.concat([x[i : i + 1], 100 * x[:2]], axis=0)
        np.testing.assert_allclose(layer(other)[0], together[i], atol=2e-6)


def test_one_group_is_layer_norm_and_groups_are_capped():
    x = tf.constant(X)
    np.testing.assert_array_equal(GroupNorm(1)(x), LayerNorm()(x))
    np.testing.assert_array_equal(GroupNorm(100)(x), GroupNorm(8)(x))


@pytest.mark.skipif(not hasattr(tf.compat.v1, "gradients"), reason="needs graph-mode gradients")
@pytest.mark.parametrize(
    "layer", [GroupNorm(4, activation="swish"), ProxyNormActivation(groups=1)], ids=["gn", "ln_pn"]
)
def test_graph_gradients_equal_tape(layer):
    """The IPU's training loop asks `optimizer.get_gradients`, which builds them with `tf.gradients`."""
    x = tf.constant(X)
    layer(x)
    weights = [w.value if compat.KERAS3 else w for w in layer.trainable_weights]
    optimizer = None if compat.KERAS3 else getattr(keras.optimizers, "legacy", keras.optimizers).SGD()

    @tf.function
    def graph():
        loss = tf.reduce_sum(layer(x) ** 3)
        return optimizer.get_gradients(loss, weights) if optimizer else tf.gradients(loss, weights)

    _, expected = gradients(lambda x: tf.reduce_sum(layer(x) ** 3), [x], layer.trainable_weights)
    for a, b in zip(graph(), expected[1:]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_batch_norm_by_hand():
    layer = BatchNorm(epsilon=1e-3, momentum=0.9)
    x = tf.constant(X)
    y = layer(x, training=True)
    mean, variance = X.mean((0, 1, 2)), X.var((0, 1, 2))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(variance + 1e-3), atol=1e-5)
    count = X[..., 0].size
    gamma, beta, moving_mean, moving_variance = values(layer.weights)
    np.testing.assert_allclose(moving_mean, 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(moving_variance, 0.9 + 0.1 * variance * count / (count - 1), rtol=1e-5)
    np.testing.assert_allclose(
        layer(x, training=False), (X - moving_mean) / np.sqrt(moving_variance + 1e-3), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("activation", ["swish", "relu", "relu6"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_batch_norm_with_its_activation_equals_both_apart(activation, dtype):
    one, bare = BatchNorm(activation=activation, dtype=dtype), BatchNorm(dtype=dtype)
    x = tf.random.stateless_normal([4, 5, 5, 8], [1, 2], 1.0, 2.0)
    kind = tf.bfloat16 if dtype == "mixed_bfloat16" else tf.float32
    for training in (True, False):
        found, expected = (
            gradients(lambda x: tf.reduce_sum(tf.cast(f(tf.cast(x, kind)), tf.float32) ** 2), [x], eager=True)  # noqa: B023
            for f in (
                lambda x: one(x, training=training),  # noqa: B023
                lambda x: ACTIVATIONS[activation](bare(x, training=training)),  # noqa: B023
            )
        )
        tolerance = 2e-2 if kind == tf.bfloat16 else 1e-5
        np.testing.assert_allclose(found[0], expected[0], rtol=tolerance)
        np.testing.assert_allclose(found[1][0], expected[1][0], atol=tolerance * np.abs(expected[1][0]).max())
    assert one.get_config()["activation"] == activation


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    "cls, options",
    [(BatchNorm, {}), (GroupNorm, {}), (LayerNorm, {})]
    + [(ProxyNormActivation, {"groups": 1, "delayed_scale": delayed}) for delayed in (False, True)],
)
def test_means_over_pixels_are_a_further_output(cls, options, policy):
    with compat.policy(policy):
        layers = [cls(activation="swish", **options, **more) for more in ({}, {"pooled": True})]
    for training in (False, True) if cls is BatchNorm else (None,):
        alone, both = (
            layer(tf.constant(X), **({} if training is None else {"training": training})) for layer in layers
        )
        alone = alone if isinstance(alone, tuple) else (alone,)
        assert len(both) == len(alone) + 1
        for value, right in zip(both, alone):
            np.testing.assert_array_equal(np.array(value, "float32"), np.array(right, "float32"))
        means = np.array(alone[0], "float32").mean((1, 2))
        np.testing.assert_allclose(both[-1], means, atol=1e-6 if policy == "float32" else 1e-2)
    image = keras.Input((None, None, 8))
    described = [(tuple(t.shape), tf.as_dtype(t.dtype)) for t in layers[1](image)]
    assert described[0] == ((None, None, None, 8), compat.compute_dtype(layers[1]))
    assert described[-1] == ((None, 8), tf.float32)
    shapes = layers[1].compute_output_shape((2, 4, 4, 8))
    assert len(shapes) == len(both) and tuple(shapes[0]) == (2, 4, 4, 8) and tuple(shapes[-1]) == (2, 8)


def test_a_batch_without_images_leaves_the_averages():
    """Such is a replica's part of the last batch where there are fewer images than replicas."""
    layer = BatchNorm()
    layer(tf.constant(X), training=True)
    before = values(layer.non_trainable_weights)
    some = tf.TensorSpec([None, *X.shape[1:]])
    for train in (lambda x: layer(x, training=True), tf.function(lambda x: layer(x, training=True), [some])):
        assert train(tf.constant(X[:0])).shape == X[:0].shape
        for value, right in zip(values(layer.non_trainable_weights), before):
            np.testing.assert_array_equal(value, right)
    train(tf.constant(X))
    assert all(np.any(value != right) for value, right in zip(values(layer.non_trainable_weights), before))


def test_a_second_pass_leaves_the_averages():
    layer = BatchNorm(activation="swish")
    first = layer(tf.constant(X), training=True)
    before = values(layer.non_trainable_weights)
    np.testing.assert_array_equal(layer(tf.constant(X), training=True, move=False), first)
    for value, right in zip(values(layer.non_trainable_weights), before):
        np.testing.assert_array_equal(value, right)


def test_frozen_batch_norm_leaves_its_averages():
    layer = BatchNorm()
    layer.trainable = False
    y = layer(tf.constant(X), training=True)
    np.testing.assert_allclose(y, X / np.sqrt(1 + 1e-3), rtol=1e-5)
    np.testing.assert_array_equal(values(layer.weights)[2], np.zeros(8))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GroupNorm(0), "groups must be a positive integer.*got 0"),
        (lambda: GroupNorm(3).build((None, 4, 4, 8)), r"got 3 for 8 channels; valid counts: \[1, 2, 4, 8\]"),
        (lambda: GroupNorm(epsilon=0), "epsilon must be a number above 0.*got 0"),
        (lambda: GroupNorm(activation="gelu"), "'swish', 'relu', 'relu6' or None; got 'gelu'"),
        (lambda: BatchNorm(momentum=1.0), r"momentum must lie in \[0, 1\)"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()

import numpy as np
import pytest
import tensorflow as tf
from layer_check import check_layer

from g16net import compat
from g16net.layers import Dropout, StochasticDepth

X = np.random.RandomState(0).randn(64, 3, 3, 4).astype("float32")


@pytest.mark.parametrize("cls, config", [(StochasticDepth, dict(survival_prob=0.75)), (Dropout, dict(rate=0.25))])
def test_layer(tmp_path, cls, config):
    for seed in (None, 7):
        layer = cls(seed=seed, **config)
        np.testing.assert_array_equal(layer(tf.constant(X), training=False), X)
        np.testing.assert_array_equal(layer(tf.constant(X)), X)
    check_layer(cls, dict(seed=7, **config), X, tmp_path)


def test_drops_whole_samples():
    y = np.array(StochasticDepth(0.5, seed=3)(tf.constant(X), training=True))
    kept = np.abs(y).max((1, 2, 3)) > 0
    assert 15 < kept.sum() < 49
    np.testing.assert_allclose(y[kept], 2 * X[kept], rtol=1e-6)


def test_dropout_drops_elements():
    y = np.array(Dropout(0.25, seed=3)(tf.constant(X), training=True))
    kept = y != 0
    assert 0.7 < kept.mean() < 0.8
    np.testing.assert_allclose(y[kept], X[kept] / 0.75, rtol=1e-5)


@pytest.mark.parametrize("layer", [StochasticDepth(1.0), Dropout(0)], ids=["depth", "dropout"])
def test_that_drops_nothing_returns_its_input(layer):
    np.testing.assert_array_equal(layer(tf.constant(X), training=True), X)


def test_draws_differ_from_call_to_call_and_repeat_with_the_seed():
    def draws(seed):
        tf.random.set_seed(0)  # TensorFlow 2.6 draws from the global state
        layer = StochasticDepth(0.5, seed=seed)
        step = tf.function(lambda x: layer(x, training=True))
        return [np.array(step(tf.constant(X))) for _ in range(2)]

    first, second = draws(1)
    assert (first != second).any()
    for a, b in zip(draws(1), (first, second)):
        np.testing.assert_array_equal(a, b)
    assert (draws(2)[0] != first).any()


@pytest.mark.skipif(
    not compat.KERAS3 and compat.TF_VERSION < (2, 11), reason="no random state on the device in this TensorFlow"
)
def test_checkpoint_holds_the_random_state(tmp_path):
    layer = StochasticDepth(0.5, seed=1)
    layer(tf.constant(X), training=True)
    path = tf.train.Checkpoint(layer=layer).write(str(tmp_path / "state"))
    expected = np.array(layer(tf.constant(X), training=True))
    other = StochasticDepth(0.5, seed=99)
    other(tf.constant(X), training=True)
    tf.train.Checkpoint(layer=other).read(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(other(tf.constant(X), training=True), expected)


def test_training_may_be_a_tensor():
    layer = StochasticDepth(0.5, seed=1)
    step = tf.function(lambda x, training: layer(x, training=training))
    np.testing.assert_array_equal(step(tf.constant(X), tf.constant(False)), X)
    assert (np.array(step(tf.constant(X), tf.constant(True))) != X).any()


@pytest.mark.parametrize("value", [0, -0.1, 1.5, None])
def test_refuses(value):
    with pytest.raises(ValueError, match=r"survival_prob must lie in \(0, 1\]"):
        StochasticDepth(value)
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\)"):
        Dropout(value or 1)

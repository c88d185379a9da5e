import numpy as np
import pytest
import tensorflow as tf

from g16net.data import order

pytestmark = pytest.mark.once

GOLDEN_ORDER = [9, 6, 5, 2, 1, 8, 4, 0, 3, 7]
GOLDEN_SEEDS = [[789176247, 2128701620], [56065967, 1546617820]]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1023, 1797, 50000])
def test_permuted_is_a_permutation(n):
    result = order.permuted(tf.range(n), n, order.key(1, n)).numpy()
    np.testing.assert_array_equal(np.sort(result), np.arange(n))


def test_permuted_gives_any_part_alone():
    key = order.key(3, 5)
    whole = order.permuted(tf.range(1000), 1000, key).numpy()
    np.testing.assert_array_equal(order.permuted(tf.range(400, 500), 1000, key), whole[400:500])
    assert order.permuted(tf.constant(999), 1000, key) == whole[999]


def test_permuted_in_a_graph_equals_eager():
    permuted = tf.function(order.permuted)
    np.testing.assert_array_equal(
        permuted(tf.range(77), tf.constant(77), order.key(2)), order.permuted(tf.range(77), 77, order.key(2))
    )


def test_orders_are_the_same_on_every_version():
    assert order.permuted(tf.range(10), 10, order.key(0, 1, 2)).numpy().tolist() == GOLDEN_ORDER
    assert order.seeds(order.TRANSFORM, 7, 3, tf.constant([0, 1], tf.int64)).numpy().tolist() == GOLDEN_SEEDS


def test_elements_land_uniformly():
    n, epochs = 8, 4000
    table = np.zeros((n, n))
    pairs = np.zeros((n, n))
    all_epochs = tf.data.Dataset.range(epochs).map(lambda epoch: order.permuted(tf.range(n), n, order.key(0, epoch)))
    for result in all_epochs.batch(epochs).get_single_element().numpy():
        table[np.arange(n), result] += 1
        pairs[result[:-1], result[1:]] += 1
    chi2 = ((table - epochs / n) ** 2 / (epochs / n)).sum()
    assert chi2 < 90  # 49 degrees of freedom: mean 49, 99.95th percentile 88
    expected = epochs * (n - 1) / (n * (n - 1))
    neighbours = pairs[~np.eye(n, dtype=bool)]
    assert ((neighbours - expected) ** 2 / expected).sum() < 105  # about 55 degrees of freedom
    assert not np.diag(pairs).any()


def test_large_orders_have_no_visible_structure():
    n = 100000
    result = order.permuted(tf.range(n), n, order.key(11)).numpy()
    assert abs(np.corrcoef(np.arange(n), result)[0, 1]) < 0.012  # 4 standard errors
    assert abs(np.corrcoef(result[:-1], result[1:])[0, 1]) < 0.012
    other = order.permuted(tf.range(n), n, order.key(12)).numpy()
    assert (result == other).sum() < 10  # one expected by chance


def test_seeds_differ_by_everything():
    positions = tf.range(2000, dtype=tf.int64)
    drawn = [
        order.seeds(purpose, seed, epoch, positions).numpy()
        for purpose, seed, epoch in [(3, 0, 0), (4, 0, 0), (3, 1, 0), (3, 0, 1)]
    ]
    everything = np.concatenate(drawn)
    assert everything.shape == (8000, 2) and everything.dtype == np.int32 and (everything >= 0).all()
    assert len(np.unique(everything, axis=0)) == 8000

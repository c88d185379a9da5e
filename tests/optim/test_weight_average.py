"""The weight average against the recorded one, and its swaps, restores and refusals."""

import helpers
import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from g16net import compat
from g16net.optim.rmsprop import RMSProp
from g16net.optim.weight_average import AverageWeights, WeightAverage, exponential, mean

GOLDEN = np.load(helpers.GOLDEN / "weight_average.npz")


def network():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5), keras.layers.BatchNormalization()])
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def all_equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_functions_equal_recorded(name):
    checkpoints = GOLDEN["checkpoint/" + name]
    np.testing.assert_allclose(exponential(checkpoints, 0.97), GOLDEN["exponential_0.97/" + name], rtol=0, atol=1e-6)
    np.testing.assert_allclose(mean(iter(checkpoints)), GOLDEN["mean/" + name], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="nothing to average"):
        exponential([])


def test_class_equals_recorded():
    model = network()
    dense = model.layers[0]
    average = WeightAverage(model, 0.97)
    for kernel, bias in zip(GOLDEN["checkpoint/kernel"], GOLDEN["checkpoint/bias"]):
        dense.set_weights([kernel, bias])
        average.update(model)
    with average.applied():
        for value, name in zip(dense.get_weights(), ["kernel", "bias"]):
            np.testing.assert_allclose(value, GOLDEN["exponential_0.97/" + name], rtol=0, atol=1e-6)
    assert int(average.updates.numpy()) == 12


def test_over_updates_it_begins_with_a_short_memory():
    model = network()
    average = WeightAverage(model, 0.5, over="updates")
    expected = None
    for update in range(12):
        weights = [np.full_like(w, update) + w for w in model.get_weights()]
        model.set_weights(weights)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update)) if update else 0.0
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected or weights, weights)]
    with average.applied():
        for value, right in zip(model.get_weights(), expected):
            np.testing.assert_allclose(value, right, rtol=1e-5)
    assert int(average.updates.numpy()) == 12
    with pytest.raises(ValueError, match='over must be "epochs" or "updates"'):
        WeightAverage(model, 0.5, over="steps")


@pytest.mark.run
@pytest.mark.parametrize("over, updates", [("updates", 8), ("epochs", 4)])
def test_callback_counts_updates_or_epochs(over, updates):
    model = network()
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    model.compile("sgd", "mse", **kwargs)
    average = WeightAverage(model, 0.5, over)
    model.fit(np.ones([8, 3]), np.ones([8, 5]), batch_size=4, epochs=4, verbose=0, callbacks=[AverageWeights(average)])
    assert int(average.updates.numpy()) == updates


@pytest.mark.parametrize("steps, passes", [(4, 1), (1, 2)])
def test_callback_refuses_to_average_more_or_less_often_than_once_an_update(steps, passes):
    model = network()
    optimizer = RMSProp(0.01, accumulation=passes)
    model.compile(optimizer, "mse", steps_per_execution=steps, **({"jit_compile": False} if compat.KERAS3 else {}))
    average = WeightAverage(model, 0.5, "updates")
    with pytest.raises(ValueError, match=f"{passes} batches; .*steps_per_execution={steps}.*={passes}, or"):
        model.fit(np.ones([8, 3]), np.ones([8, 5]), batch_size=1, verbose=0, callbacks=[AverageWeights(average)])
    if not compat.KERAS3:
        average.follow(optimizer)
        model.fit(np.ones([8, 3]), np.ones([8, 5]), batch_size=1, verbose=0)
        assert int(average.updates.numpy()) == 8 // passes


@pytest.mark.run
def test_callback_averages_every_weight_over_epochs():
    model = network()
    kwargs = {"jit_compile": False} if compat.KERAS3 else {}
    model.compile("sgd", "mse", **kwargs)
    average, history = WeightAverage(model, 0.5), []
    rng = np.random.default_rng(0)
    recorder = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: history.append(model.get_weights()))
    model.fit(
        rng.normal(size=(8, 3)),
        rng.normal(size=(8, 5)),
        epochs=4,
        verbose=0,
        callbacks=[AverageWeights(average), recorder],
    )
    assert not np.array_equal(history[0][-1], history[-1][-1])  # the moving variance moved
    with average.applied(model):
        averaged = model.get_weights()
    for index, value in enumerate(averaged):
        np.testing.assert_allclose(value, exponential([h[index] for h in history], 0.5), rtol=1e-5, atol=1e-6)
    assert all_equal(model.get_weights(), history[-1])


def test_what_would_not_take_the_average_is_not_followed():
    with pytest.raises(ValueError, match="average over epochs follows no optimizer"):
        WeightAverage(network(), 0.5).follow(RMSProp(0.01))
    with pytest.raises(ValueError, match="SGD of Keras .* cannot take averages.*AverageWeights"):
        WeightAverage(network(), 0.5, "updates").follow(keras.optimizers.SGD(0.01))


@pytest.mark.skipif(compat.KERAS3, reason="optimizers take averages on older Keras")
def test_an_average_that_is_off_is_not_taken_by_the_optimizer():
    optimizer, variable = RMSProp(0.01), tf.Variable([1.0])
    WeightAverage(network(), 0, "updates").follow(optimizer)
    optimizer.apply_gradients([(tf.ones([1]), variable)])


def test_raw_weights_come_back_after_an_error():
    model = network()
    average = WeightAverage(model)
    average.update()
    raw = [w + 1 for w in model.get_weights()]
    model.set_weights(raw)
    with pytest.raises(KeyError):
        with average.applied():
            assert not all_equal(model.get_weights(), raw)
            raise KeyError
    assert all_equal(model.get_weights(), raw)


def test_copies_to_another_model():
    model, other = network(), network()
    average = WeightAverage(model)
    average.update()
    expected = model.get_weights()
    other.set_weights([w * 0 for w in expected])
    average.copy_to(other)
    assert all_equal(other.get_weights(), expected)


def test_restores_before_the_first_update(tmp_path):
    model = network()
    average = WeightAverage(model, 0.9)
    average.update()
    model.set_weights([w * 3 for w in model.get_weights()])
    average.update()
    path = tf.train.Checkpoint(average=average).save(str(tmp_path / "state"))
    assert not [name for name, _ in tf.train.list_variables(path) if "model" in name or "kernel" in name]

    again = network()
    restored = WeightAverage(again, 0.9)
    tf.train.Checkpoint(average=restored).restore(path).assert_consumed()
    for first, second in ((average, model), (restored, again)):
        second.set_weights([w * 0 for w in model.get_weights()])
        first.update()
    model.set_weights([w * 0 for w in model.get_weights()])
    average.copy_to()
    restored.copy_to()
    assert all_equal(again.get_weights(), model.get_weights())
    assert np.any(model.get_weights()[0] != 0)


def test_zero_decay_is_off():
    model = network()
    average = WeightAverage(model, 0.0)
    assert average.averages == [] or len(average.averages) == 0
    average.update()
    raw = [w * 2 for w in model.get_weights()]
    model.set_weights(raw)
    with average.applied():
        assert all_equal(model.get_weights(), raw)
    assert all_equal(model.get_weights(), raw)


def test_keeps_integer_weights_out():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.5, seed=1)])
    average = WeightAverage(model)
    assert len(average.averages) == 2
    average.update()
    with average.applied():
        model(np.ones((1, 3), np.float32), training=True)


def test_refuses():
    model = network()
    with pytest.raises(ValueError, match="decay"):
        WeightAverage(model, 1.0)
    with pytest.raises(ValueError, match="build"):
        WeightAverage(keras.Sequential([keras.layers.Dense(2)]))
    average = WeightAverage(model)
    with pytest.raises(ValueError, match="empty"):
        with average.applied():
            pass
    average.update()
    with pytest.raises(ValueError, match="other shapes"):
        average.copy_to(keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)]))

"""Recomputation: the outputs, gradients and moving statistics of the network itself."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow import keras

from g16net import compat
from g16net.config import experiments, recipe
from g16net.errors import ConfigError
from g16net.layers.recompute import recomputed
from g16net.models import efficientnet, recompute
from g16net.run import assemble


def network(norm="ln_pn", group_size=16):
    return efficientnet.build("NANO", group_size, 4, norm, num_classes=5, survival_prob=0.5, dropout=0.2, seed=3)


def training_pass(trained, variables, traced=True):
    """The loss and the gradients of one pass on fixed images; tracing takes most of the time."""
    random = np.random.RandomState(0)
    images = tf.constant(random.uniform(0, 255, [4, 32, 32, 3]), tf.float32)
    labels = tf.constant([0, 1, 2, 4])
    variables = [v.value if compat.KERAS3 else v for v in variables]

    def step():
        with tf.GradientTape() as tape:
            logits = trained(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return loss, tape.gradient(loss, variables)

    loss, gradients = tf.function(step)() if traced else step()
    return float(loss), [np.array(gradient) for gradient in gradients]


@pytest.mark.parametrize(
    "norm, policy",
    [
        ("ln_pn", "float32"),
        ("bn", "float32"),
        pytest.param("ln_pn", "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("gn", "mixed_float16", marks=pytest.mark.slow),
    ],
)
def test_equals_the_network(norm, policy):
    if policy == "mixed_bfloat16" and compat.TF_VERSION < (2, 8):
        pytest.skip("TensorFlow 2.6 has no bfloat16 convolution on the CPU")
    with compat.policy(policy):
        plain, other = network(norm), network(norm)
        trained = recompute.recomputing(other)
    assert [compat.name_of(v) for v in trained.trainable_variables] == [
        compat.name_of(v) for v in other.trainable_variables
    ]
    loss, gradients = training_pass(plain, plain.trainable_variables, traced=False)
    again_loss, again_gradients = training_pass(trained, trained.trainable_variables)
    assert again_loss == pytest.approx(loss, rel=1e-6)
    for value, right, variable in zip(again_gradients, gradients, other.trainable_variables):
        tolerance = 1e-5 if policy == "float32" else 2e-2
        error = np.abs(value.astype("f8") - right).max()
        assert error <= tolerance * max(np.abs(right).max(), 1e-3), compat.name_of(variable)
    for value, right in zip(other.weights, plain.weights):  # moving statistics move once
        if tf.as_dtype(value.dtype).is_floating:
            np.testing.assert_allclose(np.array(value), np.array(right), rtol=1e-5, atol=1e-6)


def test_stem_and_blocks_are_computed_again():
    steps = [(layer, [], False, []) for layer in network().layers if not isinstance(layer, keras.layers.InputLayer)]
    found = recompute.parts(steps)
    assert sum(len(part) for _, part in found) == len(steps)
    assert [step for _, part in found for step in part] == steps
    names = [[step[0].name for step in part] for again, part in found if again]
    assert names[0] == ["stem_conv", "stem_norm"]
    assert len(names) == 1 + 3  # the blocks of NANO
    for part in names[1:]:
        assert part[-1].endswith("_project_norm") and len({name.split("_")[0] for name in part}) == 1
    kept = [step[0].name for again, part in found if not again for step in part]
    assert all(name.endswith(("_drop", "_add")) or name.startswith(("normalize", "top", "pred")) for name in kept)


def test_function_runs_twice_and_knows_it():
    calls, weight = [], tf.Variable(3.0)

    def function(x, again):
        calls.append(again)
        return weight * x * x

    x = tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = recomputed(function, x)
    dx, dweight = tape.gradient(y, [x, weight])
    assert calls == [False, True]
    assert (float(y), float(dx), float(dweight)) == (12.0, 12.0, 4.0)


def test_trains_with_mixing_on_the_device():
    config = experiments.load("g16_ln_pn:variant=NANO")
    config.data.name, config.data.mixup, config.data.mix_on_device = "synthetic", 0.2, True
    config.runtime.recompute = True
    config = recipe.resolve(config)
    model = assemble.training_model(config, assemble.model(config, 5, 32))
    images = tf.zeros([2, 32, 32, 3]), tf.ones([2]), tf.zeros([2, 4], tf.int32)
    assert model(images, training=True).shape == (2, 5)


def test_ipus_have_their_own():
    config = experiments.load("g16_ln_pn:variant=TINY")
    config.data.name, config.runtime.strategy, config.runtime.recompute = "synthetic", "ipu", True
    with pytest.raises(ConfigError, match="ipu.recompute"):
        recipe.resolve(config)

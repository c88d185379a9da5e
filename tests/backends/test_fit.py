"""Keras' own `fit`, `evaluate`, `predict`, `save` and `load_model` on JAX or PyTorch, and what is refused there."""

import os
import subprocess
import sys

import numpy as np
import pytest
from backends import network
from helpers import ROOT

from g16net import compat
from g16net.compat import keras
from g16net.models import recompute
from g16net.optim.rmsprop import RMSProp
from g16net.optim.weight_average import AverageWeights, WeightAverage

pytestmark = [pytest.mark.backends, pytest.mark.run]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fits_saves_and_goes_on(policy, tmp_path):
    keras.utils.set_random_seed(1)  # of dropout and of the order
    images, ids = network.batch(16, 32)
    with compat.policy(policy):
        model = network.compiled(network.filled("efficientnet_g16_nano_ln_pn", survival_prob=0.8, dropout=0.1))
    average = WeightAverage(model, 0.5)
    history = model.fit(images, ids, batch_size=8, epochs=4, verbose=0, callbacks=[AverageWeights(average)]).history
    assert np.isfinite(history["loss"]).all() and min(history["loss"][1:]) < history["loss"][0]
    assert {weight.dtype for weight in model.trainable_variables} == {"float32"}
    path = str(tmp_path / "model.keras")
    model.save(path)
    with compat.policy(policy):  # Keras asks it whether the loss is scaled, and not the file
        again = keras.models.load_model(path)
    logits = model.predict(images, verbose=0)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(again.predict(images, verbose=0), logits, rtol=0, atol=1e-5)
    assert int(again.optimizer.iterations) == int(model.optimizer.iterations) > 0
    for value, saved in zip(again.optimizer.variables, model.optimizer.variables):
        np.testing.assert_array_equal(value.numpy(), saved.numpy())
    assert model.evaluate(images, ids, verbose=0) == pytest.approx(again.evaluate(images, ids, verbose=0), abs=1e-3)

    assert int(average.updates.numpy()) == 4
    with average.applied():
        assert np.abs(model.predict(images, verbose=0) - logits).max() > 1e-4
    np.testing.assert_array_equal(model.predict(images, verbose=0), logits)


def test_accumulated_gradients_are_those_of_the_large_batch():
    images, ids = network.batch(8, 32)
    found = []
    for batch, accumulation in ((8, 1), (4, 2)):
        model = network.compiled(network.filled("efficientnet_g16_nano_ln_pn"), accumulation=accumulation)
        model.fit(images, ids, batch_size=batch, epochs=3, shuffle=False, verbose=0)
        assert int(model.optimizer.iterations) == 3
        found.append(model.predict(images, verbose=0))
    np.testing.assert_allclose(*found, rtol=0, atol=2e-5)


def test_what_needs_tensorflow_says_so():
    with pytest.raises(ValueError, match="guard='skip' works on TensorFlow alone.*TerminateOnNaN"):
        RMSProp(0.1, guard="skip")
    with pytest.raises(ImportError, match="recomputation.* need TensorFlow below Keras"):
        recompute.recomputing(network.filled("efficientnet_g16_nano_ln"))(np.zeros((1, 32, 32, 3), "float32"))
    for module in ("data.pipeline", "data.sources", "data.transforms", "training.train", "export", "run.assemble"):
        with pytest.raises(ImportError, match=f"need TensorFlow below Keras, and Keras' backend is '{compat.BACKEND}'"):
            __import__(f"g16net.{module}")


LOAD = """
import sys
{}
model = keras.models.load_model(sys.argv[1])
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules), "TensorFlow was imported"
"""


@pytest.mark.parametrize("imports", ["import g16net\nimport keras", "import keras\nimport g16net"])
def test_import_g16net_is_all_that_loading_needs(imports, tmp_path):
    path = str(tmp_path / "model.keras")
    network.compiled(network.filled("efficientnet_g1_nano_bn")).save(path)
    subprocess.run(
        [sys.executable, "-c", LOAD.format(imports), path], check=True, env={**os.environ, "PYTHONPATH": ROOT}
    )

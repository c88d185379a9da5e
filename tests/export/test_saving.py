"""Models saved and loaded by Keras' own functions: all comes back, also in a fresh process and in both generations."""

import ast
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import warnings
import zipfile

import made_layers
import numpy as np
import pytest
from helpers import ROOT, slow_with_keras3
from ml_collections import ConfigDict
from tensorflow import keras

import g16net
from g16net import compat, layers, models
from g16net.errors import UserError
from g16net.models import portable
from g16net.optim.losses import SmoothedCrossEntropy, Top1
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import Cosine
from g16net.run import run_data
from g16net.training import warm_start

pytestmark = pytest.mark.run  # saves and loads in processes of their own
FORMATS = [".keras", ".h5", ".weights.h5"] if compat.TF_VERSION >= (2, 12) else [".h5"]
NEW_FORMAT = pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
TWO_GENERATIONS = pytest.mark.skipif(compat.TF_VERSION < (2, 16), reason="this TensorFlow has one Keras")
X = np.random.default_rng(0).normal(size=(16, 6, 6, 4)).astype(np.float32)
Y = np.arange(16) % 3
OPTIMIZERS = {
    "cosine": lambda: RMSProp(Cosine(0.05, steps=50, warmup_steps=10), weight_decay=1e-4),
    "number": lambda: RMSProp(0.02),
    "accumulating": lambda: RMSProp(Cosine(0.05, steps=50), accumulation=2, guard="skip"),
}


def compiled(optimizer="cosine"):
    compat.set_seed(3)
    image = keras.Input((6, 6, 4))
    x = layers.ProxyNormActivation("swish", groups=1)(layers.GroupConv2D(3, group_size=2)(image))
    x = keras.layers.GlobalAveragePooling2D()(layers.BatchNorm()(x))
    model = keras.Model(image, keras.layers.Dense(3, dtype="float32")(x))
    model.compile(OPTIMIZERS[optimizer](), SmoothedCrossEntropy(3), metrics=[Top1()], **no_xla())
    return model


def no_xla():
    return {"jit_compile": False} if compat.KERAS3 else {}


def fit(model, epochs):
    return model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def state(model):
    """{slot/index: array}: variables of a loaded tf-keras model do not have their layers' names."""
    variables = model.trainable_variables
    return {k: v.numpy() for k, v in compat.optimizer_state(model.optimizer, variables, range(len(variables))).items()}


def saved(ending, folder, optimizer="cosine"):
    """A trained model's file, its logits, its optimizer's state, and the losses of the two epochs after it."""
    model, path = compiled(optimizer), str(folder / f"model{ending}")
    fit(model, 3)
    model.save_weights(path) if ending == ".weights.h5" else model.save(path)
    return path, model.predict(X, verbose=0), state(model), fit(model, 2)


@pytest.mark.filterwarnings("error:.*optimizer")
@pytest.mark.parametrize(
    "optimizer, ending",
    [
        *(("cosine", ending) for ending in FORMATS),
        ("accumulating", FORMATS[0]),
        *(pytest.param("accumulating", ending, marks=pytest.mark.slow) for ending in FORMATS[1:]),
        *(pytest.param("number", ending, marks=pytest.mark.slow) for ending in FORMATS),
    ],
)
def test_a_loaded_model_goes_on_as_if_it_had_not_stopped(optimizer, ending, tmp_path):
    path, logits, expected, losses = saved(ending, tmp_path, optimizer)
    if ending == ".weights.h5":
        model = compiled(optimizer)
        if compat.KERAS3:  # there `load_weights` reads the state of an optimizer that has its variables
            model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
    else:
        model = keras.models.load_model(path)
    assert int(model.optimizer.iterations) == (6 if optimizer == "accumulating" else 12)
    np.testing.assert_array_equal(model.predict(X, verbose=0), logits)
    if not (
        compat.KERAS3 and ending == ".h5"
    ):  # whose loader has no variables yet: the state comes with the first step
        found = state(model)
        assert set(found) == set(expected) and {"step", "rms/8", "momentum/8"} <= set(found)
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(fit(model, 2), losses)


@NEW_FORMAT
@pytest.mark.parametrize("ending", [".keras", pytest.param(".h5", marks=pytest.mark.slow)])
def test_a_loss_scale_keeps_its_optimizer(ending, tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        path, logits, expected, losses = saved(ending, tmp_path)
        model = keras.models.load_model(path)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_array_equal(model.predict(X, verbose=0), logits)
    if compat.KERAS3 and ending == ".h5":  # Keras 3 leaves the state of any optimizer out here
        with pytest.warns(UserWarning, match="state in the .h5 file was not loaded.*Save such models as .keras"):
            fit(model, 1)
        return
    found = state(model)
    assert set(found) == set(expected) and "loss_scale" in found
    for name in set(found) - ({"loss_scale", "good_steps"} if ending == ".h5" else set()):  # Keras keeps no scale there
        np.testing.assert_array_equal(found[name], expected[name])
    np.testing.assert_array_equal(fit(model, 2), losses)


@NEW_FORMAT
def test_the_state_of_another_optimizer_is_not_mixed_in(tmp_path):
    path = str(tmp_path / "adam.weights.h5")
    model = compiled()
    model.compile(keras.optimizers.Adam(), SmoothedCrossEntropy(3), **no_xla())
    fit(model, 1)
    model.save_weights(path)
    other = compiled()
    if compat.KERAS3:
        other.optimizer.build(other.trainable_variables)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        other.load_weights(path)
    if not compat.KERAS3:
        assert any("another optimizer" in str(warning.message) for warning in caught)
    assert int(other.optimizer.iterations) == 0
    np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))


def python(code, **environment):
    """Runs Python code in a fresh process, whose standard output it returns."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert not done.returncode, done.stderr
    return done.stdout


@slow_with_keras3
@pytest.mark.parametrize(
    "first",
    [
        "import g16net\nfrom tensorflow import keras",
        pytest.param("from tensorflow import keras\nimport g16net", marks=pytest.mark.slow),
    ],
)
def test_a_fresh_process_needs_one_import(first, tmp_path):
    """In either order, and `import g16net` alone still starts no TensorFlow: see test_imports."""
    paths = [saved(ending, tmp_path)[0] for ending in FORMATS if ending != ".weights.h5"]
    code = f"{first}\nfor path in {paths!r}: print(int(keras.models.load_model(path).optimizer.iterations))"
    assert python(code).split() == ["12"] * len(paths)


def test_every_class_is_registered():
    found = set()
    for path in pathlib.Path(ROOT, "g16net").rglob("*.py"):
        classes = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ClassDef)]
        found |= {c.name for c in classes if any(getattr(d, "attr", "") == "register" for d in c.decorator_list)}
    found.discard("Score")  # on an IPU, within a program
    assert {"GroupConv2D", "RMSProp", "Cosine", "Top1"} <= found
    registered = keras.utils.get_custom_objects()
    assert {f"g16net>{name}" for name in found} <= set(registered)
    assert g16net.registration.MODULES


OTHER = """
import sys, numpy as np, g16net
from tensorflow import keras
folder = sys.argv[1] if len(sys.argv) > 1 else {folder!r}
sys.path.insert(0, "tests")
import made_layers
made_layers.write(folder + "/their_")
made_layers.read(folder + "/our_")
images = np.load(folder + "/images.npy")
for name in ("plain", "half", "features"):
    model = keras.models.load_model(folder + "/" + name + ".keras")
    found = model(images, training=False)
    found = found["P3"] if name == "features" else found
    np.save(folder + "/" + name + "_there.npy", np.asarray(found, "float32"))
from g16net import models
from g16net.optim.losses import SmoothedCrossEntropy
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import Cosine
body = models.create("efficientnet_g16_tiny_ln_pn", num_classes=3)
body.compile(RMSProp(Cosine(0.01, 9)), SmoothedCrossEntropy(3))
image = keras.Input((32, 32, 3))
whole = keras.Model(image, body(keras.layers.RandomFlip()(image)))
np.save(folder + "/theirs.npy", np.asarray(body(images, training=False)))
body.save(folder + "/theirs.keras")
body.save(folder + "/theirs.h5")
whole.save(folder + "/nested.keras")
x = keras.layers.RandomRotation(0.1)(keras.layers.RandomFlip()(keras.layers.Resizing(32, 32)(image)))
x = keras.layers.LayerNormalization()(keras.layers.RandomContrast(0.1)(x))
normal = keras.Model(image, dict(P3=x))
normal.save(folder + "/normal.keras")
np.save(folder + "/normal.npy", np.asarray(normal(images, training=False)["P3"]))
"""


@pytest.mark.once
@TWO_GENERATIONS
def test_files_cross_between_the_generations(tmp_path):
    """Our portable files load in the other one by `import g16net` alone, and its own files start runs here."""
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    np.save(str(tmp_path / "images.npy"), images)
    ours = {"plain": models.create("efficientnet_g16_tiny_gn_pn", num_classes=3)}
    ours["plain"].layers[2].trainable = False
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        ours["half"] = models.create("efficientnet_g1_tiny_bn", num_classes=3)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    ours["features"] = models.create("efficientnet_g16_tiny_ln_pn", features_only=True, out_levels=(2, 3))
    expected = {}

    def of(model):
        found = model(images, training=False)
        return np.asarray(found["P3"] if isinstance(found, dict) else found, np.float32)

    for name, model in ours.items():
        portable.save(model, str(tmp_path / f"{name}.keras"), ["ant", "bee", "cat"])
        assert run_data.class_names_of_weights(str(tmp_path / f"{name}.keras")) == ["ant", "bee", "cat"]
        expected[name] = of(model)
    made_layers.write(str(tmp_path / "our_"))
    python(OTHER.format(folder=str(tmp_path)), TF_USE_LEGACY_KERAS="1" if compat.KERAS3 else "0")
    made_layers.read(str(tmp_path / "their_"))
    for name in ours:
        there = np.load(str(tmp_path / f"{name}_there.npy"))
        np.testing.assert_allclose(there, expected[name], rtol=1e-5, atol=1e-5)
        again = keras.models.load_model(str(tmp_path / f"{name}.keras"))  # and in this one
        np.testing.assert_array_equal(of(again), expected[name])
        assert [layer.trainable for layer in again.layers] == [layer.trainable for layer in ours[name].layers]
    theirs = np.load(str(tmp_path / "theirs.npy"))
    for name in ("theirs.keras", "theirs.h5", "nested.keras"):
        start = models.create("efficientnet_g16_tiny_ln_pn", num_classes=3)
        _, kept = warm_start.load(
            ConfigDict({"init": {"checkpoint": str(tmp_path / name), "weights": "average"}}), start
        )
        assert not kept
        np.testing.assert_allclose(np.asarray(start(images, training=False)), theirs, rtol=1e-5, atol=1e-5)
    for name, right in (("theirs", theirs), ("normal", np.load(str(tmp_path / "normal.npy")))):
        portable.convert(str(tmp_path / f"{name}.keras"), str(tmp_path / "both.keras"))
        both = keras.models.load_model(str(tmp_path / "both.keras"))
        np.testing.assert_allclose(of(both), right, rtol=1e-5, atol=1e-5)


def layer(kind="LayerNormalization", registered=None, **config):
    return {"class_name": kind, "registered_name": registered, "config": {"name": "a", **config}}


@pytest.mark.parametrize(
    "kind, key, default, other, generation",
    [
        ("LayerNormalization", "rms_scaling", False, True, "tf-keras"),
        ("LSTM", "time_major", False, True, "Keras 3"),
        ("DepthwiseConv2D", "groups", 1, 2, "Keras 3"),
    ],
)
def test_what_one_generation_alone_has_is_left_out_or_refused(kind, key, default, other, generation):
    assert portable.both(layer(kind, **{key: default})) == portable.both(layer(kind))
    with pytest.raises(ValueError, match=f"{key}={other} of the {kind} 'a' is unknown to {generation}"):
        portable.both(layer(kind, **{key: other}))
    own = layer(kind, f"mine>{kind}", **{key: other})
    assert portable.both(own) == own


def test_what_the_generations_compute_or_describe_differently_is_refused():
    with pytest.raises(ValueError, match="MultiHeadAttention 'a' is described .* in ways that exclude each other"):
        portable.both(layer("MultiHeadAttention", query_shape=[None, 2, 3]))
    with pytest.raises(ValueError, match="hard_sigmoid, of the ConvLSTM2D 'a', is another function"):
        portable.both(layer("ConvLSTM2D", recurrent_activation="hard_sigmoid"))
    with pytest.raises(ValueError, match=r"axis=\[1, 2\] of the BatchNormalization 'a' is unknown to Keras 3"):
        portable.both(layer("BatchNormalization", axis=[1, 2]))
    image = keras.Input((2,))
    with pytest.raises(ValueError, match="described by tf-keras and Keras 3 in ways that exclude each other"):
        portable.both({"class_name": "Functional", "config": keras.Model(image, image * 2.0).get_config()})
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)], name="inner")
    described = {"class_name": "Functional", "config": keras.Model(image, inner(image)).get_config()}
    with pytest.raises(ValueError, match="Sequential 'inner' is a model within the model"):
        portable.both(described)


@NEW_FORMAT
def test_dropout_that_is_always_on_stays_so(tmp_path):
    """Monte Carlo dropout. Keras 3 notes the argument of other layers too, where it is their default."""

    @keras.utils.register_keras_serializable("tests")
    class Noisy(keras.layers.Layer):
        def call(self, x, training=True):
            return x

    image = keras.Input((8, 8, 3))
    plain = keras.layers.GaussianNoise(0.1)(keras.layers.RandomFlip()(image))
    noisy = keras.layers.Dropout(0.5)(Noisy()(plain), training=True)
    path = str(tmp_path / "noisy.keras")
    portable.save(keras.Model(image, noisy), path)
    with zipfile.ZipFile(path) as archive:
        described = json.loads(archive.read("config.json"))["config"]["layers"]
    calls = {one["class_name"]: one["inbound_nodes"][0][0][3].get("training") for one in described[1:]}
    assert calls == {"RandomFlip": None, "GaussianNoise": None, "Noisy": None, "Dropout": True}
    images = np.ones((1, 8, 8, 3), np.float32)
    assert (np.asarray(keras.models.load_model(path)(images)) == 0).any()


@NEW_FORMAT
def test_a_portable_file_speaks_of_no_generation(tmp_path):
    path = str(tmp_path / "model.keras")
    portable.save(models.create("efficientnet_g16_tiny_ln_pn", num_classes=3), path)
    with zipfile.ZipFile(path) as archive:
        described = json.loads(archive.read("config.json"))
    assert (described["module"], described["class_name"]) == ("keras", "Model")
    text = json.dumps(described)
    assert not any(word in text for word in (".src.", "tf_keras", "DTypePolicy", "__keras_tensor__", "batch_shape"))
    assert os.listdir(str(tmp_path)) == ["model.keras"]
    for wrong, message in ((("a.keras", "b.h5"), "should end with .keras"), ((__file__, "b.keras"), "no .keras file")):
        with pytest.raises(ValueError, match=message):
            portable.convert(*wrong)


@NEW_FORMAT
def test_a_file_of_another_network_is_refused(tmp_path):
    path = str(tmp_path / "other.keras")
    compiled().save(path)
    start = models.create("efficientnet_g16_tiny_ln_pn", num_classes=3)
    with pytest.raises(UserError, match="not one of its .* weights fits"):
        warm_start.load(ConfigDict({"init": {"checkpoint": path, "weights": "average"}}), start)


IMPORT = "try:\n    import g16net.{0}\nexcept ImportError as error:\n    print(error)\nelse:\n    print('imported')"


@TWO_GENERATIONS
def test_another_backend_of_keras_is_named_at_import(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "torch"}))
    code = IMPORT.format("layers") + "\nimport g16net.costs.counts"
    told = python(code, KERAS_BACKEND="numpy", TF_USE_LEGACY_KERAS="0")
    assert "backend is set to 'numpy'. Set KERAS_BACKEND=tensorflow" in told
    told = python(IMPORT.format("optim.losses"), KERAS_HOME=str(tmp_path), KERAS_BACKEND="", TF_USE_LEGACY_KERAS="0")
    if importlib.util.find_spec("torch") is None:
        assert (
            "backend is set to 'torch', with which it cannot be imported" in told and "pip install keras torch" in told
        )
    else:
        assert "imported" in told


def test_a_missing_tensorflow_is_named_at_import():
    for module in ("layers", "optim.rmsprop"):
        told = python("import sys\nsys.modules['tensorflow'] = None\n" + IMPORT.format(module))
        assert "need TensorFlow" in told and "pip install" in told

"""The built networks: their names, layers, counts, independence of the batch, gradients, saving, precision, parity."""

import json

import helpers
import numpy as np
import pytest
import tensorflow as tf
from backends import network
from tensorflow import keras

from g16net import compat, layers, models
from g16net.costs import counts
from g16net.models import architecture, efficientnet, norms
from g16net.weights import keras_applications as convert

TABLE = json.loads((helpers.GOLDEN / "cost_table.json").read_text())
KINDS = {"G1": (1, 6), "G16": (16, 4)}
LITE = architecture.VARIANTS["NANO"]._replace(se_ratio=0.0, activation="relu6", fixed_ends=True)
BATCH_FREE = [norm for norm, row in norms.NORMS.items() if not row.over_batch]
# Formats that keep a whole model. ".keras" came after Keras 2.6.
FORMATS = [".keras"] if compat.TF_VERSION >= (2, 12) else [".h5", ""]


def tiny(norm="ln_pn", seed=1, variant="NANO", **arguments):
    """A small network whose every weight has been moved off its initial value."""
    model = efficientnet.build(variant, norm=norm, seed=seed, **{"num_classes": 5, **arguments})
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign_add((0.1 * rng.normal(size=weight.shape)).astype("float32"))
    return model


def images(batch=4, height=32, width=None, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (batch, height, width or height, 3)).astype("float32")


def count_params(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# Names


def test_list_by_pattern_and_substring():
    assert len(models.list()) == len(set(models.list())) == 4 * 16 * 5
    assert models.list("*_g16_b0_*") == [f"efficientnet_g16_b0_{norm}" for norm in norms.NORMS]
    assert models.list("g1_b0_ln") == ["efficientnet_g1_b0_ln", "efficientnet_g1_b0_ln_pn"]
    assert models.list("resnet") == []


def test_parse():
    expected = {"variant": "CIFAR", "group_size": 24, "expand_ratio": 4, "norm": "gn_pn"}
    assert models.parse("efficientnet_g24_cifar_gn_pn") == expected
    assert models.parse("efficientnet_g1_b7_bn")["expand_ratio"] == 6


@pytest.mark.parametrize(
    "name", ["efficientnet_g16_b0_lnpn", "efficientnet_g16_b0-ln_pn", "g16_b0_ln_pn", "eficientnet_g16_b0_ln_pn"]
)
def test_unknown_name_suggests_the_nearest(name):
    with pytest.raises(ValueError, match="Did you mean .*efficientnet_g16_b0_ln_pn"):
        models.create(name)


@pytest.mark.parametrize("name", ["efficientnet_g0_b0_bn", "efficientnet_g16_b9_bn", "resnet50", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="Unknown model"):
        models.create(name)


def test_override_may_not_contradict_the_name():
    with pytest.raises(ValueError, match="norm='bn' contradicts"):
        models.create("efficientnet_g16_tiny_ln", norm="bn")
    assert models.create("efficientnet_g16_nano_ln", norm="ln", num_classes=3).output.shape[-1] == 3


NORM_CLASSES = {
    "bn": (layers.BatchNorm, None),
    "gn": (layers.GroupNorm, 4),
    "ln": (layers.LayerNorm, 1),
    "gn_pn": (layers.ProxyNormActivation, 4),
    "ln_pn": (layers.ProxyNormActivation, 1),
}


@pytest.mark.parametrize(
    "name", models.list("*_g16_nano_*") + ["efficientnet_g1_tiny_bn", "efficientnet_g1_nano_gn_pn"]
)
def test_layers_are_what_the_name_says(name):
    model = models.create(name, num_classes=3)
    arguments = models.parse(name)
    assert model.name == name
    for block in architecture.blocks(arguments["variant"], arguments["group_size"], arguments["expand_ratio"]):
        conv = model.get_layer(f"block{block.name}_conv")
        assert isinstance(conv, layers.GroupConv2D)
        assert conv.group_size == arguments["group_size"]
        channels = block.expanded_channels
        assert tuple(conv.kernel.shape) == (block.kernel, block.kernel, channels // block.groups, channels)
    row = norms.get(arguments["norm"])
    plain_class = getattr(layers, row.layer)
    for layer in model.layers:
        if layer.name.endswith("norm"):
            project = layer.name.endswith("project_norm")
            expected_class, groups = NORM_CLASSES.get(arguments["norm"], (plain_class, None))
            expected_class = plain_class if project else expected_class
            assert type(layer) is expected_class, layer.name
            assert groups is None or layer.get_config().get("groups", 1) == groups, layer.name
            weights = {weight.name.split("/")[-1].split(":")[0] for weight in layer.trainable_weights}
            proxy = row.proxied
            assert weights == (
                {"gamma"}
                if proxy and project
                else {"gamma", "beta", "proxy_gamma", "proxy_beta"}
                if proxy
                else {"gamma", "beta"}
            )


@pytest.mark.parametrize("norm", norms.NORMS)
def test_what_is_asked_of_norms_reaches_every_norm(norm):
    settings = dict(norm_epsilon=2e-3, proxy_epsilon=0.05, strided_groups=True, norm_groups=2)
    model = efficientnet.build("NANO", norm=norm, num_classes=5, **settings)
    norms = [layer.get_config() for layer in model.layers if layer.name.endswith("norm")]
    assert len(norms) == 1 + 2 + 3 + 3 + 1  # stem, first block, two that expand, top
    for config in norms:
        assert config["epsilon"] == 2e-3 and config.get("proxy_epsilon", 0.05) == 0.05
        if norm.startswith("gn"):
            assert config["groups"] == 2 and config["strided"]


# Counts


def assert_equals_costs(model, **arguments):
    """Every layer of the model against its row: name, order, output shape, parameters, multiply-adds."""
    rows = {
        row.name: row for row in counts.layers(**arguments) if row.kind != "activation"
    }  # batch norm's layer has it
    training_only = ("image", "normalize", "top_dropout")
    built = [layer for layer in model.layers if layer.name not in training_only and not layer.name.endswith("_drop")]
    assert [layer.name for layer in built] == list(rows)
    macs = 0
    for layer in built:
        row = rows[layer.name]
        assert sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights) == row.params, layer.name
        output = layer.output[0] if isinstance(layer.output, (list, tuple)) else layer.output
        shape = (row.height, row.width, row.out_channels)
        assert tuple(output.shape)[1:] in (shape, shape[-1:]), layer.name
        kernels = [weight for weight in layer.trainable_weights if "kernel" in weight.name]
        pixels = 1 if row.kind == "squeeze_excite" else row.height * row.width
        macs += pixels * sum(int(np.prod(kernel.shape)) for kernel in kernels)
    counted = counts.count(**arguments)
    assert macs == counted.macs
    assert count_params(model) == counted.params
    return counted


# The formula itself is held against the published counts of all networks in test_costs.py.
QUICK = [("B0", "G16", "ln_pn")]
LARGE = [
    ("B2", "G1", "bn"),
    ("B0", "G1", "bn"),
    ("B0", "G16", "bn"),
    ("B0", "G1", "ln_pn"),
    ("B3", "G1", "bn"),
    ("B7", "G1", "bn"),
]
LARGE += [(f"B{number}", "G16", "ln_pn") for number in range(1, 8)]


@pytest.mark.parametrize(
    "variant, kind, norm", QUICK + [pytest.param(*network, marks=pytest.mark.slow) for network in LARGE]
)
def test_built_model_has_published_counts(variant, kind, norm):
    group_size, expand_ratio = KINDS[kind]
    size = architecture.VARIANTS[variant].native
    model = efficientnet.build(variant, group_size, expand_ratio, norm, input_size=size)
    counted = assert_equals_costs(model, variant=variant, group_size=group_size, expand_ratio=expand_ratio, norm=norm)
    if (variant, kind) != ("B6", "G16"):  # which the published code cannot build
        assert counted.params == TABLE["params"][kind]["LN_PN" if norm == "ln_pn" else "affine"][variant]
        assert counted.macs == TABLE["macs"][kind][variant][str(size)]


@pytest.mark.parametrize(
    "variant, norm",
    [("NANO", "gn"), ("NANO", "ln"), ("TINY", "bn"), ("TINY", "gn_pn"), ("CIFAR", "ln_pn")]
    + [(LITE, "bn"), (LITE, "ln_pn")],
)
def test_small_networks_equal_their_costs(variant, norm):
    model = efficientnet.build(variant, norm=norm, num_classes=10, input_size=(33, 47))
    assert_equals_costs(model, variant=variant, norm=norm, num_classes=10, size=(33, 47))


def test_lite_has_one_activation_throughout():
    for norm in norms.NORMS:
        found = [getattr(layer, "activation", None) for layer in efficientnet.build(LITE, norm=norm).layers]
        assert [name for name in found if isinstance(name, str)] == ["relu6"] * 7
    assert efficientnet.build(LITE, activation="swish").get_layer("top_norm").activation == "swish"


# Behaviour


@pytest.mark.parametrize(
    "norm, arguments",
    [(norm, {}) for norm in norms.NORMS] + [("gn_pn", {"strided_groups": True}), ("ln_pn", {"group_size": 1})],
)
def test_batch_independence(norm, arguments):
    """In training mode one sample's output alone is its output in any batch; with batch norm it must not be."""
    model = tiny(norm, survival_prob=1.0, dropout=0.0, **arguments)
    alone = np.asarray(model(images(1), training=True))
    differences = []
    for batch, mates in ((2, 11), (5, 12)):
        x = np.concatenate([images(1), 0.3 * images(batch - 1, seed=mates)])
        differences.append(np.abs(np.asarray(model(x, training=True))[:1] - alone).max() / np.abs(alone).max())
    if norm in BATCH_FREE:
        assert max(differences) < 1e-5
    else:
        assert min(differences) > 1e-2


@pytest.mark.parametrize("norm", norms.NORMS)
def test_gradient_reaches_every_weight(norm):
    model = tiny(norm, survival_prob=1.0, variant="TINY" if norm == "ln_pn" else "NANO")
    labels = np.arange(4) % 5
    weights = [weight.value if compat.KERAS3 else weight for weight in model.trainable_weights]
    with tf.GradientTape() as tape:
        logits = model(images(4), training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    for weight, gradient in zip(model.trainable_weights, tape.gradient(loss, weights)):
        name = getattr(weight, "path", weight.name)
        assert gradient is not None, name
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, name


@pytest.mark.parametrize("norm", ["bn", "ln_pn"])
def test_activation_is_everywhere(norm):
    relu = tiny(norm, activation="relu")
    kinds = {layer.name.split("_")[-1] for layer in relu.layers if layer.get_config().get("activation") == "relu"}
    assert kinds == {"norm", "se"}
    assert not [layer.name for layer in relu.layers if layer.get_config().get("activation") == "swish"]


@pytest.mark.parametrize("norm, variant", [("bn", "NANO"), ("gn", "NANO"), ("ln_pn", "TINY")])
def test_any_input_size(norm, variant):
    free, fixed = tiny(norm, variant=variant), tiny(norm, variant=variant, input_size=(45, 61))
    assert tuple(free.input.shape[1:]) == (None, None, 3)
    assert tuple(fixed.input.shape[1:]) == (45, 61, 3)
    x = images(2, 45, 61)
    np.testing.assert_allclose(np.asarray(free(x)), np.asarray(fixed(x)), rtol=1e-5, atol=1e-5)
    for height, width in ((32, 32), (1, 1), (7, 130)):
        assert np.isfinite(free(images(2, height, width))).all()


@pytest.mark.parametrize("arguments", [{}, {"include_top": False, "pooling": "max"}])
def test_keras_setting_for_the_order_of_dimensions_changes_nothing(arguments):
    descriptions = []
    try:
        for order in ("channels_last", "channels_first"):
            keras.backend.set_image_data_format(order)
            model = efficientnet.build("NANO", norm="bn", num_classes=5, **arguments)
            layers_of = [(layer.name, json.loads(json.dumps(layer.get_config()))) for layer in model.layers]
            descriptions.append((model.output.shape, layers_of))
    finally:
        keras.backend.set_image_data_format("channels_last")
    assert descriptions[0] == descriptions[1]


def test_integer_images_are_cast():
    model = tiny()
    x = images(3).astype("uint8")
    expected = np.asarray(model(x.astype("float32")))
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_input_normalisation():
    mean, std = (10.0, 20.0, 30.0), (50.0, 60.0, 70.0)
    x = images(2)
    reference = tiny(mean=0.0, std=1.0)(((x - mean) / std).astype("float32"))
    np.testing.assert_allclose(np.asarray(tiny(mean=mean, std=std)(x)), np.asarray(reference), rtol=1e-4, atol=1e-5)
    default = tiny().get_layer("normalize").get_config()
    assert (default["mean"], default["std"]) == ([123.68, 116.78, 103.94], [1.0, 1.0, 1.0])


def test_quadratures_agree():
    x = images()
    published, exact = (np.asarray(tiny(quadrature=kind)(x)) for kind in ("quantile", "gauss_hermite"))
    assert 0 < np.abs(published - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("norm, variant", [("bn", "NANO"), ("gn", "NANO"), ("ln_pn", "TINY")])
def test_save_and_load(tmp_path, norm, variant, suffix):
    model = tiny(norm, variant=variant, std=(58.0, 57.0, 57.0), survival_prob=0.7, dropout=0.3, quadrature="quantile")
    path = str(tmp_path / f"model{suffix}")
    model.save(path)
    loaded = keras.models.load_model(path)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    for size in (32, 53):
        np.testing.assert_array_equal(np.asarray(loaded(images(2, size))), np.asarray(model(images(2, size))))


HALF = [("bn", "mixed_bfloat16"), ("ln_pn", "mixed_float16")]
MORE_HALF = [("bn", "mixed_float16"), ("gn", "mixed_bfloat16"), ("gn", "mixed_float16"), ("ln_pn", "mixed_bfloat16")]


@pytest.mark.run
@pytest.mark.parametrize("norm, policy", HALF + [pytest.param(*pair, marks=pytest.mark.slow) for pair in MORE_HALF])
def test_training_step_in_mixed_precision(norm, policy):
    if policy == "mixed_bfloat16" and compat.TF_VERSION < (2, 7):
        pytest.skip("TensorFlow 2.6 has no working bfloat16 convolution on a CPU")
    previous = keras.mixed_precision.global_policy() if not compat.KERAS3 else keras.config.dtype_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = efficientnet.build("NANO", norm=norm, num_classes=5, seed=1)
    finally:
        keras.mixed_precision.set_global_policy(previous)
    assert model.get_layer("block2a_conv").compute_dtype == policy[len("mixed_") :]
    before = [np.array(weight) for weight in model.trainable_weights]
    assert {value.dtype for value in before} == {np.dtype("float32")}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(0.01)
    if policy == "mixed_float16":
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer, initial_scale=128)
    model.compile(optimizer, loss, run_eagerly=True)  # tracing takes most of the time
    history = model.fit(images(4), np.arange(4), epochs=1, batch_size=4, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    after = [np.array(weight) for weight in model.trainable_weights]
    assert all(np.isfinite(value).all() for value in after)
    assert any((old != new).any() for old, new in zip(before, after))
    logits = model(images(2))
    assert logits.dtype == tf.float32
    full = efficientnet.build("NANO", norm=norm, num_classes=5)
    full.set_weights(model.get_weights())
    reference = np.asarray(full(images(2)))
    assert np.abs(np.asarray(logits) - reference).max() < 0.1 * np.abs(reference).max()


def test_seed_decides_initial_weights_layer_by_layer():
    built = [efficientnet.build("NANO", num_classes=5, seed=seed) for seed in (1, 1, 2)]
    one, same, other = ([np.array(weight) for weight in model.trainable_weights] for model in built)
    assert all((a == b).all() for a, b in zip(one, same))
    drawn = [i for i, value in enumerate(one) if np.std(value) > 0]
    assert all((one[i] != other[i]).all() for i in drawn)
    # Layers of one shape do not share their draw, nor depend on what else is built.
    model, again = efficientnet.build("NANO", group_size=1, num_classes=5, seed=1), built[0]
    kernels = [model.get_layer(f"block{name}_expand_conv").get_weights()[0] for name in ("2a", "7a")]
    assert (kernels[0] != kernels[1]).all()
    assert (kernels[1] == again.get_layer("block7a_expand_conv").get_weights()[0]).all()


def test_initial_scale():
    """He normal: fan_out for 1x1 and stem, fan_in of one group for the grouped convolution."""
    model = efficientnet.build("B0", seed=1)
    for name, fan in (
        ("stem_conv", 3 * 3 * 32),
        ("block6b_expand_conv", 768),
        ("block6b_project_conv", 192),
        ("block6b_conv", 5 * 5 * 16),
        ("top_conv", 1280),
    ):
        kernel = model.get_layer(name).get_weights()[0]
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan), rel=0.1), name
    dense, bias = model.get_layer("predictions").get_weights()
    assert dense.std() == pytest.approx(np.sqrt(2 / (1280 + 1000)), rel=0.02)
    assert (bias == 0).all()


def test_regularisation_acts_in_training_only():
    model = tiny(survival_prob=0.5, dropout=0.5)
    x = images(16)
    assert (np.asarray(model(x)) == np.asarray(model(x))).all()
    assert (np.asarray(model(x, training=True)) != np.asarray(model(x, training=True))).any()
    drops = [layer.name for layer in model.layers if layer.name.endswith("_drop")]
    assert drops == [f"block{block.name}_drop" for block in architecture.blocks("NANO")[1:] if block.skip]
    plain = [layer.name for layer in tiny(survival_prob=1.0, dropout=0.0).layers]
    assert [layer.name for layer in model.layers if "drop" not in layer.name] == plain


def test_heads():
    softmax = np.asarray(tiny(classifier_activation="softmax")(images()))
    np.testing.assert_allclose(softmax.sum(axis=1), 1, rtol=1e-5)
    features = tiny(include_top=False)(images(2, 64, 48))
    assert tuple(features.shape) == (2, 32, 24, architecture.top_channels("NANO"))


def test_own_variant():
    own = architecture.Variant(width=0.25, depth=0.5, dropout=0.1, native=28, stage2_stride=1)
    model = efficientnet.build(own, num_classes=10)
    assert count_params(model) == counts.count(own, num_classes=10).params
    assert tuple(model(images(2, 28)).shape) == (2, 10)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(norm="lnpn"), "lnpn.*Did you mean ln_pn"),
        (dict(activation="gelu"), "gelu.*Known: swish, relu"),
        (dict(variant="B8"), "B8"),
        (dict(quadrature="gauss"), "gauss.*Did you mean gauss_hermite"),
        (dict(expand_ratio=0), "expand_ratio"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        efficientnet.build(**arguments)


# Other libraries


@pytest.fixture(scope="module")
def b0_of_keras_applications():
    compat.set_seed(1)
    return keras.applications.EfficientNetB0(weights=None, classifier_activation=None)


# The tiny network, in test_foreign_weights.py, is fast.
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["B0", "B3"])
def test_depthwise_batch_norm_network_is_that_of_keras_applications(variant, tmp_path, b0_of_keras_applications):
    source = b0_of_keras_applications
    if variant != "B0":
        compat.set_seed(1)
        source = getattr(keras.applications, f"EfficientNet{variant}")(weights=None, classifier_activation=None)
    size = source.input.shape[1]
    norms = [layer for layer in source.layers if isinstance(layer, keras.layers.BatchNormalization)]
    x = images(2, size)
    for layer in norms:
        gamma, beta, mean, variance = layer.get_weights()
        noise = np.random.default_rng(len(gamma)).normal(size=(2, len(gamma)))
        layer.set_weights([gamma + 0.1 * noise[0], beta + 0.1 * noise[1], mean, variance])
        layer.momentum = 0.0
    source(x, training=True)  # moving statistics that fit, so that signals neither fade nor grow from block to block
    path = str(tmp_path / "source.weights.h5")
    source.save_weights(path)

    target = convert.from_keras_applications(path, variant)
    expected = np.asarray(source(x))
    assert expected.std() > 0.02  # else the bound below says little
    assert np.abs(np.asarray(target(x)) - expected).max() < 1e-4


@pytest.mark.slow
def test_weights_of_another_network_are_refused(b0_of_keras_applications):
    source = b0_of_keras_applications
    with pytest.raises(ValueError, match="stem_conv.*variant"):
        convert.copy_keras_applications_weights(source, tiny("bn", group_size=1))
    target = efficientnet.build("B0", 1, 6, "bn", 8)
    before = target.get_weights()
    with pytest.raises(ValueError, match="predictions.*classes"):
        convert.copy_keras_applications_weights(source, target)
    assert all((a == b).all() for a, b in zip(before, target.get_weights()))  # nothing copied by halves


@pytest.mark.run
@pytest.mark.parametrize("name", network.NAMES[:2])
def test_predicts_and_trains_as_recorded_for_other_backends(name):
    """tests/backends holds JAX and PyTorch to the same numbers."""
    golden = np.load(helpers.GOLDEN / "logits.npz")
    for what, found in network.results(name).items():
        expected = golden[f"{name}/{what}"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=what)

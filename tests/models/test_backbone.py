"""Feature maps by level: what `feature_info` says, the network's own maps, alone in a batch as among others."""

import numpy as np
import pytest
from test_models import images, tiny

from g16net import models
from g16net.models import architecture, backbone, efficientnet

NAMES = ["efficientnet_g16_tiny_ln_pn", "efficientnet_g1_cifar_bn", "efficientnet_g16_nano_gn"]


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow), NAMES[2]])
def test_maps_are_those_of_the_table(name):
    found = models.create(name, features_only=True)(images(2, 64, 96))
    table = models.feature_info(name)
    assert list(found) == [level.name for level in table]
    for level in table:
        assert level.name == f"P{int(np.log2(level.stride))}"
        assert found[level.name].shape == (2, 64 // level.stride, 96 // level.stride, level.channels)


@pytest.mark.once
def test_levels_of_published_networks():
    """As timm's feature_info of tf_efficientnet_b0 and tf_efficientnet_lite4."""
    for variant, channels in (("B0", (16, 24, 40, 112, 320)), ("LITE4", (24, 32, 56, 160, 448))):
        levels = architecture.levels(variant)
        assert [(level.stride, level.channels) for level in levels] == list(zip((2, 4, 8, 16, 32), channels))
    chosen = models.feature_info("efficientnet_g16_b0_ln_pn", (5, 3))
    assert [level.layer for level in chosen] == ["block7a_project_norm", "block3b_add"]


def test_backbone_of_a_model_shares_its_weights():
    model = tiny(variant="TINY")
    features = backbone.backbone(model, (3, 4))
    before = features(images())
    assert list(before) == ["P3", "P4"]
    level = {level.name: level for level in architecture.levels("TINY")}["P3"]
    np.testing.assert_array_equal(before["P3"], backbone.backbone(model, (3,))(images())["P3"])
    model.get_layer(level.layer.replace("add", "project_norm")).gamma.assign_add([1.0] * level.channels)
    assert np.abs(np.asarray(features(images())["P3"]) - np.asarray(before["P3"])).max() > 0.1
    assert not [w for w in features.weights if "top" in w.name or "predictions" in w.name]


def test_in_training_a_map_does_not_depend_on_the_rest_of_the_batch():
    features = models.create(NAMES[0], features_only=True, survival_prob=1.0, seed=1)
    together, alone = (features(images()[:n], training=True) for n in (4, 1))
    for name in together:
        np.testing.assert_allclose(np.asarray(together[name])[:1], alone[name], atol=1e-4)


def test_pooling_without_the_top():
    for pooling, function in (("avg", np.mean), ("max", np.max), (None, lambda maps, axis: maps)):
        whole = efficientnet.build("NANO", norm="ln", include_top=False, seed=1)
        model = efficientnet.build("NANO", norm="ln", include_top=False, pooling=pooling, seed=1)
        expected = function(np.asarray(whole(images())), axis=(1, 2))
        np.testing.assert_allclose(model(images()), expected, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(features_only=True, out_levels=(3, 6)), r"different ones of 1, 2, 3, 4, the levels.*got \(3, 6\)"),
        (dict(features_only=True, out_levels=(3, 3)), "different ones"),
        (dict(features_only=True, out_levels=()), "different ones"),
        (dict(features_only=True, num_classes=3), "leave out num_classes"),
        (dict(out_levels=(3,)), "out_levels.*is for features_only=True"),
        (dict(pooling="avg"), "pooling='avg' is for include_top=False"),
        (dict(include_top=False, pooling="mean"), "Unknown pooling 'mean'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.create(NAMES[0], **arguments)

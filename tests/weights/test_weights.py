"""Weights of others in our networks and ours in theirs: timm's against timm, TensorFlow 1's by their names."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from helpers import GOLDEN, pixels
from tf1_checkpoints import published_variables, write_checkpoint

from g16net.errors import UserError
from g16net.layers import ProxyNormActivation
from g16net.models import efficientnet, norms
from g16net.weights import tf1 as tf1_weights
from g16net.weights import timm as timm_weights

# timm

# Writes weights and logits of a timm model; in a process of its own, as torch and TensorFlow do not share one well.
PEER = """
import sys, numpy, timm, torch
from safetensors.torch import save_file
name, size, folder, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3], 0
torch.manual_seed(seed)
model = timm.create_model(name, num_classes=11)
images = torch.from_numpy(numpy.load(folder + "/images.npy")).permute(0, 3, 1, 2) / 255
mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
images = (images - mean) / std
with torch.no_grad():
    for key, value in model.named_parameters():
        if value.ndim == 1:
            value += 0.1 * torch.randn_like(value)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.momentum = 1.0
    model.train()(images)  # moving statistics that fit
    if len(sys.argv) > 4:
        from safetensors.torch import load_file
        model.load_state_dict(load_file(sys.argv[4]))
    logits = model.eval()(images)
save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder + "/weights.safetensors")
numpy.save(folder + "/logits.npy", logits.numpy())
"""


def run_timm(name, images, folder, *arguments):
    """timm's logits on `images`; its weights are then in `folder`/weights.safetensors."""
    for module in ("timm", "torch", "safetensors"):
        if subprocess.run([sys.executable, "-c", f"import {module}"], stderr=subprocess.PIPE).returncode:
            pytest.skip(f"needs {module}")
    np.save(folder / "images.npy", images.astype("float32"))
    command = [sys.executable, "-c", PEER, name, str(images.shape[1]), str(folder), *arguments]
    subprocess.run(command, check=True)
    return np.load(folder / "logits.npy")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, size",
    [
        ("tf_efficientnet_b0", 64),
        ("tf_efficientnet_b0", 75),
        ("tf_efficientnet_b1", 64),
        ("efficientnet_b0", 65),
        ("efficientnet_b0_gn", 65),
        ("efficientnet_b0_g8_gn", 97),
    ],
)
def test_logits_are_those_of_timm(name, size, tmp_path):
    images = pixels(3, size)
    expected = run_timm(name, images, tmp_path)
    model = timm_weights.load(str(tmp_path / "weights.safetensors"), name)
    logits = np.asarray(model(images))
    assert expected.std() > 0.05  # else the bound below says little
    assert np.abs(logits - expected).max() < 1e-3


@pytest.mark.slow
def test_even_sizes_are_shifted_where_timm_pads_all_sides_alike(tmp_path):
    images = pixels(3, 64)
    expected = run_timm("efficientnet_b0_gn", images, tmp_path)
    logits = np.asarray(timm_weights.load(str(tmp_path / "weights.safetensors"), "efficientnet_b0_gn")(images))
    assert np.abs(logits - expected).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("norm, name", [("bn", "tf_efficientnet_b0"), ("gn", "efficientnet_b0_gn")])
def test_timm_computes_what_our_weights_compute(norm, name, tmp_path):
    arguments = timm_weights.parse(name)
    mean, std = ([255 * v for v in values] for values in (timm_weights.MEAN, timm_weights.STD))
    model = efficientnet.build(num_classes=11, mean=mean, std=std, seed=3, **arguments)
    path = str(tmp_path / "ours.safetensors")
    pytest.importorskip("safetensors")
    timm_weights.save(model, path)
    images = pixels(2, 65)
    expected = run_timm(name, images, tmp_path, path)
    assert np.abs(np.asarray(model(images)) - expected).max() < 1e-3


def small(norm="bn", **arguments):
    return efficientnet.build("NANO", 1, 6, norm, 5, seed=2, **arguments)


@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
def test_weights_come_back_from_timms_names(norm):
    source, target = small(norm), efficientnet.build("NANO", 1, 6, norm, 5, seed=9)
    timm_weights.copy(timm_weights.state_dict(source), target)
    for a, b in zip(source.get_weights(), target.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_weights_that_do_not_fit_are_named_and_nothing_is_copied():
    state = timm_weights.state_dict(small())
    target = efficientnet.build("NANO", 1, 6, "bn", 6, seed=9)
    before = target.get_weights()
    with pytest.raises(ValueError, match=r"predictions has the shape .*classifier.weight.*classes"):
        timm_weights.copy(state, target)
    assert all((a == b).all() for a, b in zip(before, target.get_weights()))
    timm_weights.copy(state, target, dense=False)
    np.testing.assert_array_equal(
        target.get_layer("stem_conv").get_weights()[0], state["conv_stem.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(target.get_layer("predictions").get_weights()[0], before[-2])
    del state["blocks.1.0.conv_pw.weight"]
    with pytest.raises(ValueError, match="block2a_expand_conv: the weights lack blocks.1.0.conv_pw.weight"):
        timm_weights.copy(state, target, dense=False)
    with pytest.raises(ValueError, match=r"without a place.*conv_extra"):
        timm_weights.copy(dict(timm_weights.state_dict(small()), **{"conv_extra.weight": np.zeros(3)}), small())


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0_g8", "efficientnet_b3_gn_x", "tf_efficientnetv2_b0"])
def test_other_networks_of_timm_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' has no counterpart here"):
        timm_weights.parse(name)


def test_proxy_norm_is_not_timms():
    with pytest.raises(ValueError, match="stem_norm: timm has no ProxyNormActivation"):
        timm_weights.state_dict(small("ln_pn"))
    with pytest.raises(ValueError, match="stem_norm: timm has no strided norm"):
        timm_weights.state_dict(small("gn", strided_groups=True))


# TensorFlow 1


KINDS = {"G16 ln_pn": (16, "ln_pn"), "G16 gn": (16, "gn"), "G1 ln": (1, "ln")}


@pytest.mark.parametrize("kind", [pytest.param("G16 ln_pn", marks=pytest.mark.slow), "G16 gn", "G1 ln"])
def test_published_checkpoints_load_by_name(kind, tmp_path):
    group_size, norm = KINDS[kind]
    proxy = norms.get(norm).proxied
    shapes = published_variables(f"CIFAR-G{group_size}", group_size, proxy)
    rng = np.random.default_rng(0)
    dtype = "float16" if kind == "G16 gn" else "float32"
    values = {name: (0.1 * rng.normal(size=shape)).astype(dtype) for name, shape in shapes.items()}
    write_checkpoint(values, str(tmp_path / "ckpt-450"))
    model = tf1_weights.load(str(tmp_path), "CIFAR", norm, group_size)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == sum(
        value.size - (2 * value.shape[-1] if name.endswith("proxy") else 0) for name, value in values.items()
    )
    for layer, weight, name in (
        ("stem_conv", 0, "all/block0/conv/conv2d/kernel"),
        ("block1a_conv", 0, "all/block1a/b/conv/conv2d/kernel"),
        ("block3b_expand_conv", 0, "all/block3b/a/conv/conv2d/kernel"),
        ("block3b_se", 0, "all/block3b/b/block3b/SE/block3b/b/1/conv2d/kernel"),
        ("block3b_se", 3, "all/block3b/b/block3b/SE/block3b/b/2/conv2d/bias"),
        ("block3b_project_norm", 0, "all/block3b/c/GroupNorm/gamma"),
        ("predictions", 0, "all/Top/logits/dense/kernel"),
    ):
        np.testing.assert_array_equal(model.get_layer(layer).get_weights()[weight], values[name].astype("float32"))
    norm_layer = model.get_layer("block3b_norm")
    if proxy:
        stored = values["all/block3b/b/proxy"][:, 0, 0]
        for name, row in (("beta", 0), ("gamma", 1), ("proxy_beta", 4), ("proxy_gamma", 5)):
            np.testing.assert_array_equal(np.asarray(getattr(norm_layer, name)), stored[row])
    else:
        assert norm_layer.strided or norm == "ln"
        np.testing.assert_array_equal(np.asarray(norm_layer.beta), values["all/block3b/b/GroupNorm/beta"])
    assert np.isfinite(np.asarray(model(pixels(1, 32)))).all()


def test_rows_of_a_published_proxy_give_the_golden_output():
    golden = np.load(os.path.join(GOLDEN, "proxy_norm_layer.npz"))
    rows = {name: golden[f"b/{name}"] for name in ("gamma", "beta", "proxy_gamma", "proxy_beta")}
    proxy = np.zeros((6, 1, 1, 48), np.float32)
    for name, row in tf1_weights.PROXY_ROWS.items():
        proxy[row, 0, 0] = rows[name]
    assert [tf1_weights.PROXY_ROWS[name] for name in ("beta", "gamma", "proxy_beta", "proxy_gamma")] == [0, 1, 4, 5]
    layer = ProxyNormActivation("swish", groups=1)
    x = tf.constant(golden["b/x"])
    layer(x)
    for name, row in tf1_weights.PROXY_ROWS.items():
        getattr(layer, name).assign(proxy[row, 0, 0])
    expected = golden["b/swish_g1/out"]
    np.testing.assert_allclose(layer(x), expected, atol=1e-5 * np.abs(expected).max())


def test_wrong_published_checkpoints_are_named(tmp_path):
    with pytest.raises(UserError, match="no TensorFlow checkpoint at"):
        tf1_weights.load(str(tmp_path / "nothing"))
    shapes = published_variables("CIFAR-G16", 16, True)
    values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    write_checkpoint(values, str(tmp_path / "ckpt"))
    with pytest.raises(UserError, match="no variable block0/GroupNorm/gamma.*Is the norm that of its run"):
        tf1_weights.load(str(tmp_path / "ckpt"), "CIFAR", "gn")
    with pytest.raises(UserError, match=r"block0/conv/conv2d/kernel of the checkpoint has the shape \(3, 3, 3, 16\)"):
        tf1_weights.load(str(tmp_path / "ckpt"), "NANO", "ln_pn")
    with pytest.raises(UserError, match="norm='bn'"):
        tf1_weights.load(str(tmp_path / "ckpt"), "CIFAR", "bn")

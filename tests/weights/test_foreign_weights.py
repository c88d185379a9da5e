"""Runs that start from weights of timm, keras.applications and TensorFlow 1: kind, network, arrays, what is told."""

import contextlib
import json
import pathlib
import pickle
import re
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from helpers import pixels
from tensorflow import keras
from tf1_checkpoints import published_variables, write_checkpoint

from g16net import compat
from g16net import config as config_lib
from g16net.config import recipe
from g16net.errors import UserError
from g16net.models import architecture, efficientnet, norms
from g16net.run import assemble, resolve
from g16net.training import warm_start
from g16net.weights import detect as foreign_weights
from g16net.weights import keras_applications as convert
from g16net.weights import lukemelas
from g16net.weights import timm as timm_weights

NETWORK = {"model.variant": "TINY", "model.group_size": 1, "model.expand_ratio": 6, "model.norm": "bn"}


def source(norm="bn", **arguments):
    mean, std = (tuple(255 * v for v in values) for values in (timm_weights.MEAN, timm_weights.STD))
    model = efficientnet.build("TINY", 1, 6, norm, 5, mean=mean, std=std, seed=2, **arguments)
    rng = np.random.default_rng(0)
    model.set_weights([w + 0.1 * rng.random(w.shape) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def timm_model():
    return source()


@pytest.fixture
def timm_file(tmp_path, timm_model):
    pytest.importorskip("safetensors")
    path = str(tmp_path / "tf_efficientnet_tiny.safetensors")
    model = timm_model
    timm_weights.save(model, path)
    return path, model


def settled(path, experiment="g1_bn:variant=TINY", **fields):
    assignments = [("init.checkpoint", str(path)), ("data.name", "digits"), ("data.train_size", "32")]
    assignments += [(key.replace("__", "."), value) for key, value in fields.items()]
    return resolve.resolve(assignments, experiment)[0]


def test_timm_starts_a_run_with_its_own_normalisation(timm_file):
    path, model = timm_file
    config = settled(path)
    assert config.model.std == pytest.approx((58.395, 57.12, 57.375))
    assert config.model.norm_epsilon == 1e-3
    started = assemble.model(config, 5)
    loaded, kept = warm_start.load(config, started)
    assert not kept and len(loaded) == len(list(w for w in model.weights if tf.as_dtype(w.dtype).is_floating))
    images = pixels(2, 32)
    np.testing.assert_allclose(np.asarray(started(images)), np.asarray(model(images)), atol=1e-5)


def test_a_head_of_other_classes_stays_new_and_is_told(timm_file, caplog):
    config = settled(timm_file[0])
    network = assemble.model(config, 7)
    before = [np.asarray(v) for v in network.get_layer("predictions").weights]
    with caplog.at_level("INFO", logger="absl"):
        _, kept = warm_start.load(config, network)
    assert [name.split(" ")[0] for name in kept] == ["predictions/kernel", "predictions/bias"]
    for old, new in zip(before, network.get_layer("predictions").weights):
        np.testing.assert_array_equal(old, np.asarray(new))
    assert "timm's weights" in caplog.text and "predictions/kernel (shape (80, 5) there)" in caplog.text


def test_another_width_or_depth_is_another_network(timm_file):
    for key, value in (("model__width", "0.2"), ("model__depth", "1.2")):
        name = key.replace("__", ".")
        with pytest.raises(UserError, match=f"model.variant=TINY, here TINY of {name}={value}.*, without {name}"):
            settled(timm_file[0], **{key: value})
    assert settled(timm_file[0], "g1_bn:variant=B0", model__width="0.0625", model__depth="0.3").model.variant == "B0"


def test_the_advice_gives_the_network():
    for group_size, expand_ratio, norm, more in (
        (16, 6, "ln_pn", "--config.model.expand_ratio=6"),
        (16, 4, ("ln_pn", "gn_pn"), ""),
        (8, 6, ("gn", "ln"), "--config.model.group_size=8 --config.model.expand_ratio=6 --config.model.norm=gn"),
    ):
        values = ("B0", group_size, expand_ratio, norm)
        advice = foreign_weights._experiment(dict(zip(NETWORK, values)))
        assert advice == f"--experiment=g16_ln_pn:variant=B0 {more}".strip()


def test_names_of_efficientnet_pytorch():
    outputs = [16, 24, 24, 40]  # of the blocks: stages 1, 2 and 3
    shapes = {f"_blocks.{i}._project_conv.weight": (out, 8, 1, 1) for i, out in enumerate(outputs)}
    expected = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.running_var": "bn1.running_var",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
        "_blocks.0._bn2.bias": "blocks.0.0.bn2.bias",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.1._bn0.weight": "blocks.1.0.bn1.weight",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.2._se_expand.bias": "blocks.1.1.se.conv_expand.bias",
        "_blocks.3._bn2.weight": "blocks.2.0.bn3.weight",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
        "_blocks.0._expand_conv.weight": "_blocks.0._expand_conv.weight",  # has no place in the first stage
        "other": "other",
    }
    names = lukemelas.names({**dict.fromkeys(expected, (1,)), **shapes})
    assert {name: names[name] for name in expected} == expected


LITE = architecture.Variant(0.5, 0.3, 0.0, 32, se_ratio=0.0, activation="relu6")


def test_efficientnet_pytorch_starts_a_run(tmp_path, monkeypatch):
    safetensors = pytest.importorskip("safetensors.numpy")
    monkeypatch.setitem(architecture.VARIANTS, "LITE0", LITE)
    model = efficientnet.build(LITE, 1, 6, "bn", 5, mean=127.5, std=127.5, seed=2)
    state = timm_weights.state_dict(model)
    # as each block there has its parts in timm's order, so has the whole
    inner = [("expand_conv", "bn0"), ("depthwise_conv", "bn1"), ("project_conv", "bn2")]
    places = [re.findall(r"block(\d)([a-z])_project_conv", layer.name) for layer in model.layers]
    parts = [("_conv_stem", "_bn0")]
    for number, (stage, _) in enumerate(sum(places, [])):
        parts += [(f"_blocks.{number}._{conv}", f"_blocks.{number}._{bn}") for conv, bn in inner[int(stage == "1") :]]
    parts += [("_conv_head", "_bn1")]
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    theirs = [n for conv, bn in parts for n in (f"{conv}.weight", *(f"{bn}.{kind}" for kind in kinds))]
    theirs += ["_fc.weight", "_fc.bias"]
    assert len(theirs) == len(state)
    path = str(tmp_path / "efficientnet-lite0-57934424.safetensors")
    safetensors.save_file(dict(zip(theirs, state.values())), path)
    config = settled(path, "g1_bn:variant=LITE0", data__eval_size="32")
    assert (config.data.eval_resize, config.data.eval_crop) == ("bicubic", 0.875)
    assert (config.model.mean, config.model.std) == ((127.5,) * 3, (127.5,) * 3)
    started = assemble.model(config, 5)
    assert not warm_start.load(config, started)[1]
    images = pixels(2, 32)
    np.testing.assert_allclose(np.asarray(started(images)), np.asarray(model(images)), atol=1e-5)


def test_preprocessing_of_published_weights():
    assert timm_weights.preprocessing("tf_efficientnet_lite0.in1k") == ((0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)
    assert timm_weights.preprocessing("tf_efficientnet_lite3")[2:] == ("bilinear_antialias", 0.904)
    assert timm_weights.preprocessing("tf_efficientnet_b4.ap_in1k") == ((0.5,) * 3, (0.5,) * 3, "bicubic", 0.922)
    for name in (
        "tf_efficientnet_b4_ap-dedb23e6",
        "tf_efficientnet_b4_ns-d6313a46",
        "timm-tf_efficientnet_b4.ns_jft_in1k",
    ):
        assert timm_weights.preprocessing(name).crop == 0.922
    assert timm_weights.preprocessing("tf_efficientnet_lite4_in1k")[2:] == ("bilinear_antialias", 0.92)
    assert timm_weights.preprocessing("efficientnet_b1")[::3] == (timm_weights.MEAN, 0.875)
    assert timm_weights.preprocessing("efficientnet_b0.ra4_e3600_r224_in1k")[::3] == ((0.5,) * 3, 0.9)
    assert timm_weights.preprocessing("efficientnet_b0_ra4_e3600_r224_in1k")[::3] == ((0.5,) * 3, 0.9)
    assert timm_weights.preprocessing("efficientnet_b5.sw_in12k").crop == 0.95
    b0, doubt = lukemelas.preprocessing("efficientnet-b0-355c32eb.safetensors", "B0")
    assert b0 == (timm_weights.MEAN, timm_weights.STD, "bicubic", 1.0) and not doubt
    b0, doubt = lukemelas.preprocessing("adv-efficientnet-b0-b64d5a18.safetensors", "B0")
    assert b0.mean == (0.5,) * 3 and not doubt
    assert lukemelas.preprocessing("mine.safetensors", "LITE0")[1]


def test_weights_named_without_an_experiment_bring_their_settings(timm_file, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config_lib.save(resolve.resolve([("data.name", "digits")], "g1_bn:variant=TINY")[0], str(run / "config.json"))
    given = [("init.checkpoint", timm_file[0])]
    assert resolve.resolve(given, None, workdir=str(run))[0].model.mean == pytest.approx((123.675, 116.28, 103.53))


def test_what_the_user_sets_stays(timm_file, caplog):
    settled(timm_file[0], model__activation="relu")
    assert "model.activation=relu, as you set it, is not the swish of timm's weights" in caplog.text
    assert settled(timm_file[0], model__std="1,1,1").model.std == (1.0, 1.0, 1.0)


def test_the_hubs_description_is_read(timm_file, tmp_path):
    form = {"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.95, "interpolation": "bilinear"}
    described = {"architecture": "efficientnet_b0", "pretrained_cfg": form}
    (tmp_path / "config.json").write_text(json.dumps(described))
    config = settled(timm_file[0])
    assert (config.model.mean, config.model.norm_epsilon) == ((127.5,) * 3, 1e-5)
    assert (config.data.eval_resize, config.data.eval_crop) == ("bilinear_antialias", 0.95)


def test_a_description_of_other_types_is_none(timm_file, tmp_path):
    for described in (
        {"architecture": "efficientnet_b0", "pretrained_cfg": None},
        {"architecture": None},
        {"architecture": "efficientnet_b0", "pretrained_cfg": {"mean": "0.5", "std": [1, 2]}},
        [1],
    ):
        (tmp_path / "config.json").write_text(json.dumps(described))
        assert settled(timm_file[0]).model.mean == pytest.approx((123.675, 116.28, 103.53))


def test_what_a_name_tells_and_what_is_assumed(timm_file, tmp_path, caplog):
    source = pathlib.Path(timm_file[0])
    preprocessing = "model.mean", "model.std", "data.eval_resize", "data.eval_crop"
    for name, mean, warned in (
        ("tf_efficientnet_b0.ap_in1k.safetensors", 127.5, ()),
        ("efficientnet_b0.ra4_e3600_r224_in1k.safetensors", 127.5, ()),
        ("tf_efficientnet_b0.ns_jft_in1k.safetensors", 123.675, ()),
        ("tf_efficientnet_b0_ns-c0e6a31c.safetensors", 123.675, ()),
        ("tf_efficientnet_b0.safetensors", 123.675, preprocessing),
        ("model.safetensors", 123.675, (*preprocessing, "model.norm_epsilon")),
    ):
        caplog.clear()
        source = source.rename(tmp_path / name)
        config = settled(source)
        assert config.model.mean[0] == pytest.approx(mean)
        assert config.model.norm_epsilon == (1e-5 if name.startswith("efficientnet") else 1e-3)
        told = " ".join(record.getMessage() for record in caplog.records if "are assumed" in record.msg)
        assert re.findall(r"--config\.(\S+)=", told) == list(warned)
    caplog.clear()
    own = {"model__mean": "1,1,1", "model__std": "1,1,1", "data__eval_resize": "tf1", "data__eval_crop": "1"}
    settled(source, model__norm_epsilon="1e-5", **own)
    assert "assumed" not in caplog.text
    assert "data.eval_resize=tf1, as you set it, is not the bicubic of timm's weights" in caplog.text


def test_sizes_that_shift_timms_own_padding_are_told(timm_file, tmp_path, caplog):
    settled(timm_file[0])
    assert "pads all sides alike" not in caplog.text
    path = pathlib.Path(timm_file[0]).rename(tmp_path / "efficientnet_tiny.safetensors")
    settled(path)
    assert "data.train_size=32, data.eval_size=32. Take --config.data.train_size=33 --config.data.eval_size=33" in (
        caplog.text
    )
    caplog.clear()
    settled(path, data__train_size="33", data__eval_size="33")
    assert "pads all sides alike" not in caplog.text
    settled(path, data__train_size="33", data__eval_size="33", eval__sizes="33,48")
    assert "--config.eval.sizes=33,49" in caplog.text


@pytest.mark.parametrize("experiment", ["g16_ln_pn:variant=TINY", "g1_gn:variant=TINY", "g1_bn:variant=B0"])
def test_another_network_is_refused_with_the_right_experiment(experiment, timm_file):
    with pytest.raises(UserError, match="weights of another network: .*--experiment=g1_bn:variant=TINY"):
        settled(timm_file[0], experiment)


def test_group_norm_of_timm(tmp_path, caplog):
    pytest.importorskip("safetensors")
    path = str(tmp_path / "model.safetensors")
    model = source("gn", norm_group_size=8, norm_epsilon=1e-5)
    timm_weights.save(model, path)
    sizes = {"data__train_size": "33", "data__eval_size": "33"}
    settled(path, "g1_gn:variant=TINY", model__norm="ln", **sizes)
    assert (
        "its shapes fit gn and ln alike; such weights are published with gn, and the run has model.norm=ln"
        in caplog.text
    )
    config = settled(path, "g1_gn:variant=TINY", **sizes)  # its groups are strided
    assert (config.model.norm_group_size, config.model.strided_groups) == (8, False)
    started = assemble.model(config, 5)
    assert not warm_start.load(config, started)[1]
    x = pixels(2, 33)
    np.testing.assert_allclose(started(x, training=False), model(x, training=False), atol=1e-5)
    strided = efficientnet.build("TINY", 1, 6, "gn", 5, norm_group_size=8, strided_groups=True)
    with pytest.raises(ValueError, match="strided_groups=False"):
        timm_weights.copy(timm_weights.state_dict(model), strided)


def keras_names(model):
    """The weights of a model of ours as {layer of keras.applications: [(name, array)]}."""
    result = {}
    for layer in model.layers:
        names, values = convert._source_layers(layer.name), [np.asarray(w) for w in layer.weights]
        if values and not layer.name.endswith(("dropout", "drop")):
            share = len(values) // len(names)
            for i, name in enumerate(names):
                result[name] = values[i * share : (i + 1) * share]
    return {name: [v.transpose(0, 1, 3, 2) if "dwconv" in name else v for v in vs] for name, vs in result.items()}


def test_keras_applications_by_names_in_hdf5(tmp_path, caplog):
    h5py = pytest.importorskip("h5py")
    model = source()
    arrays = keras_names(model)
    path = str(tmp_path / "weights.h5")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in arrays]
        for layer, values in arrays.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{i}:0".encode() for i in range(len(values))]
            for i, value in enumerate(values):
                group[f"{layer}/{i}:0"] = value
    config = settled(path)
    assert "the file has no normalization layer; ImageNet's values are assumed" in caplog.text
    started = assemble.model(config, 5)
    _, kept = warm_start.load(config, started)
    assert not kept
    images = pixels(2, 32)
    np.testing.assert_allclose(np.asarray(started(images)), np.asarray(model(images)), atol=1e-5)


def tiny_of_keras_applications(**arguments):
    """keras.applications' builder with the widths, depths and strides of TINY; all its weights are random."""
    module = sys.modules[keras.applications.EfficientNetB0.__module__]
    stages = [dict(stage) for stage in module.DEFAULT_BLOCKS_ARGS]
    stages[1]["strides"] = 1
    model = module.EfficientNet(
        0.0625, 0.3, 32, 0.0, 0.0, blocks_args=stages, weights=None, classes=5, classifier_activation=None, **arguments
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights and "normalization" not in layer.name.replace("batch_normalization", ""):
            layer.set_weights([w + 0.1 * rng.random(w.shape) for w in layer.get_weights()])
    return model


def started_from(path):
    config = settled(path)
    model = assemble.model(config, 5)
    assert not warm_start.load(config, model)[1]
    return model


@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_the_normalisation_of_keras_applications_is_the_files_own(tmp_path, caplog):
    image = keras.Input((32, 32, 3))
    scaled = keras.layers.Rescaling([1.0, 2.0, 0.5], offset=3.0)(image)
    images = pixels(2, 32)
    plain, more = tiny_of_keras_applications(input_shape=(32, 32, 3)), tiny_of_keras_applications(input_tensor=scaled)
    given = ([0.4, 0.5, 0.6], [0.04, 0.09, 0.16])
    weights_alone = "weights.h5" if compat.KERAS3 else "alone.h5"
    for theirs, normalisation, endings in (
        (plain, None, ("h5",)),
        (plain, given, ("keras", weights_alone)),
        (more, given, ("keras",)),
    ):
        (layer,) = [layer for layer in theirs.layers if layer.__class__.__name__ == "Normalization"]
        if normalisation:
            layer.set_weights([np.asarray(v, np.float32) for v in normalisation] + layer.get_weights()[2:])
            layer.finalize_state()
        expected = np.asarray(theirs(images))
        for ending in endings:
            path = str(tmp_path / f"model.{ending}")
            (theirs.save_weights if ending == weights_alone else theirs.save)(path)
            np.testing.assert_allclose(np.asarray(started_from(path)(images)), expected, atol=2e-4, rtol=1e-5)
    assert "assumed" not in caplog.text


def test_imagenets_normalisation_of_keras_applications():
    published = {"normalization_2": [np.array(timm_weights.MEAN), np.array(timm_weights.STD)]}
    mean, std, doubt = foreign_weights._keras_input(published, [])
    assert doubt is None and np.allclose([mean, std], [timm_weights.MEAN, timm_weights.STD])
    kinds = ("InputLayer", "RandomFlip", "Lambda", "stem_conv")
    layers = [{"class_name": kind, "config": {"name": kind}} for kind in kinds]
    assert "Lambda before the stem" in foreign_weights._keras_input(published, layers)[2]
    assert foreign_weights._keras_input(published, layers[:3])[2] is None  # the network lies within another layer


@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_the_normalisation_within_a_wrapped_model_is_read(ending, tmp_path, caplog):
    base = tiny_of_keras_applications(input_shape=(32, 32, 3))
    (layer,) = [layer for layer in base.layers if layer.__class__.__name__ == "Normalization"]
    layer.set_weights([np.float32([0.4, 0.5, 0.6]), np.float32([0.04, 0.09, 0.16])] + layer.get_weights()[2:])
    image = keras.Input((32, 32, 3))
    wrapped = keras.Model(image, keras.layers.Dense(3)(base(keras.layers.RandomFlip()(image))))
    path = str(tmp_path / f"wrapped.{ending}")
    wrapped.save(path)
    model = settled(path).model
    assert np.allclose([model.mean, model.std], [[102, 127.5, 153], [51, 76.5, 102]], rtol=1e-4)
    assert "assumed" not in caplog.text


@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_each_normalization_layer_before_the_stem_has_its_own_values(tmp_path, caplog):
    """A user's own, adapted to the data, stands before the one that keras.applications builds."""
    base, image = tiny_of_keras_applications(input_shape=(32, 32, 3)), keras.Input((32, 32, 3))
    own = keras.layers.Normalization()
    wrapped = keras.Model(image, base(own(image)))
    (inner,) = [layer for layer in base.layers if layer.__class__.__name__ == "Normalization"]
    for layer, mean in ((own, [100.0, 110.0, 120.0]), (inner, [0.4, 0.5, 0.6])):
        layer.set_weights([np.float32(mean), np.float32([4.0, 9.0, 16.0])] + layer.get_weights()[2:])
        layer.finalize_state()
    images = pixels(2, 32)
    for ending in ("keras", "h5"):
        path = str(tmp_path / f"wrapped.{ending}")
        wrapped.save(path)
        np.testing.assert_allclose(np.asarray(started_from(path)(images)), np.asarray(wrapped(images)), atol=1e-3)
    assert "assumed" not in caplog.text


def test_normalization_layers_that_a_file_does_not_tell_apart_are_a_doubt():
    arrays = {f"normalization{end}": [np.full(3, 0.5), np.full(3, 4.0)] for end in ("", "_1")}
    assert "of several normalization layers" in foreign_weights._keras_input(arrays, [])[2]
    kinds = {"normalization": "Normalization", "normalization_1": "Normalization", "stem_conv": "Conv2D"}
    layers = [{"class_name": kind, "config": {"name": name}} for name, kind in kinds.items()]
    assert foreign_weights._keras_input(arrays, layers)[2] is None
    said = foreign_weights._keras_input(arrays, [layers[0], *layers])[2]
    assert said.startswith("two normalization layers are both named normalization;")
    unread = {"class_name": "Normalization", "config": {"name": "elsewhere"}}
    assert "layers Normalization before the stem" in foreign_weights._keras_input(arrays, [unread, *layers])[2]


@pytest.mark.slow
@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_keras_applications_as_keras_writes_it(tmp_path):
    theirs = keras.applications.EfficientNetB0(weights=None, classes=3, input_shape=(64, 64, 3))
    target = efficientnet.build("B0", 1, 6, "bn", 3)
    for name in ("model.keras", "model.h5"):
        theirs.save(str(tmp_path / name))
        found = foreign_weights.inspect(str(tmp_path / name))
        assert found.network == dict(NETWORK, **{"model.variant": "B0"})
        values = found.values(target)
        convert.copy_keras_applications_weights(theirs, target)
        weights = {compat.name_of(w): np.asarray(w) for w in target.weights if tf.as_dtype(w.dtype).is_floating}
        assert set(weights) == set(values)
        for key, value in weights.items():
            np.testing.assert_array_equal(value, values[key])


def test_tensorflow_1(tmp_path, caplog):
    shapes = published_variables("CIFAR-G16", 16, True)
    rng = np.random.default_rng(0)
    values = {name: (0.1 * rng.normal(size=shape)).astype("float32") for name, shape in shapes.items()}
    write_checkpoint(values, str(tmp_path / "ckpt-450"))
    for path in (tmp_path, tmp_path / "ckpt-450", tmp_path / "ckpt-450.index"):
        config = settled(path, "g16_ln_pn:variant=CIFAR")
        assert config.model.strided_groups
    network = assemble.model(config, 4)
    loaded, kept = warm_start.load(config, network)
    assert [name.split(" ")[0] for name in kept] == ["predictions/kernel", "predictions/bias"]
    assert "proxy statistics differ from those of its parameters" in caplog.text  # they are random here
    stored = values["all/block3b/b/proxy"][:, 0, 0]
    np.testing.assert_array_equal(np.asarray(network.get_layer("block3b_norm").proxy_beta), stored[4])
    with pytest.raises(UserError, match="model.norm=ln_pn, here gn.*--experiment=g16_ln_pn:variant=CIFAR"):
        settled(tmp_path, "g16_gn:variant=CIFAR")


def test_tensorflow_1_of_batch_norm_or_twice_is_refused(tmp_path):
    shapes = published_variables("CIFAR-G16", 16, False)
    values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    twice = dict(values, **{f"average/{name}": value for name, value in values.items()})
    write_checkpoint(twice, str(tmp_path / "twice"))
    match = "Top/GroupNorm/beta more than once: all/Top/GroupNorm/beta, average/all/Top/GroupNorm/beta"
    with pytest.raises(UserError, match=match):
        settled(tmp_path / "twice", "g16_gn:variant=CIFAR")
    batch = {name.replace("GroupNorm", "BatchNorm"): value for name, value in values.items()}
    write_checkpoint(batch, str(tmp_path / "batch"))
    with pytest.raises(UserError, match="those with batch norm are not"):
        settled(tmp_path / "batch", "g16_bn:variant=CIFAR")


def other_files(folder):
    pathlib.Path(folder / "torch.pth").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(folder / "new_torch.pth", "w") as file:
        file.writestr("archive/data.pkl", b"")
    (folder / "text.txt").write_text("weights, or so they say")
    (folder / "cut.safetensors").write_bytes((10**6).to_bytes(8, "little") + b"{")
    (folder / "empty").mkdir()
    (folder / "zero.h5").write_bytes(b"")


@pytest.mark.parametrize(
    "name, match",
    [
        ("torch.pth", "pickle"),
        ("new_torch.pth", "pickle of torch.*safetensors.torch as st.*weights_only=True"),
        ("text.txt", "no file of weights"),
        ("cut.safetensors", "no whole safetensors file: its header is longer"),
        ("empty", "holds no whole checkpoint; it takes a workdir"),
        ("zero.h5", "no file of weights"),
        ("nowhere", "no such file or folder"),
    ],
)
def test_other_files_are_refused_before_a_run(name, match, tmp_path):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    other_files(tmp_path)
    with pytest.raises(UserError, match=match):
        settled(tmp_path / name)


@pytest.mark.parametrize("ending", ["keras", "safetensors"])
def test_damaged_files_are_refused(ending, timm_file, tmp_path):
    if ending == "keras":
        if compat.TF_VERSION < (2, 12):
            pytest.skip("this Keras has no .keras files")
        path = tmp_path / "model.keras"
        image = keras.Input((8, 8, 3))
        keras.Model(image, keras.layers.Conv2D(4, 3, name="stem_conv")(image)).save(str(path))
    else:
        path = pathlib.Path(timm_file[0])
    whole = path.read_bytes()
    damaged = tmp_path / "damaged"
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        damaged.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError):
            foreign_weights.inspect(str(damaged))
        if ending == "safetensors":
            with pytest.raises(UserError, match="damaged cannot be read as safetensors"):
                timm_weights.read(str(damaged))
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 3000), 4):
            content[place] = rng.integers(0, 256)
        damaged.write_bytes(bytes(content))
        with contextlib.suppress(UserError):
            foreign_weights.inspect(str(damaged))


def test_types_that_numpy_lacks_and_a_missing_package_are_told_before_a_run(timm_file, tmp_path, monkeypatch):
    whole = pathlib.Path(timm_file[0]).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for entry in header.values():
        entry["dtype"] = "BF16"
    header = json.dumps(header).encode()
    path = tmp_path / "bfloat16.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])
    with pytest.raises(UserError, match="holds BF16, which NumPy has not; write it as float32"):
        settled(path)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(UserError, match=r"pip install 'g16net\[weights\]'"):
        settled(timm_file[0])


def test_other_networks_of_timm_are_told_by_their_weights(timm_file, tmp_path):
    state = timm_weights.state_dict(timm_file[1])
    without_se = {name: value for name, value in state.items() if ".se." not in name}  # as in tf_efficientnet_lite0
    conditional = dict(state, **{"blocks.6.0.routing_fn.weight": np.zeros((4, 2), np.float32)})  # as in _cc_b0_4e
    conditional["blocks.6.0.conv_pw.weight"] = np.zeros((4, 6), np.float32)
    evonorm = {name: value for name, value in state.items() if "running" not in name and "tracked" not in name}
    evonorm["bn1.v"] = np.zeros(8, np.float32)
    kind = "another kind of network of timm.*"
    matches = "blocks without squeeze-and-excite", rf"{kind}conv_pw.weight is \(4, 6\)", f"{kind}bn1.v has no place"
    for other, match in zip((without_se, conditional, evonorm), matches):
        path = str(tmp_path / "tf_efficientnet_b0.safetensors")
        pytest.importorskip("safetensors.numpy").save_file(other, path)
        with pytest.raises(UserError, match=match):
            foreign_weights.inspect(path)


def test_weights_of_others_come_whole_but_for_the_last_layer(timm_file, monkeypatch):
    config = settled(timm_file[0])
    network = assemble.model(config, 5)
    found = foreign_weights.inspect(timm_file[0])
    values = {name: value for name, value in found.values(network).items() if "_se/" not in name}
    monkeypatch.setattr(foreign_weights, "inspect", lambda path: found._replace(values=lambda model: values))
    with pytest.raises(
        UserError, match="timm's weights there are of another network: 32 weights of this .* besides the last"
    ):
        warm_start.load(config, network)


@pytest.mark.parametrize("variant, group_size, expand_ratio, norm", [("TINY", 1, 6, "bn"), ("TINY", 16, 4, "gn")])
def test_shapes_of_timms_weights_are_those_of_the_model(variant, group_size, expand_ratio, norm):
    model = efficientnet.build(variant, group_size, expand_ratio, norm, 5)
    state = timm_weights.state_dict(model).items()
    state = {k: v.shape for k, v in state if not k.startswith("classifier") and not k.endswith("tracked")}
    assert timm_weights.shapes(variant, group_size, expand_ratio, norms.get(norm).over_batch) == state


def test_a_strict_copy_and_a_find_take_the_same_weights():
    model, other = source(), efficientnet.build("TINY", 1, 6, "bn", 5, seed=9)
    state = timm_weights.state_dict(model)
    found = timm_weights.find(state, other)
    timm_weights.copy(state, other)
    names = [compat.name_of(weight) for layer in efficientnet.learnt(other) for weight in layer.weights]
    assert sorted(found) == sorted(names)
    for layer in efficientnet.learnt(other):
        for weight in layer.weights:
            np.testing.assert_array_equal(np.asarray(weight), found[compat.name_of(weight)])


def test_small_form_of_an_experiment():
    config = recipe.resolve(recipe.get_config("small,variant=B0"))
    assert (config.run.epochs, config.schedule.name, config.regularise.average) == (30, "cosine", 0.5)

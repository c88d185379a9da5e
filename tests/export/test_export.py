"""Exports: equal logits in every runtime, nothing left to compute that could be folded, what the files hold."""

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pages
import pytest
import tensorflow as tf
from helpers import tiny, untrained_run

from g16net import compat, config, export, extras, native
from g16net.data import transforms
from g16net.errors import UserError
from g16net.export import compare, folding, formats, onnx_graph, openvino_ir, saved_model, tf_graph, tflite, verify
from g16net.models import architecture, efficientnet

NAMES = ["ant", "bee", "cat", "dog", "eel", "fly", "gnu"]
PREPARE = {"size": 32, "fit": "crop", "resize": "bilinear"}
# A block that does not expand, with a shortcut; one of stride 2 and 5 x 5; the last.
THREE_BLOCKS = architecture.Variant(0.0625, 0.3, 0.0, 32, stages=(1, 3, 7))
LITE = THREE_BLOCKS._replace(se_ratio=0.0, activation="relu6")
NETWORKS = {
    "ln_pn": {"norm": "ln_pn"},
    "gn strided": {"norm": "gn", "strided_groups": True},
    "gn_pn": {"norm": "gn_pn", "quadrature": "gauss_hermite"},
    "bn g1": {"norm": "bn", "group_size": 1, "expand_ratio": 6, "std": (58.0, 57.0, 57.0)},
    "bn relu": {"norm": "bn", "activation": "relu"},
    "bn lite": {"norm": "bn", "variant": LITE, "std": 1.0},
    "ln_pn lite": {"norm": "ln_pn", "variant": LITE},
}


def network(**arguments):
    """A small network whose every weight, moving statistics included, has been moved off its initial value."""
    model = efficientnet.build(**{"variant": THREE_BLOCKS, "num_classes": len(NAMES), "seed": 1, **arguments})
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.dtype not in ("float32", tf.float32) or "kernel" in weight.name:
                continue
            noise = 0.1 * rng.normal(size=weight.shape)
            noise = np.abs(noise) if "variance" in weight.name else noise
            weight.assign((np.asarray(weight) + noise).astype("float32"))
    return model


def pixels(batch, height, width=None, seed=0):
    shape = (batch, height, width or height, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def logits_of(model, images):
    return np.asarray(model(images.astype("float32"), training=False))


@pytest.fixture(scope="module")
def made():
    """`kind -> (network, its folded steps)`, made once."""

    @functools.lru_cache(maxsize=None)
    def of(kind):
        model = network(**NETWORKS[kind])
        return model, folding.fold(model)

    return of


@pytest.fixture(scope="module")
def plain(made):
    return made("ln_pn")[0]


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """`kind -> path` of its SavedModel, written once."""

    @functools.lru_cache(maxsize=None)
    def of(kind):
        path = str(tmp_path_factory.mktemp("export") / "saved_model")
        saved_model.save(path, made(kind)[1], NAMES, PREPARE)
        return path

    return of


# Folding


@pytest.mark.parametrize("kind", NETWORKS)
def test_folded_network_is_the_network(kind, made):
    model, steps = made(kind)
    for lowering, matmul in ((None, True), ("native", False)):
        folded = tf_graph.Network(steps, lowering, matmul)
        for images in (pixels(3, 32), pixels(2, 47, 33)):
            np.testing.assert_allclose(folded(images), logits_of(model, images), atol=2e-5)


def test_batch_norm_goes_into_the_convolutions(made):
    _, steps = made("bn relu")
    assert not [step for step in steps if isinstance(step, folding.Norm)]
    assert all(step.bias is not None for step in steps if isinstance(step, folding.Conv))


def test_scales_of_proxies_go_into_the_kernels_behind(made):
    _, steps = made("ln_pn")
    before = [step for step, after in zip(steps, steps[1:]) if isinstance(after, (folding.Conv, folding.Dense))]
    norms = [step for step in before if isinstance(step, folding.Norm)]
    assert len(norms) >= 4 and all(step.scale is None for step in norms)
    assert norms[-1].centre is None and norms[0].centre is not None  # the last layer takes both


def test_foreign_layers_are_named():
    model = tf.keras.Sequential([tf.keras.Input((4, 4, 3)), tf.keras.layers.Flatten(name="flat")])
    with pytest.raises(ValueError, match="'flat' is a Flatten"):
        folding.fold(model)


# SavedModel


def functions_of(path):
    """All nodes of a SavedModel's GraphDef."""
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    with open(os.path.join(path, "saved_model.pb"), "rb") as file:
        proto.ParseFromString(file.read())
    graph = proto.meta_graphs[0].graph_def
    return list(graph.node) + [node for function in graph.library.function for node in function.node_def]


@pytest.mark.parametrize("kind", ["ln_pn", "bn g1"])
def test_nothing_is_left_of_the_proxies_and_batch_norms(kind, exported):
    nodes = functions_of(exported(kind))
    assert len(nodes) > 60
    assert not {"Erfinv", "Ndtri", "FusedBatchNormV3"} & {node.op for node in nodes}
    assert not [node.op for node in nodes if node.op.startswith("G16")]
    for node in nodes:
        shapes = [dim.size for shape in node.attr["_output_shapes"].list.shape for dim in shape.dim]
        if node.op == "Const":
            shapes += [dim.size for dim in node.attr["value"].tensor.tensor_shape.dim]
        assert 200 not in shapes, node.name


def test_signatures_of_the_saved_model(plain, exported):
    loaded = tf.saved_model.load(exported("ln_pn"))
    assert set(loaded.signatures) == {"serving_default", "float_images", "image_bytes"}
    assert [name.decode() for name in loaded.class_names.numpy()] == NAMES
    images = pixels(3, 53, 40)
    for name, given in (("serving_default", images), ("float_images", images.astype("float32"))):
        result = loaded.signatures[name](images=tf.constant(given))
        expected = logits_of(plain, images)
        np.testing.assert_allclose(result["logits"], expected, atol=1e-5)
        np.testing.assert_allclose(result["probabilities"], tf.nn.softmax(expected), atol=1e-5)
        best = np.argsort(-expected, axis=1)[:, :5]
        assert result["top_classes"].numpy().tolist() == [[NAMES[i].encode() for i in row] for row in best]
        assert (np.diff(result["top_probabilities"], axis=1) <= 0).all()


def test_encoded_images_get_the_preprocessing_of_testing(plain, exported):
    serve = tf.saved_model.load(exported("ln_pn"))
    jpeg = tf.io.encode_jpeg(pixels(1, 90, 60)[0]).numpy()
    png = tf.io.encode_png(pixels(1, 40, 70, seed=1)[0]).numpy()
    result = serve.signatures["image_bytes"](image_bytes=tf.constant([jpeg, png]))
    prepared = np.stack([transforms.eval_image(tf.constant(data), **PREPARE) for data in (jpeg, png)])
    np.testing.assert_allclose(result["logits"], logits_of(plain, prepared), atol=1e-5)
    for data, why in ((b"no image", "Not a JPEG, PNG, GIF or BMP image"), (b"RIFF    WEBP", "but WebP")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=why):
            serve.signatures["image_bytes"](image_bytes=tf.constant([data]))


@pytest.mark.parametrize("exif", [False, True])
def test_encoded_images_of_every_kind_are_decoded_as_in_training(exif, monkeypatch):
    """Palettes, transparency, orientation: by the operations of the exported graph, here without its network."""
    from made_images import FORMS, oriented
    from PIL import Image, ImageOps

    monkeypatch.setattr(saved_model.tf_graph, "Network", Flat)
    prepare = dict(PREPARE, fit="resize", exif=exif, max_pixels=10**6)
    served = saved_model.served(None, NAMES[:3], prepare)
    forms = ["bmp palette 4", "bmp 16", "gif transparent", "png palette 2 transparent", "jpeg cmyk without adobe"]
    encoded = [FORMS[form] for form in forms] + [oriented("PNG", 6), oriented("JPEG", 8)]
    with native.disabled():
        found = served.image_bytes(tf.constant(encoded))["logits"]
    for row, data in zip(found, encoded):
        image = Image.open(io.BytesIO(data))
        image = np.array((ImageOps.exif_transpose(image) if exif else image).convert("RGB"))
        expected = transforms.eval_image(tf.constant(image), **prepare)
        np.testing.assert_allclose(row, expected[:8, :, 0].numpy().mean(1)[:3], atol=1.5)


class Flat:
    """A network whose logits are means of the first rows."""

    variables = ()

    def __init__(self, steps):
        pass

    def __call__(self, images):
        return tf.reduce_mean(images[:, :3, :, 0], 2)


@pytest.mark.slow
def test_saved_model_needs_tensorflow_alone(exported, tmp_path):
    code = (
        "import sys, tensorflow as tf\n"
        f"model = tf.saved_model.load({exported('ln_pn')!r})\n"
        "out = model.signatures['serving_default'](images=tf.zeros([2, 40, 33, 3], tf.uint8))\n"
        "assert out['logits'].shape == (2, 7), out\n"
        "assert 'g16net' not in {name.split('.')[0] for name in sys.modules}\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=str(tmp_path), env=environment)


@pytest.mark.slow
def test_saved_model_runs_as_tensorflow_serving_loads_it(plain, exported, tmp_path):
    """`saved_model_cli run` loads tag and signature as TensorFlow Serving does: by the C++ loader, without our code."""
    images = pixels(2, 45)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    common = ["--dir", exported("ln_pn"), "--tag_set", "serve", "--signature_def", "serving_default"]
    subprocess.run(
        [*command, "run", *common, "--inputs", f"images={tmp_path}/images.npy", "--outdir", str(tmp_path)],
        check=True, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits_of(plain, images), atol=1e-5)
    shown = subprocess.run(
        [*command, "show", *common], check=True, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert b"shape: (-1, -1, -1, 3)" in shown.stdout and b"DT_UINT8" in shown.stdout


# ONNX


@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("kind", NETWORKS)
def test_onnx_runs_in_its_runtime_with_equal_logits(kind, fuses, made, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model, steps = made(kind)
    (tmp_path / "model.onnx").write_bytes(onnx_graph.convert(steps, NAMES, PREPARE, fuses))
    run = formats.load(str(tmp_path / "model.onnx"))
    for images in (pixels(3, 32), pixels(2, 47, 33)):
        np.testing.assert_allclose(run(images), logits_of(model, images), atol=2e-5)


def test_onnx_keeps_grouped_convolutions_and_says_what_it_is(plain):
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(onnx_graph.convert(folding.fold(plain), NAMES, PREPARE))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", onnx_graph.OPSET)]
    groups = {
        node.name: next(a.i for a in node.attribute if a.name == "group")
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    convolutions = {layer.name: layer for layer in plain.layers if "conv" in layer.name}
    assert groups == {name: getattr(layer, "groups", 1) for name, layer in convolutions.items()}
    assert max(groups.values()) > 1
    properties = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert properties == {"class_names": NAMES, "preprocessing": PREPARE}


# OpenVINO


@pytest.mark.parametrize("kind", ["ln_pn", "gn strided", "bn g1"])
def test_openvino_runs_with_equal_logits(kind, made, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    model, steps = made(kind)
    openvino_ir.save(str(tmp_path / "openvino"), steps, NAMES, PREPARE)
    run = formats.load(str(tmp_path / "openvino"))
    assert run.class_names == NAMES
    for images in (pixels(3, 32), pixels(2, 47, 33)):
        np.testing.assert_allclose(run(images), logits_of(model, images), atol=2e-5)


# TFLite


needs_tflite = pytest.mark.skipif(compat.TF_VERSION < (2, 11), reason="this converter splits grouped convolutions")


@needs_tflite
@pytest.mark.parametrize(
    "kind, precision, bound",
    [
        ("ln_pn", "float32", 2e-5),
        pytest.param("bn g1", "float32", 2e-5, marks=pytest.mark.slow),
        pytest.param("ln_pn", "float16", 2e-2, marks=pytest.mark.slow),
        ("gn strided", "float16", 2e-2),
    ],
)
def test_tflite_runs_in_its_runtime_with_equal_logits(kind, precision, bound, made, tmp_path):
    model, steps = made(kind)
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite.convert(steps, NAMES, PREPARE, precision))
    run = formats.load(str(path))
    for images in (pixels(1, 32), pixels(3, 47, 33)):
        np.testing.assert_allclose(run(images), logits_of(model, images), atol=bound)
    archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    assert archive.read("labels.txt").decode().split() == NAMES
    assert json.loads(archive.read("model.json")) == {**PREPARE, "precision": precision}


@needs_tflite
@pytest.mark.parametrize("kind", [pytest.param("ln_pn", marks=pytest.mark.slow), "bn relu"])
def test_tflite_in_int8_stays_near(kind, made, tmp_path):
    model, steps = made(kind)
    path = tmp_path / "model_int8.tflite"
    path.write_bytes(tflite.convert(steps, NAMES, PREPARE, "int8", [pixels(1, 32, seed=seed) for seed in range(50)]))
    single = tflite.convert(steps, NAMES, PREPARE, "float32")
    assert path.stat().st_size < 0.7 * len(single)
    run = formats.load(str(path))
    images = pixels(32, 32, seed=99)
    expected = logits_of(model, images)
    assert np.abs(run(images) - expected).mean() < 0.1 * np.abs(expected).max()


# The modes


@needs_tflite
def test_blocks_of_the_serving_docs_run(made, tmp_path, monkeypatch):
    for module in ("onnx", "onnxruntime", "openvino", "ai_edge_litert"):
        pytest.importorskip(module)
    steps = made("ln_pn")[1]
    openvino_ir.save(str(tmp_path / "openvino"), steps, NAMES, PREPARE)
    (tmp_path / "model.onnx").write_bytes(onnx_graph.convert(steps, NAMES, PREPARE))
    (tmp_path / "model_float16.tflite").write_bytes(tflite.convert(steps, NAMES, PREPARE))
    monkeypatch.chdir(tmp_path)
    blocks = [b.text for b in pages.blocks("docs/serving.md") if b.language == "python" and b.mark == "tested"]
    assert len(blocks) == 3
    for block in blocks:
        exec(block, {"__name__": "__main__"})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`(config, workdir)` of a run with a checkpoint of a network that was not trained."""
    settings = tiny(export__check_images=40, export__calibration=20)
    return settings, untrained_run(tmp_path_factory.mktemp("run"), settings)


@pytest.mark.run
@pytest.mark.parametrize(
    "kind, precision",
    [
        pytest.param("saved_model", "float32", marks=pytest.mark.slow),
        ("onnx", "float32"),
        pytest.param("tflite", "float16", marks=pytest.mark.slow),
        ("tflite", "int8"),
        pytest.param("keras", "float32", marks=pytest.mark.slow),
    ],
)
def test_export_writes_what_verify_export_finds_equal(run, kind, precision):
    settings, workdir = run
    settings = settings.copy_and_resolve_references()
    settings.export.format, settings.export.precision = kind, precision
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    if kind in ("tflite", "keras") and compat.TF_VERSION < (2, 12):
        pytest.skip("needs a newer TensorFlow")
    figures = export.export(settings, workdir)
    assert figures["bytes"] == export.size_of(figures["path"]) > 20_000
    assert len(figures["checked_sizes"]) >= 2
    if precision != "int8":
        assert figures["largest_logit_difference"] <= figures["tolerance"]
    if kind == "tflite":
        assert figures["images"] == 40 and 0 <= figures["top1_export"] <= 1
        renamed = os.path.join(workdir, "flowers.tflite")
        shutil.copy(figures["path"], renamed)
        assert compare.precision_of(renamed) == precision
    assert not [name for name in os.listdir(workdir) if "partial" in name]
    again = verify.verify_export(settings, workdir)
    assert again["images"] == 40 and "failed" not in again
    assert again["path"] == figures["path"]
    if precision != "int8":
        assert again["top1_agreement"] == 1.0


@pytest.mark.run
def test_verify_export_finds_the_weights_of_another_checkpoint(run, tmp_path):
    settings, workdir = run
    other = efficientnet.build("NANO", num_classes=5, seed=7)
    saved_model.save(str(tmp_path / "other"), folding.fold(other), [f"class {i}" for i in range(5)], PREPARE)
    figures = verify.verify_export(settings, workdir, str(tmp_path / "other"))
    assert "not those of the checkpoint" in figures["failed"]


@pytest.mark.parametrize(
    "name, message",
    [
        ("nothing.onnx", "no exported file"),
        ("empty", "without saved_model.pb or model.xml"),
        ("model.pb", "known format"),
        ("model", "known format"),
    ],
)
def test_a_file_that_is_no_export_is_refused(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    for file in ("model.pb", "model"):
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        formats.load(str(tmp_path / name))


def test_a_missing_package_is_named_with_its_command():
    with pytest.raises(UserError, match=r"--format=onnx needs the package 'no_such'.*pip install 'g16net\[export\]'"):
        extras.need("no_such.module", "export", "--format=onnx")


def test_wrong_format_is_a_config_error():
    with pytest.raises(config.ConfigError, match="'export.format'.*Did you mean 'tflite'"):
        tiny(export__format="tf_lite")

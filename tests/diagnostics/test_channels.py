"""Mean and spread of each channel before the activations: values, all images at once, the mode and its figure."""

import json
import os

import made_runs
import numpy as np
import pages
import pytest
import tensorflow as tf

from g16net import config
from g16net.cli import command
from g16net.config import recipe
from g16net.diagnostics import channels
from g16net.errors import ConfigError, RunError
from g16net.layers import BatchNorm, GroupNorm
from g16net.models import efficientnet

X = tf.constant(np.random.RandomState(0).randn(6, 5, 4, 8) * np.arange(1, 9) + np.arange(8), tf.float32)


@pytest.mark.parametrize("groups", [1, 4])
def test_normalised_values_are_those_of_the_layer_without_scale_and_shift(groups):
    layer = GroupNorm(groups, scale=False, center=False)
    expected = layer(X)
    np.testing.assert_allclose(layer.normalised(X), expected, atol=1e-6)


def test_batch_norm_uses_its_moving_statistics():
    layer = BatchNorm(scale=False, center=False)
    layer(X, training=True)
    np.testing.assert_allclose(layer.normalised(X), layer(X, training=False), atol=1e-5)


@pytest.mark.parametrize("norm", ["bn", pytest.param("gn", marks=pytest.mark.slow), "ln_pn"])
def test_statistics_are_those_of_all_images_whatever_the_batches(norm):
    model = efficientnet.build("NANO", 16, 4, norm, 3, seed=0)
    images = np.random.RandomState(1).randint(0, 256, (7, 32, 32, 3)).astype("float32")
    whole = channels.statistics(model, [images])
    parts = channels.statistics(model, [images[:3], images[3:6], images[6:]])
    assert [row["depth"] for row in whole] == list(range(len(whole))) and whole[0]["layer"].startswith("stem")
    assert len(whole) == sum(layer.name.endswith("norm") for layer in model.layers)
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(a["mean"], b["mean"], rtol=1e-5, atol=1e-4)
        assert a["drift"] == pytest.approx(b["drift"], abs=1e-5) and 0 <= a["drift"] <= 1
    few = channels.statistics(model, [images[:5], images[5:]], images=3)
    np.testing.assert_allclose(few[-1]["mean"], channels.statistics(model, [images[:3]])[-1]["mean"], atol=1e-5)


def test_rows_by_hand():
    row = channels._row("a", 3, np.array([0.0, 2.0]), np.array([1.0, 4.0 + np.e**2]))
    assert row["drift"] == pytest.approx((4 / 2) / ((5 + np.e**2) / 2)) and row["spread"] == pytest.approx(0.5)
    assert json.loads(json.dumps(row)) == row


def test_other_devices_are_refused():
    settings = config.default()
    settings.runtime.strategy = "mirrored"
    with pytest.raises(ConfigError, match="strategy=default"):
        channels.check(settings)


def test_the_mode_keeps_each_channel(tmp_path, monkeypatch):
    model = efficientnet.build("NANO", 16, 4, "ln_pn", 3, seed=0)
    images = np.random.RandomState(1).randint(0, 256, (3, 32, 32, 3)).astype("float32")
    monkeypatch.setattr(channels.assemble, "trained", lambda config, workdir: (model, "abc"))
    monkeypatch.setattr(channels.assemble, "open_eval_source", lambda *args: None)
    monkeypatch.setattr(channels.assemble, "sample", lambda *args: [(images[:2], None), (images[2:], None)])
    assert command.run_mode("channels", recipe.resolve(config.default()), str(tmp_path))
    shown = json.loads((tmp_path / "channels.json").read_text())
    kept = json.loads(open(shown["moments"]).read())["layers"]
    assert [row["layer"] for row in shown["layers"]] == [row["layer"] for row in kept] and len(kept) == 10
    expected = channels.statistics(model, [images])
    np.testing.assert_allclose(kept[-1]["mean"], expected[-1]["mean"], atol=1e-5)
    with pytest.raises(RunError, match="no image could be read"):
        channels.statistics(model, [images[:0]])


def test_the_figure_takes_seeds_of_one_network(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(os.path.join(pages.ROOT, "docs", "figures"))
    import channels as drawing

    def write(name, norm, drift, depth=0.3):
        folder = made_runs.write(tmp_path / name, norm=norm, depth=depth)
        names = ("stem_norm", "block1a_norm", "block1a_project_norm", "block2a_norm", "top_norm")
        rows = [{"layer": layer, "drift": drift * i, "spread": 0.1} for i, layer in enumerate(names)]
        (folder / "channel_moments.json").write_text(json.dumps({"layers": rows}))
        return str(folder)

    folders = [write("a", "ln", 0.1), write("b", "ln", 0.3), write("c", "bn", 0.0)]
    found, title = drawing.load(folders)
    assert title == "fashion-mnist, TINY w0.25 d0.3 G16" and [len(seeds) for seeds in found.values()] == [2, 1]
    assert drawing.spatial(found["ln"][0]) == [1, 3]
    assert drawing.by_depth(found["ln"], "drift")[3] == pytest.approx((0.6, 0.3, 0.9))
    drawing.draw(found, title, str(tmp_path / "drawn.png"))
    assert (tmp_path / "drawn.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="not of the same network"):
        drawing.load([*folders, write("d", "ln_pn", 0.1, depth=0.5)])

"""Networks cut in two: the halves together are the whole, and share its weights."""

import numpy as np
import pytest
import tensorflow as tf

from g16net.models import architecture, efficientnet, split

FIRST = {
    ("top",): "top_conv",
    ("top", "block7"): "block7a_expand_conv",
    ("top", "block7", "block6"): "block6a_expand_conv",
}


@pytest.fixture(scope="module", params=["ln_pn", "bn"])
def model(request):
    return efficientnet.build("TINY", norm=request.param, num_classes=10, seed=1)


@pytest.mark.parametrize("parts", FIRST)
def test_halves_make_the_whole(model, parts):
    name = split.first_layer(model, parts)
    assert name == FIRST[parts]
    trunk, head = split.split(model, name)
    images = tf.random.stateless_uniform([2, 32, 32, 3], [0, 1], maxval=255.0)
    features = trunk(images, training=False)
    np.testing.assert_array_equal(model(images, training=False), head(features, training=False))
    assert {id(v) for v in trunk.weights} | {id(v) for v in head.weights} == {id(v) for v in model.weights}
    assert not {id(v) for v in trunk.weights} & {id(v) for v in head.weights}
    assert {layer.name for layer in head.layers[1:]} == {
        layer.name for layer in model.layers if layer.name.startswith(parts + ("predictions",))
    }


def test_a_cut_that_a_shortcut_passes_is_refused():
    twice = architecture.VARIANTS["NANO"]._replace(depth=1.0)
    model = efficientnet.build(twice, num_classes=10)
    with pytest.raises(ValueError, match="cannot be cut in front of 'block2b_conv'"):
        split.split(model, "block2b_conv")

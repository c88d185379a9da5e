"""Costs counted from the tables: the published networks' exact counts, timm's activations, memory's definition."""

import json

import helpers
import pytest

from g16net.costs import counts
from g16net.models import architecture, norms

TABLE = json.loads((helpers.GOLDEN / "cost_table.json").read_text())
pytestmark = pytest.mark.once

KINDS = {"G1": (1, 6), "G16": (16, 4)}


@pytest.mark.parametrize(
    "kind, column, variant, expected",
    [
        (kind, column, variant, params)
        for kind, columns in TABLE["params"].items()
        for column, variants in columns.items()
        for variant, params in variants.items()
    ],
)
def test_params_equal_published(kind, column, variant, expected):
    for norm in {"affine": ("bn", "gn", "ln"), "LN_PN": ("ln_pn", "gn_pn")}[column]:
        assert counts.count(variant, *KINDS[kind], norm=norm).params == expected


@pytest.mark.parametrize(
    "kind, variant, size, expected",
    [
        (kind, variant, int(size), macs)
        for kind, variants in TABLE["macs"].items()
        for variant, sizes in variants.items()
        for size, macs in sizes.items()
    ],
)
def test_macs_equal_published(kind, variant, size, expected):
    for norm in norms.NORMS:
        assert counts.count(variant, *KINDS[kind], norm=norm, size=size).macs == expected


def test_cost_table_covers_the_variants_sizes():
    for name, sizes in TABLE["input"].items():
        variant = architecture.VARIANTS[name]
        assert [size for size in (variant.native, variant.half) if size] == sizes


@pytest.mark.parametrize("kind", KINDS)
def test_cifar_counts_equal_published(kind):
    golden = TABLE["cifar_10_classes_32px"][kind]
    for norm, params in (("gn", golden["affine"]), ("ln_pn", golden["LN_PN"])):
        counted = counts.count("CIFAR", *KINDS[kind], norm=norm, size=32, num_classes=10)
        assert (counted.params, counted.macs) == (params, golden["macs"])


@pytest.mark.parametrize(
    "variant, millions",
    [("B0", 6.75), ("B1", 10.88), ("B2", 13.83), ("B3", 23.83), ("B4", 49.49), ("B5", 98.86), ("B6", 167.39)],
)
def test_activations_equal_those_of_timm(variant, millions):
    """The column of timm's table of models (tf_efficientnet_b*, native size), in millions to two places."""
    assert counts.count(variant, 1, 6, "bn").activations / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("norm", norms.NORMS)
def test_defaults_and_size_forms(norm):
    assert counts.count("B2", norm=norm) == counts.count("b2", 16, 4, norm, size=260)
    assert counts.count("B2", norm=norm, size=(260, 260)) == counts.count("B2", norm=norm)
    wide = counts.count("TINY", norm=norm, size=(32, 64), num_classes=10)
    assert wide.macs > counts.count("TINY", norm=norm, size=32, num_classes=10).macs


def test_memory_by_hand():
    """Variables 16 bytes a parameter; then for each image what the stated rule keeps, written out for one block."""
    norm_sizes = dict(variant="TINY", group_size=1, expand_ratio=6, norm="ln")
    one, four = (counts.count(**norm_sizes, batch=batch).memory for batch in (1, 4))
    params = counts.count(**norm_sizes).params
    per_image = (four - one) / 3
    assert one - per_image == 16 * params
    half = [counts.count(**norm_sizes, batch=batch, dtype_bytes=2).memory for batch in (1, 2)]
    assert half[1] - half[0] == per_image / 2
    assert half[0] - per_image / 2 == 18 * params

    # 32 px: image, stem 16 px x 8 channels; block 1a (skip): conv 8, norm 8, SE 8, project 8, [norm], add 8.
    rows = counts.layers(**norm_sizes)
    names = [row.name for row in rows]
    assert names[:9] == [
        "stem_conv",
        "stem_norm",
        "block1a_conv",
        "block1a_norm",
        "block1a_se",
        "block1a_project_conv",
        "block1a_project_norm",
        "block1a_add",
        "block2a_expand_conv",
    ]
    image, pixels = 32 * 32 * 3, 16 * 16
    kept_till_1a = image + pixels * 8 * 7  # of the eight outputs only that of block1a_project_norm is needed by no one
    rest = sum(row.elements for row, user in zip(rows[8:], rows[9:]) if user.kind not in ("add", "pool"))
    assert per_image == 4 * (kept_till_1a + rest)


def test_batch_norm_has_its_activation_apart():
    kinds = [row.kind for row in counts.layers("TINY", norm="bn")]
    fused = [row.kind for row in counts.layers("TINY", norm="ln_pn")]
    assert [kind for kind in kinds if kind != "activation"] == fused
    assert kinds.count("activation") == 2 + 1 + 2 * 7  # stem and top, block 1a, two in every other block


def test_layers_are_consistent():
    rows = counts.layers("B3", size=204)
    assert len({row.name for row in rows}) == len(rows)
    for previous, row in zip(rows, rows[1:]):
        assert row.in_channels == previous.out_channels
        assert row.in_channels % row.groups == row.out_channels % row.groups == 0
        if row.kind not in ("pool", "dense"):
            assert (row.height, row.width) == tuple(-(-n // row.stride) for n in (previous.height, previous.width))
    assert {row.kernel for row in rows if row.kind == "group_conv"} == {3, 5}


def test_errors():
    with pytest.raises(ValueError, match="'ln-pn'.*Did you mean ln_pn"):
        counts.count(norm="ln-pn")
    with pytest.raises(ValueError, match="size.*0"):
        counts.count(size=0)


def test_lite_has_the_parameters_of_timms_networks():
    """Of timm's tf_efficientnet_lite0 to lite4."""
    published = [4_652_008, 5_416_680, 6_092_072, 8_197_096, 13_006_568]
    assert [counts.count(f"LITE{i}", 1, 6, "bn").params for i in range(5)] == published
    assert not [row for row in counts.layers("LITE0") if row.kind == "squeeze_excite"]

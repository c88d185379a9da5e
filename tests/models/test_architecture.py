"""Block and variant tables against the published networks' tables."""

import json

import helpers
import pytest

from g16net.models import architecture

pytestmark = pytest.mark.once

TABLES = json.loads((helpers.GOLDEN / "block_tables.json").read_text())
NETWORKS = [name for name in TABLES if "-" in name]


@pytest.mark.parametrize("network", NETWORKS)
def test_blocks_equal_published_tables(network):
    variant, kind = network.split("-")
    group_size, expand_ratio = {"G1": (1, 6), "G16": (16, 4)}[kind]
    golden = TABLES[network]
    blocks = architecture.blocks(variant, group_size, expand_ratio)
    assert architecture.Block._fields == tuple(TABLES["columns"])
    assert architecture.stem_channels(variant) == golden["stem"]
    assert architecture.top_channels(variant) == golden["top"]
    assert len(blocks) == len(golden["blocks"])
    for block, row in zip(blocks, golden["blocks"]):
        if (network, block.name) == ("B6-G16", "1a"):
            row = row[:7] + [2] + row[8:]  # 3 groups do not divide 56 channels: the published code fails, ours takes 2
        assert list(block[:-1]) == row[:-1]
        assert block.survival == pytest.approx(row[-1], abs=1e-11)


@pytest.mark.parametrize("group_size", [1, 2, 4, 8, 16, 24, 64, 10_000])
@pytest.mark.parametrize("variant", architecture.VARIANTS)
def test_groups_divide_channels_and_hold_at_least_group_size(variant, group_size):
    for block in architecture.blocks(variant, group_size, 4):
        assert block.expanded_channels % block.groups == 0
        assert block.expanded_channels // block.groups >= min(group_size, block.expanded_channels)


def test_rounding():
    assert architecture.round_width(32, 1.1) == 32  # 35.2: the nearest multiple
    assert architecture.round_width(80, 0.125) == 16  # 10: 8 would lose 20 %
    assert architecture.round_width(8, 0.1) == 8  # at least one
    assert architecture.round_width(24, 1.4) == 32  # 33.6: down by less than 10 %
    assert [architecture.round_depth(repeats, 1.4) for repeats in (1, 2, 3, 4)] == [2, 3, 5, 6]


def test_strides():
    assert {name: variant.stride for name, variant in architecture.VARIANTS.items()} == {
        **{f"B{i}": 32 for i in range(8)},
        **{f"LITE{i}": 32 for i in range(5)},
        "CIFAR": 8,
        "TINY": 16,
        "NANO": 2,
    }


def test_survival_falls_linearly_to_the_last_block():
    survival = [block.survival for block in architecture.blocks("B1", survival_prob=0.5)]
    assert survival[0] == 1
    assert survival[-1] == pytest.approx(1 - 0.5 * 22 / 23)
    assert all(block.survival == 1 for block in architecture.blocks("B1", survival_prob=1))


def test_own_variant():
    own = architecture.Variant(width=0.25, depth=0.5, dropout=0.1, native=28)
    assert architecture.stem_channels(own) == 8
    assert len(architecture.blocks(own)) == 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(variant="B8"), "B8.*Did you mean B"),
        (dict(variant="cifra"), "Did you mean CIFAR"),
        (dict(expand_ratio=0), "expand_ratio.*0"),
        (dict(expand_ratio=None), "expand_ratio.*None"),
        (dict(group_size=0), "group_size.*0"),
        (dict(survival_prob=0.0), "survival_prob.*0"),
    ],
)
def test_errors_name_value_and_remedy(arguments, message):
    with pytest.raises(ValueError, match=message):
        architecture.blocks(**arguments)

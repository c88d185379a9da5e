"""IPU runs as data: published configurations, plans, cuts and every refusal, without TensorFlow."""

import subprocess
import sys

import pytest
from helpers import changed

from g16net.config import batches, experiments, recipe
from g16net.config import ipu as settings
from g16net.errors import ConfigError
from g16net.models import architecture

pytestmark = pytest.mark.once

ROWS = [
    (variant, group_size, norm, resolution)
    for (group_size, norm, resolution), rows in settings.PUBLISHED.items()
    for variant in rows
]


def resolved(variant="B0", group_size=16, norm="ln_pn", resolution="native", **changes):
    """A resolved IPU run; `changes` as section__field=value."""
    config = experiments.load(f"g16_ln_pn:variant={variant},resolution={resolution}")
    config.model.group_size, config.model.norm = group_size, norm
    config.runtime.strategy, config.runtime.precision = "ipu", "mixed_float16"
    return changed(config, **changes)


def layer_names(variant):
    """The layers of a network with skip connections, in order."""
    names = ["normalize", "stem_conv", "stem_norm"]
    for block in architecture.blocks(variant):
        names += [f"block{block.name}_{part}" for part in ("expand_conv", "conv", "norm", "se", "project_conv", "add")]
    return names + ["top_conv", "top_norm", "top_pool", "top_dropout", "predictions"]


def test_thirty_configurations_were_published():
    assert len(ROWS) == 30


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)))
def test_every_published_configuration_in_dry_form(row):
    published = settings.published(*row)
    assert published.micro_batch * published.replicas * published.accumulation == 768
    assert published.stages * published.replicas == 16
    config = resolved(*row, ipu__use_published=True)
    plan = settings.plan(config)
    assert (plan.micro_batch, plan.stages, plan.replicas, plan.accumulation, plan.splits) == published[:5]
    assert plan.ipus == 16 and plan.accumulation % (2 * plan.stages) == 0
    assert config.ipu.available_memory_proportion == published.available_memory_proportion
    assert config.ipu.offload == published.offload
    settings.check_steps(config, 1281167 // 768)  # ImageNet
    assert recipe.resolve(config) == config

    names = layer_names(row[0])
    stages = settings.split_stages(names, plan.splits)
    assert list(stages) == names
    order = [stages[name] for name in names]
    assert order == sorted(order) and set(order) == set(range(plan.stages))
    firsts = [settings.block_of(names[order.index(stage)]) for stage in range(plan.stages)]
    assert firsts == ["stem"] + list(plan.splits)


def test_values_from_the_paper():
    assert settings.published("B5", 1, "gn", "native") == (2, 4, 4, 96, ("2c", "4a", "5g"), None, True)
    assert settings.published("B1", 16, "gn", "native") == (8, 2, 8, 12, ("4b",), None, False)
    low = [row for row in ROWS if settings.published(*row).available_memory_proportion == 0.2]
    assert sorted(low) == [
        ("B2", 1, "gn", "native"),
        ("B2", 16, "gn", "native"),
        ("B2", 16, "ln_pn", "native"),
        ("B4", 1, "gn", "native"),
        ("B5", 16, "gn", "native"),
        ("B5", 16, "ln_pn", "half"),
        ("B5", 16, "ln_pn", "native"),
    ]
    assert [row for row in ROWS if settings.published(*row).offload] == [("B5", 1, "gn", "native")]


def test_what_the_user_sets_stays():
    config = resolved(ipu__use_published=True, runtime__micro_batch=6, runtime__grad_accumulation=16, ipu__splits="4a")
    assert settings.plan(config)[:4] == (6, 16, 8, 2)


def test_what_is_left_open_is_derived():
    assert settings.plan(resolved())[:5] == (768, 1, 1, 1, 1)
    # three stages lie on four IPUs, and six micro-batches fill their pipeline
    assert settings.plan(resolved(ipu__splits="2b, 4a"))[:5] == (128, 6, 1, 3, 4)
    assert settings.plan(resolved(ipu__splits="2b,4a", ipu__schedule="Interleaved"))[:2] == (256, 3)
    assert settings.plan(resolved(ipu__replicas=4, runtime__micro_batch=16))[:2] == (16, 12)


def test_io_tiles_want_two_micro_batches_more():
    tiles = dict(ipu__splits="3b", ipu__io_tiles=32)
    assert resolved(**tiles).runtime.grad_accumulation == 8  # what is left open is derived by the same rule
    assert resolved(runtime__grad_accumulation=6, **tiles).runtime.grad_accumulation == 6  # no multiple of 4
    assert resolved(ipu__schedule="Interleaved", **tiles).runtime.grad_accumulation == 2  # it does not overlap

    for stages, without, within in ((1, 1, 1), (2, 2, 4), (3, 3, 6), (4, 4, 8)):
        config = resolved(ipu__splits=",".join(["2b", "3b", "4b"][: stages - 1]))
        assert settings.forward_steps(config, stages) == without
        with config.unlocked():
            config.ipu.io_tiles = 32
        assert settings.forward_steps(config, stages) == within
        assert settings.forward_steps(config, stages, 1000) == settings.up_to_multiple(64, stages)


def test_devices_of_each_process_have_a_seed_of_their_own():
    seeds = [settings.device_seed(seed, index) for seed in (0, 1, 42, 2**31 - 1) for index in range(16)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**31 for seed in seeds)
    assert settings.device_seed(42, 0) == 42


def test_a_plan_in_words():
    text = "16 IPUs: 8 x 2, pipelined before 3b; micro batch 12 x 8 accumulated"
    assert str(settings.plan(resolved(ipu__use_published=True))) == text


REFUSED = {
    "published": (dict(variant="B6", ipu__use_published=True), "no configuration was published for B6"),
    "published norm": (dict(norm="gn_pn", ipu__use_published=True), "G16 gn_pn native"),
    "offload": (dict(ipu__offload=True), "set --config.runtime.grad_accumulation=2 or more"),
    "batch": (dict(ipu__use_published=True, run__global_batch=512), "= 768, not run.global_batch=512"),
    "block": (dict(ipu__splits="3c"), "network has no block '3c'. Valid, in order: 1a, 2a, 2b"),
    "stem": (dict(ipu__splits="stem"), "has no block 'stem'"),
    "order": (dict(ipu__splits="4a,2b"), "set --config.ipu.splits=2b,4a"),
    "twice": (dict(ipu__splits="4a,4a"), "set --config.ipu.splits=4a"),
    "accumulation": (dict(ipu__splits="3b", runtime__grad_accumulation=6), "must be a multiple of 4"),
    "ipus": (dict(ipu__splits="2b,4a", ipu__ipus_per_replica=3), "=3 must be 4, the power of two that holds"),
    "few ipus": (dict(ipu__splits="2b,4a", ipu__ipus_per_replica=2), "=2 must be 4"),
    # the SDK would make two replicas of the four IPUs, and half the updates got doubled gradients
    "many ipus": (dict(ipu__splits="3b", ipu__ipus_per_replica=4), "set --config.ipu.ipus_per_replica=2"),
    "idle": (dict(ipu__ipus_per_replica=2), "=2 must be 1"),
    "device": (dict(ipu__replicas=3), "devices come in powers of two: set --config.ipu.replicas=2"),
    "io tiles": (dict(ipu__splits="3b", runtime__grad_accumulation=4, ipu__io_tiles=32), "must be at least 6"),
    "seed": (dict(run__seed=2**31), "between 0 and 2147483647"),
    "no seed": (dict(run__seed=-1), "between 0 and 2147483647"),
    "bn": (dict(norm="bn", ipu__splits="3b"), "model.norm=bn cannot train in a pipeline"),
    "bfloat16": (dict(runtime__precision="mixed_bfloat16"), "no bfloat16"),
    "mixing": (dict(data__mix_on_device=True), "data.mix_on_device works on one device a process"),
    "proportion": (dict(ipu__available_memory_proportion=1.5), "above 0 and up to 1"),
    "schedule": (dict(ipu__schedule="grouped"), "Did you mean 'Grouped'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_starts(case):
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        resolved(**changes)
    assert message in str(error.value)


def test_steps():
    config = resolved(runtime__steps_per_execution=5)
    with pytest.raises(ConfigError, match="must divide the 1668 weight updates.*steps_per_execution=4"):
        settings.check_steps(config, 1668)
    settings.check_steps(config, 1670)
    settings.check_steps(resolved(), 1668)
    with pytest.raises(ConfigError, match="an IPU counts to 2147483647"):
        settings.check_steps(resolved(run__epochs=10000), 1668)


def test_the_rest_of_an_epoch_is_whole_calls():
    for calls, updates, done in ((5, 1670, 835), (1, 11, 6), (11, 11, 4), (6, 12, 8), (4, 12, 8)):
        settings.check_rest(resolved(runtime__steps_per_execution=calls), updates, done)
    with pytest.raises(ConfigError, match="update 6 of an epoch of 12, and the 6 .* no whole number.*execution=3"):
        settings.check_rest(resolved(runtime__steps_per_execution=4), 12, 6)


@pytest.mark.parametrize(
    "given, expected",
    [
        ((768, 8, 12, 8), (12, 8)),
        ((768, 8), (96, 1)),
        ((768, 8, 12), (12, 8)),
        ((768, 8, None, 4), (24, 4)),
        ((1, 1), (1, 1)),
    ],
)
def test_split_of_a_batch(given, expected):
    assert batches.split(*given) == expected


@pytest.mark.parametrize("given", [(768, 8, 12, 4), (768, 5), (768, 8, 7), (768, 8, None, 5), (2, 4)])
def test_split_of_a_batch_refused(given):
    with pytest.raises(ConfigError, match="not run.global_batch="):
        batches.split(*given)


@pytest.mark.parametrize("splits", [("3c",), ("4a", "2b"), ("stem",)])
def test_split_stages_refuses_what_it_cannot_cut(splits):
    with pytest.raises(ConfigError, match="Valid, in order: 1a, 2a"):
        settings.split_stages(layer_names("B0"), splits)


@pytest.mark.run
def test_no_tensorflow():
    code = "import sys, g16net.config.recipe, g16net.config.ipu; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""IPU runs as data: the published configurations, the plan of a run, and the cut of a network into pipeline stages.

Pure Python, so that everything about a run that can be wrong is found before TensorFlow or a device starts. A pipeline
of s stages lies on as many IPUs; replicas of it train together, each adding up the gradients of several micro-batches:

    global batch = micro batch x accumulation x replicas       IPUs = replicas x IPUs of a replica

Published configurations: arXiv 2106.03640 and its code, 16 IPUs, global batch 768.
"""

import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from ml_collections import ConfigDict

from g16net.config import batches
from g16net.errors import ConfigError
from g16net.models import architecture, norms
from g16net.models.architecture import Variant

STRATEGIES = ("ipu", "popdist")

# The pipeline's scheduler runs forward and backward passes of all stages side by side: so many micro-batches are in it
# at a time. Evaluation and serving run forward passes alone, `stages` of them, in the SDK's default schedule.
SCHEDULES = {
    "Grouped": lambda stages: 2 * stages,
    "Interleaved": lambda stages: stages,
    "Sequential": lambda stages: 1,
}
FORWARD_SCHEDULE = "Grouped"

# Micro-batches of a replica in one evaluation program, at most: what it sends back waits on the device until its end.
EVAL_STEPS = 64

LARGEST_INTEGER = 2**31 - 1  # the device keeps int64 in 32 bits, as its seed


class Published(NamedTuple):
    """One published 16-IPU configuration."""

    micro_batch: int
    stages: int
    replicas: int
    accumulation: int
    splits: Tuple[str, ...]
    # Share of the tiles' memory for temporaries of convolutions; None: the SDK's own default.
    available_memory_proportion: Optional[float] = None
    # Published with the float32 copy of the weights off chip. Keras keeps that copy where the forward pass reads it;
    # what can leave the chip instead is the optimiser's state, twice as large.
    offload: bool = False


_G16_NATIVE = {
    "B0": Published(12, 2, 8, 8, ("3b",)),
    "B1": Published(8, 2, 8, 12, ("4b",)),
    "B2": Published(12, 4, 4, 16, ("2b", "4a", "5d"), 0.2),
    "B3": Published(8, 4, 4, 24, ("2b", "4b", "5e")),
    "B4": Published(4, 4, 4, 48, ("2c", "4c", "6a")),
    "B5": Published(2, 4, 4, 96, ("2e", "4f", "6e"), 0.2),
}
_G16_HALF = {
    "B0": Published(24, 2, 8, 4, ("4b",)),
    "B1": Published(24, 4, 4, 8, ("2b", "4a", "5d")),
    "B2": Published(24, 4, 4, 8, ("2b", "4a", "5d")),
    "B3": Published(12, 4, 4, 16, ("2b", "4b", "5e")),
    "B4": Published(8, 4, 4, 24, ("2c", "4c", "6a")),
    "B5": Published(3, 4, 4, 64, ("2e", "4e", "6c")),
}
# (group size, norm, resolution) -> variant -> configuration
PUBLISHED = {
    (1, "gn", "native"): {
        "B0": Published(12, 2, 8, 8, ("3b",)),
        "B1": Published(12, 4, 4, 16, ("2b", "4a", "5c")),
        "B2": Published(12, 4, 4, 16, ("2b", "4a", "5d"), 0.2),
        "B3": Published(6, 4, 4, 32, ("2b", "4a", "5d")),
        "B4": Published(3, 4, 4, 64, ("2b", "4b", "6c"), 0.2),
        "B5": Published(2, 4, 4, 96, ("2c", "4a", "5g"), None, True),
    },
    (16, "gn", "native"): _G16_NATIVE,
    (16, "ln_pn", "native"): _G16_NATIVE,
    (16, "gn", "half"): _G16_HALF,
    (16, "ln_pn", "half"): dict(_G16_HALF, B5=_G16_HALF["B5"]._replace(available_memory_proportion=0.2)),
}


def published(variant: str, group_size: int, norm: str, resolution: str) -> Any:
    """The published 16-IPU configuration of a network.

    Args:
        variant: "B0" to "B5".
        group_size: 1 or 16.
        norm: "gn" or "ln_pn".
        resolution: "native" or "half".

    Raises:
        ConfigError: where none was published; with those that were.
    """
    found = PUBLISHED.get((group_size, norm, resolution), {}).get(variant)
    if found is None:
        known = "; ".join(f"G{g} {n} {r} {', '.join(rows)}" for (g, n, r), rows in PUBLISHED.items())
        raise ConfigError(
            f"ipu.use_published: no configuration was published for {variant} G{group_size} {norm} {resolution}. "
            f"Published: {known}. Set --config.ipu.use_published=false and runtime.micro_batch, "
            "runtime.grad_accumulation, ipu.replicas and ipu.splits yourself"
        )
    return found


class Plan(NamedTuple):
    """Who computes what in one weight update. `replicas` counts those of all processes."""

    micro_batch: int
    accumulation: int
    replicas: int
    stages: int
    ipus_per_replica: int
    splits: Tuple[str, ...]

    @property
    def pipelined(self) -> bool:
        return self.stages > 1

    @property
    def ipus(self) -> int:
        return self.replicas * self.ipus_per_replica

    def __str__(self):
        pipeline = f", pipelined before {' '.join(self.splits)}" if self.pipelined else ""
        return (
            f"{self.ipus} IPU{'s' if self.ipus > 1 else ''}: {self.replicas} x {self.ipus_per_replica}{pipeline}; "
            f"micro batch {self.micro_batch} x {self.accumulation} accumulated"
        )


def resolve(config: ConfigDict) -> None:
    """Fills the fields that an IPU run derives into `config` (unlocked, its sizes resolved).

    Raises:
        ConfigError: where nothing can be derived.
    """
    if config.ipu.use_published:
        _fill_published(config)
    if config.ipu.replicas is None:
        config.ipu.replicas = 1
    splits = parse_splits(config.ipu.splits)
    variant = architecture.scaled(config.model.variant, config.model.width, config.model.depth)
    check_splits(splits, variant)
    stages = len(splits) + 1
    if config.ipu.ipus_per_replica is None:
        config.ipu.ipus_per_replica = power_of_two(stages)
    given = config.runtime.micro_batch, config.runtime.grad_accumulation
    if given == (None, None) and stages > 1:  # the fewest micro-batches that fill the pipeline
        step, least = filling(SCHEDULES[config.ipu.schedule](stages), config.ipu.schedule, config.ipu.io_tiles)
        given = None, up_to_multiple(least, SCHEDULES[config.ipu.schedule](stages))
    config.runtime.micro_batch, config.runtime.grad_accumulation = batches.split(
        config.run.global_batch, config.ipu.replicas, *given
    )


def plan(config: ConfigDict) -> "Plan":
    """The `Plan` of a resolved config."""
    splits = parse_splits(config.ipu.splits)
    return Plan(
        micro_batch=config.runtime.micro_batch,
        accumulation=config.runtime.grad_accumulation,
        replicas=config.ipu.replicas,
        stages=len(splits) + 1,
        ipus_per_replica=config.ipu.ipus_per_replica,
        splits=splits,
    )


def _fill_published(config):
    row = published(config.model.variant, config.model.group_size, config.model.norm, config.data.resolution)
    for section, name, value in (
        ("runtime", "micro_batch", row.micro_batch),
        ("runtime", "grad_accumulation", row.accumulation),
        ("ipu", "replicas", row.replicas),
        ("ipu", "available_memory_proportion", row.available_memory_proportion),
    ):
        if config[section][name] is None:
            config[section][name] = value
    config.ipu.splits = config.ipu.splits or ",".join(row.splits)
    config.ipu.offload = config.ipu.offload or row.offload


def filling(in_flight: int, schedule: str, io_tiles: int) -> Tuple[int, int]:
    """`(step, least)`: the micro-batches of one run of a pipeline must be a multiple of `step`, and at least `least`.

    `in_flight` are in the pipeline at a time. Where I/O tiles move data beside the computation, the Grouped schedule
    takes any number, of which two more are on their way in and out (the SDK's `grouped_overlap_pipeline_visitor`).
    """
    if io_tiles and schedule == "Grouped":
        return 1, in_flight + 2
    return in_flight, in_flight


def forward_steps(config: ConfigDict, stages: int, wanted: int = 1) -> int:
    """Micro-batches of a replica in one program of evaluation or serving: about `wanted`, as the pipeline allows."""
    if stages == 1:
        return min(wanted, EVAL_STEPS)
    _, least = filling(stages, FORWARD_SCHEDULE, config.ipu.io_tiles)
    return up_to_multiple(max(min(wanted, EVAL_STEPS), least), stages)


def up_to_multiple(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step


def check(config: ConfigDict) -> None:
    """Raises ConfigError for every combination of a resolved config that the hardware or its software refuses."""
    accumulation, per_replica = config.runtime.grad_accumulation, config.ipu.ipus_per_replica
    stages = plan(config).stages
    if config.runtime.precision == "mixed_bfloat16":
        raise ConfigError(
            "runtime.precision=mixed_bfloat16: an IPU has no bfloat16; set --config.runtime.precision=mixed_float16"
        )
    if per_replica != power_of_two(stages):  # the SDK takes its own count for it, and makes replicas of the others
        example = f", or cut it, as --config.ipu.splits={split_points(config.model.variant)[4]} does"
        raise ConfigError(
            f"ipu.ipus_per_replica={per_replica} must be {power_of_two(stages)}, the power of two that holds the "
            f"network's {stages} stage{'s' if stages > 1 else ''} (ipu.splits={config.ipu.splits or 'none'}): set "
            f"--config.ipu.ipus_per_replica={power_of_two(stages)}{example if stages == 1 else ''}"
        )
    ipus = config.ipu.replicas * per_replica
    if ipus != power_of_two(ipus):
        raise ConfigError(
            f"ipu.replicas={config.ipu.replicas} x ipu.ipus_per_replica={per_replica} = {ipus} IPUs; devices come in "
            f"powers of two: set --config.ipu.replicas={max(power_of_two(ipus) // 2 // per_replica, 1)}"
        )
    step, least = filling(SCHEDULES[config.ipu.schedule](stages), config.ipu.schedule, config.ipu.io_tiles)
    if stages > 1 and accumulation % step:
        below = max(accumulation // step, 1) * step
        raise ConfigError(
            f"runtime.grad_accumulation={accumulation} must be a multiple of {step} for a pipeline of {stages} stages "
            f"with the {config.ipu.schedule} schedule; for example {below} or {below + step}"
        )
    if stages > 1 and accumulation < least:
        raise ConfigError(
            f"runtime.grad_accumulation={accumulation} must be at least {least} where ipu.io_tiles="
            f"{config.ipu.io_tiles} move data while a pipeline of {stages} stages computes; set "
            f"--config.runtime.grad_accumulation={least}, or --config.ipu.io_tiles=0"
        )
    if config.ipu.offload and stages == 1 and accumulation == 1:
        raise ConfigError(
            "ipu.offload=true moves the optimizer's state where gradients are accumulated or in a pipeline: set "
            "--config.runtime.grad_accumulation=2 or more, or --config.ipu.offload=false"
        )
    if config.data.mix_on_device:
        raise ConfigError(
            "data.mix_on_device works on one device a process: on IPUs an image's partner can be in another replica's "
            "micro-batch; set --config.data.mix_on_device=false"
        )
    if norms.get(config.model.norm).over_batch and stages > 1:
        raise ConfigError(
            f"model.norm={config.model.norm} cannot train in a pipeline: its moving statistics change in the forward "
            "pass, variables of a pipeline only in the weight update; choose ln_pn or gn, or train on one IPU per "
            "replica (ipu.splits empty)"
        )


def check_steps(config: ConfigDict, updates_per_epoch: int) -> None:
    """Raises ConfigError where an epoch does not consist of whole calls of the device, or a counter would overflow."""
    calls = config.runtime.steps_per_execution or 1
    if updates_per_epoch % calls:
        whole = [n for n in range(1, updates_per_epoch + 1) if updates_per_epoch % n == 0]
        near = min(whole, key=lambda n: (abs(n - calls), n))
        raise ConfigError(
            f"runtime.steps_per_execution={calls} must divide the {updates_per_epoch} weight updates of an epoch; "
            f"the nearest that does: --config.runtime.steps_per_execution={near}"
        )
    counted = config.run.epochs * updates_per_epoch
    if config.schedule.name == "exponential":
        counted *= config.schedule.drops
    if counted > LARGEST_INTEGER:
        raise ConfigError(
            f"run.epochs={config.run.epochs} of {updates_per_epoch} steps with schedule.drops={config.schedule.drops} "
            f"count to {counted}, and an IPU counts to {LARGEST_INTEGER}; train fewer epochs or set fewer drops"
        )


def check_rest(config: ConfigDict, updates_per_epoch: int, done: int) -> None:
    """Raises ConfigError where what is left of an epoch, `done` updates into it, is no whole number of calls.

    The SDK shortens a call that is longer than that, and refuses a remainder.
    """
    calls, left = config.runtime.steps_per_execution or 1, updates_per_epoch - done
    if not left or left % min(calls, left) == 0:
        return
    fits = [n for n in range(1, updates_per_epoch + 1) if updates_per_epoch % n == 0 and left % min(n, left) == 0]
    near = min(fits, key=lambda n: (abs(n - calls), n))
    raise ConfigError(
        f"runtime.steps_per_execution={calls}: the run goes on after update {done} of an epoch of {updates_per_epoch}, "
        f"and the {left} that are left are no whole number of calls; the nearest number that fits: "
        f"--config.runtime.steps_per_execution={near}. From the next epoch on any divisor of {updates_per_epoch} does"
    )


def device_seed(seed: int, index: int) -> int:
    """The seed of the devices of process `index`: that of the run in the first, unrelated ones in the others.

    The SDK gives each replica of a process its own stream, the same ones in every process with the same seed.
    """
    if not index:
        return seed
    mixed = (seed + index * 0x9E3779B97F4A7C15) % 2**64  # the finaliser of splitmix64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) % (LARGEST_INTEGER + 1)


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def parse_splits(text: str) -> Tuple[str, ...]:
    """`"2b, 4a"` -> `("2b", "4a")`; the empty text is no pipeline."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def split_points(variant: Union[str, Variant]) -> List[str]:
    """Names before which a network can be cut, in order: every block, and the top."""
    return [block.name for block in architecture.blocks(variant)] + ["top"]


def check_splits(splits: Sequence[str], variant: Union[str, Variant]) -> None:
    """Raises ConfigError where a name is unknown, doubled or out of order."""
    points = split_points(variant)
    for name in splits:
        if name not in points:
            raise ConfigError(f"ipu.splits: the network has no block {name!r}. Valid, in order: {', '.join(points)}")
    ordered = sorted(set(splits), key=points.index)
    if list(splits) != ordered:
        raise ConfigError(
            f"ipu.splits={','.join(splits)} must name blocks once and in order; set --config.ipu.splits="
            f"{','.join(ordered)}"
        )


_BLOCK = re.compile(r"block(\d+[a-z]+)_")


def block_of(layer_name: str) -> Optional[str]:
    """The part of the network that a layer belongs to: "stem", "3b" or "top"."""
    match = _BLOCK.match(layer_name)
    if match:
        return match[1]
    return "stem" if layer_name == "normalize" or layer_name.startswith("stem_") else "top"


def split_stages(layer_names: Sequence[str], splits: Sequence[str]) -> Dict[str, int]:
    """Maps each layer to its pipeline stage.

    Args:
        layer_names: of a flat network, in the order of execution.
        splits: names of blocks; a new stage starts with the first layer of each.

    Returns:
        A dict from each name to its stage, 0 to len(splits), without a gap.

    Raises:
        ConfigError: for a name that is no block of these layers, or is out of order.
    """
    points = [str(block) for block in dict.fromkeys(block_of(name) for name in layer_names)][1:]
    stages, pending = {}, list(splits)
    for name in layer_names:
        if pending and block_of(name) == pending[0]:
            pending.pop(0)
        stages[name] = len(splits) - len(pending)
    if pending or len(set(stages.values())) != len(splits) + 1:
        raise ConfigError(
            f"ipu.splits={','.join(splits)} cannot cut this network: {(pending or splits)[0]!r} is unknown or out of "
            f"order. Valid, in order: {', '.join(points)}"
        )
    return stages

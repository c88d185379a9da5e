"""From a config to numbers: the checks of fields and combinations, and the derivation of what an experiment left open.

No data and no devices are opened. The recipe itself is `experiments/g16_ln_pn.py`.
"""

import math
from typing import Any, Dict, List, Tuple

from ml_collections import ConfigDict

from g16net.config import experiments, fields, optimizers
from g16net.config import ipu as ipu_settings
from g16net.errors import ConfigError, suggest
from g16net.models import architecture

COMPILED = ("tpu", *ipu_settings.STRATEGIES)  # strategies of devices whose compiler takes whole train steps
FINETUNE_BATCH = 512

# Sources that may be streams of record files, whose order is another one where all their images are kept.
OF_RECORDS = ("tfrecord", "tfds", "parquet", "hf")

# The parts of a network from the end, as `finetune.layers` names them.
PARTS = ("top", "block7", "block6", "block5", "block4", "block3", "block2", "block1", "stem")

# Fields that may differ between the run that made a workdir and a later command on it.
FREE_SECTIONS = (
    "eval",
    "finetune",
    "export",
    "benchmark",
    "costs",
    "inspect",
    "predict",
    "checkpoint",
    "runtime",
    "ipu",
    "sweep",
)
FREE_KEYS = (
    "data.dir",
    "data.cache",
    "data.cache_dir",
    "data.allow_changed",
    "data.max_corrupt",
    "data.max_pixels",
    "data.parallel",
    "data.service",
    "data.eval_size",
    "data.eval_split",
    "data.eval_resize",
    "data.eval_crop",
)


def get_config(arg: str = "") -> ConfigDict:
    """The recipe as a config, of the experiment `g16_ln_pn`; `arg` as after its colon."""
    return experiments.load("g16_ln_pn", arg)


def resolve(config: ConfigDict, begun: bool = False) -> ConfigDict:
    """A checked, locked copy of `config` in which every derived field but the source's own has its number.

    Args:
        begun: of a run that has begun, maybe by an older version: what a new training alone is asked is left out.

    Raises:
        ConfigError: for a field or a combination that cannot be.
    """
    config = derive(config)
    if not begun:
        _check_schedule(config)
    _check_combinations(config)
    _check_sizes(config, variant_of(config))
    trained_parts(config)
    return config.lock()


def derive(config: ConfigDict) -> ConfigDict:
    """As `resolve`, without the checks of combinations: of what was resolved before."""
    config = config.copy_and_resolve_references()
    fields.check_fields(config)
    variant = variant_of(config)
    if config.data.train_size is None:
        config.data.train_size = _train_size(config, variant)
    if config.data.cache_size is None:
        config.data.cache_size = config.data.train_size * 8 // 7
    if config.data.eval_size is None:
        config.data.eval_size = variant.native
    if config.data.eval_resize is None:
        config.data.eval_resize = config.data.resize
    if config.model.activation is None:
        config.model.activation = variant.activation
    if config.regularise.dropout is None:
        config.regularise.dropout = variant.dropout
    _resolve_optimizer(config)
    _resolve_finetune(config, variant)
    if config.eval.batch is None:
        config.eval.batch = min(config.run.global_batch, 256)
    if config.runtime.strategy in ipu_settings.STRATEGIES:
        ipu_settings.resolve(config)
    return config


def variant_of(config: ConfigDict) -> architecture.Variant:
    """The `architecture.Variant` that `config` builds."""
    return architecture.scaled(config.model.variant, config.model.width, config.model.depth)


def network(config: ConfigDict) -> Dict[str, Any]:
    """The arguments of `costs.counts.count` that `config` gives, as a dict."""
    model = config.model
    return {
        "variant": variant_of(config),
        "group_size": model.group_size,
        "expand_ratio": model.expand_ratio,
        "norm": model.norm,
    }


def dtype_of(precision: str) -> str:
    """The dtype of compute of a `runtime.precision`: "mixed_bfloat16" -> "bfloat16"."""
    return precision.rpartition("_")[2]


def _train_size(config, variant):
    if config.data.resolution == "native":
        return variant.native
    if variant.half is None:
        known = ", ".join(name for name, v in architecture.VARIANTS.items() if v.half)
        raise ConfigError(
            f"data.resolution=half is not published for {config.model.variant} (it is for {known}); "
            "choose the pixels: --config.data.train_size="
            f"{nearest_sizes(math.isqrt(variant.native**2 // 2), variant.native)[0]}"
        )
    return variant.half


def _resolve_optimizer(config):
    optim, batch = config.optim, config.run.global_batch
    rule = optimizers.rule(optim.name)
    if optim.learning_rate is None:
        if rule.per_image is None:
            raise ConfigError(
                f"optim.name={optim.name} has no rule for its rate: give it, such as --config.optim.learning_rate=0.001"
            )
        optim.learning_rate = rule.per_image * batch
    if optim.decay is None:
        optim.decay = 1 - optimizers.RATE_PER_IMAGE * batch if rule.decay is None else rule.decay
        if not 0 <= optim.decay < 1:
            raise ConfigError(
                f"run.global_batch={batch} leaves no decay by the recipe's 1 - 2^-14 x batch; "
                "give it: --config.optim.decay=0.9"
            )
    for name in ("epsilon", "weight_decay"):
        if optim[name] is None:
            optim[name] = getattr(rule, name)


def _resolve_finetune(config, variant):
    finetune = config.finetune
    if not finetune.sizes:
        fitting = nearest_sizes(variant.native, config.data.train_size, variant.stride)
        finetune.sizes = (min(fitting, key=lambda size: abs(size - variant.native)),)
    if finetune.global_batch is None:
        finetune.global_batch = min(FINETUNE_BATCH, config.run.global_batch)
    if finetune.optimizer is None:
        finetune.optimizer = config.optim.name
    if finetune.clip_norm is None:
        finetune.clip_norm = config.optim.clip_norm
    for name, number in optimizers.finetuning(config).items():
        if finetune[name] is None:
            finetune[name] = number


def _check_sizes(config, variant):
    """Sizes between which weights wander must leave the same remainder by the network's stride."""
    train_size, stride = config.data.train_size, variant.stride
    for key, sizes in (("finetune.sizes", config.finetune.sizes), ("data.progressive", config.data.progressive)):
        for size in sizes:
            if size % stride != train_size % stride:
                raise ConfigError(
                    f"{key}: {size} pixels leave the remainder {size % stride} by the stride {stride} of "
                    f"{config.model.variant}, the training size {train_size} leaves {train_size % stride}, and the "
                    "padding would shift; take " + " or ".join(map(str, nearest_sizes(size, train_size, stride)))
                )
    sizes = config.data.progressive
    if sizes and config.runtime.strategy in ipu_settings.STRATEGIES:
        raise ConfigError(
            f"data.progressive needs a program of any image size, which runtime.strategy={config.runtime.strategy} has "
            "not; leave it empty, or train by size with runs that follow each other"
        )
    if sizes and (sizes[-1] != train_size or len(sizes) > config.run.epochs):
        raise ConfigError(
            f"data.progressive={','.join(map(str, sizes))} must end with data.train_size={train_size} and have at most "
            f"run.epochs={config.run.epochs} sizes; set --config.data.train_size={sizes[-1]} or other sizes"
        )


def trained_parts(config: ConfigDict) -> Tuple[str, ...]:
    """`finetune.layers` as a tuple of names from the end; ConfigError where it has a gap or is the whole network."""
    given = [part for part in config.finetune.layers.replace(" ", "").split(",") if part]
    for part in given:
        if part not in PARTS:
            raise ConfigError(f"finetune.layers: no part {part!r}. {suggest(part, PARTS)}")
    deepest = max((PARTS.index(part) for part in given), default=0)
    whole = PARTS[: deepest + 1]
    if set(given) != set(whole):
        raise ConfigError(
            f"finetune.layers={config.finetune.layers} would train in pieces; the trained parts reach to the end "
            f"without a gap: --config.finetune.layers={','.join(whole)}"
        )
    if whole == PARTS:
        raise ConfigError("finetune.layers names the whole network, which is training: drop stem, or use --mode=train")
    return whole


def averages(config: ConfigDict) -> bool:
    """Whether the run averages its weights, by updates or by epochs."""
    return bool(config.regularise.ema or config.regularise.average)


def progressive_sizes(variant: str, resolution: str, parts: int = 4) -> Tuple[int, ...]:
    """At most `parts` growing training sizes from about half the final one on, for `data.progressive`.

    All leave the final size's remainder by the network's stride, as 'SAME' padding asks for.
    One part is the final size alone.

    Raises:
        ConfigError: `parts` is below 1.
        ValueError: no such variant.
    """
    if parts < 1:
        raise ConfigError(f"experiment argument 'parts' is the number of training sizes, at least 1; got {parts}")
    row = architecture.get_variant(variant)
    last = (row.half or row.native) if resolution == "half" else row.native
    wanted = [last // 2 + (last - last // 2) * part // (parts - 1) for part in range(parts - 1)] + [last]
    return tuple(sorted({nearest_sizes(size, last, row.stride)[-1] for size in wanted}))


def _check_schedule(config):
    if config.schedule.name == "exponential" and config.schedule.warmup_epochs >= config.run.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs:g} leaves nothing of "
            f"run.epochs={config.run.epochs}; set --config.schedule.warmup_epochs={config.run.epochs / 10:g}"
        )
    if config.schedule.warmup_epochs > config.run.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs:g} is more than run.epochs="
            f"{config.run.epochs}, and the rate is never reached; set "
            f"--config.schedule.warmup_epochs={config.run.epochs / 10:g}"
        )


def _check_combinations(config):
    if config.runtime.strategy in ipu_settings.STRATEGIES:
        ipu_settings.check(config)
    calls, strategy = config.runtime.steps_per_execution or 1, config.runtime.strategy
    if config.regularise.ema and calls > 1 and strategy in COMPILED:
        raise ConfigError(
            f"regularise.ema averages after each weight update, and runtime.steps_per_execution={calls} makes several "
            f"in one call of runtime.strategy={strategy}: leave it 1, or average by epochs"
        )
    if config.runtime.jit and strategy != "default":
        raise ConfigError(
            f"runtime.jit is for one device, and runtime.strategy is {strategy}; set --config.runtime.jit=false"
            + (": the device's compiler takes every step anyway" if strategy in COMPILED else "")
        )
    for field in ("optim.layer_decay", "finetune.layer_decay"):
        section, name = field.split(".")
        chosen = config.optim.name if section == "optim" else config.finetune.optimizer
        if config[section][name] < 1 and chosen.startswith(optimizers.KERAS):
            raise ConfigError(f"{field} is for {', '.join(optimizers.OPTIMIZERS)}; got {chosen}: leave it 1")
    if config.optim.layer_decay < 1 and not config.init.checkpoint:
        raise ConfigError(
            f"optim.layer_decay={config.optim.layer_decay:g} slows what is learnt already, and there is no "
            "init.checkpoint to start from: give one, or leave it 1"
        )
    if config.eval.weights == "average" and not averages(config):
        raise ConfigError(
            "eval.weights=average needs averaged weights, but regularise.average=0 turns them off; "
            "set --config.eval.weights=raw"
        )
    if config.data.cutmix < 1 and config.run.global_batch < 2:
        raise ConfigError("data.cutmix needs a partner in the batch: run.global_batch is 1, set it to 2 or more")
    split = config.runtime.micro_batch or config.runtime.grad_accumulation
    if config.data.mix_on_device and (split or config.runtime.strategy != "default"):
        raise ConfigError(
            "data.mix_on_device mixes the whole batch in one pass of one device, with runtime.strategy=default and "
            f"without runtime.micro_batch or grad_accumulation; got {config.runtime.strategy}"
            f"{' and smaller passes' if split else ''}: mix on the host"
        )
    if config.runtime.strategy in ipu_settings.STRATEGIES:
        for field, plain in (("optim.clip_norm", 0), ("optim.layer_decay", 1), ("regularise.ema", 0)):
            section, name = field.split(".")
            if config[section][name] != plain:
                raise ConfigError(f"{field} has not been tried on IPUs; leave it {plain}")
        if config.optim.name.startswith(optimizers.KERAS):
            raise ConfigError(f"optim.name={config.optim.name} has not been tried on IPUs; take one of ours")
        for name in ("dynamic_loss_scale", "max_skipped"):
            if config.runtime[name]:
                raise ConfigError(
                    f"runtime.{name} waits for values that are not finite, and float16 on an IPU saturates instead; "
                    "leave it out"
                )
        if config.runtime.recompute:
            raise ConfigError("runtime.recompute is for CPUs and GPUs; IPUs have ipu.recompute, which is on by default")
    if config.runtime.dynamic_loss_scale and config.runtime.precision != "mixed_float16":
        raise ConfigError(
            "runtime.dynamic_loss_scale is for runtime.precision=mixed_float16; got "
            f"{config.runtime.precision}: leave it out"
        )
    if config.data.cache != "none" and config.data.service:
        raise ConfigError(
            f"data.cache={config.data.cache} keeps images here, but data.service reads them elsewhere; drop one of them"
        )
    if config.data.cache == "decoded" and not config.data.cache_dir:
        raise ConfigError("data.cache=decoded writes to disk: name a folder with --config.data.cache_dir=DIR")


def nearest_sizes(size: int, train_size: int, stride: int = 32) -> Tuple[int, ...]:
    """The sizes below and above `size` (or itself) with the remainder of `train_size` by the network's total stride.

    'SAME' padding keeps its alignment between two sizes only where their remainders are equal.
    """
    below = size - (size - train_size) % stride
    return (below,) if below == size else (below, below + stride)


def training_key(config: ConfigDict) -> str:
    """What decides the training of a resolved config, as text: equal texts mean equal trained weights.

    That is more than what a run must keep when it goes on: precision and the images in a pass (with batch norm) change
    what is learnt, and so do a cache that scales images, one of record files, which are shuffled whole then, and what
    images are left out.
    """
    keys = [key for key in fields.FIELDS if key.split(".")[0] not in FREE_SECTIONS and key not in FREE_KEYS]
    keys += [key for key in fields.FIELDS if key.split(".")[0] in ("runtime", "ipu")]
    decoded = config.data.cache_size if config.data.cache == "decoded" else None
    streamed = config.data.name.partition(":")[0] in OF_RECORDS
    more = [
        ("decoded", decoded),
        ("max_pixels", config.data.max_pixels),
        ("shuffled whole", streamed and config.data.cache != "none"),
    ]
    return repr([(key, config[key.split(".")[0]][key.split(".")[1]]) for key in keys] + more)


def training_differences(old: ConfigDict, new: ConfigDict) -> List[str]:
    """The fields that make the training of `new` another one than that of `old`, as lines `key: old -> new`."""
    return [
        line
        for line in fields.differences(old, new)
        if line.split(".")[0] not in FREE_SECTIONS and line.split(":")[0] not in FREE_KEYS
        if not (line.startswith("data.name:") and _same_set(old.data.name, new.data.name))
    ]


def _same_set(one, other):
    """Whether one is `tfds:NAME` and the other one of its configurations, of which the facts of the data decide."""
    shorter, longer = sorted((one, other), key=len)
    return shorter.startswith("tfds:") and longer.startswith(shorter + "/")

"""From a resolved config to objects: sources, batches, model, optimizer, loss, trained weights."""

from g16net.compat import tensorflow_only  # noqa: F401  isort: skip  says first what is missing

import functools
import os
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from absl import logging
from ml_collections import ConfigDict
from tensorflow import keras

from g16net import compat, native
from g16net import config as config_lib
from g16net.config import optimizers as optimizer_rules
from g16net.config import recipe
from g16net.data import augment as augment_lib
from g16net.data import cache, identity, mix_on_device, mixing, pipeline, transforms
from g16net.data.each import each
from g16net.data.order import Order
from g16net.data.sources import HERE, OPTIONS, open_source
from g16net.data.sources.base import Source, relabelled
from g16net.data.splits import ALL
from g16net.errors import ConfigError, UserError
from g16net.models import efficientnet, recompute
from g16net.optim import optimizers, schedules
from g16net.optim.base import layer_rates
from g16net.optim.losses import SmoothedCrossEntropy
from g16net.optim.rmsprop import RMSProp
from g16net.optim.weight_average import WeightAverage
from g16net.run import checkpoint, run_data
from g16net.run.workdir import Workdir

# Of the fields that some sources take those that are in vain for others: all know splits, and fetching changes nothing.
CHECKED = {key for keys in OPTIONS.values() for key in keys} - {"train_split", "download"}
SMALL = 64  # pixels of images whose random boxes one core makes a batch at a time: image by image, calls cost the most


def title(config: ConfigDict) -> str:
    """The run in words: `B0 G16 ln_pn`."""
    changed = [f"{part} {config.model[part]:g}" for part in ("width", "depth") if config.model[part] is not None]
    return f"{', '.join([config.model.variant] + changed)} G{config.model.group_size} {config.model.norm}"


def open_sources(config: ConfigDict, trains: bool = False) -> Tuple[Source, Source]:
    """The training and the evaluation source.

    Args:
        trains: whether they are opened to be trained on, and not for an evaluation or a look alone.

    Raises:
        UserError: the data is not there or not as it should be; test images would be trained on.
    """
    train, test = open_source_of(config, "train"), open_source_of(config, "eval")
    if trains and test.undivided and test.split == ALL:
        raise UserError(
            f"data.eval_split={config.data.eval_split}: {run_data.where(config)} has no splits, so that its training "
            "images would be test images too. With --config.data.eval_split= (nothing), data.holdout of each class is "
            "held out; all images of another folder are for --mode=evaluate"
        )
    different = identity.class_differences(train.class_names, test.class_names)
    if different:
        raise UserError(
            f"{run_data.where(config)}: the training split has {train.num_classes} classes and the test split "
            f"{test.num_classes}; in the test split {', '.join(different)}: give both the same classes"
        )
    return train, relabelled(test, train.class_names)


def open_eval_source(config: ConfigDict, workdir: str, class_names: Sequence[str], what: str) -> Source:
    """The evaluation source for the run in `workdir`, its classes matched by name to those of the run, `class_names`.

    It may have some of them only. UserError, telling `what` to do, where it has others.
    """
    source = open_source_of(config, "eval")
    known = {identity.plain(name) for name in class_names}
    unknown = [name for name in source.class_names if identity.plain(name) not in known]
    different = identity.class_differences(class_names, source.class_names)
    if unknown:
        raise UserError(
            f"{run_data.where(config)} has {source.num_classes} classes, the run in {workdir!r} was trained on "
            f"{len(class_names)}: {', '.join(different)}; {what} on data with classes of the run"
        )
    if different:
        run_data.warn(
            f"{run_data.where(config)} has {source.num_classes} of the {len(class_names)} classes of the run in "
            f"{workdir}: {', '.join(different)}"
        )
    return relabelled(source, class_names)


def open_source_of(config: ConfigDict, part: str) -> Source:
    """The source of `part` ("train" or "eval"). UserError where it is not there, or a data service cannot read it."""
    data, kind = config.data, config.data.name.partition(":")[0]
    if data.service and kind in HERE:
        raise UserError(f"data.service={data.service}: its workers cannot read {kind} data; leave it out")
    options = {key: data[key] for key in OPTIONS.get(kind, ())}
    if kind == "synthetic":
        options["size"] = data.eval_size
    split = {"train": data.train_split or "train", "eval": data.eval_split or "validation"}[part]
    return _open(data.name, split, data.dir or None, tuple(options.items()))


def check_options(config: ConfigDict, workdir: str) -> None:
    """ConfigError for a field of other sources than the one of `config`, which would be ignored. The run in `workdir`
    may have it, from a version that did not say so."""
    kind, stored = config.data.name.partition(":")[0], Workdir(workdir).config
    own = config_lib.load(stored).data if Workdir(workdir).begun and os.path.exists(stored) else None
    for key in sorted(CHECKED - set(OPTIONS.get(kind, CHECKED))):
        value = config.data[key]
        if value != config_lib.FIELDS[f"data.{key}"].default and (own is None or own[key] != value):
            takes = ", ".join(name for name, keys in OPTIONS.items() if key in keys)
            raise ConfigError(f"data.{key}={value} is for {takes} data, and this is {kind}: leave it out")


@functools.lru_cache(maxsize=8)  # modes that follow each other share what took time to list or count
def _open(name, split, data_dir, options):
    return open_source(name, split, data_dir, **dict(options))


def train_batches(
    config: ConfigDict,
    source: Source,
    start_epoch: int = 0,
    start_step: int = 0,
    shard: Tuple[int, int] = (0, 1),
    size: Optional[int] = None,
    job: Optional[str] = None,
) -> Any:
    """Batches of (uint8 images, targets) from any step of any epoch on, endless.

    `shard`: (index, count) of this worker; `size`: pixels, by default `data.train_size`; `job`: of a data service, see
    `pipeline.train_batches`. Targets are class ids, or ids and weights where the batch is mixed.
    """
    source = kept(config, source)
    return pipeline.train_batches(
        source,
        train_transform(config, size),
        config.run.global_batch,
        config.run.seed,
        start_epoch=start_epoch,
        start_step=start_step,
        shard=shard,
        mix=mix(config),
        max_corrupt=config.data.max_corrupt,
        num_parallel_calls=config.data.parallel,
        service=config.data.service or None,
        judge=judge(config, config.data.jpeg and config.data.crop == "box"),
        many=train_many(config, source, size),
        job=job,
    )


def eval_batches(
    config: ConfigDict, source: Source, size: int, batch: Optional[int] = None, shard: Tuple[int, int] = (0, 1)
) -> Any:
    """Batches of (uint8 images, labels, weights) at `size` pixels, every image once over all workers.

    `batch`: images in one, by default `eval.batch`.
    """
    return pipeline.eval_batches(
        source,
        eval_transform(config, size),
        batch or config.eval.batch,
        shard=shard,
        max_corrupt=config.data.max_corrupt,
        judge=judge(config),
        many=eval_many(config, source, size),
    )


def sample(config: ConfigDict, source: Source, size: int, count: int, batch: int = 1) -> Iterator[Tuple[Any, Any]]:
    """Up to `count` images spread over `source`, prepared as in testing, in batches of at most `batch`: arrays
    (uint8 [batch, size, size, 3], int [batch]). Corrupt ones are left out."""
    transform = eval_transform(config, size)
    order = Order(stop=min(count, source.num_examples), batch=1, seed=0, epochs=1)

    def read(row):
        done = transform(source.read(row), [0, 0])
        return done["image"], done["label"]

    for images, labels in each(source.stream(order).unbatch(), read).batch(batch):
        yield images.numpy(), labels.numpy()


def judge(config: ConfigDict, jpeg: bool = False) -> Callable:
    """`encoded bytes -> (why, large)` for images that could not be decoded, see `transforms.reason`."""
    return functools.partial(transforms.reason, max_pixels=config.data.max_pixels, jpeg=jpeg)


def fit(config: ConfigDict) -> str:
    """How a picture that is no square becomes one, as `transforms.eval_image` has it: boxes are cut, pictures that are
    shifted are scaled whole."""
    return "crop" if config.data.crop == "box" else "resize"


def eval_preprocessing(config: ConfigDict, size: int) -> Dict[str, Any]:
    """How an image becomes the test image of `size` pixels, as arguments of `transforms.eval_image`."""
    data = config.data
    how = {"fit": fit(config), "resize": data.eval_resize, "crop": data.eval_crop}
    return {"size": size, **how, "max_pixels": data.max_pixels, "exif": data.exif}


def eval_transform(config: ConfigDict, size: int) -> Callable:
    """`(record, seed) -> record` with the test image of `size` pixels; draws nothing."""
    preprocessing = eval_preprocessing(config, size)
    return lambda record, seed: dict(record, image=transforms.eval_image(record["image"], **preprocessing))


def eval_many(config: ConfigDict, source: Source, size: int) -> Optional[Callable]:
    """What `eval_transform` does to many images of `source` at once: nothing, where they have their size; else None."""
    same = source.shape == (size, size) and eval_preprocessing(config, size)["fit"] == "resize"
    return (lambda images, seeds: images) if same else None


def kept(config: ConfigDict, source: Source) -> Source:
    """`source` as `data.cache` keeps it; reads it whole where that is not none."""
    data = config.data
    if data.cache == "encoded":
        return cache.in_memory(source)
    if data.cache == "decoded":
        of_images = (data.max_corrupt, data.max_pixels, data.exif, fit(config))
        return cache.on_disk(source, data.cache_size, data.cache_dir, *of_images)
    return source


def mix(config: ConfigDict) -> Optional[Callable]:
    """`(images, labels, seed) -> (images, targets)` by mixup and CutMix, or None where both are off."""
    data = config.data
    cutmix = data.cutmix_version if data.cutmix < 1 else None
    if not data.mixup and not cutmix:
        return None

    if data.mix_on_device:
        return lambda images, labels, seed: mix_on_device.draws(images, labels, seed, data.mixup, cutmix, data.cutmix)

    def function(images, labels, seed):
        batch, height, width = images.shape[:3]
        m, box = mixing.draw(batch, height, width, seed, data.mixup, cutmix, data.cutmix)
        return mixing.mix(images, labels, m, box)

    return function


def augment(config: ConfigDict) -> Optional[Callable]:
    """The policy on one training image, or None."""
    data = config.data
    if data.augment == "autoaugment":
        return augment_lib.auto_augment()
    if data.augment == "randaugment":
        return augment_lib.rand_augment(data.randaugment_layers, data.randaugment_magnitude)
    return None


def train_transform(config: ConfigDict, size: Optional[int] = None) -> Callable:
    """`(record, seed) -> record` with the training image of `size` (default: `data.train_size`) pixels."""
    data, policy = config.data, augment(config)
    size = size or data.train_size

    def box(record, seed):
        return transforms.train_image(
            record["image"],
            size,
            seed,
            area=(data.area_min, 1.0),
            boxes=record.get("boxes"),
            flip=data.flip,
            augment=policy,
            resize=data.resize,
            jpeg=data.jpeg,
            max_pixels=data.max_pixels,
            exif=data.exif,
        )

    def pad(record, seed):
        image = transforms.small_image(
            record["image"],
            size,
            seed,
            **shifts(config, size),
            resize=data.resize,
            max_pixels=data.max_pixels,
            exif=data.exif,
        )
        return image if policy is None else policy(image, transforms.derive(seed, 3))

    prepare = box if data.crop == "box" else pad
    return lambda record, seed: dict(record, image=prepare(record, seed))


def shifts(config: ConfigDict, size: int) -> Dict[str, Any]:
    """How images of a few pixels are shifted and mirrored, as arguments of `transforms.small_image`."""
    return {"pad": size // 8, "flip": config.data.flip, "reflect": config.data.crop == "reflect"}


def train_many(config: ConfigDict, source: Source, size: Optional[int] = None) -> Optional[Callable]:
    """What `train_transform` does to many images of `source` at once, or None where it takes them one by one."""
    data, size = config.data, size or config.data.train_size
    if augment(config) or source.shape is None or not native.available():
        return None
    if data.crop != "box":
        small = source.shape == (size, size)
        return (lambda images, seeds: transforms.small_images(images, seeds, **shifts(config, size))) if small else None
    if max(*source.shape, size) > SMALL or data.resize in transforms.FILTERS:
        return None
    options = {"area": (data.area_min, 1.0), "flip": data.flip, "resize": data.resize}
    return lambda images, seeds: transforms.small_boxes(images, seeds, size, **options)


def progressive_parts(config: ConfigDict, first: int = 0, last: Optional[int] = None) -> List[Tuple[int, int, int]]:
    """The epochs from `first` to before `last` as `(size, begin, end)`, by the parts of `data.progressive`."""
    sizes, epochs = config.data.progressive or (config.data.train_size,), config.run.epochs
    last = epochs if last is None else last
    ends = [epochs * (part + 1) // len(sizes) for part in range(len(sizes))]
    parts = [(size, max(begin, first), min(end, last)) for size, begin, end in zip(sizes, [0] + ends, ends)]
    return [part for part in parts if part[1] < part[2]]


def model(config: ConfigDict, num_classes: int, size: Optional[int] = None) -> keras.Model:
    """The network of `config` for images of `size` pixels, or of any size."""
    return efficientnet.build(
        variant=recipe.variant_of(config),
        group_size=config.model.group_size,
        expand_ratio=config.model.expand_ratio,
        norm=config.model.norm,
        num_classes=num_classes,
        input_size=size,
        activation=config.model.activation,
        norm_groups=config.model.norm_groups,
        norm_group_size=config.model.norm_group_size,
        norm_epsilon=config.model.norm_epsilon,
        strided_groups=config.model.strided_groups,
        dropout=config.regularise.dropout,
        survival_prob=config.regularise.survival_prob,
        mean=config.model.mean,
        std=config.model.std,
        proxy_epsilon=config.model.proxy_epsilon,
        quadrature=config.model.quadrature,
        seed=config.run.seed,
    )


def training_model(config: ConfigDict, network: keras.Model) -> keras.Model:
    """What to compile and fit: the network, with recomputation where asked for, and behind the mixing where the device
    does that."""
    network = recompute.recomputing(network) if config.runtime.recompute else network
    return mix_on_device.training_model(network) if config.data.mix_on_device and mix(config) else network


def schedule(config: ConfigDict, steps_per_epoch: int) -> Any:
    """The learning-rate schedule over the whole run."""
    steps = config.run.epochs * steps_per_epoch
    warmup = config.schedule.warmup_epochs * steps_per_epoch
    base = config.optim.learning_rate
    if config.schedule.name == "exponential":
        return schedules.ExponentialStaircase(
            base, steps, warmup, drops=config.schedule.drops, rate=config.schedule.drop_rate
        )
    if config.schedule.name == "cosine":
        return schedules.Cosine(base, steps, warmup)
    return schedules.ExponentialStaircase(base, steps, warmup, drops=1, rate=1.0) if warmup else base


def optimizer(config: ConfigDict, steps_per_epoch: int, accumulation: int = 1, guard: str = "none") -> compat.Optimizer:
    """The optimizer of a training. `accumulation` and `guard`: see `compat.Optimizer`."""
    optim = config.optim
    return make_optimizer(
        optim.name, config, schedule(config, steps_per_epoch), optim.decay, optim.clip_norm, optim.layer_decay,
        accumulation, guard,
    )  # fmt: skip


def finetuning_optimizer(config: ConfigDict, learning_rate: Any, accumulation: int = 1) -> compat.Optimizer:
    """The optimizer of a fine-tuning with this rate, a number or a schedule. `accumulation`: see `compat.Optimizer`."""
    fine = config.finetune
    return make_optimizer(
        fine.optimizer, config, learning_rate, fine.decay, fine.clip_norm, fine.layer_decay, accumulation,
        guard(config),
    )  # fmt: skip


def make_optimizer(
    name: str,
    config: ConfigDict,
    learning_rate: Any,
    decay: float,
    clip_norm: float,
    layer_decay: float,
    accumulation: int,
    guard: str,
) -> compat.Optimizer:
    """The optimizer called `name` (`optim.name`), with what is common to training and fine-tuning from `config`.

    Raises:
        ConfigError: this Keras has no optimizer of that name.
    """
    optim = config.optim
    rule, same = optimizer_rules.rule(name), name == optim.name
    epsilon = optim.epsilon if same else rule.epsilon
    arguments: Dict[str, Any] = {
        "weight_decay": optim.weight_decay if same else rule.weight_decay,
        "clip_norm": clip_norm,
        "accumulation": accumulation,
        "guard": guard,
    }
    if name.startswith(optimizer_rules.KERAS):
        try:
            return optimizers.of_keras(name[len(optimizer_rules.KERAS) :], learning_rate, **arguments)
        except ValueError as error:
            raise ConfigError(f"optim.name={name}: {error}") from error
    arguments["layer_rates"] = layer_rates(layer_decay, recipe.PARTS)
    if name == "rmsprop":
        return RMSProp(learning_rate, rho=decay, momentum=optim.momentum, epsilon=epsilon, **arguments)
    if name == "sgd":
        return optimizers.SGD(learning_rate, momentum=optim.momentum, **arguments)
    betas = {"beta_1": optim.momentum, "beta_2": decay}
    if name == "lion":
        return optimizers.Lion(learning_rate, **betas, **arguments)
    kind = {"adamw": optimizers.AdamW, "lamb": optimizers.Lamb}[name]
    return kind(learning_rate, epsilon=epsilon, **betas, **arguments)


def average(config: ConfigDict, network: keras.Model) -> WeightAverage:
    """The averaged weights of `network`, over updates or epochs."""
    ema = config.regularise.ema
    return WeightAverage(network, ema or config.regularise.average, over="updates" if ema else "epochs")


def guard(config: ConfigDict) -> str:
    """What the optimizer does with gradients that are not finite, see `compat.Optimizer`."""
    return "skip" if config.runtime.max_skipped else "report"


def loss(config: ConfigDict, num_classes: int) -> SmoothedCrossEntropy:
    """Cross-entropy of logits with the label smoothing of `config`."""
    return SmoothedCrossEntropy(num_classes, label_smoothing=config.regularise.label_smoothing)


def trained(
    config: ConfigDict,
    workdir: str,
    size: Optional[int] = None,
    weights: Optional[str] = None,
    network: Optional[keras.Model] = None,
) -> Tuple[keras.Model, List[str]]:
    """`(model, class_names)`: the network with the newest weights of `workdir`, and the classes that these were trained
    on.

    Args:
        size: pixels of its images; None: any.
        weights: "average", "raw" or "finetuned"; None: `eval.weights`.
        network: one of the same config, to read the weights into; None, or one of other classes: a new one.

    Raises:
        UserError: the workdir holds no such weights.
    """
    weights = weights or config.eval.weights
    class_names = run_data.class_names(workdir)
    fine = weights == "finetuned"
    folder, manifest = _newest(*(finetuned_folder(config, workdir), "finetune") if fine else (workdir, "train"))
    class_names = _classes_of(manifest, class_names)
    if network is None or network.output_shape[-1] != len(class_names):
        network = model(config, len(class_names), size)
    if fine:
        checkpoint.read(folder, checkpoint.model_state(network))
        return network, class_names
    if weights == "average" and manifest["step"]:  # before the first step it is the weights themselves
        averaged = average(config, network)
        checkpoint.read(folder, checkpoint.state(average=averaged))
        if averaged.decay and not int(averaged.updates.numpy()):
            raise UserError(
                f"{workdir!r} has no averaged weights yet, as its training stopped in its first epoch; go on with it, "
                "or take the weights as they are: --config.eval.weights=raw"
            )
        averaged.copy_to()
    else:
        checkpoint.read(folder, checkpoint.model_state(network))
    return network, class_names


def _newest(folder, mode):
    newest, manifest = checkpoint.newest_whole(Workdir(folder).checkpoints)
    if newest is None:
        raise UserError(f"{folder!r} holds no checkpoint; make one first with --mode={mode}")
    return newest, manifest


def _classes_of(manifest, otherwise):
    """The class names that the checkpoint itself keeps, or `otherwise` where it is of a version that kept none."""
    return list(manifest["data"]["classes"]) if manifest.get("data") else otherwise


def at_test_size(config: ConfigDict, workdir: str) -> ConfigDict:
    """`config` with the size in `data.eval_size` at which the weights of `eval.weights` are used: fine-tuned ones at
    that of their fine-tuning, unless it is another than the run in `workdir` has.

    UserError where `workdir` holds no such weights.
    """
    if config.eval.weights != "finetuned":
        return config
    size, stored = int(os.path.basename(finetuned_folder(config, workdir))), Workdir(workdir).config
    if os.path.exists(stored) and config_lib.load(stored).data.eval_size != config.data.eval_size:
        return config
    if size != config.data.eval_size:
        logging.info("Fine-tuned weights are used at the size of their fine-tuning, %d pixels", size)
    config = config.copy_and_resolve_references().unlock()
    config.data.eval_size = size
    return config.lock()


def finetuned_folder(config: ConfigDict, workdir: str) -> str:
    """The folder of the fine-tuning that `eval.finetune_size` picks, or of the only one there is.

    UserError where there is none.
    """
    files, folder = Workdir(workdir), config.finetune.folder
    size, sizes = config.eval.finetune_size, files.finetuned_sizes(folder)
    if size is None and len(sizes) == 1:
        (size,) = sizes
    if size not in sizes:
        there = f"there is {', '.join(map(str, sizes))}" if sizes else "none is there"
        raise UserError(
            f"eval.weights=finetuned, eval.finetune_size={size}: no such finished fine-tuning in "
            f"{files.file(folder)!r}; {there}. "
            + (f"Set --config.eval.finetune_size={sizes[0]}" if sizes else "Make it first with --mode=finetune")
        )
    return files.finetuning(folder, size).path

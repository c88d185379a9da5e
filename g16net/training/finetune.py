"""Fine-tuning of the last layers at test resolutions, as the paper has it (section on reduced resolution; 1906.06423).

For each size of `finetune.sizes`, from the trained weights of the workdir: images are prepared as for the test, the
parts in `finetune.layers` are trained, everything before them is frozen. Test preprocessing draws nothing, so the
frozen part's features are computed once, where they fit into `finetune.cache_gb`, and only the top runs in the epochs.

    WORKDIR/finetune/SIZE/settings.json   what was asked, and from which weights
                          records.jsonl   a line per epoch; epoch 0 is before
                          checkpoints/    the whole network and the optimiser
                          finetune.json   figures, once it is finished

The published run leaves mixup, CutMix and the frozen blocks' stochastic depth on, whose draws forbid a cache:
`finetune.noise=all` does so. Dropout, label smoothing and the stochastic depth of trained blocks are on either way.
"""

import hashlib
import json
import os
import time
from typing import Any, Callable, Dict, Sequence, Tuple

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tensorflow import keras

from g16net import compat
from g16net.config import recipe
from g16net.data import cache, features, pipeline
from g16net.data.sources.base import Source, relabelled
from g16net.errors import ConfigError, UserError
from g16net.models import split
from g16net.optim.schedules import Cosine
from g16net.run import assemble, checkpoint, records, resolve, run_data
from g16net.run.devices import Devices, check_scale
from g16net.run.updates import Callback, Updates
from g16net.run.workdir import Workdir
from g16net.training import callbacks, evaluate, loop, runtime, train


def finetune(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Fine-tunes at every size of `finetune.sizes`; what is finished stays, what was cut off goes on.

    Returns the figures: those of the first size under plain names, of every finished size in `sizes`.
    """
    check(config)
    start = starting_weights(config, workdir)
    files, folder = Workdir(workdir), config.finetune.folder
    if set(config.finetune.sizes) - set(files.finetuned_sizes(folder)):
        run_data.check(config, workdir, assemble.open_sources(config, trains=True)[0], done=True)
    for size in config.finetune.sizes:
        fit_size(config, workdir, size, start)
    rows = {
        size: _read_json(files.finetuning(folder, size).figures("finetune")) for size in files.finetuned_sizes(folder)
    }
    return dict(rows[config.finetune.sizes[0]], sizes=list(rows.values()))


def check(config: ConfigDict) -> None:
    """Raises ConfigError where fine-tuning cannot be done as asked."""
    if config.runtime.strategy != "default":
        raise ConfigError(
            f"mode finetune works with runtime.strategy=default; got {config.runtime.strategy}: run it by itself, with "
            "--mode=finetune --config.runtime.strategy=default, on the workdir of the trained run"
        )
    if config.finetune.learning_rate is None:
        raise ConfigError(
            f"finetune.optimizer={config.finetune.optimizer} has no rule for its rate: give it, such as "
            "--config.finetune.learning_rate=0.001, or take another one: --config.finetune.optimizer=rmsprop"
        )
    check_scale(config, passes(config))


def starting_weights(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Which weights are fine-tuned: `{"weights", "step", "checkpoint"}`, the last a digest of the files.

    UserError where the run has no finished training.
    """
    folder, manifest = checkpoint.newest_whole(Workdir(workdir).checkpoints)
    if folder is None:
        raise UserError(f"{workdir!r} holds no trained run; train there first with --mode=train")
    if manifest["epoch"] < config.run.epochs:
        raise UserError(
            f"the training in {workdir!r} stands at epoch {manifest['epoch']} of {config.run.epochs}; finish it first "
            "with --mode=train"
        )
    digest = hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()
    weights = "average" if recipe.averages(config) else "raw"
    return {"weights": weights, "step": manifest["step"], "checkpoint": digest[:16]}


def check_data(config: ConfigDict, workdir: str, source: Source, before: Sequence[str] = ()) -> None:
    """UserError where the training split `source` cannot be fine-tuned on; `before`: modes that come first."""
    Devices(config).check_rest(steps_per_epoch(config, source), 0)
    if "train" not in before:
        run_data.check(config, workdir, source, done=True)


def check_workdir(config: ConfigDict, workdir: str, before: Sequence[str] = ()) -> None:
    """UserError where the run in `workdir` cannot be fine-tuned as asked: not trained to its end, or other fine-tunings
    there."""
    start = starting_weights(config, workdir)
    for size in config.finetune.sizes:
        settings_of(config, workdir, size, start)


def settle(config: ConfigDict, workdir: str, size: int, start: Dict[str, Any]) -> None:
    """Makes the folder of this fine-tuning; UserError where it holds another one."""
    settings, files = (
        settings_of(config, workdir, size, start),
        Workdir(workdir).finetuning(config.finetune.folder, size),
    )
    os.makedirs(files.path, exist_ok=True)
    records.write_json(files.settings, settings)


# What prepares, chooses and computes the images, of which a run leaves some open; where they lie makes no other ones.
LEFT_OPEN = [*sorted(set(evaluate.OF_IMAGES) & set(recipe.FREE_KEYS) - {"data.dir"}), "runtime.precision"]


def settings_of(config: ConfigDict, workdir: str, size: int, start: Dict[str, Any]) -> Dict[str, Any]:
    """What this fine-tuning is, for its `settings.json`; UserError where its folder holds another one."""
    files = Workdir(workdir).finetuning(config.finetune.folder, size)
    fields = {k: v for k, v in config.finetune.to_dict().items() if k not in ("sizes", "folder", "cache_gb")}
    fields.update(_left_open(config))
    settings = {"size": size, **fields, **{f"start.{key}": value for key, value in start.items()}}
    if os.path.exists(files.settings):
        before_these_fields = {"optimizer": "rmsprop", "clip_norm": 0.0, "layer_decay": 1.0}
        before_these_fields.update(_left_open(resolve.of_run(workdir) or config))
        old = {**before_these_fields, **_read_json(files.settings)}
        different = [f"{k}: {old.get(k)} -> {settings.get(k)}" for k in settings if old.get(k) != settings[k]]
        if different:
            raise UserError(
                f"{files.path!r} holds another fine-tuning; it differs in\n  " + "\n  ".join(different) + "\n"
                f"Keep both: --config.finetune.folder={config.finetune.folder}2"
            )
    return settings


def _left_open(config):
    return {key: config[key.split(".")[0]][key.split(".")[1]] for key in LEFT_OPEN}


@runtime.in_precision
def fit_size(config: ConfigDict, workdir: str, size: int, start: Dict[str, Any]) -> Dict[str, Any]:
    """One fine-tuning at `size` pixels. Returns its figures, which are in its `finetune.json` too.

    Raises:
        RunError: it ended before its last epoch; the message says why and what is kept.
    """
    files = Workdir(workdir).finetuning(config.finetune.folder, size)
    done = files.figures("finetune")
    if not os.path.exists(done):
        source = assemble.open_source_of(config, "train")
        run_data.check(config, files.path, source, done=False, batch=config.finetune.global_batch)
        Devices(config).check_rest(steps_per_epoch(config, source), 0)
    settle(config, workdir, size, start)
    if os.path.exists(done):
        logging.info("%s is finished", files.path)
        return _read_json(done)

    started = time.time()
    devices = runtime.setup(config)  # seeds again, so that a size does not depend on those before it
    network, class_names = assemble.trained(config, workdir, size, start["weights"])
    sources = assemble.open_sources(config, trains=True)
    train_source, eval_source = (relabelled(source, class_names) for source in sources)
    steps = steps_per_epoch(config, train_source)
    parts = recipe.trained_parts(config)
    trunk, head = split.split(network, split.first_layer(network, parts))
    trunk.trainable = False
    batches, evaluator, model, kept = inputs(config, size, train_source, eval_source, trunk, head, devices)
    prepared = time.time() - started
    count = passes(config)
    updates = Updates(config.finetune.global_batch // count, count, per_execution=devices.per_execution)
    loss = assemble.loss(config, train_source.num_classes)
    inner = assemble.finetuning_optimizer(config, schedule(config, steps), count)
    optimizer = devices.optimizer(inner)
    devices.compile(model, optimizer, loss, updates)
    saved = checkpoint.Checkpoints(
        files.checkpoints,
        checkpoint.state(network, optimizer),
        keep=1,
        accumulation=count,
        data=run_data.facts(config, train_source),
    )
    manifest = saved.restore_latest()
    if manifest:
        compat.recount(inner, manifest.get("accumulation", count), count)
    train.check_resumed(manifest, steps, devices)
    position = callbacks.Position(steps, manifest, devices.looks)
    epoch = position.epoch
    logging.info(
        "fine-tuning of %s at %d px: %s parameters of %s; epochs %d to %d of %d steps, batch %d; features %s",
        ",".join(parts),
        size,
        f"{_count(head.trainable_weights):,}",
        f"{_count(network.weights):,}",
        epoch + 1,
        config.finetune.epochs,
        steps,
        config.finetune.global_batch,
        "computed once" if kept else "computed in every epoch",
    )
    lines = files.records
    if not epoch:
        records.append_line(lines, {"kind": "epoch", "epoch": 0, **_named(evaluator(size))})
    ending = EpochEnd(size, lines, saved, evaluator, position)
    if epoch < config.finetune.epochs:
        try:
            loop.fit(
                model,
                position,
                config.finetune.epochs,
                lambda epoch, first, size: updates.cut(batches(epoch)),
                [
                    position,
                    callbacks.Progress(position, config.finetune.epochs, config.finetune.global_batch),
                    callbacks.StopOnNotFinite(
                        inner, head.trainable_variables, position, config.runtime.max_skipped, "finetune.learning_rate"
                    ),
                    ending,
                ],
                updates,
            )
            saved.wait()
        except (tf.errors.OpError, OSError) as error:
            raise train.run_error(error, devices, files.path, position) from error
    history = records.by_epoch(records.read_lines(lines))
    changed = evaluate.changed_from_run(config, workdir, source=eval_source)
    figures = {
        "size": size,
        **{key: value for key, value in (ending.figures or evaluator(size)).items() if key != "images_per_second"},
        "multiply_adds": evaluate.multiply_adds(config, size, train_source.num_classes),
        "top1_before": history[0]["eval_top1"],
        "loss_before": history[0]["eval_loss"],
        "layers": ",".join(parts),
        "weights": start["weights"],
        "train_size": config.data.train_size,
        "epochs": config.finetune.epochs,
        "steps": config.finetune.epochs * steps,
        "features_kept": kept,
        **({"changed": changed} if changed else {}),
        "prepare_seconds": round(prepared, 3),
        "seconds": round(time.time() - started, 3),
    }
    records.write_json(done, figures)
    return figures


def steps_per_epoch(config: ConfigDict, source: Source) -> int:
    """Weight updates in an epoch of fine-tuning."""
    return train.whole_batches(source, "finetune.global_batch", config.finetune.global_batch)


def passes(config: ConfigDict) -> int:
    """Passes in a weight update: the fewest in which none has more images than a pass of the training, where that took
    its batch in several."""
    whole, batch = config.run.global_batch, config.finetune.global_batch
    most = config.runtime.micro_batch or whole // (config.runtime.grad_accumulation or 1)
    if most >= whole:
        return 1
    return next(count for count in range(1, batch + 1) if batch % count == 0 and batch // count <= most)


def schedule(config: ConfigDict, steps: int) -> Cosine:
    """The cosine to 0, times the warm-up, for epochs of `steps` weight updates."""
    fine = config.finetune
    return Cosine(fine.learning_rate, fine.epochs * steps, fine.warmup_epochs * steps)


def inputs(
    config: ConfigDict,
    size: int,
    train_source: Source,
    eval_source: Source,
    trunk: keras.Model,
    head: keras.Model,
    devices: Devices,
) -> Tuple[Callable, evaluate.Evaluator, keras.Model, bool]:
    """`(batches, evaluator, model, kept)`: how the top is trained and tested, with kept features where they fit.

    batches: `epoch -> endless batches` from there on; model: what to compile and fit on them.
    """
    fine, transform, judge = config.finetune, assemble.eval_transform(config, size), assemble.judge(config)
    seed, first = config.run.seed, config.run.epochs  # goes on in the order of the training's epochs

    def stream(source, prepare, mix=None):
        return lambda epoch: pipeline.train_batches(
            source,
            prepare,
            fine.global_batch,
            seed,
            start_epoch=first + epoch,
            mix=mix,
            max_corrupt=config.data.max_corrupt,
            num_parallel_calls=config.data.parallel,
            judge=judge,
        )

    if fine.noise == "top" and fits(config, trunk, train_source, eval_source):
        compute = tf.function(
            lambda images: trunk(tf.cast(images, tf.float32), training=False),
            input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)],
        )
        sources = [
            features.kept(source, transform, compute, trunk.output.shape[1:], trunk.output.dtype, config.eval.batch)
            for source in (train_source, eval_source)
        ]

        def as_it_is(record, seed):
            return record

        def eval_batches(size):
            return pipeline.eval_batches(
                sources[1], as_it_is, config.eval.batch, max_corrupt=config.data.max_corrupt, judge=judge
            )

        evaluator = evaluate.Evaluator(config, head, eval_source, devices, eval_batches)
        return stream(sources[0], as_it_is), evaluator, head, True

    # Of the caches only that of encoded images has what another size needs.
    source = assemble.kept(config, train_source) if config.data.cache == "encoded" else train_source
    image = keras.Input((size, size, 3), dtype="float32", name="image")
    frozen = trunk if fine.noise == "all" else split.Inference(trunk, name="frozen", dtype="float32")
    model = keras.Model(image, head(frozen(image)), name=f"{head.name}_on_trunk")
    mix = assemble.mix(_mixing_here(config)) if fine.noise == "all" else None
    return stream(source, transform, mix), evaluate.Evaluator(config, model, eval_source, devices), model, False


def _mixing_here(config):
    """`config` with the mixing on the host: what is compiled takes images alone."""
    config = config.copy_and_resolve_references().unlock()
    config.data.mix_on_device = False
    return config


def fits(config: ConfigDict, trunk: keras.Model, *sources: Source) -> bool:
    """Whether the features of `sources` may be kept: within `finetune.cache_gb` and half of the machine's memory."""
    needed = sum(features.needed_bytes(source, trunk.output.shape[1:], trunk.output.dtype) for source in sources)
    limit = min(config.finetune.cache_gb * 1e9, cache.memory() / 2)
    fit = needed <= limit
    logging.info(
        "features of the frozen part: %.3f GB of memory, %s the limit of %.3f GB%s",
        needed / 1e9,
        "within" if fit else "above",
        limit / 1e9,
        "" if fit else "; they are computed in every epoch (finetune.cache_gb)",
    )
    return fit


class EpochEnd(Callback):
    """Evaluation, record and checkpoint of each epoch, in this order."""

    def __init__(self, size: int, lines: str, saved: Any, evaluator: Any, position: Any) -> None:
        super().__init__()
        self.size, self.lines, self.saved, self.evaluator, self.position = size, lines, saved, evaluator, position
        self.figures = None  # of the last epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.time()

    def on_epoch_end(self, epoch, logs=None):
        self.position.finish_epoch()
        done, step = self.position.epoch, self.position.step
        seconds = time.time() - self.started
        self.figures = self.evaluator(self.size)
        record = {
            "kind": "epoch",
            "epoch": done,
            "step": step,
            "loss": float(logs["loss"]),
            "top1": float(logs["top1"]),
            "learning_rate": callbacks.learning_rate(self.model.optimizer, step - 1),
            "seconds": round(seconds, 3),
            **_named(self.figures),
        }
        records.append_line(self.lines, record)
        logging.info("Epoch %d: %s", done, ", ".join(f"{k} {v:.4g}" for k, v in record.items() if isinstance(v, float)))
        self.saved.save(step, epoch=done)


def _named(figures):
    return {"eval_top1": figures["top1"], "eval_top5": figures["top5"], "eval_loss": figures["loss"]}


def _count(weights):
    return sum(int(tf.size(weight)) for weight in weights)


def _read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)

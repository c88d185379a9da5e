"""The training loop: `compile` and `fit` with callbacks, for every experiment and all hardware.

An epoch ends in this order: the weight average is updated, raw and averaged weights are evaluated, the record is
written, the checkpoint is saved. A run that is started again goes on from the newest checkpoint that is whole, in the
middle of an epoch too: the next batch is the one that would have come. Where there is none, it starts from
`init.checkpoint`; without that, from scratch.
"""

import json
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict
from tensorflow import keras

from g16net import compat
from g16net import config as config_lib
from g16net.data import waiting as waiting_lib
from g16net.data.sources.base import Source, relabelled
from g16net.errors import ConfigError, RunError, UserError
from g16net.report import curves
from g16net.run import assemble, checkpoint, records, run_data
from g16net.run.devices import Devices
from g16net.run.signals import Signals
from g16net.run.workdir import Workdir
from g16net.training import callbacks, evaluate, loop, runtime, warm_start

TIMED_IMAGES = 2000  # an epoch of fewer is over before the share of the CPU time in it matters


@runtime.in_precision
def train(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Trains `config` (resolved) in `workdir` to its last epoch, resuming what is there. Returns the figures.

    Raises:
        UserError: the data is not that of the run in `workdir` (`run_data`).
        RunError: the run ended before its last epoch; the message says why and what is kept.
        Stopped: SIGTERM or SIGINT came; a checkpoint of the step is saved.
    """
    files, devices = Workdir(workdir), runtime.setup(config)
    sources = assemble.open_sources(config, trains=True)
    steps = steps_per_epoch(config, sources[0])
    finished = run_data.finished(config, workdir)
    if not finished:
        devices.check(steps)
    check_workers(config, devices, sources[0])
    changed = run_data.check(config, workdir, sources[0], finished)
    if not finished:
        check_resumed(checkpoint.newest_manifest(files.checkpoints), steps, devices)
    elif changed or run_data.other_test_images(config, workdir, sources[1]):
        return figures_of_before(config, workdir, changed or "other test images")
    class_names = run_data.class_names(workdir) if changed else sources[0].class_names
    train_source, eval_source = (relabelled(source, class_names) for source in sources)
    if devices.chief:
        os.makedirs(workdir, exist_ok=True)
        run_data.keep(config, workdir, train_source, eval_source)
    model, trainer, inner, optimizer = build(config, devices, train_source.num_classes, steps)
    average = assemble.average(config, model)  # outside the scope: on the host
    if average.over == "updates" and devices.averages_inside:
        average.follow(inner)
    with devices.strategy.scope():
        saved = checkpoint.Checkpoints(
            files.checkpoints,
            checkpoint.state(model, optimizer, average),
            config.checkpoint.keep,
            write=devices.chief,
            background=config.checkpoint.background,
            data=run_data.facts(config, train_source),
            accumulation=devices.updates.optimizer_accumulation,
        )
        manifest = saved.restore_latest()
        if not finished:
            check_resumed(manifest, steps, devices)  # of an older one, where the newest is damaged
        if manifest:
            compat.recount(inner, manifest.get("accumulation", saved.accumulation), saved.accumulation)
        if manifest is None and config.init.checkpoint:
            warm_start.load(config, model, class_names)
    position = callbacks.Position(steps, manifest, devices.looks)
    if not devices.equal(position.step):
        raise RunError(
            f"the workers found different checkpoints in {workdir!r} (this one step {position.step}); the workdir must "
            "be one folder that all of them see"
        )
    describe(config, model, train_source, eval_source, position, devices)
    # new at every start: a run that was cut off must not go on in the stream whose batches it has taken, and lost
    job = devices.drawn()

    evaluator = evaluate.Evaluator(config, model, eval_source, devices)
    watched = config.runtime.strategy == "default" and waiting_lib.possible()  # the others read ahead on their own
    shared = compat.on_cpu() and not config.data.service and steps * config.run.global_batch >= TIMED_IMAGES
    waiting = waiting_lib.Waiting(cpu=shared) if watched else None
    with Signals() as signals:
        finite = callbacks.StopOnNotFinite(inner, model.trainable_variables, position, config.runtime.max_skipped)
        bookkeeping = callbacks.Bookkeeping(
            config, workdir, position, saved, average, evaluator, optimizer, devices, signals, waiting, finite
        )
        watching = [
            position,
            callbacks.Progress(position, config.run.epochs, config.run.global_batch, waiting=waiting),
            finite,
            bookkeeping,
        ]

        def feed(batches):
            fed = devices.feed(batches)
            return waiting.watch(fed) if waiting else fed

        try:
            loop.fit(
                trainer,
                position,
                config.run.epochs,
                lambda epoch, first, size: feed(
                    assemble.train_batches(config, train_source, epoch, first, shard=devices.shard, size=size, job=job)
                ),
                watching,
                devices.updates,
                parts=lambda begin, end: assemble.progressive_parts(config, begin, end),
            )
            saved.wait()
        except (tf.errors.OpError, OSError) as error:
            raise run_error(error, devices, workdir, position) from error
    history = records.by_epoch(records.read_lines(files.records))
    # The last epoch ends with an evaluation, after which nothing changes; a run that was finished before has none.
    evaluated = bookkeeping.evaluated or callbacks.evaluate_both(config, evaluator, average)
    evaluate.keep(config, evaluator)
    figures = final_figures(config, evaluated, history)
    figures["multiply_adds"] = evaluate.multiply_adds(config, config.data.eval_size, train_source.num_classes)
    figures.update(
        train_size=config.data.train_size,
        epochs=config.run.epochs,
        steps=config.run.epochs * steps,
        resumed_from_epoch=manifest["epoch"] if manifest else 0,
        resumed_from_step=manifest["step"] if manifest else 0,
        records=files.records,
        checkpoints=files.checkpoints,
        **({"data_changed": changed} if changed else {}),
    )
    if devices.chief:
        figures["curves"] = curves.draw(history, files.curves, title=assemble.title(config))
    return figures


def figures_of_before(config: ConfigDict, workdir: str, changed: str) -> Dict[str, Any]:
    """The figures of the finished run in `workdir` whose images have `changed` since: those of its training, as its
    train.json has them, or else its last record. UserError where neither has them."""
    files = Workdir(workdir)
    if os.path.exists(files.figures("train")):
        with open(files.figures("train"), encoding="utf-8") as file:
            figures = json.load(file)
        return {**{key: value for key, value in figures.items() if key != "wall_seconds"}, "data_changed": changed}
    history = records.by_epoch(records.read_lines(files.records))
    last = history[-1] if history else {}
    if last.get("epoch") != config.run.epochs or "eval_top1" not in last:
        raise UserError(
            f"{workdir!r} is finished, its images have changed since ({changed}), and neither train.json nor "
            "records.jsonl has the figures of its training; --mode=evaluate measures it on the images as they are now"
        )
    endings = {"raw": "", "average": "_average"}
    evaluated = {
        weights: {name: last[f"eval_{name}{ending}"] for name in ("top1", "loss")}
        for weights, ending in endings.items()
        if f"eval_top1{ending}" in last
    }
    figures = final_figures(config, evaluated, history)
    sizes = {"train_size": config.data.train_size, "epochs": config.run.epochs, "steps": last["step"]}
    return {**figures, **sizes, "records": files.records, "checkpoints": files.checkpoints, "data_changed": changed}


def check_data(config: ConfigDict, workdir: str, source: Source, before: Sequence[str] = ()) -> None:
    """UserError where the run in `workdir` cannot go on with the training split `source`. Writes nothing."""
    steps_per_epoch(config, source)
    run_data.check(config, workdir, source, run_data.finished(config, workdir))
    check_cache(config, workdir, source)


def check_cache(config: ConfigDict, workdir: str, source: Source) -> None:
    """Raises ConfigError where the run in `workdir` stands in an epoch that goes on in another order now."""
    manifest, stored = checkpoint.newest_manifest(Workdir(workdir).checkpoints), Workdir(workdir).config
    if not manifest.get("in_epoch") or not source.part or not os.path.exists(stored):
        return
    before, now = config_lib.load(stored).data.cache, config.data.cache
    if (before == "none") != (now == "none"):
        raise ConfigError(
            f"data.cache={now}: the run in {workdir!r} is in the middle of an epoch that it began with data.cache="
            f"{before}. {source.name} files are shuffled in windows, and as a whole where the images are kept, so that "
            f"some would come twice in it and others never: leave it {before} until that epoch has ended"
        )


def check_workers(config: ConfigDict, devices: Devices, source: Source) -> None:
    """UserError, in every worker, where the workers of a run would train on different data."""
    if not devices.equal(int(run_data.facts(config, source)["digest"][:4], 16)):
        raise UserError(
            f"the workers have different training splits; worker {devices.shard[0]} has {source.num_examples} images "
            f"of {source.num_classes} classes in {run_data.where(config)}. Give all of them the same data"
        )


class Built(NamedTuple):
    """What `build` makes: the network, what is compiled (it may hold the network), and the optimizer, bare and as it is
    compiled with."""

    model: keras.Model
    trainer: keras.Model
    inner: compat.Optimizer
    optimizer: Any


def build(config: ConfigDict, devices: Devices, num_classes: int, steps: int) -> Built:
    """A network ready to train on `devices` with epochs of `steps` updates, as `Built`."""
    with devices.strategy.scope():
        sizes = set(config.data.progressive or (config.data.train_size,))
        if not devices.on_ipu:  # there the evaluator has models of its own
            sizes.add(config.data.eval_size)
        model = assemble.model(config, num_classes, sizes.pop() if len(sizes) == 1 else None)
        devices.prepare(model)
        guard = "none" if devices.on_ipu else assemble.guard(config)
        inner = assemble.optimizer(config, steps, devices.updates.optimizer_accumulation, guard)
        optimizer = devices.optimizer(inner)
        loss = assemble.loss(config, num_classes)
        trainer = assemble.training_model(config, model)
        devices.compile(trainer, optimizer, loss, devices.updates)
        trainer.distribute_reduction_method = "first"  # metrics are reduced over replicas before they are logged
    return Built(model, trainer, inner, optimizer)


def steps_per_epoch(config: ConfigDict, source: Source) -> int:
    """Weight updates per epoch: whole global batches; the remainder of each epoch's own order is left out."""
    return whole_batches(source, "run.global_batch", config.run.global_batch)


def check_resumed(manifest: Optional[Dict[str, Any]], steps: int, devices: Devices) -> None:
    """Raises ConfigError where a run with epochs of `steps` updates cannot go on from the checkpoint of `manifest`."""
    if not manifest:
        return
    epoch, done = manifest.get("epoch", 0), manifest.get("in_epoch", 0)
    before = manifest.get("steps") or ((manifest["step"] - done) // epoch if epoch else steps)
    if before != steps or done >= steps:
        raise ConfigError(
            f"the checkpoint at step {manifest['step']} is of a run with {before} weight updates per epoch, and now an "
            f"epoch has {steps}: the training split has another number of images, or run.global_batch changed. Give "
            "the same images and batch, or train in another --workdir with --config.init.checkpoint naming this one"
        )
    if done:
        devices.check_rest(steps, done)


def whole_batches(source: Source, field: str, batch: int) -> int:
    """How many batches the source has in an epoch; ConfigError, naming the `field` of their size, where none."""
    if batch > source.num_examples:
        raise ConfigError(
            f"{field}={batch} is more than the {source.num_examples} images of "
            f"{source.name}'s training split; set --config.{field}={max(source.num_examples // 4, 1)}"
        )
    return source.num_examples // batch


def run_error(error: Exception, devices: Devices, workdir: str, position: Any) -> RunError:
    """What the user is told of an error from below in the middle of a run."""
    known = devices.failed(error)
    if known is not None:
        return known
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return RunError(
            f"out of memory in the run in {workdir!r} at step {position.step + 1}: {compat.reason(error)}. Take the "
            "same global batch in smaller passes with --config.runtime.grad_accumulation=2 (or 4, 8, ...), or smaller "
            "images with --config.data.train_size, and run the command again"
        )
    return RunError(
        f"the run in {workdir!r} ended at step {position.step + 1}: {compat.reason(error)}. The newest checkpoint is "
        "kept; fix the cause and run the same command again to go on from it"
    )


def describe(
    config: ConfigDict, model: keras.Model, train_source: Source, eval_source: Source, position: Any, devices: Devices
) -> None:
    """One log line with what the run is about to do."""
    parameters = sum(int(tf.size(v)) for v in model.trainable_weights)
    logging.info(
        "%s: %s parameters, %d px; %s: %d training and %d test images, %d classes; "
        "epochs %d to %d of %d steps%s, global batch %d; %s, %s",
        assemble.title(config),
        f"{parameters:,}",
        config.data.train_size,
        train_source.name,
        train_source.num_examples,
        eval_source.num_examples,
        train_source.num_classes,
        position.epoch + 1,
        config.run.epochs,
        position.steps,
        f", from step {position.in_epoch + 1}" if position.in_epoch else "",
        config.run.global_batch,
        devices,
        config.runtime.precision,
    )


def final_figures(
    config: ConfigDict, evaluated: Dict[str, Dict[str, Any]], history: List[Dict[str, Any]]
) -> Dict[str, Any]:
    """Figures of the trained weights: those of the choice in `eval.weights` under plain names, the raw ones beside."""
    raw, weights = evaluated["raw"], "raw"
    if config.eval.weights != "raw" and "average" in evaluated:
        weights = "average"
    figures = dict(evaluated[weights], weights=weights)
    speeds = sorted(record["images_per_second"] for record in history)
    figures.update(
        eval_images_per_second=figures.pop("images_per_second", None),
        top1_raw=raw["top1"],
        images_per_second=speeds[len(speeds) // 2] if speeds else None,
        train_seconds=round(sum(record["seconds"] for record in history), 3),
        eval_size=config.data.eval_size,
    )
    return figures

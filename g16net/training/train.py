"""The training loop: `compile` and `fit` with callbacks, for every experiment and all hardware.

An epoch ends in this order: the weight average is updated, raw and averaged weights are evaluated, the record is
written, the checkpoint is saved. A run that is started again goes on from the newest checkpoint that is whole, in the
middle of an epoch too: the next batch is the one that would have come. Where there is none, it starts from
`init.checkpoint`; without that, from scratch.
"""

import os
import sys
import time
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging
from tensorflow import keras

from g16net import compat
from g16net.data import waiting as waiting_lib
from g16net.data.sources.base import relabelled
from g16net.errors import ConfigError, RunError, UserError
from g16net.optim.weight_average import WeightAverage
from g16net.report import curves
from g16net.run import assemble, checkpoint, records, run_data
from g16net.run.signals import Signals, Stopped
from g16net.training import evaluate, runtime, warm_start

TIMED_IMAGES = 2000  # an epoch of fewer is over before the share of the CPU time in it matters


def train(config, workdir):
    """Trains `config` (resolved) in `workdir` to its last epoch, resuming what is there. Returns the figures.

    Raises:
        UserError: the data is not that of the run in `workdir` (`run_data`).
        RunError: the run ended before its last epoch; the message says why and what is kept.
        Stopped: SIGTERM or SIGINT came; a checkpoint of the step is saved.
    """
    devices = runtime.setup(config)
    sources = assemble.open_sources(config)
    steps = steps_per_epoch(config, sources[0])
    devices.check(steps)
    check_workers(config, devices, sources[0])
    finished = run_data.finished(config, workdir)
    changed = run_data.check(config, workdir, sources[0], finished)
    if not finished:
        check_resumed(checkpoint.newest_manifest(checkpoint_folder(workdir)), steps, devices)
    class_names = run_data.known(workdir)["classes"] if changed else sources[0].class_names
    train_source, eval_source = (relabelled(source, class_names) for source in sources)
    if devices.chief:
        os.makedirs(workdir, exist_ok=True)
        run_data.keep(config, workdir, train_source)
    model, trainer, inner, optimizer = build(config, devices, train_source.num_classes, steps)
    average = WeightAverage(model, config.regularise.average)  # outside the scope: on the host
    with devices.strategy.scope():
        saved = checkpoint.Checkpoints(
            checkpoint_folder(workdir),
            checkpoint.state(model, optimizer, average),
            config.checkpoint.keep,
            write=devices.chief,
            background=config.checkpoint.background,
            data=run_data.facts(config, train_source),
            accumulation=devices.optimizer_accumulation,
        )
        manifest = saved.restore_latest()
        if not finished:
            check_resumed(manifest, steps, devices)  # of an older one, where the newest is damaged
        if manifest:
            compat.recount(inner, manifest.get("accumulation", saved.accumulation), saved.accumulation)
        if manifest is None and config.init.checkpoint:
            warm_start.load(config, model, class_names)
    position = Position(steps, manifest)
    if not devices.equal(position.step):
        raise RunError(
            f"the workers found different checkpoints in {workdir!r} (this one step {position.step}); the workdir must "
            "be one folder that all of them see"
        )
    describe(config, model, train_source, eval_source, position, devices)

    evaluator = evaluate.Evaluator(config, model, eval_source, devices)
    watched = config.runtime.strategy == "default" and waiting_lib.possible()  # the others read ahead on their own
    shared = compat.on_cpu() and not config.data.service and steps * config.run.global_batch >= TIMED_IMAGES
    waiting = waiting_lib.Waiting(cpu=shared) if watched else None
    with Signals() as signals:
        bookkeeping = Bookkeeping(
            config, workdir, position, saved, average, evaluator, optimizer, devices, signals, waiting
        )
        callbacks = devices.callbacks(
            [
                position,
                Progress(position, config.run.epochs, config.run.global_batch, waiting=waiting),
                StopOnNotFinite(inner, model.trainable_variables, position, config.runtime.max_skipped),
                bookkeeping,
            ]
        )
        try:
            # A resumed run first finishes its epoch, which is a shorter one, and then goes on with whole ones.
            for begin, first, end in position.stretches(config.run.epochs):
                for size, epoch, epochs in assemble.progressive_parts(config, begin, end):
                    batches = assemble.train_batches(config, train_source, epoch, first, shard=devices.shard, size=size)
                    batches = devices.feed(batches)
                    trainer.fit(
                        waiting.watch(batches) if waiting else batches,
                        initial_epoch=epoch,
                        epochs=epochs,
                        steps_per_epoch=devices.steps(steps - first),
                        callbacks=callbacks,
                        verbose=0,
                    )
            saved.wait()
        except (tf.errors.OpError, OSError) as error:
            raise run_error(error, devices, workdir, position) from error
    history = records.by_epoch(records.read_lines(records_path(workdir)))
    # The last epoch ends with an evaluation, after which nothing changes; a run that was finished before has none.
    evaluated = bookkeeping.evaluated or evaluate_both(config, evaluator, average)
    evaluate.keep(config, evaluator)
    figures = final_figures(config, evaluated, history)
    figures["multiply_adds"] = evaluate.multiply_adds(config, config.data.eval_size, train_source.num_classes)
    figures.update(
        train_size=config.data.train_size,
        epochs=config.run.epochs,
        steps=config.run.epochs * steps,
        resumed_from_epoch=manifest["epoch"] if manifest else 0,
        resumed_from_step=manifest["step"] if manifest else 0,
        records=records_path(workdir),
        checkpoints=checkpoint_folder(workdir),
        **({"data_changed": changed} if changed else {}),
    )
    if devices.chief:
        figures["curves"] = curves.draw(history, os.path.join(workdir, "curves.png"), title=assemble.title(config))
    return figures


def check_data(config, workdir, source, before=()):
    """UserError where the run in `workdir` cannot go on with the training split `source`. Writes nothing."""
    steps_per_epoch(config, source)
    run_data.check(config, workdir, source, run_data.finished(config, workdir))


def check_workers(config, devices, source):
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


def build(config, devices, num_classes, steps):
    """A network ready to train on `devices` with epochs of `steps` updates, as `Built`."""
    with devices.strategy.scope():
        sizes = set(config.data.progressive or (config.data.train_size,))
        if not devices.on_ipu:  # there the evaluator has models of its own
            sizes.add(config.data.eval_size)
        model = assemble.model(config, num_classes, sizes.pop() if len(sizes) == 1 else None)
        devices.prepare(model)
        guard = "none" if devices.on_ipu else assemble.guard(config)
        inner = assemble.optimizer(config, steps, devices.optimizer_accumulation, guard)
        optimizer = devices.optimizer(inner)
        loss = assemble.loss(config, num_classes)
        trainer = assemble.training_model(config, model)
        trainer.compile(
            optimizer,
            loss=loss,
            metrics=devices.metrics(loss),
            steps_per_execution=devices.steps_per_execution,
        )
        trainer.distribute_reduction_method = "first"  # metrics are reduced over replicas before they are logged
    return Built(model, trainer, inner, optimizer)


def steps_per_epoch(config, source):
    """Weight updates an epoch: whole global batches; the remainder of each epoch's own order is left out."""
    return whole_batches(source, "run.global_batch", config.run.global_batch)


def check_resumed(manifest, steps, devices):
    """Raises ConfigError where a run with epochs of `steps` updates cannot go on from the checkpoint of `manifest`."""
    if not manifest:
        return
    epoch, done = manifest.get("epoch", 0), manifest.get("in_epoch", 0)
    before = manifest.get("steps") or ((manifest["step"] - done) // epoch if epoch else steps)
    if before != steps or done >= steps:
        raise ConfigError(
            f"the checkpoint at step {manifest['step']} is of a run with {before} weight updates an epoch, and now an "
            f"epoch has {steps}: the training split has another number of images, or run.global_batch changed. Give "
            "the same images and batch, or train in another --workdir with --config.init.checkpoint naming this one"
        )
    if done:
        devices.check_rest(steps, done)


def whole_batches(source, field, batch):
    """How many batches the source has in an epoch; ConfigError, naming the `field` of their size, where none."""
    if batch > source.num_examples:
        raise ConfigError(
            f"{field}={batch} is more than the {source.num_examples} images of "
            f"{source.name}'s training split; set --config.{field}={max(source.num_examples // 4, 1)}"
        )
    return source.num_examples // batch


def run_error(error, devices, workdir, position):
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
        "kept; mend the cause and run the same command again to go on from it"
    )


def describe(config, model, train_source, eval_source, position, devices):
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


def evaluate_both(config, evaluator, average):
    """`{"raw": figures, "average": figures}` of the present weights at `data.eval_size`; raw alone without an average.

    No weights are evaluated twice: the average of one epoch is that epoch's weights.
    """
    size = config.data.eval_size
    evaluated = {"raw": evaluator(size)}
    if average.decay and int(average.updates.numpy()) == 1:
        evaluated["average"] = evaluated["raw"]
    elif average.decay:
        with average.applied():
            evaluated["average"] = evaluator(size)
    return evaluated


def final_figures(config, evaluated, history):
    """Figures of the trained weights: those of the choice in `eval.weights` under plain names, the raw ones beside."""
    raw, weights = evaluated["raw"], "raw"
    if config.eval.weights != "raw" and "average" in evaluated:
        weights = "average"
    figures = dict(evaluated[weights], weights=weights)
    speeds = sorted(record["images_per_second"] for record in history)
    figures.update(
        eval_images_per_second=figures.pop("images_per_second"),
        top1_raw=raw["top1"],
        images_per_second=speeds[len(speeds) // 2] if speeds else None,
        train_seconds=round(sum(record["seconds"] for record in history), 3),
        eval_size=config.data.eval_size,
    )
    return figures


def checkpoint_folder(workdir):
    """Where a run keeps its checkpoints."""
    return os.path.join(workdir, "checkpoints")


def records_path(workdir):
    """The file with a line for each epoch of a run."""
    return os.path.join(workdir, "records.jsonl")


class Position(keras.callbacks.Callback):
    """How far the run is: `epoch` whole epochs and `in_epoch` weight updates of the next; `step` in all.

    The first of the callbacks, so that the others see the present.
    """

    def __init__(self, steps, manifest=None):
        super().__init__()
        manifest = manifest or {}
        self.steps = steps
        self.epoch, self.in_epoch = manifest.get("epoch", 0), manifest.get("in_epoch", 0)
        self.resumed = manifest if self.in_epoch else {}
        self._first = self.in_epoch

    @property
    def step(self):
        return self.epoch * self.steps + self.in_epoch

    def stretches(self, epochs):
        """`(epoch, first step, last epoch)` of each call of `fit`, at its start."""
        if self.in_epoch:
            yield self.epoch, self.in_epoch, self.epoch + 1
        if self.epoch < epochs:
            yield self.epoch, 0, epochs

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._first = self.in_epoch if self.in_epoch < self.steps else 0
        self.in_epoch = self._first

    def on_train_batch_end(self, batch, logs=None):
        self.in_epoch = self._first + batch + 1

    def finish_epoch(self):
        self.epoch, self.in_epoch, self.resumed = self.epoch + 1, 0, {}


class StopOnNotFinite(keras.callbacks.Callback):
    """Ends the run, naming the step and the variables, when the loss or a gradient is not finite.

    It does so with `NotFinite`, a RunError. Up to `max_skipped` updates with such gradients, which the optimizer leaves
    out, are only told. The last good checkpoint stays.
    """

    def __init__(self, optimizer, variables, position, max_skipped, rate="optim.learning_rate"):
        super().__init__()
        self.optimizer, self.position, self.max_skipped, self.rate = optimizer, position, max_skipped, rate
        self.names = [compat.name_of(variable) for variable in variables]
        self.skipped = 0

    def on_train_batch_end(self, batch, logs=None):
        step = self.position.step
        loss = float((logs or {}).get("loss", 0.0))
        if self.optimizer.guard != "none":
            skipped = int(self.optimizer.skipped.numpy())
            if skipped > self.skipped:
                self.skipped = skipped
                bad = [name for name, flag in zip(self.names, self.optimizer.not_finite.numpy()) if flag]
                named = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
                if skipped > self.max_skipped:
                    raise NotFinite(step, f"the gradients of {named} are not finite", loss, self.rate)
                logging.warning(
                    "Step %d: the gradients of %s are not finite; update left out, %d of %d that may be.",
                    step, named, skipped, self.max_skipped,
                )  # fmt: skip
                return
        if not -float("inf") < loss < float("inf") and not self.skipped:
            raise NotFinite(step, f"the training loss is {loss}", loss, self.rate)


class NotFinite(RunError, FloatingPointError):
    """Values of the training that are not finite."""

    def __init__(self, step, what, loss, rate="optim.learning_rate"):
        super().__init__(
            f"{what} at step {step} (loss {loss:.4g}); the checkpoint before it is kept. Lower "
            f"--config.{rate}, use --config.runtime.precision=float32, or let some such updates be left "
            "out: --config.runtime.max_skipped=10"
        )


class Progress(keras.callbacks.Callback):
    """Images a second, the share of the time that went into waiting for them and that of the CPU time that went into
    preparing them, and time left: a bar on a terminal, otherwise `lines` log lines an epoch.

    `waiting`: the `Waiting` that watches the batches, or None where nobody knows.
    """

    def __init__(self, position, epochs, global_batch, lines=4, stream=None, waiting=None):
        super().__init__()
        self.waiting = waiting
        self.position, self.epochs, self.global_batch, self.lines = position, epochs, global_batch, lines
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.first = epoch, None
        self.shown = 0.0

    def on_train_batch_end(self, batch, logs=None):
        now, done, steps = time.monotonic(), self.position.in_epoch, self.position.steps
        if self.first is None:  # the first step compiles: speed counts from its end
            self.first, self.costs = (now, done), input_costs(self.waiting)
            return
        every = max(steps // self.lines, 1)
        due = now - self.shown > 0.2 if self.terminal else done // every > (done - 1) // every
        if not due and done < steps:
            return
        self.shown = now
        passed = max(now - self.first[0], 1e-9)
        speed = (done - self.first[1]) / passed
        left = ((self.epochs - self.epoch) * steps - done) / speed
        text = (
            f"epoch {self.epoch + 1}/{self.epochs} step {done}/{steps} loss {float(logs['loss']):.4f} "
            f"{speed * self.global_batch:.0f} images/s, "
        )
        shares = input_shares(self.costs, input_costs(self.waiting), passed)
        if "input_wait" in shares:
            text += f"{shares['input_wait']:.0%} of it waiting for data, "
        if "input_cpu" in shares:
            text += f"{shares['input_cpu']:.0%} of the CPU time preparing it, "
        text += f"{duration(left)} left"
        if not self.terminal:
            logging.info(text)
            return
        filled = 24 * done // steps
        end = "\n" if done == steps else ""
        self.stream.write(f"\r[{'#' * filled}{'.' * (24 - filled)}] {text}\033[K{end}")
        self.stream.flush()


def input_costs(waiting):
    """What the input has cost so far, to be given to `input_shares`: of waiting, of CPU time, and all CPU time."""
    counts = waiting.read() if waiting else {"waited": None, "cpu": None}
    return counts["waited"], counts["cpu"], time.process_time()


def input_shares(before, now, seconds):
    """`input_wait`, the share of the `seconds` between two `input_costs` that went into waiting for batches, and
    `input_cpu`, the share of this process's CPU time that went into preparing them; each where it is known."""
    shares = {}
    if now[0] is not None:
        shares["input_wait"] = (now[0] - before[0]) / seconds
    if now[1] is not None and before[1] is not None and now[2] > before[2]:
        shares["input_cpu"] = min((now[1] - before[1]) / (now[2] - before[2]), 1.0)
    return shares


def duration(seconds):
    """`90` -> `1:30`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Bookkeeping(keras.callbacks.Callback):
    """At the end of each epoch average, evaluation, record and checkpoint, in this order; checkpoints in between.

    Only the chief writes. It raises `Stopped` where a signal came.
    """

    def __init__(self, config, workdir, position, saved, average, evaluator, optimizer, devices, signals, waiting):
        super().__init__()
        self.waiting = waiting
        self.config, self.workdir, self.position, self.saved = config, workdir, position, saved
        self.average, self.evaluator, self.optimizer = average, evaluator, optimizer
        self.devices, self.signals = devices, signals
        self.summary = None
        self.evaluated = None  # `evaluate_both` of the last epoch
        if devices.chief:
            self.summary = tf.summary.create_file_writer(os.path.join(workdir, "tensorboard"))

    def on_epoch_begin(self, epoch, logs=None):
        self.started, self.first_step_done = time.monotonic(), None
        self.resumed = self.position.resumed
        self.before = self.resumed.get("seconds", 0.0)

    def on_train_batch_end(self, batch, logs=None):
        done = self.position.in_epoch
        if self.first_step_done is None:
            self.first_step_done, self.timed_from = time.monotonic(), done
            self.costs = input_costs(self.waiting)
        if done == self.position.steps:
            return  # the epoch's end saves, with its figures
        every = self.config.checkpoint.every_steps
        stop = self.devices.any(self.signals.received)
        if stop or every and self.position.step // every > (self.position.step - self._updates()) // every:
            self.saved.save(
                self.position.step,
                epoch=self.position.epoch,
                in_epoch=done,
                steps=self.position.steps,
                seconds=self.before + time.monotonic() - self.started,
                **self._means(logs),
            )
        if stop:
            self._stop()

    def _updates(self):
        return self.config.runtime.steps_per_execution

    def _stop(self):
        self.saved.wait()
        raise Stopped(self.signals.received, self.position.step, self.workdir)

    def _means(self, logs):
        """Loss and top-1 over the steps of the epoch so far, those before a resume included."""
        before, now = self.resumed.get("in_epoch", 0), self.position.in_epoch
        return {
            name: (self.resumed.get(name, 0.0) * before + float(logs[name]) * (now - before)) / now
            for name in ("loss", "top1")
        }

    def on_epoch_end(self, epoch, logs=None):
        trained, costs = time.monotonic(), input_costs(self.waiting)
        means = self._means(logs)
        self.average.update()
        self.position.finish_epoch()
        done, step = self.position.epoch, self.position.step
        timed = self.position.steps - self.timed_from
        since, images = (self.first_step_done, timed) if timed else (self.started, self._updates())
        record = {
            "kind": "epoch",
            "epoch": done,
            "step": step,
            **means,
            "learning_rate": learning_rate(self.optimizer, step - 1),
            "images_per_second": round(images * self.config.run.global_batch / (trained - since), 2),
            "seconds": round(self.before + trained - self.started, 3),
        }
        if timed:
            shares = input_shares(self.costs, costs, trained - since)
            record.update({name: round(share, 4) for name, share in shares.items()})
        last = done == self.config.run.epochs
        if done % self.config.eval.every_epochs == 0 or last:
            record.update(self._evaluate())
        self._record(record)
        stop = self.devices.any(self.signals.received)
        if done % self.config.checkpoint.every_epochs == 0 or last or stop:
            score = record.get("eval_top1_average", record.get("eval_top1"))
            self.saved.save(step, epoch=done, in_epoch=0, steps=self.position.steps, score=score)
        if stop:
            self._stop()

    def _record(self, record):
        if not self.devices.chief:
            return
        records.append_line(records_path(self.workdir), record)
        with self.summary.as_default():
            for name, value in record.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value, step=record["step"])
        self.summary.flush()
        figures = ", ".join(f"{k} {v:.4g}" for k, v in record.items() if isinstance(v, float))
        logging.info("Epoch %d: %s", record["epoch"], figures)

    def _evaluate(self):
        self.evaluated = evaluate_both(self.config, self.evaluator, self.average)
        endings = {"raw": "", "average": "_average"}
        return {
            f"eval_{name}{endings[weights]}": figures[name]
            for weights, figures in self.evaluated.items()
            for name in ("top1", "loss")
        }


def learning_rate(optimizer, step):
    """The learning rate of `step`, whether the optimizer holds a schedule or a number."""
    rate = getattr(optimizer, "inner_optimizer", optimizer)
    rate = (
        getattr(rate, "_learning_rate", None) if hasattr(rate, "_learning_rate") else rate._get_hyper("learning_rate")
    )
    rate = rate(step) if callable(rate) else rate
    return float(rate.numpy() if hasattr(rate, "numpy") else rate)  # variables of a strategy are no numbers

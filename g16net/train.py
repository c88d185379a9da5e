"""The training loop: `compile` and `fit` with callbacks, for every experiment and all hardware.

An epoch ends in this order: the weight average is updated, raw and averaged weights are evaluated, the record is
written, the checkpoint is saved. A run that is started again goes on from the newest checkpoint that is whole.
"""

import os
import sys
import time

import tensorflow as tf
from absl import logging
from tensorflow import keras

from g16net import assemble, checkpoint, records, runtime
from g16net.config import ConfigError
from g16net.optim.weight_average import WeightAverage
from g16net.report import curves


def train(config, workdir):
    """Trains `config` (resolved) in `workdir` to its last epoch, resuming what is there. Returns the figures."""
    devices = runtime.setup(config)
    train_source, eval_source = assemble.open_sources(config)
    steps = steps_per_epoch(config, train_source)
    devices.check(steps)
    if devices.chief:
        os.makedirs(workdir, exist_ok=True)
        assemble.save_classes(workdir, train_source)
    with devices.strategy.scope():
        size = None if config.data.progressive else config.data.train_size
        model = assemble.model(config, train_source.num_classes, size)
        devices.prepare(model)
        optimizer = devices.optimizer(assemble.optimizer(config, steps))
        loss = assemble.loss(config, train_source.num_classes)
        trainer = assemble.training_model(config, model)
        trainer.compile(
            optimizer,
            loss=loss,
            metrics=devices.metrics(loss),
            steps_per_execution=devices.steps_per_execution,
        )
    average = WeightAverage(model, config.regularise.average)  # outside the scope: on the host
    saved = checkpoint.Checkpoints(
        checkpoint_folder(workdir), config.checkpoint.keep, model=model, optimizer=optimizer, average=average
    )
    with devices.strategy.scope():
        manifest = saved.restore_latest() or {"epoch": 0, "step": 0}
    start_epoch, epochs = manifest["epoch"], config.run.epochs
    describe(config, model, train_source, eval_source, steps, start_epoch, devices)

    evaluator = devices.evaluator(model, eval_source)
    for size, first, end in assemble.progressive_parts(config):
        first = max(first, start_epoch)
        if first >= end:
            continue
        trainer.fit(
            devices.feed(assemble.train_batches(config, train_source, first, shard=devices.shard, size=size)),
            epochs=end,
            initial_epoch=first,
            steps_per_epoch=devices.steps(steps),
            callbacks=devices.callbacks(
                [
                    Progress(epochs, steps, config.run.global_batch),
                    StopOnNotFinite(),
                    EpochEnd(config, workdir, saved, average, evaluator, optimizer, steps, devices.chief),
                ]
            ),
            verbose=0,
        )
    history = records.by_epoch(records.read_lines(records_path(workdir)))
    figures = final_figures(config, evaluator, average, history)
    figures.update(
        train_size=config.data.train_size,
        epochs=epochs,
        steps=epochs * steps,
        resumed_from_epoch=start_epoch,
        records=records_path(workdir),
        checkpoints=checkpoint_folder(workdir),
    )
    if devices.chief:
        figures["curves"] = curves.draw(history, os.path.join(workdir, "curves.png"), title=assemble.title(config))
    return figures


def steps_per_epoch(config, source):
    """Weight updates an epoch: whole global batches; the remainder of each epoch's own order is left out."""
    steps = source.num_examples // config.run.global_batch
    if not steps:
        raise ConfigError(
            f"run.global_batch={config.run.global_batch} is more than the {source.num_examples} images of "
            f"{source.name}'s training split; set --config.run.global_batch={max(source.num_examples // 4, 1)}"
        )
    return steps


def describe(config, model, train_source, eval_source, steps, start_epoch, devices):
    """One log line with what the run is about to do."""
    parameters = sum(int(tf.size(v)) for v in model.trainable_weights)
    logging.info(
        "%s: %s parameters, %d px; %s: %d training and %d test images, %d classes; "
        "epochs %d to %d of %d steps, global batch %d; %s, %s",
        assemble.title(config),
        f"{parameters:,}",
        config.data.train_size,
        train_source.name,
        train_source.num_examples,
        eval_source.num_examples,
        train_source.num_classes,
        start_epoch + 1,
        config.run.epochs,
        steps,
        config.run.global_batch,
        devices,
        config.runtime.precision,
    )


def final_figures(config, evaluator, average, history):
    """Figures of the trained weights: those of the choice in `eval.weights` under plain names, the raw ones beside."""
    size = config.data.eval_size
    raw = evaluator(size)
    figures = dict(raw, weights="raw")
    if config.eval.weights != "raw" and average.decay:
        with average.applied():
            figures = dict(evaluator(size), weights="average")
    speeds = sorted(record["images_per_second"] for record in history)
    figures.update(
        eval_images_per_second=figures.pop("images_per_second"),
        top1_raw=raw["top1"],
        images_per_second=speeds[len(speeds) // 2] if speeds else None,
        train_seconds=round(sum(record["seconds"] for record in history), 3),
        eval_size=size,
    )
    return figures


def checkpoint_folder(workdir):
    return os.path.join(workdir, "checkpoints")


def records_path(workdir):
    return os.path.join(workdir, "records.jsonl")


class StopOnNotFinite(keras.callbacks.Callback):
    """Ends the run, naming the step, when the loss is not finite; the last good checkpoint stays."""

    def __init__(self, rate="optim.learning_rate"):
        super().__init__()
        self.rate = rate

    def on_train_batch_end(self, batch, logs=None):
        loss = float((logs or {}).get("loss", 0.0))
        if not -float("inf") < loss < float("inf"):
            step = int(self.model.optimizer.iterations)
            raise FloatingPointError(
                f"the training loss is {loss} at step {step}; the checkpoint before it is kept. "
                f"Lower --config.{self.rate}, or use --config.runtime.precision=float32"
            )


class Progress(keras.callbacks.Callback):
    """Images a second and time left: a bar on a terminal, otherwise `lines` log lines an epoch."""

    def __init__(self, epochs, steps, global_batch, lines=4, stream=None):
        super().__init__()
        self.epochs, self.steps, self.global_batch, self.lines = epochs, steps, global_batch, lines
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.first = epoch, None
        self.shown = 0.0

    def on_train_batch_end(self, batch, logs=None):
        now, done = time.time(), batch + 1
        if self.first is None:  # the first step compiles: speed counts from its end
            self.first = (now, done)
            return
        every = max(self.steps // self.lines, 1)
        due = now - self.shown > 0.2 if self.terminal else done // every > (done - 1) // every
        if not due and done < self.steps:
            return
        self.shown = now
        speed = (done - self.first[1]) / max(now - self.first[0], 1e-9)
        left = ((self.epochs - self.epoch) * self.steps - done) / speed
        text = (
            f"epoch {self.epoch + 1}/{self.epochs} step {done}/{self.steps} loss {float(logs['loss']):.4f} "
            f"{speed * self.global_batch:.0f} images/s, {duration(left)} left"
        )
        if not self.terminal:
            logging.info(text)
            return
        filled = 24 * done // self.steps
        end = "\n" if done == self.steps else ""
        self.stream.write(f"\r[{'#' * filled}{'.' * (24 - filled)}] {text}\033[K{end}")
        self.stream.flush()


def duration(seconds):
    """`90` -> `1:30`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class EpochEnd(keras.callbacks.Callback):
    """Average, evaluation, record and checkpoint of each epoch, in this order; only the chief writes."""

    def __init__(self, config, workdir, saved, average, evaluator, optimizer, steps, chief=True):
        super().__init__()
        self.config, self.workdir, self.saved = config, workdir, saved
        self.average, self.evaluator, self.optimizer, self.steps = average, evaluator, optimizer, steps
        self.chief = chief
        self.summary = tf.summary.create_file_writer(os.path.join(workdir, "tensorboard")) if chief else None

    def on_epoch_begin(self, epoch, logs=None):
        self.started, self.first_step_done, self.batches = time.time(), None, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches = batch + 1
        if self.first_step_done is None:
            self.first_step_done = (time.time(), self.batches)

    def on_epoch_end(self, epoch, logs=None):
        trained = time.time()
        self.average.update()
        done = epoch + 1
        step = done * self.steps
        since, before = self.first_step_done
        timed = self.batches - before
        record = {
            "kind": "epoch",
            "epoch": done,
            "step": step,
            "loss": float(logs["loss"]),
            "top1": float(logs["top1"]),
            "learning_rate": learning_rate(self.optimizer, step - 1),
            "images_per_second": round(
                (timed or self.batches) * self.config.run.global_batch / (trained - (since if timed else self.started)),
                2,
            ),
            "seconds": round(trained - self.started, 3),
        }
        if done % self.config.eval.every_epochs == 0 or done == self.config.run.epochs:
            record.update(self._evaluate())
        if not self.chief:
            return
        records.append_line(records_path(self.workdir), record)
        with self.summary.as_default():
            for name, value in record.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value, step=step)
        self.summary.flush()
        logging.info("Epoch %d: %s", done, ", ".join(f"{k} {v:.4g}" for k, v in record.items() if isinstance(v, float)))
        if done % self.config.checkpoint.every_epochs == 0 or done == self.config.run.epochs:
            self.saved.save(step, epoch=done)

    def _evaluate(self):
        size = self.config.data.eval_size
        figures = self.evaluator(size)
        record = {"eval_top1": figures["top1"], "eval_loss": figures["loss"]}
        if self.average.decay:
            with self.average.applied():
                figures = self.evaluator(size)
            record.update(eval_top1_average=figures["top1"], eval_loss_average=figures["loss"])
        return record


def learning_rate(optimizer, step):
    """The learning rate of `step`, whether the optimizer holds a schedule or a number."""
    rate = getattr(optimizer, "inner_optimizer", optimizer)
    rate = (
        getattr(rate, "_learning_rate", None) if hasattr(rate, "_learning_rate") else rate._get_hyper("learning_rate")
    )
    return float(rate(step)) if callable(rate) else float(rate)

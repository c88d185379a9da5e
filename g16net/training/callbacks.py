"""What `fit` calls while it trains: position, progress, the guard against values that are not finite, and what an epoch
ends with."""

import sys
import time
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from g16net import compat
from g16net.errors import RunError
from g16net.run import records
from g16net.run.devices import Devices
from g16net.run.signals import Stopped
from g16net.run.updates import Callback
from g16net.run.workdir import Workdir


class Position(Callback):
    """How far the run is: `epoch` whole epochs and `in_epoch` weight updates of the next; `step` in all.

    The first of the callbacks, so that the others see the present. `looking` tells them whether values that live on the
    device are looked at now: after every `looks` updates, and at the end of an epoch.
    """

    def __init__(self, steps: int, manifest: Optional[Dict[str, Any]] = None, looks: int = 1) -> None:
        super().__init__()
        manifest = manifest or {}
        self.steps, self.looks, self.looking = steps, looks, True
        self.epoch, self.in_epoch = manifest.get("epoch", 0), manifest.get("in_epoch", 0)
        self.resumed = manifest if self.in_epoch else {}
        self._first = self.in_epoch

    @property
    def step(self) -> int:
        return self.epoch * self.steps + self.in_epoch

    def stretches(self, epochs: int) -> Iterator[Tuple[int, int, int]]:
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
        before, self.in_epoch = self.step, self._first + batch + 1
        self.looking = self.step // self.looks > before // self.looks or self.in_epoch == self.steps

    def finish_epoch(self) -> None:
        self.epoch, self.in_epoch, self.resumed = self.epoch + 1, 0, {}


class StopOnNotFinite(Callback):
    """Ends the run, naming the step and the variables, when the loss or a gradient is not finite.

    It looks when the position does, and whenever `look` is called, as before a checkpoint.

    It does so with `NotFinite`, a RunError. Up to `max_skipped` updates with such gradients, which the optimizer leaves
    out, are only told. The last good checkpoint stays.
    """

    def __init__(
        self,
        optimizer: Any,
        variables: Dict[str, Any],
        position: Any,
        max_skipped: Any,
        rate: Any = "optim.learning_rate",
    ) -> None:
        super().__init__()
        self.optimizer, self.position, self.max_skipped, self.rate = optimizer, position, max_skipped, rate
        self.names = [compat.name_of(variable) for variable in variables]
        self.skipped = 0
        self.looked = position.step

    def on_train_batch_end(self, batch, logs=None):
        if self.position.looking:
            self.look(logs)

    def look(self, logs: Optional[Dict[str, Any]] = None) -> None:
        """Raises `NotFinite` where the run shall end; `logs` are those of its latest step."""
        first, last = self.looked + 1, self.position.step
        self.looked = last
        step = f"step {last}" if first >= last else f"a step from {first} to {last}"
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
                    "The gradients of %s are not finite at %s; update left out, %d of %d that may be.",
                    named, step, skipped, self.max_skipped,
                )  # fmt: skip
                return
        if not -float("inf") < loss < float("inf") and not self.skipped:
            raise NotFinite(step, f"the training loss is {loss}", loss, self.rate)


class NotFinite(RunError, FloatingPointError):
    """Values of the training that are not finite."""

    def __init__(self, step: str, what: str, loss: Any, rate: Any = "optim.learning_rate") -> None:
        super().__init__(
            f"{what} at {step} (loss {loss:.4g}); the checkpoint before it is kept. Lower "
            f"--config.{rate} (which makes it another run), use --config.runtime.precision=float32, or let some such "
            "updates be left out: --config.runtime.max_skipped=10"
        )


class Progress(Callback):
    """Images per second, the share of the time that went into waiting for them and that of the CPU time that went into
    preparing them, and time left: a bar on a terminal, otherwise `lines` log lines per epoch.

    `waiting`: the `Waiting` that watches the batches, or None where nobody knows.
    """

    def __init__(
        self, position: Any, epochs: int, global_batch: int, lines: int = 4, stream: Any = None, waiting: Any = None
    ) -> None:
        super().__init__()
        self.waiting = waiting
        self.position, self.epochs, self.global_batch, self.lines = position, epochs, global_batch, lines
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.first = epoch, None
        self.shown, self.loss = 0.0, ""

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
        if self.position.looking:
            self.loss = f"loss {float(logs['loss']):.4f} "
        passed = max(now - self.first[0], 1e-9)
        speed = (done - self.first[1]) / passed
        left = ((self.epochs - self.epoch) * steps - done) / speed
        text = (
            f"epoch {self.epoch + 1}/{self.epochs} step {done}/{steps} {self.loss}"
            f"{speed * self.global_batch:.0f} images/s, "
        )
        shares = input_shares(self.waiting, self.costs, input_costs(self.waiting), passed)
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


def input_costs(waiting: Any) -> Any:
    """What the input has cost so far, to be given to `input_shares`: its counts and all CPU time."""
    return waiting.read() if waiting else None, time.process_time()


def input_shares(waiting: Any, before: Any, now: Any, seconds: float) -> Dict[str, float]:
    """`input_wait`, the share of the `seconds` between two `input_costs` that went into waiting for batches, and
    `input_cpu`, the share of this process's CPU time that went into preparing them; each where it is known."""
    if not waiting:
        return {}
    (begin, cpu_begin), (end, cpu_end) = before, now
    shares = {"input_wait": (end["waited"] - begin["waited"]) / seconds}
    cpu = waiting.cpu_seconds(begin["batches"], end["batches"])
    if cpu is not None and cpu_end > cpu_begin:
        shares["input_cpu"] = min(cpu / (cpu_end - cpu_begin), 1.0)
    return shares


def duration(seconds: float) -> str:
    """`90` -> `1:30`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Bookkeeping(Callback):
    """At the end of each epoch average, evaluation, record and checkpoint, in this order; checkpoints in between.

    Only the chief writes. It raises `Stopped` where a signal came.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: str,
        position: Any,
        saved: Any,
        average: Any,
        evaluator: Any,
        optimizer: Any,
        devices: Devices,
        signals: Any,
        waiting: Any,
        finite: StopOnNotFinite,
    ) -> None:
        super().__init__()
        self.waiting, self.finite = waiting, finite
        self.config, self.workdir, self.position, self.saved = config, workdir, position, saved
        self.average, self.evaluator, self.optimizer = average, evaluator, optimizer
        self.devices, self.signals = devices, signals
        self.summary = None
        self.evaluated = None  # `evaluate_both` of the last epoch
        if devices.chief:
            self.summary = tf.summary.create_file_writer(Workdir(workdir).tensorboard)

    def on_epoch_begin(self, epoch, logs=None):
        self.started, self.first_step_done = time.monotonic(), None
        self.began = self.position.in_epoch
        self.resumed = self.position.resumed
        self.before = self.resumed.get("seconds", 0.0)

    def on_train_batch_end(self, batch, logs=None):
        if self.average.over == "updates" and not self.devices.averages_inside:
            self.average.update()
        done = self.position.in_epoch
        if self.first_step_done is None:
            self.first_step_done, self.timed_from = time.monotonic(), done
            self.costs = input_costs(self.waiting)
        if done == self.position.steps:
            return  # the epoch's end saves, with its figures
        alone = self.devices.shard[1] == 1  # several workers ask each other, which waits for their devices
        stop = (alone or self.position.looking) and self.devices.any(self.signals.received)
        if stop or self._due():
            self.finite.look(logs)
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

    def _due(self):
        """Whether the latest call of the device came to a step of `checkpoint.every_steps`."""
        every, step = self.config.checkpoint.every_steps, self.position.step
        return bool(every) and step // every > (step - self.devices.per_execution) // every

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
        if self.average.over == "epochs":
            self.average.update()
        self.position.finish_epoch()
        done, step = self.position.epoch, self.position.step
        timed = self.position.steps - self.timed_from
        since, images = (self.first_step_done, timed) if timed else (self.started, self.position.steps - self.began)
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
            if self.waiting:
                self.waiting.measure()
            shares = input_shares(self.waiting, self.costs, costs, trained - since)
            record.update({name: round(share, 4) for name, share in shares.items()})
        last = done == self.config.run.epochs
        if done % self.config.eval.every_epochs == 0 or last:
            record.update(self._evaluate())
        self._record(record)
        stop = self.devices.any(self.signals.received)
        if done % self.config.checkpoint.every_epochs == 0 or last or stop or self._due():
            score = record.get("eval_top1_average", record.get("eval_top1"))
            self.saved.save(step, epoch=done, in_epoch=0, steps=self.position.steps, score=score)
        if stop:
            self._stop()

    def _record(self, record):
        if not self.devices.chief:
            return
        records.append_line(Workdir(self.workdir).records, record)
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


def learning_rate(optimizer: Any, step: int) -> float:
    """The learning rate of `step`, whether the optimizer holds a schedule or a number."""
    rate: Any = getattr(optimizer, "inner_optimizer", optimizer)
    rate = (
        getattr(rate, "_learning_rate", None) if hasattr(rate, "_learning_rate") else rate._get_hyper("learning_rate")
    )
    rate = rate(step) if callable(rate) else rate
    return float(rate.numpy() if hasattr(rate, "numpy") else rate)  # variables of a strategy are no numbers


def evaluate_both(config: ConfigDict, evaluator: Callable, average: Any) -> Dict[str, Dict[str, Any]]:
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

"""What a dataset costs those who read it: how long they wait, and the CPU time that preparing its batches takes.

Waiting alone does not tell where the input and the training step share the cores: batches that are ready in time have
still taken the cores from the step. Which thread works for which cannot be asked, so the input is run alone for a
moment, at the end of an epoch, and the CPU time of the process divided by its batches. It is the same whatever else
runs on the machine.
"""

import time
from typing import Any, Dict, List, Optional

import tensorflow as tf

LEAST, MOST = 0.3, 10.0  # seconds for which the input is run alone


def possible() -> bool:
    """Whether this process may read the clock in a dataset: not where it allows deterministic operations alone."""
    try:
        tf.timestamp()
        return True
    except tf.errors.FailedPreconditionError:
        return False


def cpu_per_batch(data: Any) -> Any:
    """Seconds of CPU time that a batch of `data` takes; None where it ends or raises before that is known."""
    batches, begin, count = iter(data), time.monotonic(), 0
    try:
        for _ in range(3):  # from then on as much is in work at any time
            next(batches)
        before, started = time.process_time(), time.monotonic()
        while count < 2 or time.monotonic() - started < LEAST:
            next(batches)
            count += 1
            if time.monotonic() - begin > MOST:
                break
    except (StopIteration, tf.errors.OpError):
        if count < 2:
            return None
    return (time.process_time() - before) / count


class Waiting:
    """Counts the seconds that readers of `watch(data)` wait for its batches, where they read one at a time.

    `cpu`: also the CPU time that goes into the batches, known from the first `measure` on, also of those before.
    """

    def __init__(self, cpu: Any = False) -> None:
        self.cpu = cpu
        self._watched: List[_Watched] = []
        with tf.device("CPU:0"):
            self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self.batches = tf.Variable(0, dtype=tf.int64, trainable=False)

    def watch(self, data: Any) -> Any:
        """`data` with two readings of the clock around each batch; no stage behind it may read ahead."""
        if self.cpu:
            self._watched.append(_Watched(self.read()["batches"], data))
        begin = tf.data.Dataset.from_tensors(0).repeat().map(lambda _: tf.timestamp())

        def note(asked, batch):
            added = self.seconds.assign_add(tf.timestamp() - asked), self.batches.assign_add(1)
            with tf.control_dependencies(added):
                return tf.nest.map_structure(tf.identity, batch)

        data = tf.data.Dataset.zip((begin, data)).map(note)
        options = tf.data.Options()
        if hasattr(options.experimental_optimization, "inject_prefetch"):  # from 2.10 on TensorFlow adds a stage
            options.experimental_optimization.inject_prefetch = False
        return data.with_options(options)

    def measure(self) -> None:
        """Reads a few batches of the data watched now, once, for the CPU time that they take; nothing else may work."""
        if self._watched and self._watched[-1].data is not None:
            newest = self._watched[-1]
            newest.each, newest.data = cpu_per_batch(newest.data), None

    def read(self) -> Dict[str, Any]:
        """The counts so far: `waited` seconds, and `batches`."""
        return {"waited": float(self.seconds.numpy()), "batches": int(self.batches.numpy())}

    def cpu_seconds(self, first: int, last: int) -> Optional[float]:
        """CPU time of the batches from `first` to before `last`, counted as by `read`; None where it is not known."""
        total, end = 0.0, last
        for part in reversed(self._watched):
            count = end - max(part.first, first)
            if count > 0:
                if part.each is None:
                    return None
                total, end = total + count * part.each, part.first
        return total if self._watched else None


class _Watched:
    """Data whose first batch is number `first` of all; `each`: seconds of CPU time for one, where they are known."""

    def __init__(self, first, data):
        self.first, self.data, self.each = first, data, None

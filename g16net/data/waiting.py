"""What a dataset costs those who read it: how long they wait, and the CPU time that preparing its batches takes.

Waiting alone does not tell where the input and the training step share the cores: batches that are ready in time have
still taken the cores from the step. Which thread works for which cannot be asked, so the input is run alone for a
moment, before training, and the CPU time of the process divided by its batches. It is the same whatever else runs on
the machine.
"""

import time
from typing import Any, Dict

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

    `cpu`: also the CPU time that goes into the batches, for which `watch` reads a few of them beforehand.
    """

    def __init__(self, cpu: Any = False) -> None:
        self.cpu = cpu
        self._each = None  # seconds of CPU time for a batch of the data watched now
        self._before, self._from = 0.0, 0  # those of the data watched before, and all batches until then
        with tf.device("CPU:0"):
            self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self.batches = tf.Variable(0, dtype=tf.int64, trainable=False)

    def watch(self, data: Any) -> Any:
        """`data` with two readings of the clock around each batch; no stage behind it may read ahead."""
        if self.cpu:
            counts = self.read()
            self._before, self._from = counts["cpu"] or 0.0, counts["batches"]
            self._each = cpu_per_batch(data)
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

    def read(self) -> Dict[str, Any]:
        """The counts so far: `waited` seconds, `batches`, and `cpu` seconds, None where those are not known."""
        batches = int(self.batches.numpy())
        cpu = None if self._each is None else self._before + (batches - self._from) * self._each
        return {"waited": float(self.seconds.numpy()), "batches": batches, "cpu": cpu}

"""How long those who read a dataset wait for it."""

import tensorflow as tf


def possible():
    """Whether this process may read the clock in a dataset: not where it allows deterministic operations alone."""
    try:
        tf.timestamp()
        return True
    except tf.errors.FailedPreconditionError:
        return False


class Waiting:
    """Counts the seconds that readers of `watch(data)` wait for its batches, where they read one at a time."""

    def __init__(self):
        with tf.device("CPU:0"):
            self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self.batches = tf.Variable(0, dtype=tf.int64, trainable=False)

    def watch(self, data):
        """`data` with two readings of the clock around each batch; no stage behind it may read ahead."""
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

    def read(self):
        """The counts so far: `waited` seconds and `batches`."""
        return {"waited": float(self.seconds.numpy()), "batches": int(self.batches.numpy())}

"""What an evaluation adds up: top-1, top-5, cross-entropy and weight of every image, in float64."""

from typing import Any, Callable, List, Optional

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tensorflow import keras

from g16net.data.sources.base import Source
from g16net.optim.losses import SmoothedCrossEntropy, in_top
from g16net.run import assemble
from g16net.run.updates import cut

# Prepared test images of so many bytes are kept for the next evaluation; their decoding takes longer than the network
# on small images, and training evaluates twice per epoch.
KEPT_BYTES = 256 * 2**20


def _one_for_all(model):
    """Gives what each replica keeps for itself, the statistics of batch norm, its mean over the replicas, which is what
    a checkpoint holds of it. All workers must call it."""
    for weight in model.non_trainable_weights:
        if getattr(weight, "synchronization", None) == tf.VariableSynchronization.ON_READ:
            weight.assign(weight.numpy())


class Scorer:
    """Adds up the figures of a model's present weights on one source; traced once for each test size.

    The images of the last size stay prepared between calls where they take at most `KEPT_BYTES`.

    Args: as `evaluate.Evaluator`; each replica of `devices` takes its part of the images.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: keras.Model,
        source: Source,
        devices: Any,
        batches: Optional[Callable] = None,
    ) -> None:
        self.config, self.model, self.source, self.devices = config, model, source, devices
        self._batches = batches or self._images
        self._cross_entropy = SmoothedCrossEntropy(source.num_classes, label_smoothing=0.0, reduction="none")
        self._step = tf.function(self._sums, autograph=False)
        self.forget()

    def forget(self) -> None:
        """Drops the images that are prepared."""
        self._size = self._data = None

    def __call__(self, size, each=False):
        """Yields, for each batch of test images of `size` pixels, the sums over its images as float64 [4]: top-1,
        top-5, cross-entropy, weight; with `each` also a row of each image of all workers, see `in_order`."""
        if self.devices.replicas > 1:
            _one_for_all(self.model)
        if size != self._size:
            self._data = self.devices.distributed(self._batches(size))
            self._size = size
        for batch in self._data:
            yield [values.numpy() for values in self._step(batch, each)]

    def in_order(self, rows: List[Any]) -> Any:
        """The rows of all batches in the order of the source's examples: float32 [examples, 4] of true class,
        predicted class, its probability, and weight, 0 where the image could not be read."""
        shares = np.stack(rows).reshape(len(rows), self.devices.shard[1], -1, rows[0].shape[-1])  # one a worker
        return shares.swapaxes(0, 1).reshape(-1, shares.shape[-1])[: self.source.num_examples]

    def _images(self, size):
        local = self.devices.local_replicas
        batch = -(-self.config.eval.batch // self.devices.replicas)
        data = assemble.eval_batches(self.config, self.source, size, batch=batch * local, shard=self.devices.shard)
        if self.source.num_examples * size**2 * 3 <= KEPT_BYTES:
            data = data.cache()
        return data if local == 1 else cut(data, batch)

    def _sums(self, batch, each):
        """Sums over the replicas and, where asked for, the rows of their images."""
        strategy = self.devices.strategy
        own = strategy.run(self._replica_sums, args=(*batch, each))
        return [strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None) for values in own]

    def _replica_sums(self, images, labels, weights, each):
        logits = tf.cast(self.model(images, training=False), tf.float32)
        right = [in_top(labels, logits, k) for k in (1, 5)]
        values = [tf.cast(r, tf.float32) for r in right] + [self._cross_entropy(labels, logits), tf.ones_like(weights)]
        sums = tf.stack([tf.reduce_sum(tf.cast(v * weights, tf.float64)) for v in values])
        if not each:
            return (sums,)
        predicted = tf.math.top_k(logits, 1).indices[:, 0]  # of equal logits the lower class, as in `in_top`
        probability = tf.reduce_max(tf.nn.softmax(logits), axis=1)
        row = labels, predicted, probability, weights
        rows = tf.stack([tf.cast(values, tf.float32) for values in row], axis=1)
        # Each replica's rows in a place of their own: the sum over replicas holds them all.
        place = tf.distribute.get_replica_context().replica_id_in_sync_group
        shape = self.devices.replicas, *rows.shape
        return sums, tf.scatter_nd([[place]], rows[tf.newaxis], shape)

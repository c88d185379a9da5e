"""Accuracy and loss over a whole split: every image once, batches padded and masked, sums in float64."""

import time

import numpy as np
import tensorflow as tf

from g16net import assemble, runtime
from g16net.config import UserError
from g16net.optim.losses import SmoothedCrossEntropy, in_top


class Evaluator:
    """Evaluates a model's present weights on one source; traced once for each test size.

    Args:
      config: the resolved run.
      model: takes images of any size that it was built for and returns logits.
      source: the evaluation source.
      devices: on which the model lies; each replica takes its part of the images.
    """

    def __init__(self, config, model, source, devices):
        self.config, self.model, self.source, self.devices = config, model, source, devices
        self._cross_entropy = SmoothedCrossEntropy(source.num_classes, label_smoothing=0.0, reduction="none")
        self._step = tf.function(self._sums)

    def __call__(self, size):
        """Figures at `size` pixels: `top1`, `top5`, `loss` (cross-entropy without smoothing), `images`, `corrupt`
        (images that could not be read, which weigh nothing), `images_per_second`."""
        started = time.time()
        sums = np.zeros(4, np.float64)
        for batch in self.devices.distributed(self._batches(size)):
            sums += self._step(batch).numpy()
        images = int(round(sums[3]))
        return {
            "top1": float(sums[0] / images),
            "top5": float(sums[1] / images),
            "loss": float(sums[2] / images),
            "images": images,
            "corrupt": self.source.num_examples - images,
            "images_per_second": round(images / (time.time() - started), 2),
        }

    def _batches(self, size):
        local = self.devices.local_replicas
        batch = -(-self.config.eval.batch // self.devices.replicas)
        data = assemble.eval_batches(self.config, self.source, size, batch=batch * local, shard=self.devices.shard)
        return data if local == 1 else runtime.cut(data, batch)

    def _sums(self, batch):
        strategy = self.devices.strategy
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(self._replica_sums, args=batch), axis=None)

    def _replica_sums(self, images, labels, weights):
        logits = tf.cast(self.model(images, training=False), tf.float32)
        right = [in_top(labels, logits, k) for k in (1, 5)]
        values = [tf.cast(r, tf.float32) for r in right] + [self._cross_entropy(labels, logits), tf.ones_like(weights)]
        return tf.stack([tf.reduce_sum(tf.cast(v * weights, tf.float64)) for v in values])


def evaluate(config, workdir):
    """Evaluates the newest checkpoint of `workdir` at every size of `eval.sizes`. Returns the figures.

    Plain names hold the figures at `data.eval_size` (or the first of `eval.sizes`), `sizes` those of every size.
    """
    devices = runtime.setup(config)
    with devices.evaluation_scope():
        model, class_names = assemble.trained(config, workdir)
    source = assemble.open_source_of(config, "eval")
    if list(source.class_names) != class_names:
        raise UserError(
            f"{config.data.name} has {source.num_classes} classes, the run in {workdir!r} was trained on "
            f"{len(class_names)}, or on others; evaluate it on the data that it was trained for"
        )
    evaluator = devices.evaluator(model, source)
    sizes = list(config.eval.sizes) or [config.data.eval_size]
    rows = [dict(size=size, **evaluator(size)) for size in sizes]
    main = rows[sizes.index(config.data.eval_size)] if config.data.eval_size in sizes else rows[0]
    return dict(main, weights=config.eval.weights, sizes=rows)

"""`--mode=channels`: how far a trained network's normalised channels have drifted from mean 0 and variance 1, by depth.

Layer norm fixes mean and variance of a whole image's features, not of each channel: channels whose mean is far from 0
or whose variance is small come through the next layers almost linearly or not at all, and depth adds to it
("channel-wise denormalisation", arXiv 2106.03743, section 3). Batch norm has none on its training data; proxy norm is
there to counter it. The figures are taken where a norm has just normalised, before its scale and shift.
"""

import os
from typing import Any, Dict, List

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tensorflow import keras

from g16net.errors import ConfigError, RunError
from g16net.run import assemble, records
from g16net.training import runtime

IMAGES = 1024  # of the evaluation split at most: pixels make the figures exact long before


def check(config: ConfigDict) -> None:
    """ConfigError where the devices cannot do it."""
    if config.runtime.strategy != "default":
        raise ConfigError(
            f"runtime.strategy={config.runtime.strategy}: --mode=channels looks into one network; run it with "
            "--config.runtime.strategy=default"
        )


@runtime.in_precision
def channels(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Figures by depth, over images drawn from the evaluation split, of `eval.weights` at their test size.

    Returns `drift` and `spread` (means over the network), and `layers`, a row per norm:

    - `drift`: share of the power of the normalised values that lies in their channels' means, 0 (each channel is
      centred) to 1 (all that is left are constants);
    - `spread`: standard deviation over channels of the natural logarithm of their standard deviation, 0 where all
      channels vary alike;
    - `mean`, `variance`: [channels] of each channel, in the file `moments` alone.
    """
    runtime.setup(config)
    config = assemble.at_test_size(config, workdir)
    model, class_names = assemble.trained(config, workdir)
    source = assemble.open_eval_source(config, workdir, class_names, "look at its channels")
    batches = assemble.sample(config, source, config.data.eval_size, IMAGES, config.eval.batch)
    rows = statistics(model, (images for images, _ in batches), IMAGES)
    path = os.path.join(workdir, "channel_moments.json")
    records.write_json(path, {"weights": config.eval.weights, "size": config.data.eval_size, "layers": rows})
    short = [{name: row[name] for name in ("layer", "depth", "drift", "spread")} for row in rows]
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("drift", "spread")}
    return dict(means, weights=config.eval.weights, size=config.data.eval_size, moments=path, layers=short)


def statistics(model: keras.Model, batches: Any, images: int = IMAGES) -> List[Dict[str, Any]]:
    """A row for each norm of `model` in order, from `batches` of images [batch, height, width, 3], at most `images`.

    A row has `layer` (its name), `depth` (its place, from 0), `drift`, `spread`, `mean` and `variance`.

    Raises:
        RunError: where there is no image.
    """
    norms = [layer for layer in model.layers if layer.name.endswith("_norm")]
    inner = keras.Model(model.input, [layer.input for layer in norms])

    @tf.function
    def moments(batch):
        pairs = []
        for layer, x in zip(norms, inner(batch, training=False)):
            y = layer.normalised(tf.cast(x, tf.float32))
            pairs.append((tf.reduce_mean(y, (0, 1, 2)), tf.reduce_mean(tf.square(y), (0, 1, 2))))
        return pairs

    sums: Any = None
    seen = 0
    for batch in batches:
        batch = batch[: images - seen]
        if not len(batch):  # none of its images could be read
            continue
        values = [[np.float64(len(batch)) * value.numpy() for value in pair] for pair in moments(batch)]
        sums = values if sums is None else [[a + b for a, b in zip(*pairs)] for pairs in zip(sums, values)]
        seen += len(batch)
        if seen >= images:
            break
    if not seen:
        raise RunError("no image could be read: there are no channels to look at")
    return [_row(layer.name, depth, *(total / seen for total in sums[depth])) for depth, layer in enumerate(norms)]


def _row(name, depth, mean, square):
    variance = np.maximum(square - mean**2, 0)
    alive = variance > 1e-12  # a channel that never changes has no logarithm
    return {
        "layer": name,
        "depth": depth,
        "drift": float((mean**2).mean() / square.mean()),
        "spread": float(np.log(variance[alive]).std() / 2),
        "mean": mean.tolist(),
        "variance": variance.tolist(),
    }

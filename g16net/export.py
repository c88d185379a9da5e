"""Export of trained weights as a SavedModel that needs only `tensorflow` to load.

Signature `serving_default`: `images` uint8 [batch, height, width, 3], 0..255, batch and size free (already resized
and cropped) -> `logits` and `probabilities` float32 [batch, classes]. `class_names` is a variable of it.
"""

import os
import shutil

import tensorflow as tf
from absl import logging

from g16net import assemble, native


class Served(tf.Module):
    """A model with its signatures and class names.

    Args:
      model: a keras model of free image size that returns logits.
      class_names: one name for each logit.
    """

    def __init__(self, model, class_names):
        super().__init__()
        self.model = model
        self.class_names = tf.Variable(class_names, trainable=False)  # a constant would not be saved

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def serve(self, images):
        logits = tf.cast(self.model(tf.cast(images, tf.float32), training=False), tf.float32)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}


def export(config, workdir):
    """Writes the trained weights of `workdir` (averaged by default) to `WORKDIR/saved_model`. Returns the figures.

    Fine-tuned weights go to `saved_model` in the folder of their size.

    The export is compared with the live model before it takes the place of an older one: the largest difference of
    a logit is in the figures.
    """
    model, class_names = assemble.trained(config, workdir)
    finetuned = config.eval.weights == "finetuned"
    path = os.path.join(assemble.finetuned_folder(config, workdir) if finetuned else workdir, "saved_model")
    partial = f"{path}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    served = Served(model, class_names)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Keras lists functions that it does not save and nobody calls
    try:
        with native.disabled():
            tf.saved_model.save(served, partial, signatures=served.serve)
    finally:
        logging.set_verbosity(verbosity)
    sizes = sorted({config.data.eval_size, config.data.train_size, config.data.eval_size + 32})
    difference = max(logits_difference(model, partial, size) for size in sizes)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(partial, path)
    return {
        "format": "saved_model",
        "path": path,
        "bytes": sum(os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(path) for f in files),
        "classes": len(class_names),
        "weights": config.eval.weights,
        "checked_sizes": sizes,
        "largest_logit_difference": difference,
    }


def logits_difference(model, path, size, batch=2):
    """The largest absolute difference between the logits of `model` and those of the SavedModel at `path`."""
    images = tf.cast(tf.random.stateless_uniform([batch, size, size, 3], [0, size], 0, 256, tf.int32), tf.uint8)
    loaded = tf.saved_model.load(path)  # kept in a name: its signatures do not keep its variables alive
    exported = loaded.signatures["serving_default"](images=images)["logits"]
    live = tf.cast(model(tf.cast(images, tf.float32), training=False), tf.float32)
    return float(tf.reduce_max(tf.abs(exported - live)))

"""The SavedModel: a folded network with its preprocessing and class names, which needs nothing but `tensorflow`.

Signatures, for any batch:

    serving_default   images       uint8 [batch, height, width, 3], 0..255, of any size, resized and cropped already
    float_images      images       float32, the same
    image_bytes       image_bytes  string [batch]: JPEG, PNG, GIF or BMP files; decoded and preprocessed as in testing

Each returns `logits` and `probabilities` [batch, classes], and the likeliest classes in falling order: `top_classes`
(their names, string) and `top_probabilities`, [batch, 5] or fewer. `class_names` is a variable of the object loaded.
"""

from typing import Any, Dict, List, Sequence

import tensorflow as tf
from absl import logging

from g16net import native
from g16net.data import transforms
from g16net.export import tf_graph

TOP = 5


def save(path: str, steps: List[Any], class_names: Sequence[str], preprocessing: Dict[str, Any]) -> None:
    """Writes a SavedModel to the new folder `path`.

    Args:
        steps: what `folding.fold` returns.
        class_names: one name per logit.
        preprocessing: arguments of `transforms.eval_image` for the signature of encoded images, with its `size`.
    """
    module = served(steps, class_names, preprocessing)
    signatures = {
        "serving_default": module.images,
        "float_images": module.float_images,
        "image_bytes": module.image_bytes,
    }
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TensorFlow tells where it writes the files, which are renamed yet
    try:
        with native.disabled():
            tf.saved_model.save(module, path, signatures=signatures)
    finally:
        logging.set_verbosity(verbosity)


def served(steps: List[Any], class_names: Sequence[str], preprocessing: Dict[str, Any]) -> Any:
    """The `tf.Module` that `save` writes."""
    module = tf.Module()
    network = tf_graph.Network(steps)
    module.kernels = network.variables
    module.class_names = tf.Variable(list(class_names), trainable=False)  # a constant would not be saved

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    def results(images):
        logits = network(images)
        probabilities = tf.nn.softmax(logits)
        best = tf.math.top_k(probabilities, min(TOP, len(class_names)))
        names = tf.gather(module.class_names, best.indices)
        return {
            "logits": logits,
            "probabilities": probabilities,
            "top_classes": names,
            "top_probabilities": best.values,
        }

    def decode(image):
        return transforms.eval_image(image, **preprocessing)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")])
    def images(images):
        return results(tf.cast(images, tf.float32))

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32, name="images")])
    def float_images(images):
        return results(images)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def image_bytes(image_bytes):
        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.uint8)
        return results(tf.cast(images, tf.float32))

    module.images, module.float_images, module.image_bytes = images, float_images, image_bytes
    return module

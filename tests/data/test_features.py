"""Kept features stand for the images, in every order and with images that cannot be read."""

import numpy as np
import pytest
import tensorflow as tf

from g16net.data import features, pipeline
from g16net.data.sources import open_source

pytestmark = pytest.mark.once

BROKEN = (3, 8)


def source():
    """Synthetic pictures, of which two cannot be read."""
    whole = open_source("synthetic", "train", num_examples=50, num_classes=5, size=8)

    def read(row):
        record = whole.read(row)
        sound = tf.debugging.Assert(tf.reduce_all(row["id"] != tf.constant(BROKEN, tf.int64)), ["broken"])
        with tf.control_dependencies([sound]):
            return dict(record, image=tf.identity(record["image"]))

    return whole._replace(read=read)


def transform(record, seed):
    return dict(record, image=tf.ensure_shape(record["image"], [8, 8, 3]))


def compute(images):
    return tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 2])


def as_it_is(record, seed):
    return record


def test_batches_are_those_of_the_images():
    plain = source()
    kept = features.kept(plain, transform, compute, (3,), "float32", batch=16)
    assert features.needed_bytes(plain, (3,), "float32") == 50 * 3 * 4
    options = {"global_batch": 8, "seed": 7, "epochs": 2, "max_corrupt": 0.1}
    pairs = zip(pipeline.train_batches(plain, transform, **options), pipeline.train_batches(kept, as_it_is, **options))
    count = 0
    for (images, labels), (vectors, same_labels) in pairs:
        np.testing.assert_array_equal(labels, same_labels)
        np.testing.assert_allclose(compute(images), vectors, rtol=1e-6)
        count += 1
    assert count == 2 * 6


def test_evaluation_leaves_the_same_images_out():
    plain = source()
    kept = features.kept(plain, transform, compute, (3,), "float32", batch=16)
    pairs = zip(
        pipeline.eval_batches(plain, transform, 16, max_corrupt=0.1),
        pipeline.eval_batches(kept, as_it_is, 16, max_corrupt=0.1),
    )
    total = 0.0
    for (images, labels, weights), (vectors, same_labels, same_weights) in pairs:
        np.testing.assert_array_equal(weights, same_weights)
        sound = weights.numpy() > 0
        np.testing.assert_array_equal(labels.numpy()[sound], same_labels.numpy()[sound])
        np.testing.assert_allclose(compute(images).numpy()[sound], vectors.numpy()[sound], rtol=1e-6)
        total += weights.numpy().sum()
    assert total == 48

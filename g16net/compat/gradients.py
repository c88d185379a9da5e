"""Gradients that are not finite, for both base classes of optimizers."""

import tensorflow as tf


def which_finite(gradients):
    """Which of the gradients are finite in all their elements, as None is, where there is none: bool [gradients]."""
    return tf.stack([g is None or tf.reduce_all(tf.math.is_finite(g)) for g in gradients])


def placed(finite, places, known):
    """`finite`, in the order of one update, as an entry for each of the `known` variables, which have these places.

    Updates may leave variables out, and later ones bring more; those without a gradient count as finite.
    """
    if list(places) == list(range(known)):
        return finite
    return tf.tensor_scatter_nd_update(tf.ones([known], bool), [[place] for place in places], finite)


def note_finite(optimizer, finite):
    """Counts an update whose gradients are not all finite, and keeps which were not. Returns whether all are."""
    all_finite = tf.reduce_all(finite)
    known = tf.convert_to_tensor(optimizer.not_finite)
    optimizer.not_finite.assign(tf.where(all_finite, known, 1 - tf.cast(finite, tf.int32)))
    optimizer.skipped.assign_add(1 - tf.cast(all_finite, tf.int64))
    return all_finite


def group(operations):
    return tf.group(*tf.nest.flatten([operations]))

"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) on a batch, as the paper trains with them.

Mixup blends each image with the one before it in the batch, by a coefficient of its own. CutMix then pastes one box,
the same for the whole batch, from the (already blended) image two before it. Drawing and applying are separate
functions: `draw` is stateless, `mix` is pure and takes given numbers, on the host or on the device.

Targets are compact: float32 [batch, terms, 2], a class id and its weight each; the weights sum to 1. Mixup or CutMix
alone give 2 terms, both 4. Of three dimensions, as no other labels of an image are: see `g16net.optim.losses`.
"""

import collections
import math
from typing import Any, Optional, Tuple

import numpy as np
import tensorflow as tf

from g16net import native

# m: float32 [batch], share that an image keeps in mixup, 0.5..1, or None; box: int32 [4] as top, bottom, left, right
# (half-open), or None.
Draws = collections.namedtuple("Draws", "m box")


SMALL = 64 * 64 * 3  # numbers of an image that is small


def terms(alpha: float = 0.0, cutmix: Optional[int] = None) -> int:
    """Class ids in a target: 1 (not mixed), 2 or 4."""
    return (2 if alpha else 1) * (2 if cutmix else 1)


def draw(
    batch: int, height: int, width: int, seed: int, alpha: float = 0.0, cutmix: Optional[int] = None, lam: float = 1.0
) -> Tuple[Any, Any]:
    """Draws what `mix` needs, from a stateless seed.

    Args:
        batch: images in the batch; int or scalar tensor.
        height, width: of the images in pixels; int or scalar tensor.
        seed: int32 [2].
        alpha: of mixup's Beta(alpha, alpha); 0 for no mixup.
        cutmix: None, 1 (the paper's: the share kept varies from batch to batch, often 1) or 2 (always `lam`).
        lam: CutMix's lambda, the share of the image that is kept, on average or always.

    Raises:
        ValueError: for a version or a lambda that does not exist.
    """
    if alpha < 0:
        raise ValueError(f"alpha is {alpha}; use 0 (no mixup) or more")
    if cutmix not in (None, 1, 2):
        raise ValueError(f"cutmix is {cutmix!r}; use None, 1 or 2")
    if not 0 < lam <= 1:
        raise ValueError(f"lam is {lam}; use a share above 0 and at most 1")
    m = None
    if alpha:
        m = beta(batch, seed, alpha)
        m = tf.maximum(m, 1 - m)
    box = None
    if cutmix:
        u = tf.random.stateless_uniform([4], tf.bitwise.bitwise_xor(seed, [0x1B873593, 0]))
        kept = lam
        if cutmix == 1:
            low = math.exp(-4)
            kept = cutmix_share(u[0], low + u[1] * (1 - low), lam)
        box = cutmix_box(height, width, kept, u[2] * tf.cast(height, u.dtype), u[3] * tf.cast(width, u.dtype))
    return Draws(m, box)


def beta(count: Any, seed: int, alpha: float) -> Any:
    """float32 [count]: draws of Beta(alpha, alpha)."""
    # Gamma(a) is Gamma(a + 1) * U^(1 / a); by logarithms, as draws of Gamma(0.1) underflow.
    shape = [2, count]
    gamma = tf.random.stateless_gamma(shape, seed, alpha + 1.0)
    u = 1 - tf.random.stateless_uniform(shape, tf.bitwise.bitwise_xor(seed, [0x3C6EF372, 0]))
    log_gamma = tf.math.log(gamma) + tf.math.log(u) / alpha
    return tf.sigmoid(log_gamma[0] - log_gamma[1])


def cutmix_share(u0: Any, u1: Any, lam: float) -> Any:
    """Share of the image that CutMix version 1 keeps, for u0 uniform in [0, 1) and u1 uniform in [e^-4, 1)."""
    return tf.where(u0 < 1.55 * lam - 0.96, 1.0, 1 + tf.math.log(u1) / 4)


def cutmix_box(height: Any, width: Any, kept: Any, centre_y: Any, centre_x: Any) -> Any:
    """int32 [4], top, bottom, left, right: a box of the image's aspect ratio and 1 - `kept` of its area.

    The centre, in pixels, moves to where the box lies inside the image; corners are rounded, halves to even.
    """
    side = tf.sqrt(1 - tf.cast(kept, tf.float32))

    def span(length, centre):
        length = tf.cast(length, tf.float32)
        half = side * length / 2
        centre = tf.clip_by_value(centre, half, length - half)
        return [tf.math.rint(centre - half), tf.math.rint(centre + half)]

    return tf.cast(tf.stack(span(height, centre_y) + span(width, centre_x)), tf.int32)


def mix(images: Any, labels: Any, m: Any = None, box: Any = None, dtype: Any = None) -> Tuple[Any, Any]:
    """Mixes a batch by given draws.

    uint8 images that stay uint8 are mixed by means that suit the host: many times as fast, but with shapes that
    depend on the draws. Everything else is mixed in float, with static shapes, as a compiler for a device needs it.

    Args:
        images: [batch, height, width, channels], uint8 or float.
        labels: integer class ids [batch].
        m: float32 [batch], or None for no mixup; image i becomes m[i] * image i + (1 - m[i]) * image i - 1.
        box: int32 [4], top, bottom, left, right (half-open), or None for no CutMix; image i gets this box from image
            i - 2, or i - 1 in a batch of two.
        dtype: of the result, uint8 (rounded) or a float type; by default the images'.

    Returns:
        images of the same shape, and targets: float32 [batch, terms, 2], or `labels` themselves when nothing mixes.
    """
    dtype = tf.as_dtype(dtype or images.dtype)
    on_host = images.dtype == dtype == tf.uint8
    mixup, cutmix = (_mixup_rows, _cutmix_slices) if on_host else (_mixup, _cutmix)
    if on_host and native.available():
        mixup = native.mixup
    shift = tf.where(tf.shape(images)[0] == 2, 1, 2)
    ids, weights = [labels], [tf.ones_like(labels, tf.float32)]
    mixed = images if on_host else tf.cast(images, tf.float32)
    if m is not None:
        mixed = mixup(mixed, m)
        ids, weights = [labels, tf.roll(labels, 1, 0)], [m, 1 - m]
    if box is not None:
        mixed = cutmix(mixed, shift, box)
        pasted = tf.cast((box[1] - box[0]) * (box[3] - box[2]), tf.float32)
        pasted /= tf.cast(tf.shape(images)[1] * tf.shape(images)[2], tf.float32)
        ids += [tf.roll(i, shift, 0) for i in ids]
        weights = [w * (1 - pasted) for w in weights] + [tf.roll(w, shift, 0) * pasted for w in weights]
    mixed = tf.ensure_shape(_cast(mixed, dtype), images.shape)
    if len(ids) == 1:
        return mixed, labels
    ids = [tf.cast(i, tf.float32) for i in ids]
    return mixed, tf.stack([tf.stack(ids, axis=1), tf.stack(weights, axis=1)], axis=2)


def _cast(images, dtype):
    return tf.cast(tf.round(images) if dtype.is_integer and not images.dtype.is_integer else images, dtype)


def _mixup(images, m):
    return _blend(images, tf.roll(images, 1, 0), m[:, tf.newaxis, tf.newaxis, tf.newaxis])


def _blend(image, partner, m):
    return image + (1 - m) * (partner - image)


def _mixup_rows(images, m):
    """uint8 mixup image by image, so that the floats stay in the processor's cache; a batch of small ones at once, for
    which TensorFlow's operations for each image would take ten times as long as the pixels."""
    if None not in images.shape[1:] and np.prod(images.shape[1:]) <= SMALL:
        return _cast(_mixup(tf.cast(images, tf.float32), m), tf.uint8)

    def row(i):
        def blended():
            image, partner = tf.cast(images[i], tf.float32), tf.cast(images[i - 1], tf.float32)
            return _cast(_blend(image, partner, m[i]), tf.uint8)

        # Half of the draws of Beta(0.1, 0.1) are too close to 0 or 1 to change any rounded value.
        return tf.cond((1 - m[i]) * 255 < 0.5, lambda: images[i], blended)

    return tf.map_fn(row, tf.range(tf.shape(images)[0]), fn_output_signature=images.dtype)


def _cutmix(images, shift, box):
    rows, columns = tf.range(tf.shape(images)[1])[:, tf.newaxis], tf.range(tf.shape(images)[2])
    inside = (rows >= box[0]) & (rows < box[1]) & (columns >= box[2]) & (columns < box[3])
    return tf.where(inside[..., tf.newaxis], tf.roll(images, shift, 0), images)


def _cutmix_slices(images, shift, box):
    """CutMix by copying rectangles, without a look at each pixel."""
    top, bottom, left, right = tf.unstack(box)
    band = images[:, top:bottom]
    patch = tf.roll(band[:, :, left:right], shift, 0)
    band = tf.concat([band[:, :, :left], patch, band[:, :, right:]], 2)
    return tf.concat([images[:, :top], band, images[:, bottom:]], 1)

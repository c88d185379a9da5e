"""AutoAugment (arXiv 1805.09501) and RandAugment (arXiv 1909.13719) for ImageNet, inside TensorFlow graphs.

Operations are functions of (uint8 [height, width, 3], float32 argument) with Pillow's results, in which both papers'
policies were searched; geometric ones sample the nearest pixel and fill with grey. A policy is a table of
(operation, probability, level); a level of 0..10 becomes the operation's argument by the formula in `OPERATIONS`.
Draws are stateless: an image and a seed, int32 [2], give one result.
"""

import math
from functools import partial
from typing import Any, Callable

import tensorflow as tf

FILL = 128
MAX_LEVEL = 10
MAX_SHIFT = 150 / 331  # the paper shifts its 331-pixel images by up to 150 pixels

# The policy that EfficientNet's published code calls "v0" and trains with.
V0 = (
    (("equalize", 0.8, 1), ("shear_y", 0.8, 4)),
    (("color", 0.4, 9), ("equalize", 0.6, 3)),
    (("color", 0.4, 1), ("rotate", 0.6, 8)),
    (("solarize", 0.8, 3), ("equalize", 0.4, 7)),
    (("solarize", 0.4, 2), ("solarize", 0.6, 2)),
    (("color", 0.2, 0), ("equalize", 0.8, 8)),
    (("equalize", 0.4, 8), ("solarize_add", 0.8, 3)),
    (("shear_x", 0.2, 9), ("rotate", 0.6, 8)),
    (("color", 0.6, 1), ("equalize", 1.0, 2)),
    (("invert", 0.4, 9), ("rotate", 0.6, 0)),
    (("equalize", 1.0, 9), ("shear_y", 0.6, 3)),
    (("color", 0.4, 7), ("equalize", 0.6, 0)),
    (("posterize", 0.4, 6), ("autocontrast", 0.4, 7)),
    (("solarize", 0.6, 8), ("color", 0.6, 9)),
    (("solarize", 0.2, 4), ("rotate", 0.8, 9)),
    (("rotate", 1.0, 7), ("translate_y", 0.8, 9)),
    (("shear_x", 0.0, 0), ("solarize", 0.8, 4)),
    (("shear_y", 0.8, 0), ("color", 0.6, 4)),
    (("color", 1.0, 0), ("rotate", 0.6, 2)),
    (("equalize", 0.8, 4), ("equalize", 0.0, 8)),
    (("equalize", 1.0, 4), ("autocontrast", 0.6, 2)),
    (("shear_y", 0.4, 7), ("solarize_add", 0.6, 7)),
    (("posterize", 0.8, 2), ("solarize", 0.6, 10)),  # no bits at level 2: a black image, in the published code too
    (("solarize", 0.6, 8), ("equalize", 0.6, 1)),
    (("color", 0.8, 6), ("rotate", 0.4, 5)),
)

# The AutoAugment paper's table 9.
ORIGINAL = (
    (("posterize_original", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize_original", 0.6, 7), ("posterize_original", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize_original", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize_original", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)

POLICIES = {"v0": V0, "original": ORIGINAL}


def autocontrast(image: Any, _: Any = None) -> Any:
    """Stretches each channel to 0..255."""
    low = tf.cast(tf.reduce_min(image, [0, 1]), tf.float64)
    high = tf.cast(tf.reduce_max(image, [0, 1]), tf.float64)
    factor = 255.0 / tf.maximum(high - low, 1.0)
    level = tf.range(256, dtype=tf.float64)[:, tf.newaxis]
    table = tf.where(high > low, level * factor - low * factor, level)
    return _look_up(image, tf.cast(tf.clip_by_value(table, 0.0, 255.0), tf.int32))


def equalize(image: Any, _: Any = None) -> Any:
    """Makes the histogram of each channel flat."""
    cells = tf.cast(image, tf.int32) + [0, 256, 512]
    counts = tf.math.bincount(tf.reshape(cells, [-1]), minlength=768, maxlength=768)
    counts = tf.transpose(tf.reshape(counts, [3, 256]))
    level = tf.range(256)[:, tf.newaxis]
    brightest = tf.reduce_max(tf.where(counts > 0, level, 0), 0)
    total = tf.reduce_sum(counts, 0)
    step = (total - tf.gather(tf.transpose(counts), brightest, batch_dims=1)) // 255
    below = tf.cumsum(counts, exclusive=True)
    table = tf.where(step > 0, (below + step // 2) // tf.maximum(step, 1), level)
    return _look_up(image, tf.minimum(table, 255))


def invert(image: Any, _: Any = None) -> Any:
    """255 - image."""
    return 255 - image


def posterize(image: Any, bits: Any) -> Any:
    """Keeps the highest `bits` of each value."""
    unit = tf.bitwise.left_shift(1, 8 - tf.cast(bits, tf.int32))
    values = tf.cast(image, tf.int32)
    return tf.cast(values - values % unit, tf.uint8)


def solarize(image: Any, threshold: Any) -> Any:
    """Inverts the values from `threshold` on."""
    return tf.where(tf.cast(image, tf.float32) < threshold, image, 255 - image)


def solarize_add(image: Any, addition: Any) -> Any:
    """Adds to the values below 128."""
    brighter = tf.saturate_cast(tf.cast(image, tf.int32) + tf.cast(addition, tf.int32), tf.uint8)
    return tf.where(image < 128, brighter, image)


def color(image: Any, factor: Any) -> Any:
    """Saturation: 0 is grey, 1 the image."""
    return _blend(_grey(image)[..., tf.newaxis], image, factor)


def contrast(image: Any, factor: Any) -> Any:
    """Contrast: 0 is the mean grey, 1 the image."""
    mean = tf.floor(tf.reduce_mean(tf.cast(_grey(image), tf.float32)) + 0.5)
    return _blend(mean, image, factor)


def brightness(image: Any, factor: Any) -> Any:
    """Brightness: 0 is black, 1 the image."""
    return _blend(0.0, image, factor)


def sharpness(image: Any, factor: Any) -> Any:
    """Sharpness: 0 is the image smoothed over 3 x 3 pixels, 1 the image."""
    pixels = tf.cast(image, tf.float32)
    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]])
    kernel = tf.tile(kernel[..., tf.newaxis, tf.newaxis], [1, 1, 3, 1])
    smooth = tf.nn.depthwise_conv2d(pixels[tf.newaxis], kernel, [1, 1, 1, 1], "VALID")[0] / 13
    inside = tf.pad(tf.ones_like(smooth), [[1, 1], [1, 1], [0, 0]]) > 0  # the border stays as it is
    smooth = tf.pad(tf.floor(smooth + 0.5), [[1, 1], [1, 1], [0, 0]])
    return _blend(tf.where(inside, smooth, pixels), image, factor)


def shear_x(image: Any, slope: Any) -> Any:
    """Moves row y left by slope * y pixels."""
    return _affine(image, [1.0, slope, 0.0], [0.0, 1.0, 0.0])


def shear_y(image: Any, slope: Any) -> Any:
    """Moves column x up by slope * x pixels."""
    return _affine(image, [1.0, 0.0, 0.0], [slope, 1.0, 0.0])


def translate_x(image: Any, share: Any) -> Any:
    """Moves the image left by a share of its width."""
    return _affine(image, [1.0, 0.0, share * tf.cast(tf.shape(image)[1], tf.float32)], [0.0, 1.0, 0.0])


def translate_y(image: Any, share: Any) -> Any:
    """Moves the image up by a share of its height."""
    return _affine(image, [1.0, 0.0, 0.0], [0.0, 1.0, share * tf.cast(tf.shape(image)[0], tf.float32)])


def rotate(image: Any, degrees: Any) -> Any:
    """Turns the image counterclockwise about its centre."""
    angle = degrees * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    half = tf.cast(tf.shape(image)[:2], tf.float32) / 2
    y, x = half[0], half[1]
    return _affine(image, [cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y])


def _blend(start, image, factor):
    """start + factor * (image - start), clipped and truncated as Pillow does."""
    start = tf.cast(start, tf.float32)
    return tf.cast(tf.clip_by_value(start + factor * (tf.cast(image, tf.float32) - start), 0.0, 255.0), tf.uint8)


def _grey(image):
    """int32 [height, width]: luma in Pillow's fixed-point arithmetic."""
    weighted = tf.reduce_sum(tf.cast(image, tf.int32) * [19595, 38470, 7471], -1)
    return tf.bitwise.right_shift(weighted + 2**15, 16)


def _look_up(image, table):
    """image -> table[value, channel] with an int32 table [256, 3]."""
    index = tf.cast(image, tf.int32) * 3 + [0, 1, 2]
    return tf.gather(tf.reshape(tf.cast(table, tf.uint8), [-1]), index)


def _affine(image, x_row, y_row):
    """Output (x, y) is the input nearest to (x_row . (x, y, 1), y_row . (x, y, 1)), counted from the corner."""

    def centred(row, offset):  # the op counts from pixel centres
        a, b, c = (tf.convert_to_tensor(value, tf.float32) for value in row)
        return [a, b, c + (a + b) / 2 - offset]

    transform = tf.stack(centred(x_row, 0.5) + centred(y_row, 0.5) + [0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=transform[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=float(FILL),
    )[0]


def _whole(most, least=0):
    return lambda level: int(level / MAX_LEVEL * most) + least


def _linear(most, least=0.0):
    return lambda level: level / MAX_LEVEL * most + least


_enhance = _linear(1.8, 0.1)

# name: (function, argument of a level, whether the argument's sign is drawn)
OPERATIONS = {
    "identity": (lambda image, _: image, _linear(0.0), False),
    "autocontrast": (autocontrast, _linear(0.0), False),
    "equalize": (equalize, _linear(0.0), False),
    "invert": (invert, _linear(0.0), False),
    "posterize": (posterize, _whole(4), False),
    "posterize_original": (posterize, _whole(4, 4), False),
    "solarize": (solarize, _whole(256), False),
    "solarize_add": (solarize_add, _whole(110), False),
    "color": (color, _enhance, False),
    "contrast": (contrast, _enhance, False),
    "brightness": (brightness, _enhance, False),
    "sharpness": (sharpness, _enhance, False),
    "rotate": (rotate, _linear(30.0), True),
    "shear_x": (shear_x, _linear(0.3), True),
    "shear_y": (shear_y, _linear(0.3), True),
    "translate_x": (translate_x, _linear(MAX_SHIFT), True),
    "translate_y": (translate_y, _linear(MAX_SHIFT), True),
}

# The RandAugment paper's 14. `posterize_original` keeps 4 bits or more; `posterize` could leave none.
RAND_AUGMENT = (
    "identity autocontrast equalize rotate solarize color posterize_original contrast brightness sharpness "
    "shear_x shear_y translate_x translate_y"
).split()


def auto_augment(policy: Any = "v0") -> Callable:
    """A function of (image, seed) that applies a randomly drawn pair of the policy's operations.

    Args:
        policy: "v0" (EfficientNet's published code), "original" (the paper's ImageNet table) or a table like these.

    Raises:
        ValueError: for an unknown policy.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}; use one of {sorted(POLICIES)} or a table")
        policy = POLICIES[policy]
    names = sorted({name for pair in policy for name, _, _ in pair} | {"identity"})
    operation = tf.constant([[names.index(name) for name, _, _ in pair] for pair in policy])
    probability = tf.constant([[p for _, p, _ in pair] for pair in policy], tf.float32)
    argument = tf.constant([[OPERATIONS[name][1](level) for name, _, level in pair] for pair in policy], tf.float32)
    length = operation.shape[1]

    def augment(image, seed):
        u = tf.random.stateless_uniform([2 * length + 1], seed)
        row = tf.cast(u[0] * len(policy), tf.int32)
        chosen = tf.where(u[1 : length + 1] < probability[row], operation[row], names.index("identity"))
        return _apply(image, names, chosen, argument[row], u[length + 1 :])

    return augment


def rand_augment(num_layers: int = 2, magnitude: int = 9) -> Callable:
    """A function of (image, seed) that applies `num_layers` operations drawn evenly from the paper's 14.

    Args:
        num_layers: operations an image.
        magnitude: level of them all, 0..10; float.

    Raises:
        ValueError: for numbers out of range.
    """
    if num_layers < 0 or not 0 <= magnitude <= MAX_LEVEL:
        raise ValueError(
            f"num_layers is {num_layers} and magnitude {magnitude}; use at least 0 layers and a magnitude of "
            f"0..{MAX_LEVEL}"
        )
    argument = tf.constant([OPERATIONS[name][1](magnitude) for name in RAND_AUGMENT], tf.float32)

    def augment(image, seed):
        u = tf.random.stateless_uniform([2, num_layers], seed)
        chosen = tf.cast(u[0] * len(RAND_AUGMENT), tf.int32)
        return _apply(image, RAND_AUGMENT, chosen, tf.gather(argument, chosen), u[1])

    return augment


def _apply(image, names, chosen, argument, coins):
    """The operations `names[chosen[i]]` in turn; `coins` uniform in 0..1 give the signs."""
    signed = tf.constant([OPERATIONS[name][2] for name in names])
    argument = tf.where(tf.gather(signed, chosen) & (coins < 0.5), -argument, argument)
    for i in range(chosen.shape[0]):
        branches = [partial(OPERATIONS[name][0], image, argument[i]) for name in names]
        image = tf.ensure_shape(tf.switch_case(chosen[i], branches), image.shape)
    return image

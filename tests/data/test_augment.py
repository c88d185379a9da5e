import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from g16net.data import augment

pytestmark = pytest.mark.once


def photo(height=48, width=64, seed=0):
    """Smooth colours with noise: [height, width, 3] uint8 without the extremes of any channel."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 220, [6, 8, 3], np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse, np.int32) + rng.integers(-9, 10, [height, width, 3]), 5, 240).astype(np.uint8)


IMAGES = {
    "photo": photo(),
    "flat": np.full([9, 7, 3], 77, np.uint8),
    "two": np.where(np.arange(60).reshape(5, 4, 3) % 2, 10, 200).astype(np.uint8),
    "overexposed": np.minimum(photo() + 70.0, 225).astype(np.uint8),  # its brightest value is a large share of it
    "noise": np.random.default_rng(1).integers(0, 256, [33, 21, 3], np.uint8),
}


def pillow_affine(image, *matrix):
    return image.transform(image.size, Image.AFFINE, matrix, Image.NEAREST, fillcolor=(128, 128, 128))


def posterize(image, bits):
    return ImageOps.posterize(image, bits) if bits else image.point(lambda value: 0)  # newer Pillow refuses 0


def solarize_add(image, addition):
    return Image.fromarray(
        np.where(np.asarray(image) < 128, np.minimum(np.asarray(image) + addition, 255), image).astype(np.uint8)
    )


PILLOW = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": lambda image, bits: posterize(image, int(bits)),
    "posterize_original": lambda image, bits: posterize(image, int(bits)),
    "solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "solarize_add": lambda image, addition: solarize_add(image, int(addition)),
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "rotate": lambda image, degrees: image.rotate(degrees, Image.NEAREST, fillcolor=(128, 128, 128)),
    "shear_x": lambda image, v: pillow_affine(image, 1, v, 0, 0, 1, 0),
    "shear_y": lambda image, v: pillow_affine(image, 1, 0, 0, v, 1, 0),
    "translate_x": lambda image, v: pillow_affine(image, 1, 0, v * image.width, 0, 1, 0),
    "translate_y": lambda image, v: pillow_affine(image, 1, 0, 0, 0, 1, v * image.height),
}
GEOMETRIC = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
ENHANCING = {"color", "contrast", "brightness", "sharpness"}


@pytest.mark.parametrize("level", [0, 5, 10])
@pytest.mark.parametrize("name", sorted(PILLOW))
def test_operation_equals_pillow(name, level):
    function, to_argument, signed = augment.OPERATIONS[name]
    assert signed == (name in GEOMETRIC)
    for kind, pixels in IMAGES.items():
        for sign in (1, -1) if signed else (1,):
            argument = sign * to_argument(level)
            ours = function(tf.constant(pixels), tf.constant(argument, tf.float32)).numpy()
            theirs = np.asarray(PILLOW[name](Image.fromarray(pixels), argument))
            difference = np.abs(ours.astype(int) - theirs)
            if name in GEOMETRIC:  # a sample half-way between two pixels may go to either
                assert np.mean(difference.max(-1) > 0) <= 0.01, (kind, argument)
            elif name in ENHANCING:  # the last bit of float32 before truncation
                assert difference.max() <= 1 and np.mean(difference > 0) <= 0.01, (kind, argument)
            else:
                np.testing.assert_array_equal(ours, theirs, f"{kind} {argument}")


def test_every_operation_has_a_pillow_test():
    assert set(PILLOW) | {"identity"} == set(augment.OPERATIONS)


def test_levels_become_the_published_arguments():
    argument = {name: row[1](9) for name, row in augment.OPERATIONS.items()}
    assert argument["posterize"] == 3 and argument["posterize_original"] == 7
    assert argument["solarize"] == 230 and argument["solarize_add"] == 99
    assert argument["rotate"] == pytest.approx(27) and argument["shear_x"] == pytest.approx(0.27)
    assert argument["color"] == pytest.approx(1.72) and argument["translate_y"] == pytest.approx(0.9 * 150 / 331)


@pytest.mark.parametrize("name", sorted(augment.POLICIES))
def test_policies_are_complete(name):
    policy = augment.POLICIES[name]
    assert len(policy) == 25 and all(len(pair) == 2 for pair in policy)
    for operation, probability, level in (entry for pair in policy for entry in pair):
        assert operation in augment.OPERATIONS and 0 <= probability <= 1 and 0 <= level <= 10


def outputs(function, seeds, image=IMAGES["photo"]):
    dataset = tf.data.Dataset.from_tensor_slices(seeds).map(lambda seed: function(tf.constant(image), seed))
    assert dataset.element_spec.shape == image.shape and dataset.element_spec.dtype == tf.uint8
    return np.stack(list(dataset.as_numpy_iterator()))


@pytest.mark.parametrize(
    "function",
    [
        augment.auto_augment("v0"),
        pytest.param(augment.auto_augment("original"), marks=pytest.mark.slow),
        augment.rand_augment(2, 9),
    ],
)
def test_result_depends_on_seed_alone(function):
    seeds = np.stack([np.arange(24), np.full(24, 3)], 1).astype(np.int32)
    first = outputs(function, seeds)
    np.testing.assert_array_equal(first, outputs(function, seeds))
    np.testing.assert_array_equal(first[5], function(tf.constant(IMAGES["photo"]), seeds[5]).numpy())
    assert len(np.unique(first.reshape(24, -1), axis=0)) > 6


def test_pairs_are_drawn_evenly_and_by_probability():
    """Operations that add distinct numbers show which of them were applied."""
    policy = ((("solarize_add", 1.0, 1), ("solarize_add", 0.5, 2)), (("solarize_add", 0.0, 10), ("identity", 1.0, 0)))
    seeds = np.stack([np.arange(2000), np.zeros(2000)], 1).astype(np.int32)
    black = np.zeros([1, 1, 3], np.uint8)
    value, count = np.unique(outputs(augment.auto_augment(policy), seeds, black)[:, 0, 0, 0], return_counts=True)
    assert value.tolist() == [0, 11, 33]  # second pair; first operation alone; both
    np.testing.assert_allclose(count / 2000, [0.5, 0.25, 0.25], atol=0.05)


def test_signs_are_drawn_evenly():
    policy = ((("translate_x", 1.0, 10),),)
    seeds = np.stack([np.arange(1000), np.zeros(1000)], 1).astype(np.int32)
    image = np.zeros([1, 11, 3], np.uint8)
    image[:, 5] = 255
    place = outputs(augment.auto_augment(policy), seeds, image)[:, 0, :, 0].argmax(1)
    assert set(place) == {0, 10} and abs(np.mean(place == 0) - 0.5) < 0.06


def test_no_layers_is_the_identity():
    np.testing.assert_array_equal(augment.rand_augment(0, 5)(tf.constant(IMAGES["photo"]), [1, 2]), IMAGES["photo"])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="policy is 'v1'"):
        augment.auto_augment("v1")
    with pytest.raises(ValueError, match="magnitude 11"):
        augment.rand_augment(2, 11)

"""Every format, depth and colour model that docs/data.md names: the pixels of Pillow's `convert("RGB")`, or the reason.

The encoders of rare forms are here, as Pillow writes few of them.
"""

import io

import numpy as np
import pytest
import tensorflow as tf
from made_images import BGRX, FORMS, INDEX, QUADS, RGB, RNG, H, W, bmp, gif, masks, oriented, png, samples, save
from PIL import Image, ImageOps

from g16net.data import formats, transforms

pytestmark = pytest.mark.once

FAULTS = {
    "": "Not a JPEG, PNG, GIF or BMP image but an empty file",
    "no image at all": "Not a JPEG, PNG, GIF or BMP image",
    "webp": "but WebP",
    "tiff": "but TIFF",
    "bmp rle": "BMP with run-length compression, which is not read",
    "bmp of 10 bit channels": "BMP with channels at odd places, which is not read",
    "bmp cut": "BMP damaged or cut off",
    "bmp header": "BMP with a header of an unknown kind",
    "gif cut": "damaged or cut off",
    "png cut": "damaged or cut off",
}
FAULTY = {
    "": b"",
    "no image at all": b"no image at all",
    "webp": save(RGB, "WEBP"),
    "tiff": save(RGB, "TIFF"),
    "bmp rle": bmp(8, INDEX, QUADS, compression=1),
    "bmp of 10 bit channels": bmp(32, BGRX.reshape(H, -1), masks=masks(0x3FF00000, 0xFFC00, 0x3FF)),
    "bmp cut": FORMS["bmp rgb"][:-100],
    "bmp header": FORMS["bmp rgb"][:14] + b"\x13" + FORMS["bmp rgb"][15:],
    "gif cut": FORMS["gif"][:-100],
    "png cut": FORMS["png rgb"][:-100],
}


@pytest.fixture(scope="module")
def decode():
    return tf.function(transforms.decode, input_signature=[tf.TensorSpec([], tf.string)])


@pytest.fixture(scope="module")
def upright():
    return tf.function(lambda data: transforms.decode(data, exif=True), input_signature=[tf.TensorSpec([], tf.string)])


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_pillows(form, decode):
    expected = np.array(Image.open(io.BytesIO(FORMS[form])).convert("RGB")).astype(int)
    found = decode(FORMS[form]).numpy()
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= (2 if form.startswith(("jpeg", "mpo")) else 0)
    if not form.startswith("gif"):
        assert transforms.image_extent(tf.constant(FORMS[form])).numpy().tolist() == list(expected.shape[:2])


def test_grey_png_of_16_bits_keeps_its_upper_8(decode):
    """As that of 16-bit colours does; Pillow's convert would clip."""
    values = samples(1)
    found = decode(png(16, 0, [row.tobytes() for row in values])).numpy()
    np.testing.assert_array_equal(found, np.repeat(values >> 8, 3, 2))


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_not_read_says_why(kind, decode):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(FAULTY[kind])
    why, large = transforms.reason(tf.constant(FAULTY[kind]))
    assert FAULTS[kind] in why.numpy().decode() and not large


def test_size_alone_is_told_from_damage():
    for form in ("jpeg grey", "png rgb", "gif", "bmp palette 1"):
        why, large = transforms.reason(tf.constant(FORMS[form]), max_pixels=H * W - 1)
        assert large and why.numpy().decode() == f"{W} x {H} pixels, more than data.max_pixels={H * W - 1}"
    why, large = transforms.reason(tf.constant(FORMS["png rgb"]), jpeg=True)
    assert not large and b"not a JPEG" in why.numpy()


def test_a_gif_frame_far_outside_the_canvas_is_damage():
    giant = gif((65000, 65000), (W, H))
    with pytest.raises(tf.errors.InvalidArgumentError):
        transforms.decode(tf.constant(giant))


# Which way up


@pytest.mark.parametrize("value", range(10))
def test_orientation_is_followed_as_pillow_does(value, upright, decode):
    for data in (
        oriented("JPEG", value),
        oriented("JPEG", value, big=True, comment=b"before or after"),
        oriented("PNG", value),
    ):
        expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
        found = upright(data).numpy()
        assert found.shape == expected.shape and abs(found - expected).max() <= 2
        np.testing.assert_array_equal(
            decode(data), decode(save(RGB, "JPEG") if data[:1] == b"\xff" else save(RGB, "PNG"))
        )


def test_orientation_is_found_behind_bytes_that_fill_up(upright):
    data = oriented("JPEG", 6)
    at = data.index(b"Exif") - 4
    data = data[:2] + b"\xff" + data[2:at] + b"\xff\xff\xff" + data[at:]
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    found = upright(data).numpy()
    assert found.shape == expected.shape and abs(found - expected).max() <= 2


@pytest.mark.parametrize("value", range(1, 9))
def test_box_of_the_upright_image_lies_right_in_the_stored_one(value):
    extent, box = [40, 60], [5, 7, 20, 30]
    stored = RNG.integers(0, 256, extent if value < 5 else extent[::-1]).astype(np.uint8)[..., np.newaxis]
    value = tf.constant(value)
    whole = formats.turn(tf.constant(stored), value).numpy()
    assert whole.shape[:2] == tuple(extent)
    assert formats.turned_extent(tf.constant(stored.shape), value).numpy().tolist()[:2] == extent
    y, x, height, width = formats.stored_box(tf.constant(box), extent, value).numpy()
    part = formats.turn(tf.constant(stored[y : y + height, x : x + width]), value)
    np.testing.assert_array_equal(part, whole[5:25, 7:37])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0II",
        b"\xff\xd8\xff\xe1\0\x20Exif\0\0II*\0\xff\xff\xff\x7f\0\0",
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffeXIf",
        b"\x89PNG\r\n\x1a\n" + b"\xff" * 30,
        FORMS["bmp rgb"],
    ],
)
def test_orientation_of_what_has_none_is_as_stored(data):
    assert int(formats.orientation(tf.constant(data))) == 1

"""Every format, depth and colour model that docs/data.md names: the pixels of Pillow's `convert("RGB")`, or the reason.

The encoders of rare forms are here, as Pillow writes few of them.
"""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from g16net.data import formats, transforms

pytestmark = pytest.mark.once

H, W = 21, 30
RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, [5, 7, 3], np.uint8)).resize((W, H), Image.BICUBIC)
PIXELS = np.array(RGB)
GREY = RGB.convert("L")
ALPHA = Image.fromarray(np.linspace(0, 255, H * W).reshape(H, W).astype(np.uint8))
PALETTES = {bits: RGB.quantize(2**bits) for bits in (8, 4, 2, 1)}


def with_alpha(image):
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def save(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(depth, colour, rows, interlaced=0):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, interlaced)
    data = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def samples(channels):
    return RNG.integers(0, 2**16, [H, W, channels]).astype(">u2")


def packed(values, depth):
    bits = (values[..., np.newaxis] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)


def interlaced(values, depth):
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [np.ascontiguousarray(row).tobytes() for y, x, dy, dx in passes for row in values[y::dy, x::dx]]
    return png(depth, 2, rows, 1)


def bmp(bits, rows, palette=b"", masks=b"", header=40, colours=0, top_down=False, compression=None):
    compression = (3 if masks else 0) if compression is None else compression
    data = b"".join(row + b"\0" * (-len(row) % 4) for row in map(bytes, rows))
    info = struct.pack("<IiiHHIIiiII", header, W, -H if top_down else H, 1, bits, compression, 0, 0, 0, colours, 0)
    info = (info + masks).ljust(header, b"\0")
    begin = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", begin + len(data), 0, 0, begin) + info + palette + data


def os2(bits, rows, palette=b""):
    data = b"".join(row + b"\0" * (-len(row) % 4) for row in map(bytes, rows))
    return b"BM" + struct.pack("<IHHIIHHHH", 0, 0, 0, 26 + len(palette), 12, W, H, 1, bits) + palette + data


def masks(*values):
    return struct.pack(f"<{len(values)}I", *values)


BGR = PIXELS[::-1, :, ::-1]
BGRX = np.concatenate([BGR, np.array(ALPHA)[..., np.newaxis]], 2)
WORDS = RNG.integers(0, 2**16, [H, W]).astype("<u2")
TABLE = np.pad(np.reshape(PALETTES[8].getpalette("RGB"), [-1, 3]), [[0, 256], [0, 0]])[:256, ::-1].astype(np.uint8)
QUADS = np.pad(TABLE, [[0, 0], [0, 1]]).tobytes()
INDEX = np.array(PALETTES[8])


def without_adobe(jpeg):
    place = jpeg.index(b"Adobe") - 4
    return jpeg[:place] + jpeg[place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big") :]


def gif(place=(0, 0), canvas=(W, H), transparent=None, more=b""):
    """The palette image as a frame at `place` (x, y) of the canvas (width, height)."""
    data = save(PALETTES[4], "GIF", **({} if transparent is None else {"transparency": transparent}))
    start = data.index(b"," + b"\0" * 4 + struct.pack("<HH", W, H))
    data = data[:start] + b"," + struct.pack("<HH", *place) + data[start + 5 :]
    return data[:6] + struct.pack("<HH", *canvas) + data[10:-1] + more + b";"


CMYK = save(RGB.convert("CMYK"), "JPEG", quality=95)
FORMS = {
    **{
        f"jpeg {name} {progressive}": save(RGB, "JPEG", subsampling=subsampling, progressive=progressive)
        for subsampling, name in enumerate(("4:4:4", "4:2:2", "4:2:0"))
        for progressive in (False, True)
    },
    "jpeg grey": save(GREY, "JPEG"),
    "jpeg cmyk": CMYK,
    "jpeg cmyk without adobe": without_adobe(CMYK),
    "jpeg of rgb": save(RGB, "JPEG", quality=95, keep_rgb=True),
    "mpo": save(RGB, "MPO"),
    "png rgb": save(RGB, "PNG"),
    "png rgba": save(with_alpha(RGB), "PNG"),
    "png grey and alpha": save(with_alpha(GREY), "PNG"),
    "png rgb with a transparent colour": save(RGB, "PNG", transparency=tuple(map(int, PIXELS[0, 0]))),
    "png grey with a transparent colour": save(GREY, "PNG", transparency=int(np.array(GREY)[0, 0])),
    **{f"png grey {bits}": png(bits, 0, packed(RNG.integers(0, 2**bits, [H, W]), bits)) for bits in (1, 2, 4, 8)},
    **{f"png palette {bits}": save(image, "PNG") for bits, image in PALETTES.items()},
    **{f"png palette {bits} transparent": save(image, "PNG", transparency=1) for bits, image in PALETTES.items()},
    **{f"png 16 bit {kind}": png(16, kind, [r.tobytes() for r in samples(n)]) for kind, n in ((2, 3), (4, 2), (6, 4))},
    "png interlaced": interlaced(PIXELS, 8),
    "png interlaced 16": interlaced(samples(3), 16),
    "gif": save(PALETTES[8], "GIF"),
    "gif grey": save(GREY, "GIF"),
    "gif interlaced": save(PALETTES[8], "GIF", interlace=1),
    "gif transparent": gif(transparent=3),
    "gif with a comment": save(PALETTES[4], "GIF", comment=b"c" * 700),
    "gif of frames": save(PALETTES[8], "GIF", save_all=True, append_images=[PALETTES[2].transpose(3)], loop=0),
    "gif smaller than its canvas": gif((3, 2), (W + 9, H + 4)),
    "gif smaller than its canvas, transparent": gif((3, 2), (W + 9, H + 4), transparent=5),
    "gif larger than its canvas": gif((0, 0), (W - 9, H - 4)),

    **{f"bmp palette {bits}": save(image, "BMP") for bits, image in PALETTES.items()},
    "bmp 1": save(GREY.convert("1"), "BMP"),
    "bmp grey": save(GREY, "BMP"),
    "bmp rgb": save(RGB, "BMP"),
    "bmp rgba": save(with_alpha(RGB), "BMP"),
    "bmp palette of few": bmp(8, INDEX % 7, QUADS[:28], colours=7),
    "bmp palette from the top": bmp(8, INDEX, QUADS, top_down=True),
    "bmp rgb from the top": bmp(24, BGR.reshape(H, -1), top_down=True),
    "bmp 32": bmp(32, BGRX.reshape(H, -1)),
    "bmp 32 masks": bmp(32, BGRX.reshape(H, -1), masks=masks(0xFF0000, 0xFF00, 0xFF)),
    "bmp 32 version 5": bmp(32, BGRX.reshape(H, -1), b"", masks(0xFF0000, 0xFF00, 0xFF, 0xFF000000), 124),
    "bmp 32 abgr": bmp(32, BGRX.reshape(H, -1), b"", masks(0xFF000000, 0xFF0000, 0xFF00, 0xFF), 108),
    "bmp 16": bmp(16, WORDS.view(np.uint8)),
    "bmp 16 of 5, 6, 5": bmp(16, WORDS.view(np.uint8), masks=masks(0xF800, 0x7E0, 0x1F)),
    "bmp os2": os2(24, BGR.reshape(H, -1)),
    "bmp os2 palette": os2(8, INDEX, TABLE.tobytes()),
}  # fmt: skip
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


def oriented(kind, value, big=False, **options):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "a description before it", value
    exif.endian = ">" if big else "<"
    return save(RGB, kind, exif=exif, **options)


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

"""Encoded bytes of one image: their format, size, EXIF orientation, what speaks against decoding them, their pixels.

All of it is TensorFlow's graph operations, so that training, prediction and an exported model, which has nothing but
TensorFlow, see the same pixels: those of Pillow's `Image.open(...).convert("RGB")`, which drops alpha and gives a GIF's
first frame. JPEG and PNG are decoded by TensorFlow as they are, but for one thing: a JPEG of four components without
Adobe's marker is read as Adobe writes them (inverted), as Pillow and browsers do. TensorFlow's BMP decoder ignores
palettes, and its GIF decoder leaves transparent pixels black and takes the size from the largest frame: BMP is decoded
here, and of a GIF the first frame is cut out before it is decoded. A grey PNG of 16 bits keeps its upper 8, as one of
16-bit colours does; Pillow's `convert` would make it white from 255 on.
"""

import functools
from typing import Any

import tensorflow as tf

from g16net import compat

NOT_READ = "Not a JPEG, PNG, GIF or BMP image"
DAMAGED = "damaged or cut off"
# First bytes of what people keep beside those formats; "." stands for any byte.
OTHERS = {
    "WebP": b"RIFF....WEBP",
    "TIFF": b"II*\0",
    "TIFF, big-endian": b"MM\0*",
    "AVIF or HEIC": b"....ftyp",
    "JPEG 2000": b"\0\0\0\x0cjP",
    "JPEG XL": b"\xff\x0a",
    "Photoshop": b"8BPS",
    "ICO": b"\0\0\1\0",
    "HTML, SVG or other text": b"<",
    "NumPy": b"\x93NUMPY",
}
# Adobe's marker with transform 0; a marker of the file's own comes after it and wins.
ADOBE = b"\xff\xee\x00\x0eAdobe\x00d" + bytes(5)
GIF_BLOCKS = 2**16  # most blocks that are walked through to the first frame's end; 16 MiB where they are full
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def extent(image: Any) -> Any:
    """int64 [2]: height and width by the header; zeros where the bytes are no PNG, GIF, BMP or JPEG.

    Raises InvalidArgumentError, when run, for a JPEG whose header is broken.
    """
    return tf.cond(
        tf.io.is_jpeg(image),
        lambda: tf.cast(tf.io.extract_jpeg_shape(image)[:2], tf.int64),
        lambda: other_extent(image),
    )


def other_extent(image: Any) -> Any:
    """int64 [2]: height and width of a PNG, GIF or BMP by its first bytes, zeros for anything else."""
    head = _head(image, 26)
    png = tf.stack([_number(head, 20, 4, big=True), _number(head, 16, 4, big=True)])
    gif = tf.stack([_number(head, 8, 2), _number(head, 6, 2)])
    bmp = _Bmp(image)
    nothing = tf.zeros([2], tf.int64)
    rest = tf.where(_starts(head, b"BM"), tf.stack([bmp.height, bmp.width]), nothing)
    rest = tf.where(_starts(head, b"GIF8"), gif, rest)
    return tf.where(_starts(head, b"\x89PNG\r\n\x1a\n"), png, rest)


def fault(image: Any) -> Any:
    """What the first bytes say against decoding an image that is no JPEG: a scalar string, empty where nothing does."""
    head = _head(image, 26)
    known = tf.reduce_any([_starts(head, magic) for magic in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")])
    name = tf.constant("")
    for other, magic in OTHERS.items():
        name = tf.where(_starts(head, magic), f" but {other}", name)
    name = tf.where(tf.strings.length(image) == 0, " but an empty file", name)
    unknown = tf.where(known, "", tf.strings.join([NOT_READ, name]))
    return tf.where(_starts(head, b"BM"), _Bmp(image).fault, unknown)


def pixels(image: Any, max_pixels: int, exif: bool) -> Any:
    """The whole image, which is no JPEG, as uint8 [height, width, 3]; the right way up with `exif`."""
    size, why = _outlined(_header)(image)
    sound = tf.raw_ops.Assert(condition=tf.equal(why, ""), data=[why])
    with tf.control_dependencies([sound, check_pixels(size, max_pixels)]):
        image = tf.identity(image)
    return tf.ensure_shape(_outlined(_upright if exif else _stored)(image), [None, None, 3])


@functools.lru_cache(maxsize=None)  # traced once for all graphs
def _outlined(function):
    """`function` of encoded bytes apart from the graph. It holds no assertion: a call with one costs, taken or not."""
    return compat.outlined(function, tf.TensorSpec([], tf.string))


def _header(image):
    size, why = other_extent(image), fault(image)
    return size, tf.where(tf.equal(why, "") & (tf.reduce_min(size) <= 0), DAMAGED, why)


def _upright(image):
    return turn(_stored(image), orientation(image))


def _stored(image):
    head = _head(image, 4)
    return tf.cond(
        _starts(head, b"BM"),
        lambda: _bmp(image),
        lambda: tf.cond(_starts(head, b"GIF8"), lambda: _gif(image), lambda: tf.io.decode_png(image, channels=3)),
    )


def check_pixels(extent: Any, max_pixels: int) -> Any:
    """An operation that raises for more than `max_pixels`."""
    few = tf.logical_not(above(extent, max_pixels))
    data = [f"Image of more pixels than data.max_pixels={max_pixels}; height, width:", extent]
    return tf.raw_ops.Assert(condition=few, data=data)  # without the branch that tf.debugging puts around


def above(extent: Any, max_pixels: int) -> Any:
    """Whether height times width is more than `max_pixels`."""
    return tf.reduce_prod(tf.cast(extent, tf.float64)) > max_pixels


def as_adobe(image: Any, components: Any) -> Any:
    """A JPEG of four components as Adobe writes them; any other as it is."""

    def marked():
        return tf.strings.join([b"\xff\xd8" + ADOBE, tf.strings.substr(image, 2, 2**31 - 1)])

    return tf.cond(tf.equal(components, 4), marked, lambda: image)


# --- which way up


def orientation(image: Any) -> Any:
    """int32, 1 to 8: the EXIF orientation of a JPEG or PNG; 1 (as it is stored) where there is none."""
    head = _head(image, 8)
    exif = tf.cond(
        _starts(head, b"\xff\xd8\xff"),
        lambda: _jpeg_exif(image),
        lambda: tf.cond(_starts(head, b"\x89PNG\r\n\x1a\n"), lambda: _png_exif(image), lambda: tf.constant("")),
    )
    return tf.cond(tf.strings.length(exif) > 0, lambda: _tiff_orientation(exif), lambda: tf.constant(1))


def turn(image: Any, orientation: Any) -> Any:
    """`image` [height, width, channels] the right way up."""

    def turned():
        transposed, flip_y, flip_x = _turns(orientation)
        straight = tf.cond(transposed, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        return tf.raw_ops.Reverse(tensor=straight, dims=tf.stack([flip_y, flip_x, False]))

    return tf.cond(tf.equal(orientation, 1), lambda: image, turned)


def turned_extent(extent: Any, orientation: Any) -> Any:
    """Height and width, and what follows them, of an image once it is turned."""
    swapped = tf.concat([extent[1::-1], extent[2:]], 0)
    return tf.where(_turns(orientation)[0], swapped, extent)


def stored_box(box: Any, extent: Any, orientation: Any) -> Any:
    """Where the box (y, x, height, width) of the turned image of `extent` (height, width) lies in the stored one."""
    transposed, flip_y, flip_x = _turns(orientation)
    y, x, height, width = tf.unstack(box)
    y = tf.where(flip_y, extent[0] - y - height, y)
    x = tf.where(flip_x, extent[1] - x - width, x)
    return tf.where(transposed, tf.stack([x, y, width, height]), tf.stack([y, x, height, width]))


def _turns(orientation):
    """(transpose first, then mirror top to bottom, mirror left to right) of an EXIF orientation."""
    return orientation >= 5, _among(orientation, (3, 4, 7, 8)), _among(orientation, (2, 3, 6, 7))


def _jpeg_exif(image):
    """The TIFF structure in the EXIF segment among a JPEG's first ones (APPn and comments), or nothing.

    Bytes that fill up (255) may precede a marker. Segments behind the tables are not looked at: it would cost each
    image without orientation twice the time.
    """

    def exif(head):
        return tf.equal(head[1], 0xE1) & tf.reduce_all(tf.equal(head[4:], list(b"Exif\0\0")))

    def another(place):
        head = _words(image, place, 10)
        return tf.equal(head[0], 0xFF) & (head[1] >= 0xE0) & ~exif(head)

    def onward(place):
        head = _words(image, place, 4)
        return place + tf.where(tf.equal(head[1], 0xFF), 1, 2 + head[2] * 256 + head[3])

    place = _walk(another, onward, 2, 256)
    head = _words(image, place, 10)
    return tf.where(exif(head), _substr(image, place + 10, head[2] * 256 + head[3] - 8), "")


def _png_exif(image):
    """The TIFF structure in a PNG's chunk eXIf, or nothing."""
    length = tf.strings.length(image)

    def another(place):
        return (place < length) & tf.not_equal(_substr(image, place + 4, 4), "eXIf")

    def size(place):
        return tf.tensordot(tf.minimum(_words(image, place, 4), [63, 255, 255, 255]), [2**24, 2**16, 2**8, 1], 1)

    place = _walk(another, lambda place: place + 12 + size(place), 8, 2**14)
    return _substr(image, place + 8, size(place))


def _walk(go_on, step, place, most):
    """The first place, from `place` on in steps, at which `go_on` no longer holds."""
    (place,) = tf.while_loop(
        go_on, lambda place: (step(place),), (tf.constant(place),), maximum_iterations=most, parallel_iterations=1
    )
    return place


def _tiff_orientation(tiff):
    data = tf.cast(_head(tiff, tf.maximum(tf.strings.length(tiff), 8)), tf.int32)
    big = data[0] == ord("M")

    def short(pair):
        return tf.where(big, pair[..., 0] * 256 + pair[..., 1], pair[..., 1] * 256 + pair[..., 0])

    half = tf.where(big, short(data[6:8]), short(data[4:6]))  # of the first directory's place; it lies within 64 KiB
    room = (tf.size(data) - half - 2) // 12
    count = tf.minimum(short(tf.pad(data[half : half + 2], [[0, 2]])[:2]), tf.maximum(room, 0))
    entries = tf.reshape(data[half + 2 : half + 2 + 12 * count], [count, 12])
    tag, kind = short(entries[:, 0:2]), short(entries[:, 2:4])
    value = tf.where((kind == 4) & big, short(entries[:, 10:12]), short(entries[:, 8:10]))  # a short, or a long
    value = tf.reduce_max(tf.where(tag == 0x0112, value, 0), 0)
    return tf.where((value >= 1) & (value <= 8), value, 1)


# --- GIF


def _gif(image):
    """The first frame on its canvas, uint8 [height, width, 3].

    What it leaves free has the transparent colour, or the first, as Pillow has it.
    """
    data = tf.io.decode_raw(image, tf.uint8)
    size = tf.size(data)

    def at(place):
        return tf.cast(data[tf.minimum(place, size - 1)], tf.int32)

    def pair(place):
        return at(place) + 256 * at(place + 1)

    def table(flags):
        return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)

    def extension(place, inside, clear):
        """Over an extension's introduction, or over one of its blocks."""
        value = at(place)
        control = ~inside & (at(place + 1) == 0xF9) & (at(place + 2) >= 4)
        clear = tf.where(control & (at(place + 3) % 2 == 1), at(place + 6), clear)
        return place + tf.where(inside, 1 + value, 2), ~inside | (value > 0), clear

    def block(place, inside, clear):
        return place + 1 + at(place), at(place) > 0, clear

    def walk(go_on, step, place, inside, clear):
        return tf.while_loop(
            lambda place, inside, clear: (place < size) & go_on(place, inside),
            step,
            (place, tf.constant(inside), clear),
            maximum_iterations=GIF_BLOCKS,
            parallel_iterations=1,
        )

    shared = table(at(10))
    begin, _, clear = walk(
        lambda place, inside: inside | (at(place) == ord("!")), extension, 13 + shared, False, tf.constant(-1)
    )
    own = table(at(begin + 9))
    end, unfinished, _ = walk(lambda place, inside: inside, block, begin + 11 + own, True, clear)
    place = tf.stack([pair(begin + 3), pair(begin + 1)])
    frame = tf.stack([pair(begin + 7), pair(begin + 5)])
    canvas = tf.maximum(tf.stack([pair(8), pair(6)]), place + frame)
    whole = (size > 13) & (begin + 11 < size) & tf.equal(at(begin), ord(",")) & ~unfinished
    # A frame that reaches far out of the canvas would make a giant of it.
    whole &= (
        tf.reduce_prod(tf.cast(canvas, tf.float32))
        <= 4 * tf.cast(pair(6), tf.float32) * tf.cast(pair(8), tf.float32) + 2**24
    )
    first = tf.strings.join(
        [
            b"GIF89a",
            _substr(image, begin + 5, 4),
            _substr(image, 10, 3 + shared),
            b",\0\0\0\0",
            _substr(image, begin + 5, end - begin - 5),
            b";",
        ]
    )
    first = tf.where(whole, first, "")  # which raises
    drawn = tf.io.decode_image(first, channels=3, expand_animations=False)
    drawn = tf.ensure_shape(drawn, [None, None, 3])

    def on_canvas():
        start = tf.where(own > 0, begin + 10, 13) + 3 * tf.maximum(clear, 0)
        beyond = 3 * tf.maximum(clear, 0) >= tf.where(own > 0, own, shared)
        fill = tf.where(beyond, tf.zeros([3], tf.uint8), tf.pad(data[start : start + 3], [[0, 3]])[:3])
        after = canvas - place - frame
        pads = tf.concat([tf.stack([place, after], 1), [[0, 0]]], 0)
        inside = tf.pad(tf.ones(tf.shape(drawn)[:2], tf.bool), pads[:2])  # by what was decoded: no canvas before it
        return tf.where(inside[..., tf.newaxis], tf.pad(drawn, pads), fill)

    return tf.cond(tf.reduce_all(tf.equal(frame, canvas)), lambda: drawn, on_canvas)


# --- BMP


class _Bmp:
    """A BMP's header: scalars (int64) and `fault`, a string that is empty where it can be decoded."""

    def __init__(self, image):
        head = _head(image, 66)
        length = tf.cast(tf.strings.length(image), tf.int64)

        def word(at, size=4):
            return _number(head, at, size)

        self.header = word(14)
        zero = tf.constant(0, tf.int64)
        core = tf.equal(self.header, 12)  # OS/2's first form
        tall = word(22)
        self.top_down = ~core & (tall >= 2**31)
        self.height = tf.where(core, word(20, 2), tf.where(self.top_down, 2**32 - tall, tall))
        self.width = tf.where(core, word(18, 2), word(18))
        self.bits = tf.where(core, word(24, 2), word(28, 2))
        compression = tf.where(core, zero, word(30))
        few = self.bits <= 8
        all_colours = tf.bitwise.left_shift(tf.constant(1, tf.int64), tf.clip_by_value(self.bits, 0, 8))
        given = tf.where(core, zero, word(46))
        self.colours = tf.minimum(tf.where(given > 0, given, all_colours), all_colours)
        self.entry = tf.where(core, zero + 3, 4)
        self.stride = (self.width * self.bits + 31) // 32 * 4
        self.begin = word(10)
        unset = few & tf.equal(self.begin, 14 + self.header)  # some programs forget the palette there
        self.begin += tf.where(unset, self.entry * tf.where(given > 0, given, all_colours), 0)

        masked = _among(compression, (3, 6)) & _among(self.bits, (16, 32))
        masks = tf.stack([word(54), word(58), word(62)])
        usual = tf.where(tf.equal(self.bits, 16), tf.constant([0x7C00, 0x3E0, 0x1F]), [0xFF0000, 0xFF00, 0xFF])
        masked &= tf.reduce_any(masks > 0)
        self.masks = tf.where(masked, masks, tf.cast(usual, tf.int64))  # of red, green, blue
        self.ones = tf.bitwise.bitwise_and(self.masks, -self.masks)  # the lowest bit of each
        fitting = tf.reduce_all(
            (self.masks > 0) & (tf.equal(self.bits, 16) | tf.equal(self.masks, 255 * self.ones) & self._bytes())
        )
        reasons = [
            (~_among(self.header, BMP_HEADERS), "BMP with a header of an unknown kind, which is not read"),
            (_among(compression, (1, 2)), "BMP with run-length compression, which is not read"),
            (~_among(compression, (0, 1, 2, 3, 6)), "BMP with a compression that is not read"),
            (~_among(self.bits, (1, 2, 4, 8, 16, 24, 32)), "BMP of a depth that is not read"),
            (~few & ~fitting, "BMP with channels at odd places, which is not read"),
            (self.begin + self.stride * self.height > length, f"BMP {DAMAGED}"),
        ]
        self.fault = tf.constant("")
        for condition, reason in reversed(reasons):
            self.fault = tf.where(condition, reason, self.fault)

    def _bytes(self):
        """Whether each mask begins with a byte."""
        return tf.reduce_all(tf.reduce_any(self.ones[:, tf.newaxis] == [1, 2**8, 2**16, 2**24], axis=1))


def _bmp(image):
    """A BMP of 1 to 8 bits with a palette, of 16, 24 or 32 bits, as uint8 [height, width, 3]."""
    bmp = _Bmp(image)
    height, width, bits = (tf.cast(value, tf.int32) for value in (bmp.height, bmp.width, bmp.bits))
    data = tf.io.decode_raw(_substr(image, bmp.begin, bmp.stride * bmp.height), tf.uint8)
    rows = tf.reshape(data, tf.stack([bmp.height, bmp.stride]))
    rows = tf.cond(bmp.top_down, lambda: rows, lambda: tf.reverse(rows, [0]))

    def cells(size):
        """uint8 [height, width, size] of whole bytes."""
        return tf.reshape(rows[:, : width * size], tf.stack([height, width, size]))

    def from_palette():
        palette = tf.io.decode_raw(_substr(image, 14 + bmp.header, bmp.entry * bmp.colours), tf.uint8)
        palette = tf.reshape(palette, tf.stack([bmp.colours, bmp.entry]))[:, 2::-1]
        shifts = tf.cast(bits * tf.range(8 // bits - 1, -1, -1), tf.uint8)
        ones = tf.cast(tf.bitwise.left_shift(1, bits) - 1, tf.uint8)
        index = tf.bitwise.bitwise_and(tf.bitwise.right_shift(rows[..., tf.newaxis], shifts), ones)
        index = tf.cast(tf.reshape(index, tf.stack([height, -1]))[:, :width], tf.int32)
        return tf.gather(palette, index)  # raises for a colour beyond it

    def from_words():
        pair = tf.cast(cells(2), tf.int32)
        value = (pair[..., 0] + 256 * pair[..., 1])[..., tf.newaxis]
        masks, ones = tf.cast(bmp.masks, tf.int32), tf.cast(bmp.ones, tf.int32)
        return tf.cast(tf.bitwise.bitwise_and(value, masks) // ones * 255 // (masks // ones), tf.uint8)

    def from_bytes():  # four of them
        places = tf.argmax(tf.equal(bmp.ones[:, tf.newaxis], [1, 2**8, 2**16, 2**24]), axis=1)
        return tf.gather(cells(bits // 8), places, axis=2)

    return tf.case(
        [
            (tf.equal(bits, 24), lambda: tf.reverse(cells(3), [2])),
            (bits <= 8, from_palette),
            (tf.equal(bits, 16), from_words),
        ],
        from_bytes,
    )


# --- bytes


def _head(image, size):
    """The first `size` bytes, uint8; zeros where there are fewer."""
    return tf.io.decode_raw(image, tf.uint8, fixed_length=size)


def _words(image, place, size):
    """int32 [size]: bytes at a place; zeros where there are none."""
    return tf.cast(_head(_substr(image, place, size), size), tf.int32)


def _number(head, at, size, big=False):
    """int64: the unsigned number of `size` bytes at a place."""
    powers = [2 ** (8 * i) for i in range(size)]
    part = tf.cast(head[at : at + size], tf.int64)
    return tf.reduce_sum(part * tf.constant(powers[::-1] if big else powers, tf.int64))


def _starts(head, magic):
    places = [i for i, byte in enumerate(magic) if byte != ord(".")]
    return tf.reduce_all(tf.gather(head, places) == tf.constant([magic[i] for i in places], tf.uint8))


def _among(value, values):
    return tf.reduce_any(tf.equal(value, tf.constant(values, value.dtype)))


def _substr(image, begin, size):
    """Bytes of a string, as many as there are; none where the place lies outside."""
    begin, size = tf.cast(begin, tf.int64), tf.cast(size, tf.int64)
    begin = tf.clip_by_value(begin, 0, tf.cast(tf.strings.length(image), tf.int64))
    return tf.strings.substr(image, begin, tf.maximum(size, 0))

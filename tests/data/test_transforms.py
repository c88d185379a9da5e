import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from g16net import native
from g16net.data import transforms

pytestmark = pytest.mark.once


def photo(height=375, width=500, seed=0):
    """Smooth colours, edges and a little noise: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, [12, 16, 3], np.uint8)).resize((width, height), Image.BICUBIC)
    pixels = np.array(coarse, np.int32) + rng.integers(-6, 7, [height, width, 1])
    pixels[height // 3 : height // 2, width // 4 : width // 2] //= 3
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(pixels, kind="JPEG", mode="RGB", **options):
    stream = io.BytesIO()
    options = {"quality": 90, **options} if kind == "JPEG" else options
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


PHOTO = photo()
JPEG = encode(PHOTO)
SEED = tf.constant([3, 4])


def train_graph(size, **options):
    return tf.function(
        lambda image, seed: transforms.train_image(image, size, seed, **options),
        input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int32)],
    )


def difference(a, b):
    return np.abs(np.asarray(a, float) - np.asarray(b, float))


def reference_scale(pixels, size, tf1=False):
    """Bilinear resize in NumPy, [size, size, 3] float."""
    for axis in (0, 1):
        length = pixels.shape[axis]
        place = np.arange(size) * length / size if tf1 else (np.arange(size) + 0.5) * length / size - 0.5
        place = np.clip(place, 0, length - 1)
        low = np.floor(place).astype(int)
        weight = (place - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        upper = np.take(pixels, np.minimum(low + 1, length - 1), axis)
        pixels = np.take(pixels, low, axis) * (1 - weight) + upper * weight
    return pixels


# --- one image in every form


FORMS = {
    "jpeg": (JPEG, 6),
    "progressive": (encode(PHOTO, progressive=True), 6),
    "jpeg 4:4:4": (encode(PHOTO, subsampling=0), 4),
    "cmyk jpeg": (encode(PHOTO, mode="CMYK"), 6),
    "png": (encode(PHOTO, "PNG"), 0.6),
    "png with alpha": (encode(PHOTO, "PNG", "RGBA"), 0.6),
    "bmp": (encode(PHOTO, "BMP"), 0.6),
    "array": (PHOTO, 0.6),
}
GREY_FORMS = {
    "grey jpeg": (encode(PHOTO, mode="L"), 4),
    "grey png": (encode(PHOTO, "PNG", "L"), 0.6),
    "grey array": (np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None], 0.6),
}


@pytest.mark.parametrize("form", [*FORMS, *GREY_FORMS])
def test_every_form_gives_the_same_crop(form):
    image, tolerance = {**FORMS, **GREY_FORMS}[form]
    pixels = PHOTO if form in FORMS else np.repeat(GREY_FORMS["grey array"][0], 3, 2)
    box = transforms.random_box([375, 500, 3], SEED).numpy()
    y, x, height, width = box
    expected = reference_scale(pixels[y : y + height, x : x + width].astype(float), 200)
    assert min(height, width) < 400  # full decoding
    ours = transforms.train_image(tf.constant(image), 200, SEED, flip=False)
    assert ours.dtype == tf.uint8 and ours.shape == [200, 200, 3]
    assert difference(ours, expected).mean() < tolerance
    assert difference(transforms.decode(tf.constant(image)), pixels).mean() < tolerance


def test_gif_gives_its_first_frame():
    stream = io.BytesIO()
    frames = [Image.fromarray(np.full([20, 30, 3], value, np.uint8)) for value in (10, 240)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(transforms.decode(tf.constant(stream.getvalue())), np.full([20, 30, 3], 10))


@pytest.mark.parametrize("kind, mode", [("JPEG", "RGB"), ("PNG", "RGB"), ("GIF", "P"), ("BMP", "RGB")])
@pytest.mark.parametrize("height, width", [(300, 70), (1, 400)])
def test_extent_from_the_header(kind, mode, height, width):
    image = encode(np.zeros([height, width, 3], np.uint8), kind, mode)
    assert transforms.image_extent(tf.constant(image)).numpy().tolist() == [height, width]


def test_extent_of_other_bytes_is_nothing():
    for image in (b"", b"RIFF1234WEBP", b"\x89PNG"):
        assert transforms.image_extent(tf.constant(image)).numpy().tolist() == [0, 0]


# --- crops


def test_boxes_keep_the_rules():
    seeds = tf.constant([[7, i] for i in range(2000)])
    draw = tf.function(lambda seed: transforms.random_box([375, 500, 3], seed))
    y, x, height, width = np.stack([draw(seed) for seed in seeds]).T
    assert min(y.min(), x.min()) >= 0 and (y + height).max() <= 375 and (x + width).max() <= 500
    area, aspect = height * width / (375 * 500), width / height
    # With the whole image as the object, its least share of 0.1 is the stricter bound.
    assert area.min() > 0.099 and area.max() > 0.8 and area.mean() > 0.3
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    assert len(set(zip(y, x, height, width))) > 1900


def test_boxes_hold_their_share_of_the_object():
    target = tf.constant([[0.5, 0.5, 0.9, 0.8]])
    draw = tf.function(lambda seed: transforms.random_box([400, 400, 3], seed, boxes=target))
    for i in range(100):
        y, x, height, width = draw(tf.constant([1, i])).numpy()
        covered = max(min(y + height, 360) - max(y, 200), 0) * max(min(x + width, 320) - max(x, 200), 0)
        assert covered >= 0.099 * 160 * 120


def test_no_object_means_the_whole_image():
    np.testing.assert_array_equal(
        transforms.random_box([375, 500, 3], SEED, boxes=tf.zeros([0, 4])), transforms.random_box([375, 500, 3], SEED)
    )


@pytest.mark.parametrize("image", [JPEG, encode(PHOTO, "PNG")])
def test_result_is_a_function_of_image_and_seed(image):
    train = train_graph(32)
    results = [train(image, [1, i]).numpy() for i in range(6)]
    assert len({result.tobytes() for result in results}) == 6
    dataset = tf.data.Dataset.range(6).map(
        lambda i: transforms.train_image(tf.constant(image), 32, tf.stack([1, tf.cast(i, tf.int32)])),
        num_parallel_calls=2,
    )
    for result, again in zip(results, dataset.as_numpy_iterator()):
        np.testing.assert_array_equal(result, again)
    np.testing.assert_array_equal(results[2], transforms.train_image(tf.constant(image), 32, [1, 2]))


def test_flip_is_drawn_evenly_and_apart_from_the_box():
    plain, flipped = train_graph(8, flip=False), train_graph(8)
    mirrored = []
    for i in range(200):
        seed, mirror = tf.constant([0, i]), None
        a, b = plain(JPEG, seed).numpy(), flipped(JPEG, seed).numpy()
        mirror = not np.array_equal(a, b)
        np.testing.assert_array_equal(a[:, ::-1] if mirror else a, b)
        mirrored.append(mirror)
    assert abs(np.mean(mirrored) - 0.5) < 0.12


def test_augment_gets_the_resized_image_and_another_seed():
    seen = []

    def augment(image, seed):
        seen.append((image.shape.as_list(), seed.numpy().tolist()))
        return 255 - image

    ours = transforms.train_image(tf.constant(JPEG), 16, SEED, augment=augment)
    np.testing.assert_array_equal(255 - ours, transforms.train_image(tf.constant(JPEG), 16, SEED))
    assert seen[0][0] == [16, 16, 3] and seen[0][1] != SEED.numpy().tolist()


def test_known_jpegs_save_the_test_and_change_nothing():
    np.testing.assert_array_equal(train_graph(48, jpeg=True)(JPEG, SEED), train_graph(48)(JPEG, SEED))


@pytest.mark.parametrize(
    "size, resize",
    [pytest.param(*case, marks=pytest.mark.slow) for case in ((224, "bilinear"), (64, "bilinear"))] + [(48, "tf1")],
)
def test_native_operations_change_no_byte(size, resize):
    """Of training and test images, so a run may resume on a machine without a compiler."""
    if not native.available():
        pytest.skip("no C++ compiler")

    def graphs():
        train = train_graph(size, resize=resize)
        test = tf.function(lambda image, seed: transforms.eval_image(image, size, resize=resize))
        small = tf.function(
            lambda image, seed: transforms.small_image(image, size, seed, pad=2, flip=True, resize=resize)
        )
        seeds = [tf.constant([3, i]) for i in range(8)]
        return [graph(tf.constant(JPEG), seed).numpy() for graph in (train, test, small) for seed in seeds]

    found = graphs()
    with native.disabled():
        right = graphs()
    np.testing.assert_array_equal(found, right)


# --- reduced decoding


@pytest.mark.parametrize("ratio, target", [(2, 150), (4, 80), (8, 40)])
def test_reduced_decoding_equals_full_decoding_then_averaging(ratio, target):
    """On average within 1.5 of 255 levels, with chroma at half resolution; within 1 without."""
    for subsampling, tolerance in ((2, 1.5), (0, 1.0)):
        image = encode(PHOTO, subsampling=subsampling)
        full = transforms.decode(tf.constant(image))
        for seed in range(4):

            def draw(shape, seed=seed):
                return transforms.random_box(shape, [9, seed], area=(0.8, 1.0))

            reduced = transforms._decode(tf.constant(image), draw, target).numpy()
            averaged = transforms._decode(full, draw, target).numpy()
            box = draw([375, 500, 3]).numpy()
            assert reduced.shape == averaged.shape == (box[2] // ratio, box[3] // ratio, 3)
            assert difference(reduced, averaged).mean() < tolerance


def test_reduced_training_image_is_close_to_full_decoding_with_smoothing():
    """Against Pillow's whole decoding, crop and antialiased bilinear resize."""
    for i in range(6):
        seed = tf.constant([2, i])
        box = transforms.random_box([375, 500, 3], seed, area=(0.5, 1.0)).numpy()
        ratio = 4 if box[2:].min() >= 4 * 64 else 2
        y, x, height, width = box // ratio * ratio
        ours = transforms.train_image(tf.constant(JPEG), 64, seed, area=(0.5, 1.0), flip=False)
        theirs = Image.open(io.BytesIO(JPEG)).resize((64, 64), Image.BILINEAR, (x, y, x + width, y + height))
        assert difference(ours, theirs).mean() < 3


def test_ratio_leaves_twice_the_target_at_most():
    for target, expected in ((400, 375), (187, 188), (188, 375), (93, 94), (46, 47), (10, 47)):
        assert transforms._decode(tf.constant(JPEG), target=target).shape[0] == expected
        assert transforms._decode(tf.constant(PHOTO), target=target).shape[0] == expected


# --- resize and test preprocessing


@pytest.mark.parametrize("resize", ["bilinear", "tf1"])
@pytest.mark.parametrize("height, width, size", [(40, 31, 24), (7, 9, 20), (16, 16, 16)])
def test_scale_equals_numpy(resize, height, width, size):
    pixels = photo(height, width)
    ours = transforms.scale(tf.constant(pixels), [size, size], resize)
    expected = reference_scale(pixels.astype(float), size, resize == "tf1")
    assert difference(ours, expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("height, width", [(375, 500), (500, 375), (260, 300), (100, 90)])
@pytest.mark.parametrize("size", [64, 224])
def test_eval_image_equals_resize_then_crop(height, width, size):
    """Mean difference from Pillow's antialiased resize of the short side and centre crop, in levels."""
    pixels = photo(height, width)
    short = int(size * 256 / 224)
    scaled = [round(side * short / min(height, width)) for side in (height, width)]
    top, left = [(side - size) // 2 for side in scaled]
    expected = Image.fromarray(pixels).resize(scaled[::-1], Image.BILINEAR).crop((left, top, left + size, top + size))
    for image, tolerance in ((pixels, 2.5), (encode(pixels, quality=98, subsampling=0), 3)):
        ours = transforms.eval_image(tf.constant(image), size)
        assert ours.shape == [size, size, 3] and ours.dtype == tf.uint8
        assert difference(ours, expected).mean() < tolerance


def test_eval_image_takes_the_centre_exactly():
    """At short side 256 nothing is resized and the 224 pixels in the middle come out as they were."""
    pixels = photo(256, 300)
    np.testing.assert_array_equal(transforms.eval_image(tf.constant(pixels), 224), pixels[16:240, 38:262])


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_small_images_are_only_resized(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = reference_scale(np.repeat(pixels, 3 // shape[2], 2).astype(float), 32)
    ours = transforms.eval_image(tf.constant(pixels), 32, fit="resize")
    assert difference(ours, expected).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(transforms.small_image(tf.constant(pixels), 32, SEED), ours)


@pytest.mark.parametrize("reflect", [False, True])
def test_small_images_shift_and_flip(reflect):
    pixels = np.random.default_rng(0).integers(1, 256, [32, 32, 3], np.uint8)
    shift = tf.function(
        lambda seed: transforms.small_image(tf.constant(pixels), 32, seed, pad=4, flip=True, reflect=reflect)
    )
    padded = np.pad(pixels, [[4, 4], [4, 4], [0, 0]], "reflect" if reflect else "constant")
    views = {
        view.tobytes(): (y, x, mirror)
        for y in range(9)
        for x in range(9)
        for mirror, view in ((False, padded[y : y + 32, x : x + 32]), (True, padded[y : y + 32, x : x + 32][:, ::-1]))
    }
    drawn = [views[shift(tf.constant([5, i])).numpy().tobytes()] for i in range(300)]
    y, x, mirror = np.array(drawn).T
    assert set(y) == set(x) == set(range(9)) and abs(mirror.mean() - 0.5) < 0.12


# --- what is refused, and how


BROKEN = {
    "empty": b"",
    "text": b"no image at all",
    "start of a jpeg": JPEG[:3],
    "jpeg header cut": JPEG[:200],
    "jpeg cut": JPEG[: len(JPEG) // 3],
    "jpeg header damaged": JPEG[:160] + b"\0" * 400 + JPEG[560:],
    "png cut": encode(PHOTO, "PNG")[:2000],
    "png damaged": encode(PHOTO, "PNG")[:5000] + b"\0" * 500 + encode(PHOTO, "PNG")[5500:],
    "webp": b"RIFF\x24\0\0\0WEBPVP8 ",
    "png of 0 pixels": encode(PHOTO, "PNG")[:16] + b"\0" * 8 + encode(PHOTO, "PNG")[24:],
}


def eval_at_16(image):
    return transforms.eval_image(image, 16)


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_images_raise(kind):
    with pytest.raises(tf.errors.InvalidArgumentError):
        eval_at_16(tf.constant(BROKEN[kind]))


def test_broken_images_are_flagged():
    grey = tf.fill([16, 16, 3], tf.constant(128, tf.uint8))
    images = tf.data.Dataset.from_tensor_slices(list(BROKEN.values()))
    dataset = images.map(lambda image: transforms.attempt(eval_at_16, image, default=grey))
    assert dataset.element_spec[0].shape == [16, 16, 3]
    found = list(dataset.as_numpy_iterator())
    assert len(found) == len(BROKEN) and all(not ok and (value == 128).all() for value, ok in found)


@pytest.mark.parametrize("image", [JPEG, encode(PHOTO, "PNG"), encode(PHOTO, "BMP"), encode(PHOTO, "GIF", "P")])
def test_images_above_the_limit_are_refused_by_their_header(image):
    assert transforms.decode(tf.constant(image), max_pixels=375 * 500).shape == [375, 500, 3]
    for function in (
        lambda: transforms.decode(tf.constant(image), max_pixels=375 * 500 - 1),
        lambda: transforms.train_image(tf.constant(image), 16, SEED, max_pixels=375 * 500 - 1),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="more pixels than data.max_pixels.*187499"):
            function()


def test_a_header_of_a_giant_is_refused_before_memory_is_asked_for():
    png = JPEG  # 65500 x 65500: more than 2^32 pixels
    start = png.index(b"\xff\xc0")
    giant = png[: start + 5] + (65500).to_bytes(2, "big") * 2 + png[start + 9 :]
    with pytest.raises(tf.errors.InvalidArgumentError, match="more pixels than data.max_pixels"):
        transforms.train_image(tf.constant(giant), 16, SEED)


def test_trailing_bytes_do_no_harm():
    for tail in (b"\0" * 100, b"\n"):
        np.testing.assert_array_equal(transforms.decode(tf.constant(JPEG + tail)), transforms.decode(tf.constant(JPEG)))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="resize is 'cubic'"):
        transforms.train_image(tf.constant(JPEG), 16, SEED, resize="cubic")
    with pytest.raises(ValueError, match="fit is 'pad'"):
        transforms.eval_image(tf.constant(JPEG), 16, fit="pad")
    with pytest.raises(ValueError, match="shape"):
        transforms.decode(tf.zeros([8, 8, 4], tf.uint8))


def test_a_strip_is_not_scaled_to_its_whole_length():
    """Of 2 x 60000 pixels at 224, 4 GB would be made to take 224 columns of them."""
    strip = np.random.default_rng(0).integers(0, 256, (2, 60000, 3)).astype(np.uint8)
    middle = strip[:, 30000 - 64 : 30000 + 64]
    for image, part in ((strip, middle), (strip.transpose(1, 0, 2), middle.transpose(1, 0, 2))):
        assert transforms._middle(tf.constant(image)).shape == part.shape
        found = transforms.eval_image(tf.constant(image), 224)
        np.testing.assert_array_equal(found, transforms.eval_image(tf.constant(part), 224))
    usual = tf.constant(strip[:, :128])
    assert transforms._middle(usual).shape == usual.shape


@pytest.mark.parametrize("resize, kernel", [("bicubic", Image.BICUBIC), ("bilinear_antialias", Image.BILINEAR)])
@pytest.mark.parametrize(
    "height, width, size, crop, share",
    [(375, 500, 224, 0.875, 1e-3), (90, 71, 97, 0.9, 0.2), (333, 64, 32, 1.0, 0.3)],  # here Pillow begins with the rows
)
def test_smooth_resizes_are_pillows(height, width, size, crop, share, resize, kernel):
    """With the sides and offsets of torchvision's Resize and CenterCrop: timm's evaluation."""
    image = Image.fromarray(photo(height, width))
    short = int(size / crop)
    scale = [int(short * side / min(height, width)) for side in (width, height)]
    left, top = (int(round((side - size) / 2)) for side in scale)
    expected = np.asarray(image.resize(scale, kernel).crop((left, top, left + size, top + size)), np.int32)
    found = np.asarray(transforms.eval_image(tf.constant(np.asarray(image)), size, resize=resize, crop=crop), np.int32)
    assert np.abs(found - expected).max() <= 1 and np.mean(found != expected) < share
    if resize == "bicubic":
        other = transforms.eval_image(tf.constant(np.asarray(image)), size, crop=crop)
        assert np.mean(found != np.asarray(other, np.int32)) > 0.5


def test_smooth_resizes_in_training():
    for resize in transforms.FILTERS:
        found = train_graph(48, resize=resize)(tf.constant(JPEG), SEED)
        usual = train_graph(48)(tf.constant(JPEG), SEED)
        difference = np.abs(np.asarray(found, np.int32) - np.asarray(usual, np.int32))
        assert found.dtype == tf.uint8 and 0 < difference.mean() < 6

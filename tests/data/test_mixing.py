import helpers
import numpy as np
import pytest
import tensorflow as tf

from g16net import native
from g16net.data import mixing

pytestmark = pytest.mark.once

GOLDEN = np.load(helpers.GOLDEN / "mixing.npz")
CLASSES, POSITIVE, NEGATIVE = 5, 0.9, 0.025


def golden(case):
    """The draws of a golden case, in the form that `mix` takes, and its images and labels."""

    def get(key):
        name = f"{case}/{key}"
        return GOLDEN[name] if name in GOLDEN else None

    source = f"in{get('batch')}"
    images, labels = GOLDEN[source + "/image"], GOLDEN[source + "/label"]
    box = None
    if get("version"):
        kept = float(get("lambda"))
        if get("version") == 1:
            kept = mixing.cutmix_share(get("u0"), get("u1"), kept)
        box = mixing.cutmix_box(images.shape[1], images.shape[2], kept, get("centre_y"), get("centre_x"))
    return images, labels, get("m"), box


def dense(targets, classes=CLASSES):
    """Label distribution with smoothing, [batch, classes], by NumPy."""
    targets = np.asarray(targets)
    ids, weights = targets[..., 0], targets[..., 1]
    mass = np.zeros([len(targets), classes])
    for i, w in zip(ids.T.astype(int), weights.T):
        np.add.at(mass, (np.arange(len(targets)), i), w)
    return NEGATIVE + (POSITIVE - NEGATIVE) * mass


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_golden(case):
    images, labels, m, box = golden(case)
    mixed, targets = mixing.mix(tf.constant(images), tf.constant(labels), m, box)
    assert targets.shape == [len(images), mixing.terms(m is not None, box is not None), 2]
    np.testing.assert_allclose(mixed, GOLDEN[case + "/image"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(dense(targets), GOLDEN[case + "/target"], rtol=0, atol=1e-6)
    if box is not None:
        np.testing.assert_array_equal(box, GOLDEN[case + "/box_y1y2x1x2"])
        kept = tf.reduce_sum(targets[:, : targets.shape[1] // 2, 1], 1)
        np.testing.assert_allclose(kept, GOLDEN[case + "/label_weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "alpha, cutmix, batch, width",
    [(0.1, None, 2, 17), (0.1, None, 8, 400), (0.0, 1, 2, 17), (0.0, 2, 3, 17), (0.2, 1, 3, 17), (0.2, 2, 2, 400)],
)
def test_uint8_equals_numpy(alpha, cutmix, batch, width):
    """Rounded uint8 against a computation in NumPy from the same draws, inside a tf.data pipeline."""
    rng = np.random.default_rng(batch)
    images = rng.integers(0, 256, [batch, 12, width, 3], np.uint8)
    labels = rng.integers(0, 1000, [batch], np.int32)

    def both(seed):
        m, box = mixing.draw(tf.shape(images)[0], 12, width, seed, alpha, cutmix, 0.7)
        mixed, targets = mixing.mix(tf.constant(images), tf.constant(labels), m, box)
        return mixed, targets, tf.ones([batch]) if m is None else m, tf.zeros([4], tf.int32) if box is None else box

    dataset = tf.data.Dataset.from_tensor_slices([[3, 0], [3, 1], [4, 5]]).map(both)
    for mixed, targets, m, (top, bottom, left, right) in dataset.as_numpy_iterator():
        expected = m[:, None, None, None] * images + (1 - m[:, None, None, None]) * np.roll(images, 1, 0)
        source = np.roll(expected, 1 if batch == 2 else 2, 0)
        expected[:, top:bottom, left:right] = source[:, top:bottom, left:right]
        assert mixed.dtype == np.uint8 and targets.dtype == np.float32
        assert targets.shape == (batch, mixing.terms(alpha, cutmix), 2)
        assert np.abs(mixed - expected).max() <= 0.5 + 1e-4
        np.testing.assert_allclose(targets[..., 1].sum(1), 1, atol=1e-6)
        distribution = np.zeros([batch, 1000])
        pasted = (bottom - top) * (right - left) / (12 * width)
        for shift, share in ((0, 1 - pasted), (1 if batch == 2 else 2, pasted)):
            for i in range(batch):
                distribution[i, labels[(i - shift) % batch]] += share * m[(i - shift) % batch]
                distribution[i, labels[(i - shift - 1) % batch]] += share * (1 - m[(i - shift) % batch])
        smooth = NEGATIVE + (POSITIVE - NEGATIVE) * distribution
        np.testing.assert_allclose(dense(targets, 1000), smooth, atol=1e-6)


def test_nothing_to_mix_keeps_images_and_ids():
    images, labels = tf.zeros([2, 3, 3, 3], tf.uint8), tf.constant([4, 5])
    assert mixing.draw(2, 3, 3, [1, 2]) == (None, None)
    mixed, targets = mixing.mix(images, labels)
    assert mixed.dtype == tf.uint8 and mixed.shape == images.shape
    assert targets.dtype == tf.int32 and targets.shape == [2]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtype_of_the_result(dtype):
    images = tf.cast(tf.reshape(tf.range(2 * 4 * 4 * 3), [2, 4, 4, 3]), tf.uint8)
    mixed, _ = mixing.mix(images, tf.constant([0, 1]), tf.constant([0.75, 0.5]), dtype=dtype)
    assert mixed.dtype == dtype
    np.testing.assert_allclose(mixed[0], 0.75 * np.float32(images[0]) + 0.25 * np.float32(images[1]), rtol=1e-3)


def test_a_coefficient_too_close_to_1_changes_no_rounded_value():
    images = tf.constant([[[[0, 255, 7]]], [[[255, 0, 9]]]], tf.uint8)
    for m in (1.0, 1 - 0.49 / 255, 1 - 0.51 / 255, 0.5):
        ours, _ = mixing.mix(images, tf.constant([0, 1]), tf.fill([2], m))
        exact, _ = mixing.mix(tf.cast(images, tf.float32), tf.constant([0, 1]), tf.fill([2], m))
        np.testing.assert_array_equal(ours, np.rint(exact))


@pytest.mark.skipif(not native.available(), reason="no compiler")
@pytest.mark.parametrize("shape", [(1, 5, 7, 3), (9, 32, 32, 3), (6, 80, 96, 3)])
def test_native_mixup_gives_the_bytes_of_tensorflow(shape, monkeypatch):
    random = np.random.default_rng(0)
    images = tf.constant(random.integers(0, 256, shape, np.uint8))
    mix = tf.function(mixing.mix)
    for _ in range(20):
        m = tf.constant(random.choice([1.0, 0.5, 0.75, 1 - 0.5 / 255, random.uniform(0.5, 1)], shape[0]), tf.float32)
        ours, targets = mix(images, tf.range(shape[0]), m)
        with monkeypatch.context() as patch:
            patch.setattr(native, "available", lambda: False)
            plain, plain_targets = mixing.mix(images, tf.range(shape[0]), m)
        np.testing.assert_array_equal(ours, plain)
        np.testing.assert_array_equal(targets, plain_targets)


def test_host_and_device_forms_agree():
    """In a static graph with XLA, float images; on the host, uint8 images."""
    images = np.random.default_rng(0).integers(0, 256, [6, 8, 10, 3], np.uint8)
    labels, m, box = tf.range(6), tf.linspace(0.5, 1.0, 6), tf.constant([2, 7, 0, 10])
    host, host_targets = mixing.mix(tf.constant(images), labels, m, box)
    device, targets = tf.function(mixing.mix, jit_compile=True)(tf.cast(images, tf.float32), labels, m, box)
    # The host pastes what it has rounded, as does the device at the end: nothing differs but ties.
    assert np.abs(np.asarray(host, float) - device).max() <= 0.5 + 1e-4
    np.testing.assert_allclose(host_targets, targets, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
def test_beta_moments_and_quantiles(alpha):
    m = mixing.beta(40000, [7, 8], alpha).numpy()
    assert np.isfinite(m).all() and m.min() >= 0 and m.max() <= 1
    assert abs(m.mean() - 0.5) < 0.01
    assert m.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    fourth = np.mean((m - 0.5) ** 4)  # of Beta(a, a): 3 / (16 (2a + 1) (2a + 3))
    assert fourth == pytest.approx(3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rel=0.05)


def test_mixup_coefficients_are_independent():
    m = np.stack([mixing.draw(64, 8, 8, [1, step], alpha=1.0).m for step in range(200)])
    assert m.min() >= 0.5 and m.max() <= 1
    assert abs(np.corrcoef(m[:, 0], m[:, 1])[0, 1]) < 0.25
    assert abs(np.corrcoef(m[:-1, 0], m[1:, 0])[0, 1]) < 0.25


@pytest.mark.parametrize("lam", [0.8, 0.95])
def test_cutmix_version_1_in_distribution(lam):
    """P(no box) is 1.55 lambda - 0.96; the others keep 1 + ln(u)/4 with u in [e^-4, 1), 0.75 + 0.019 on average."""
    draw = tf.function(lambda seed: mixing.draw(4, 1000, 1000, seed, cutmix=1, lam=lam).box)
    boxes = np.stack([draw(tf.constant([5, step])) for step in range(1500)])
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / 1e6
    assert abs(np.mean(area == 0) - (1.55 * lam - 0.96)) < 0.04
    u = np.linspace(np.exp(-4), 1, 100001)
    assert abs((1 - area[area > 0]).mean() - (1 + np.log(u) / 4).mean()) < 0.03
    assert boxes.min() >= 0 and boxes.max() <= 1000
    assert np.ptp(boxes[area > 0][:, 0]) > 500


def test_cutmix_version_2_has_one_area():
    for step in range(20):
        top, bottom, left, right = mixing.draw(4, 224, 160, [1, step], cutmix=2, lam=0.64).box.numpy()
        assert 0 <= top < bottom <= 224 and 0 <= left < right <= 160
        assert abs(bottom - top - 0.6 * 224) <= 1 and abs(right - left - 0.6 * 160) <= 1


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"cutmix": 3}, {"cutmix": 1, "lam": 0.0}])
def test_mistakes_are_named(wrong):
    with pytest.raises(ValueError, match="is .*use"):
        mixing.draw(4, 8, 8, [0, 0], **wrong)

"""Draws docs/images/proxy_norm.png: what the activation does to a channel, and the channels' drift by depth.

    python docs/figures/proxy_norm.py --out=docs/images/proxy_norm.png

Left: mean and standard deviation of swish(gamma p + beta) for a standard normal p, exactly (4,001 points of the
trapezoidal rule) and by the layer's two rules. Right: in untrained networks, fed with crops of two real photos, the
share of the power of normalised pre-activations that lies in their channels' means (`drift`), at the norm after each
block's spatial convolution. Batch norm, with the statistics of the batch, has none by construction.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow import keras  # noqa: E402

from g16net.data.make_set import sample_photos  # noqa: E402
from g16net.layers.proxy_norm import proxy_moments, quadrature_points  # noqa: E402
from g16net.models import efficientnet, norms  # noqa: E402

SHOWN = ("bn", "ln", "ln_pn")


def photos(images, size, seed=0):
    """Crops of scikit-learn's two photos: float32 [images, size, size, 3] of 0..255."""
    pictures = [tf.io.decode_jpeg(tf.io.read_file(path)) for path in sample_photos()]
    crops = []
    for number in range(images):
        picture = pictures[number % len(pictures)]
        side = 200 + 20 * (number % 10)
        crop = tf.image.stateless_random_crop(picture, [side, side, 3], seed=[seed, number])
        crops.append(tf.image.resize(crop, [size, size]))
    return tf.stack(crops)


def drift(x, norm, epsilon=1e-3):
    """Share of the power of the normalised `x` [batch, height, width, channels] that lies in its channels' means over
    batch and pixels: mean over channels of the squared mean, over that of the mean square; 0 to 1."""
    axes = (0, 1, 2) if norms.get(norm).over_batch else (1, 2, 3)
    x = np.asarray(x, np.float64)
    y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return float((y.mean((0, 1, 2)) ** 2).mean() / (y**2).mean())


def by_depth(norm, images, variant="B0", group_size=16, expand_ratio=4, seed=0):
    """`drift` at the norm after each block's spatial convolution, in an untrained network; a list, from the stem on."""
    model = efficientnet.build(variant, group_size, expand_ratio, norm, 10, seed=seed, survival_prob=1.0, dropout=0.0)
    names = [layer.name for layer in model.layers if layer.name.startswith("block") and layer.name.endswith("_conv")]
    names = [name for name in names if "expand" not in name and "project" not in name]
    inner = keras.Model(model.input, [model.get_layer(name).output for name in names])
    return [drift(x, norm) for x in inner(images, training=norms.get(norm).over_batch)]


def exact(gamma, beta, points=4001):
    """Mean and standard deviation of swish(gamma p + beta), p standard normal, by the trapezoidal rule over -12..12."""
    p = np.linspace(-12, 12, points)
    weights = (p[1] - p[0]) * np.exp(-(p**2) / 2) / np.sqrt(2 * np.pi)
    u = gamma * p + beta
    z = u / (1 + np.exp(-u))
    mean = (weights * z).sum()
    return mean, np.sqrt((weights * (z - mean) ** 2).sum())


def draw(path, images=32, size=128, variant="B0"):
    """Draws the figure to `path`. Returns {norm: drift by depth}."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    betas = np.linspace(-3, 3, 61)
    for colour, gamma in (("C0", 0.5), ("C1", 1.0), ("C2", 2.0)):
        means, deviations = zip(*(exact(gamma, beta) for beta in betas))
        left.plot(betas, means, colour, label=f"mean, gamma {gamma:g}")
        left.plot(betas, deviations, colour, linestyle="--", label=f"deviation, gamma {gamma:g}")
        few = betas[::10].astype("float32")
        ones = np.ones_like(few)
        rules = (("quantile", 200, "o"), ("gauss_hermite", 32, "x"))
        for rule, points, marker in rules:
            mean, variance = proxy_moments(
                gamma * ones, few, 0 * ones, 0 * ones, "swish", *quadrature_points(rule, points)
            )
            left.plot(few, mean, marker, color=colour, markersize=4)
            left.plot(few, np.sqrt(variance), marker, color=colour, markersize=4)
    left.plot([], [], "ko", markersize=4, label="200 quantiles")
    left.plot([], [], "kx", markersize=4, label="32 Gauss-Hermite nodes")
    left.set(xlabel="beta", title="swish(gamma p + beta), p ~ N(0, 1)")
    inputs, result = photos(images, size), {}
    for norm in SHOWN:
        result[norm] = by_depth(norm, inputs, variant)
        right.plot(range(1, len(result[norm]) + 1), result[norm], marker=".", label=norms.get(norm).words)
    right.set(xlabel="block", ylabel="share of power in channel means", title=f"untrained {variant} G16, real photos")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    for key, values in draw(arguments.out).items():
        print(key, " ".join(f"{value:.3f}" for value in values))

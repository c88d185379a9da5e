"""A sheet of images with a line of text below each."""

import math


def draw(images, texts, path, columns=8):
    """Draws uint8 images [images, height, width, 3] in rows of `columns` to the PNG `path`. Returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1.5 * columns, 1.7 * rows), dpi=100)
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, columns, squeeze=False).ravel():
        axes.axis("off")
    for axes, image, text in zip(figure.axes, images, texts):
        axes.imshow(image, interpolation="nearest")
        axes.set_title(text if len(text) < 20 else text[:18] + "…", fontsize=8, pad=2)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.97, 0.06, 0.22)
    figure.savefig(path)
    return path

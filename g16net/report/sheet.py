"""A sheet of images with text above each."""

import math

LETTERS = 19  # of a line, at most


def draw(images, texts, path, columns=8):
    """Draws uint8 images [images, height, width, 3] in rows of `columns` to the PNG `path`. Returns the path.

    `texts`: of one line or several each; they stand above their images.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, lines = math.ceil(len(images) / columns), max(text.count("\n") + 1 for text in texts)
    high = 1.5 + 0.15 * lines  # inches
    figure = Figure(figsize=(1.5 * columns, high * rows + 0.05), dpi=100)
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, columns, squeeze=False).ravel():
        axes.axis("off")
    for axes, image, text in zip(figure.axes, images, texts):
        axes.imshow(image, interpolation="nearest")
        axes.set_title("\n".join(map(_cut, text.split("\n"))), fontsize=8, pad=2, linespacing=1.0)
    top = 1 - 0.15 * lines / (high * rows + 0.05)
    figure.subplots_adjust(0.01, 0.01 / rows, 0.99, top, 0.06, 0.17 * lines / 1.45)
    figure.savefig(path)
    return path


def _cut(line):
    """The line, or its two ends where it is too long: the last letters of a caption may be a figure."""
    return line if len(line) <= LETTERS else f"{line[: LETTERS - 8]}…{line[-7:]}"

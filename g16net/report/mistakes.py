"""What a network takes for what: accuracy by class, the confusion matrix and the worst mistakes, as one HTML page."""

import numpy as np

from g16net.report import markup

WHOLE = 40  # classes up to which the page shows the whole matrix
MOST = 40  # pairs and classes that it shows of more


def by_class(names, matrix):
    """`[name, images, recall, precision]` of each class; "" where there are no images, or none was taken for it.

    `matrix`: int [classes, classes], images of each (true class, predicted class).
    """
    images, right, predicted = matrix.sum(1), matrix.diagonal(), matrix.sum(0)
    return [[name, n, r / n if n else "", r / p if p else ""] for name, n, r, p in zip(names, images, right, predicted)]


def confused(names, matrix, most=MOST):
    """The pairs of classes that are confused most often: `[true, predicted, images, share of the true class]`."""
    wrong = matrix - np.diag(matrix.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    return [[names[i], names[j], int(wrong[i, j]), wrong[i, j] / matrix[i].sum()] for i, j in pairs if wrong[i, j]]


def write(path, about, names, matrix, mistakes):
    """Writes the page to `path`, which it returns.

    Args:
        about: lines that say what was evaluated, the first as its heading.
        names, matrix: as in `by_class`.
        mistakes: the worst ones, {"image": uint8 [height, width, 3], "file", "true", "predicted", "probability"} each.
    """
    large = len(names) > WHOLE
    parts = [f"<h1>{markup.text(about[0])}</h1>", *(f"<p>{markup.text(line)}</p>" for line in about[1:])]
    parts += ["<h2>What is taken for what</h2>", *(_pairs(names, matrix) if large else _matrix(names, matrix))]
    parts += ["<h2>Class by class</h2>", *_classes(names, matrix, large)]
    parts += ["<h2>The worst mistakes</h2>", *_mistakes(mistakes)]
    return markup.write(path, about[0], "\n".join(parts))


def _matrix(names, matrix):
    """The whole matrix; the colour of a place is its share of the row."""
    yield (
        "<p>Rows are true classes, columns what the images were taken for. Blue is right, orange wrong, the darker the "
        "larger its share of the row.</p>"
    )
    head = "".join(f"<th><span>{markup.text(name)}</span></th>" for name in names)
    rows = []
    for i, (name, counts) in enumerate(zip(names, matrix)):
        cells = []
        for j, count in enumerate(counts):
            share = count / (counts.sum() or 1)
            colour = f"rgba({'0,114,178' if i == j else '213,94,0'},{0.75 * share:.2f})"
            told = f"{name} taken for {names[j]}: {count}, {100 * share:.1f} % of its images"
            cells.append(f'<td style="background:{colour}" title="{markup.text(told)}">{count or ""}</td>')
        rows.append(f"<tr><th>{markup.text(name)}</th>{''.join(cells)}</tr>")
    yield (
        f"<div class=wide><table class=matrix><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pairs(names, matrix):
    """The pairs that are confused most, where there are too many classes for a matrix."""
    pairs = confused(names, matrix)
    yield f"<p>The {len(pairs)} most confused pairs of {len(names):,} classes; the CSV file holds the whole matrix.</p>"
    header = ["true class", "taken for", "images", "% of the class"]
    yield markup.table(header, [[i, j, count, _percent(share)] for i, j, count, share in pairs], words=(0, 1))


def _classes(names, matrix, large):
    """Recall, precision and what a class is taken for most often, the worst class first."""
    wrong = matrix - np.diag(matrix.diagonal())
    likeliest = [f"{names[row.argmax()]} ({row.max()})" if row.any() else "" for row in wrong]
    rows = [
        [name, images, _percent(recall), _percent(precision), other]
        for (name, images, recall, precision), other in zip(by_class(names, matrix), likeliest)
    ]
    order = sorted(range(len(rows)), key=lambda i: (not rows[i][1], matrix[i, i] / (rows[i][1] or 1)))
    if large:
        yield f"<p>The {MOST} classes with the lowest recall; the CSV file holds all.</p>"
    header = ["class", "images", "recall %", "precision %", "most often taken for"]
    yield markup.table(header, [rows[i] for i in order[: MOST if large else None]], words=(0, 4))


def _mistakes(mistakes):
    """Pictures of the worst mistakes."""
    if not mistakes:
        yield "<p>None: every image was put into its class.</p>"
        return
    yield "<p>Images as the network got them, in order of the probability that it gave to the wrong class.</p>"
    pictures = [
        markup.picture(
            markup.inside(one["image"]),
            f"{one['true']} taken for {one['predicted']}",
            f"{one['true']} taken for {one['predicted']}, {100 * one['probability']:.0f} %",
            one["file"],
        )
        for one in mistakes
    ]
    yield f"<div class=pictures>{''.join(pictures)}</div>"


def _percent(share):
    return "" if share == "" else f"{100 * share:.1f}"

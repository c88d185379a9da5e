"""How the time of a step grows with the batch and with the size of the images, as a picture."""

from g16net.report import look


def draw(rows, path):
    """Draws the milliseconds a step of a benchmark's `rows` over batch and over size, a line a network, task and dtype.

    Returns the path, or None where no network has two batches or two sizes.
    """
    panels = [(axis, found) for axis in ("batch", "size") for found in [lines(rows, axis)] if found]
    if not panels:
        return None
    import matplotlib

    with matplotlib.rc_context(look.STYLE):
        return _save(panels, path)


def _save(panels, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4), dpi=140, facecolor="white")
    FigureCanvasAgg(figure)
    for axes, (axis, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for label, points in found.items():
            axes.plot(*zip(*points), marker=".", label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({x for points in found.values() for x, _ in points})
        axes.set_xticks(ticks)
        axes.set_xticklabels([str(tick) for tick in ticks])
        axes.set_xlabel({"batch": "images in a step", "size": "pixels"}[axis])
        axes.set_ylabel("ms a step")
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    return path


def lines(rows, axis):
    """{label: [(value of `axis`, milliseconds a step)]} of those with two values at least."""
    other = {"batch": "size", "size": "batch"}[axis]
    found = {}
    for row in rows:
        if row["task"] != "product":
            unit = {"batch": "px", "size": "images"}[axis]
            label = f"{row['name']}, {row['task']}, {row['dtype']}, {row[other]} {unit}"
            time = 1000 * row["batch"] / row["images_per_second"]["median"]
            found.setdefault(label, []).append((row[axis], time))
    return {label: sorted(points) for label, points in found.items() if len({x for x, _ in points}) > 1}

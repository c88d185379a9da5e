"""How the time of a step grows with the batch, with the size of the images and with the network, as a picture."""

from g16net.report import look

AXES = {"batch": "images in a step", "size": "pixels", "multiply_adds": "multiply-adds per image"}
SCALE = ("model.variant", "model.width", "model.depth")


def draw(rows, path):
    """Draws the milliseconds a step of a benchmark's `rows` over each of `AXES`, a line for what is otherwise the same.

    Returns the path, or None where no network has two batches, two sizes or two variants.
    """
    panels = [(axis, found) for axis in AXES for found in [lines(rows, axis)] if found]
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
        axes.set_xticklabels([look.short(tick) if axis == "multiply_adds" else str(tick) for tick in ticks])
        axes.set_xlabel(AXES[axis])
        axes.set_ylabel("ms a step")
        axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    return path


def lines(rows, axis):
    """{label: [(value of `axis`, milliseconds a step)]} of those with two values at least.

    Over multiply-adds a line joins networks that differ in variant, width and depth alone; peers have none.
    """
    rows = [row for row in rows if row["task"] != "product"]
    if axis == "multiply_adds":
        rows = [row for row in rows if row["network"]]
    found = {}
    for row in rows:
        x = row["multiply_adds_per_image"] if axis == "multiply_adds" else row[axis]
        time = 1000 * row["batch"] / row["images_per_second"]["median"]
        found.setdefault(_label(row, axis, rows), []).append((x, time))
    return {label: sorted(points) for label, points in found.items() if len({x for x, _ in points}) > 1}


def _label(row, axis, rows):
    """What all of a line have in common, in which other lines differ."""
    fixed = {"batch": f"{row['batch']} images", "size": f"{row['size']} px"}
    fixed.pop(axis, None)
    name = [row["name"]]
    if axis == "multiply_adds":
        network = row["network"]
        named = (*SCALE, "model.group_size", "model.norm", "runtime.precision")
        different = [key for key in network if any(other["network"].get(key) != network[key] for other in rows)]
        name = [look.network(network["model.group_size"], network["model.norm"])]
        name += [f"{key.split('.')[1]}={network[key]}" for key in different if key not in named]
    return ", ".join([*name, row["task"], row["dtype"], *reversed(list(fixed.values()))])

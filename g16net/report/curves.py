"""Training curves as a picture."""


def draw(history, path, title=""):
    """Draws loss and accuracy over the epochs of `history` (epoch records) to `path`. Returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout=None)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lines = [
        (left, "loss", "training loss", "C0"),
        (left, "eval_loss", "test loss", "C1"),
        (left, "eval_loss_average", "test loss, averaged weights", "C2"),
        (right, "top1", "training top-1", "C0"),
        (right, "eval_top1", "test top-1", "C1"),
        (right, "eval_top1_average", "test top-1, averaged weights", "C2"),
    ]
    for axes, key, label, colour in lines:
        points = [(record["epoch"], record[key]) for record in history if key in record]
        if points:
            axes.plot(*zip(*points), marker=".", color=colour, label=label)
    for axes, name in ((left, "loss"), (right, "accuracy")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    return path

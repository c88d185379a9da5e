"""The common look of the report's figures, and how a panel is drawn.

Colour is the norm (Okabe and Ito's palette, told apart by colour-blind readers), a filled marker is a network with
group convolutions and an open one a depthwise network, the marker's shape is where the point is from and whether it was
trained at its native size. Nothing is said by colour alone: lines of G1 are dashed, and every series is in the legend.
"""

import textwrap
from typing import NamedTuple, Optional

from g16net.models.norms import NORMS

TUNED = {"top": ("*", 10), "stages": ("P", 8)}  # marker, its size in points
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
MARKERS = {  # by (kind, trained at native size)
    ("measured", True): "o",
    ("measured", False): "s",
    ("published", True): "D",
    ("published", False): "d",
    ("estimated", True): "^",
    ("estimated", False): "v",
}
INK, FAINT = "#222222", "#bbbbbb"
WIDTH, LEFT, ABOVE, HEIGHT = 4.2, 0.65, 0.45, 2.5  # inches: a panel, what is left of and above its axes, the axes
LABEL = 7  # points: the letters of texts beside marks
X_LETTERS = 48  # of the x axis' label in a line
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eeeeee",
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "g16net",  # the same figure gives the same file
    "svg.fonttype": "none",  # letters as text: a fifth of the size
}


class Series(NamedTuple):
    """Marks of one look. points: (x, y, lowest y, highest y, text beside it or "")."""

    label: str
    norm: str
    group_size: int
    kind: str
    native: bool
    points: list
    joined: bool = True
    dashed: Optional[bool] = None  # None: by the group size
    band: bool = False  # the range as a band instead of bars
    colour: str = ""  # empty: of the norm
    tuned: str = ""  # set apart from another series of the same look: "top", or "stages" where these are tuned too


class Panel(NamedTuple):
    """One pair of axes. front: of a Pareto front the points (x, y, text); ticks: names for x = 0, 1, ..."""

    title: str
    x: str
    y: str
    series: list
    front: tuple = ()
    front_label: str = ""
    log: bool = False
    whole: bool = False  # ticks where points are
    log_y: bool = False
    ticks: tuple = ()


def network(group_size, norm):
    """`G16 LN+PN`."""
    return f"G{group_size} {NORMS[norm].label if norm in NORMS else norm}"


def save(panels, paths, columns=2):
    """Draws `panels` in rows of `columns` to each of `paths`, whose ends say the format."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = -(-len(panels) // columns), min(columns, len(panels))
    below = 0.75 + 0.16 * max(_legend_rows(panel) + len(_x_lines(panel)) - 1 for panel in panels)
    cell = WIDTH, ABOVE + HEIGHT + below
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(columns * cell[0], rows * cell[1]), dpi=140, facecolor="white")
        FigureCanvasAgg(figure)
        for index, panel in enumerate(panels):
            left = (index % columns * cell[0] + LEFT) / (columns * cell[0])
            bottom = ((rows - 1 - index // columns) * cell[1] + below) / (rows * cell[1])
            size = (WIDTH - LEFT - 0.2) / (columns * cell[0]), HEIGHT / (rows * cell[1])
            draw(figure.add_axes((left, bottom, *size)), panel)
        for path in paths:
            figure.savefig(path, metadata={"Date": None} if path.endswith("svg") else None)


def _legend_columns(panel):
    """Two where the labels are short enough for it."""
    return 2 if max(len(series.label) for series in panel.series) <= 22 else 1


def _legend_rows(panel):
    return -(-(len(panel.series) + bool(panel.front)) // _legend_columns(panel))


def _x_lines(panel):
    return textwrap.wrap(panel.x, X_LETTERS)


def draw(axes, panel):
    """Draws a panel on matplotlib's `axes`."""
    if panel.log:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    for series in panel.series:
        _draw_series(axes, series)
    if panel.front:
        xs, ys, _ = zip(*panel.front)
        axes.step(xs, ys, where="pre", color="#777777", lw=1.1, zorder=1, label=panel.front_label)
    axes.set_title(panel.title, pad=10)
    lines = _x_lines(panel)
    axes.set_xlabel("\n".join(lines))
    axes.set_ylabel(panel.y)
    axes.margins(x=0.1, y=0.15)
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)))
        crowded = sum(map(len, panel.ticks)) > 40  # characters: then names take two lines
        axes.set_xticklabels([tick.replace(" ", "\n", 1) if crowded else tick for tick in panel.ticks])
        axes.grid(axis="x", visible=False)
    elif panel.log:
        _plain_ticks(axes)
    elif panel.whole:
        places = sorted({x for series in panel.series for x, *_ in series.points})
        axes.set_xticks(places if len(places) <= 8 else places[:: -(-len(places) // 8)])
    marks = [*panel.front] + [(x, y, text) for series in panel.series for x, y, _, _, text in series.points]
    _label(axes, marks)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(-0.14, -0.22 - 0.16 / HEIGHT * (len(lines) - 1)),
        ncol=_legend_columns(panel),
        borderaxespad=0,
        handlelength=2.4,
        labelspacing=0.35,
    )


def _label(axes, marks):
    """Texts beside marks (x, y, text), each where it covers no other; the page's table has them all."""
    axes.autoscale_view()
    points = 72 / axes.figure.dpi
    left, bottom, right, top = axes.bbox.extents * points
    taken = []
    for x, y, text in marks:
        px, py = axes.transData.transform((x, y)) * points
        wide, high = 0.58 * LABEL * len(text), 1.2 * LABEL
        for dx, dy in ((4, 5), (-4, 5), (4, -5), (-4, -5)):
            x0, y0 = (px + dx - wide * (dx < 0)), (py + dy - high * (dy < 0))
            inside = left <= x0 and x0 + wide <= right and bottom <= y0 and y0 + high <= top
            apart = all(x0 > ox + ow or ox > x0 + wide or abs(y0 - oy) > high for ox, oy, ow in taken)
            if text and inside and apart:
                taken.append((x0, y0, wide))
                place = {"ha": "left" if dx > 0 else "right", "va": "bottom" if dy > 0 else "top"}
                offset = {"xytext": (dx, dy), "textcoords": "offset points"}
                axes.annotate(text, (x, y), fontsize=LABEL, color=INK, zorder=4, **offset, **place)
                break


def _plain_ticks(axes):
    """Numbers instead of powers; in between only where they are few."""
    from matplotlib import ticker

    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high / low < 200 else (1,)
    axes.xaxis.set_major_locator(ticker.LogLocator(base=10, subs=steps))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def short(value):
    """`26.5k`, `0.8`, `385M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _draw_series(axes, series):
    colour = series.colour or (NORMS[series.norm].colour if series.norm in NORMS else "#000000")
    points = sorted(series.points, key=lambda point: point[0])
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    dashed = series.group_size == 1 if series.dashed is None else series.dashed
    line = ("--" if dashed else "-") if series.joined else "none"
    plain = MARKERS[series.kind, series.native], 3.5 if series.kind == "estimated" else 5
    marker, size = TUNED.get(series.tuned, plain)
    if series.band:
        axes.fill_between(xs, [p[2] for p in points], [p[3] for p in points], color=colour, alpha=0.15, lw=0)
    else:
        for x, _, low, high, _ in points:
            if high > low:
                axes.plot([x, x], [low, high], color=colour, lw=1, alpha=0.7, solid_capstyle="butt", zorder=2)
    axes.plot(
        xs,
        ys,
        linestyle=line,
        lw=1.2,
        color=colour,
        alpha=0.6 if series.kind == "estimated" else 1.0,
        marker=marker,
        ms=size,
        markerfacecolor=colour if series.group_size > 1 else "white",
        markeredgecolor=colour,
        label=series.label,
        zorder=3,
    )

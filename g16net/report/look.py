"""The common look of the report's figures, and how a panel is drawn.

Colour is the norm (Okabe and Ito's palette, told apart by colour-blind readers), a filled marker is a network with
group convolutions and an open one a depthwise network, the marker's shape is where the point is from and whether it was
trained at its native size. Nothing is said by colour alone: lines of G1 are dashed, and every series is in the legend.
"""

from typing import NamedTuple, Optional

COLOURS = {"bn": "#D55E00", "gn": "#0072B2", "ln": "#CC79A7", "gn_pn": "#56B4E9", "ln_pn": "#009E73"}
NORMS = {"bn": "BN", "gn": "GN", "ln": "LN", "gn_pn": "GN+PN", "ln_pn": "LN+PN"}
MARKERS = {  # by (kind, trained at native size)
    ("measured", True): "o",
    ("measured", False): "s",
    ("published", True): "D",
    ("published", False): "d",
    ("estimated", True): "^",
    ("estimated", False): "v",
}
INK, FAINT = "#222222", "#bbbbbb"
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
    "legend.fontsize": 7.5,
    "svg.hashsalt": "g16net",  # the same figure gives the same file
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


class Panel(NamedTuple):
    """One pair of axes. fronts: lists of (x, y, text); ticks: names for x = 0, 1, ..."""

    title: str
    x: str
    y: str
    series: list
    fronts: tuple = ()
    log: bool = False
    ticks: tuple = ()
    more_is_better: bool = True  # along x


def network(group_size, norm):
    """`G16 LN+PN`."""
    return f"G{group_size} {NORMS.get(norm, norm)}"


def save(panels, paths, columns=2):
    """Draws `panels` in rows of `columns` to each of `paths`, whose ends say the format."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = -(-len(panels) // columns), min(columns, len(panels))
    with matplotlib.rc_context(STYLE):
        legend_lines = -(-max(len(panel.series) + bool(panel.fronts) for panel in panels) // 2)
        height = 3.3 + 0.17 * legend_lines
        figure = Figure(figsize=(4.8 * columns, height * rows), dpi=140, facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.axis("off")
        for axes, panel in zip(grid, panels):
            draw(axes, panel)
        figure.tight_layout(pad=0.8, h_pad=1.6, w_pad=1.6)
        for path in paths:
            figure.savefig(path, metadata={"Date": None} if path.endswith("svg") else None)


def draw(axes, panel):
    """Draws a panel on matplotlib's `axes`."""
    if panel.log:
        axes.set_xscale("log")
    for front in panel.fronts:
        front = sorted(front, key=lambda point: point[0])
        where = "pre" if panel.more_is_better else "post"
        axes.step([x for x, *_ in front], [y for _, y, _ in front], where=where, color="#777777", lw=1.1, zorder=1)
        for x, y, text in front:
            axes.annotate(
                text,
                (x, y),
                (0, 7),
                textcoords="offset points",
                fontsize=6.5,
                ha="center",
                clip_on=False,
                annotation_clip=False,
            )
    for series in panel.series:
        _draw_series(axes, series)
    if panel.fronts:
        axes.plot([], [], color="#777777", lw=1.1, label="Pareto front")
    axes.set_title(panel.title, pad=14 if panel.fronts else 8)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.margins(x=0.12, y=0.12)
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)))
        axes.set_xticklabels(panel.ticks)
        axes.grid(axis="x", visible=False)
    elif panel.log:
        _plain_ticks(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.12, -0.2), ncol=2, borderaxespad=0, handlelength=2.2)


def _plain_ticks(axes):
    """Numbers instead of powers; in between only where they are few."""
    from matplotlib import ticker

    low, high = axes.get_xlim()
    steps = (1, 2, 5) if high / low < 60 else (1,)
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
    colour = COLOURS.get(series.norm, "#000000")
    points = sorted(series.points, key=lambda point: point[0])
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    dashed = series.group_size == 1 if series.dashed is None else series.dashed
    line = ("--" if dashed else "-") if series.joined else "none"
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
        marker=MARKERS[series.kind, series.native],
        ms=5,
        markerfacecolor=colour if series.group_size > 1 else "white",
        markeredgecolor=colour,
        label=series.label,
        zorder=3,
    )
    for x, y, _, _, text in points:
        if text:
            axes.annotate(text, (x, y), (4, -9), textcoords="offset points", fontsize=6.5, color=colour)

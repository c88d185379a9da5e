"""The report's figures as panels of series: which points, on which axes, with which front.

Panels hold points of one data set. Points of different kinds (measured, published, estimated) are series of their own,
and a front is over points of one kind.
"""

import re
import statistics
from typing import NamedTuple

from g16net.report import look, pareto, points, runs
from g16net.report.look import Panel, Series

TRAIN, INFER, MACS = "train_images_per_second", "infer_images_per_second", "multiply_adds"
SOURCES = {
    "benchmark": ", by mode benchmark",
    "run": ", input included",
    "busy run": ", input and other work included",
}
KINDS = {"measured": "measured", "published": "paper, read by eye", "estimated": "speed estimated"}


class Figure(NamedTuple):
    """A figure: its file name, heading, what it shows, its panels, the points in them, and what would make it."""

    name: str
    title: str
    caption: str
    panels: list
    points: list
    command: str


def all_of(found):
    """The figures of `found` (points of every kind), in order; one without panels has no data."""
    return [cost(found), norms(found), training(found), inference(found)]


def cost(found):
    """(a) Accuracy against multiply-adds and against training speed, at native size."""
    chosen = [point for point in points.at_native(found, finetuned=False) if point["resolution"] == "native"]
    panels = []
    for data, same in by_data(chosen):
        speed = f"training images/s{source(same, 'train')} (log)"
        for x, title, label in (
            (MACS, "multiply-adds", "multiply-adds per image (log)"),
            (TRAIN, "training speed", speed),
        ):
            series = over_sizes([point for point in same if point[x]], x, label_sizes=True)
            if x == MACS:  # an estimate is of speed
                series = [one for one in series if one.kind != points.ESTIMATED]
            if series:
                panels.append(Panel(f"{data}: {title}", label, "top-1 %", series, log=True))
    return Figure(
        "cost",
        "Accuracy against theoretical and practical cost",
        "Networks trained and tested at native size, without fine-tuning; a line joins the sizes of one "
        "network. By multiply-adds G16 costs more than G1; by images per second it need not.",
        panels,
        chosen,
        "launch.py --mode=sweep --experiment=norms --workdir=runs/norms",
    )


def norms(found):
    """(b) Accuracy over model sizes, a line per norm."""
    chosen = [p for p in points.at_native(found, finetuned=False) if p["resolution"] == "native"]
    chosen = [p for p in chosen if p["kind"] != points.ESTIMATED]
    panels = []
    for data, same in by_data(chosen):
        order = points.sizes(same)
        for group_size in sorted({point["group_size"] for point in same}):
            own = [dict(p, place=order.index(p["variant"])) for p in same if p["group_size"] == group_size]
            ticks = tuple(points.short_sizes(order).values())
            panels.append(
                Panel(f"{data}: G{group_size}", "model size", "top-1 %", over_sizes(own, "place"), ticks=ticks)
            )
    return Figure(
        "norms",
        "Norms across model sizes",
        "Trained and tested at native size, without fine-tuning. Bars are the range over seeds.",
        panels,
        chosen,
        "launch.py --mode=sweep --experiment=norms --workdir=runs/norms",
    )


def training(found):
    """(c) Accuracy against training speed relative to the baseline, with the front."""
    panels, shown = [], []
    for where, pick in (("native test size", points.at_native), ("best test size", points.at_best)):
        for data, same in by_data(pick([p for p in found if p[TRAIN]])):
            if where.startswith("best") and all(p["kind"] != points.MEASURED for p in same):
                continue  # the paper's figure is at native size
            base = points.baseline(
                points.at_native([p for p in found if p["data"] == data and p["kind"] != "estimated"])
            )
            unit = base[TRAIN] if base else 1.0
            relative = [dict(p, speed=p[TRAIN] / unit) for p in same]
            of = ""
            if base:
                size = _sizes([*same, base])[base["variant"]]
                of = f" over {look.network(base['group_size'], base['norm'])} {size}"
            x = f"training images/s{of}{source(same, 'train')} (log)"
            panels.append(with_front(f"{data}: {where}", x, relative, "speed"))
            shown += same
    return Figure(
        "training",
        "Training efficiency",
        "The grey line is the Pareto front: no other network is both faster to train and more accurate. Speed is that "
        "of training alone; the table has the seconds of fine-tuning.",
        panels,
        shown,
        "launch.py --mode=train,finetune,evaluate --experiment=g16_ln_pn:resolution=half --workdir=runs/half",
    )


def inference(found):
    """(d) Accuracy against inference speed at every test size, with the front."""
    shown = [point for point in found if point[INFER]]
    panels = [
        with_front(
            f"{data}: every test size", f"inference images/s{source(same, 'infer')} (log)", same, INFER, each_size=True
        )
        for data, same in by_data(shown)
    ]
    return Figure(
        "inference",
        "Inference efficiency",
        "Every network at every test size, before and after the fine-tuning of its last layers there.",
        panels,
        shown,
        "launch.py --mode=evaluate --config.eval.sizes=160,192,224 --workdir=RUN",
    )


def curves(groups):
    """Test accuracy over the epochs: the mean over seeds, and their range as a band.

    Networks trained at a reduced size have panels of their own: at the native test size they are far below the others.
    """
    panels = []
    for data, variant, same, reduced in by_size(groups):
        series = []
        for group in same:
            epochs = {}
            for run in group.runs:
                for record in run.history:
                    top1 = record.get("eval_top1_average", record.get("eval_top1"))
                    if top1 is not None:
                        epochs.setdefault(record["epoch"], []).append(100 * top1)
            if len(epochs) > 1:
                rows = [(e, statistics.fmean(v), min(v), max(v), "") for e, v in sorted(epochs.items())]
                series.append(_series_of(group, rows, band=True))
        if series:
            title = f"{data}: {variant}" + (", reduced" if reduced else "")
            panels.append(Panel(title, "epoch", "test top-1 %", series, whole=True))
    return Figure(
        "curves",
        "Training curves",
        "Test accuracy after each epoch at the native test size, of the averaged weights where there are; the mean "
        "over seeds and their range. What is trained at a reduced size is here before its fine-tuning.",
        panels,
        [],
        "launch.py --mode=train --config.run.epochs=2 (of one epoch there is no curve)",
    )


def resolutions(found):
    """Accuracy over test sizes, before and after fine-tuning."""
    own, panels = [point for point in found if point["kind"] == points.MEASURED], []
    for data, same in by_data(own):
        for variant in points.sizes(same):
            series = []
            for group in dict.fromkeys(p["group"] for p in same if p["variant"] == variant):
                of_group = [p for p in same if p["group"] == group]
                for tuned in sorted({(p["layers"], p["folder"]) for p in of_group}):
                    rows = [p for p in of_group if (p["layers"], p["folder"]) == tuned]
                    one = rows[0]
                    network = look.network(one["group_size"], one["norm"])
                    parts = [network, f"trained at {one['trained_at']}", *_short(one["setting"]), *points.tuning(one)]
                    series.append(
                        Series(
                            ", ".join(parts),
                            one["norm"],
                            one["group_size"],
                            points.MEASURED,
                            one["resolution"] == "native",
                            [_mark(p, "test_size") for p in rows],
                            tuned=points.tuned(one),
                        )
                    )
            if any(len(one.points) > 1 for one in series):
                panels.append(Panel(f"{data}: {variant}", "test size in pixels", "top-1 %", series, whole=True))
    return Figure(
        "resolutions",
        "Test sizes",
        "Each network at every size it was tested at; stars: after the fine-tuning of its top at that size; crosses: "
        "of the stages before it too.",
        panels,
        [],
        "launch.py --mode=finetune,evaluate --config.eval.sizes=160,192,224 --workdir=RUN",
    )


def plan(costs):
    """Estimated images/s, hours and efficiency over devices, of those `costs.json` files (dicts) that hold a plan."""
    planned = [one for one in costs if one.get("plan")]
    panels, machines = [], list(dict.fromkeys(row["machine"] for one in planned for row in one["plan"]))
    for one in planned:
        for column, label, log_y in (
            ("images_per_second", "training images/s (log)", True),
            ("hours", "hours of the whole run (log)", True),
            ("efficiency", "speed over linear scaling", False),
        ):
            series = []
            for machine, size in dict.fromkeys((row["machine"], row["size"]) for row in one["plan"]):
                rows = [r for r in one["plan"] if (r["machine"], r["size"]) == (machine, size) and r[column]]
                if rows:
                    marks = [(row["devices"], row[column], row[column], row[column], "") for row in rows]
                    colour = look.PALETTE[machines.index(machine) % len(look.PALETTE)]
                    native, group_size = rows[0]["resolution"] != "half", one["network"]["group_size"]
                    style = dict(dashed=not native, colour=colour)
                    name = f"{machine}, {size} px"
                    series.append(Series(name, "", group_size, points.ESTIMATED, native, marks, **style))
            if series:
                panels.append(Panel(one.get("name", "plan"), "devices (log)", label, series, log=True, log_y=log_y))
    return Figure(
        "plan",
        "Plans: the same run on more devices",
        "Estimates by the performance model and the bandwidth of links, nothing measured; dashed: at half resolution.",
        panels,
        [],
        "launch.py --mode=costs --experiment=g16_ln_pn --machines=a100_80gb --devices=1,8,64 --workdir=runs/costs",
    )


def by_data(found):
    """(data set, its points), in order."""
    return [(data, [p for p in found if p["data"] == data]) for data in dict.fromkeys(p["data"] for p in found)]


def by_size(groups):
    """(data, size, groups of it, whether they are trained at a reduced size), in order."""

    def reduced(config):
        return points.resolution(config)["resolution"] == "reduced"

    keys = [(runs.data_name(g.config), runs.size_name(g.config), reduced(g.config)) for g in groups]
    return [(*key[:2], [g for g, k in zip(groups, keys) if k == key], key[2]) for key in dict.fromkeys(keys)]


def _mark(point, x, text=""):
    top1 = point["top1"]
    return point[x], 100 * top1["mean"], 100 * top1["min"], 100 * top1["max"], text


def over_sizes(same, x, label_sizes=False, joined=True):
    """A series for each network, training resolution and kind; its points are the sizes."""
    series, named, sizes = [], set(), _sizes(same)
    for key in dict.fromkeys(_network(point) for point in same):
        rows = [point for point in same if _network(point) == key]
        group_size, norm, resolution, _, kind, *_ = key
        texts = label_sizes and not named  # once, as all networks come in the same sizes
        named.add(kind)
        marks = [_mark(point, x, sizes[point["variant"]] if texts else "") for point in rows]
        lines = joined and kind != points.ESTIMATED
        tuned = points.tuned(rows[0]) if kind == points.MEASURED else ""
        native = resolution == "native"
        series.append(Series(_label(rows[0]), norm, group_size, kind, native, marks, lines, tuned=tuned))
    return series


def _sizes(same):
    return points.short_sizes([point["variant"] for point in same])


def _network(point):
    fields = ("group_size", "norm", "resolution", "pixels", "kind", "finetuned", "layers", "folder", "setting")
    return tuple(point[field] for field in fields)


def _label(point):
    parts = [look.network(point["group_size"], point["norm"])]
    pixels = "half the pixels" if point["pixels"] == 0.5 else f"{100 * point['pixels']:.0f} % of the pixels"
    parts += {"native": [], "reduced": [pixels], "progressive": [f"growing from {pixels}"]}[point["resolution"]]
    return ", ".join([*parts, *points.tuning(point), KINDS[point["kind"]], *_short(point["setting"])])


def source(same, task):
    """Where the measured speeds of a panel are from, for its axis; they are of one source."""
    of = {point[f"{task}_speed_source"] for point in same if point["kind"] == points.MEASURED}
    return "".join(SOURCES[one] for one in of)


def _short(setting):
    """A setting as the end of a label, cut where it is long; the page's tables have it whole."""
    setting = re.sub(r"\b[a-z]+\.(?=\w+=)", "", setting)  # fields without their sections
    return [setting if len(setting) <= 32 else setting[:31] + "…"] if setting else []


def with_front(title, x_label, same, x, each_size=False):
    """A panel with a front over the points of one kind: the measured ones where there are, else the paper's. There is
    none where measured speeds are of runs beside other work.

    `each_size`: a network has points at several test sizes, which are named.
    """
    kind = next(kind for kind in KINDS if any(point["kind"] == kind for point in same))
    own = [point for point in same if point["kind"] == kind]
    busy = own[0]["infer_speed_source" if x == INFER else "train_speed_source"] == "busy run"
    front = [] if busy else [own[i] for i in pareto.front([(point[x], point["top1"]["mean"]) for point in own])]
    sizes = _sizes(same)
    at = [f" @{point['test_size']}" if each_size else "" for point in front]
    marks = [(p[x], 100 * p["top1"]["mean"], sizes[p["variant"]] + text) for p, text in zip(front, at)]
    series, label = over_sizes(same, x, joined=not each_size), f"Pareto front, {KINDS[kind]}"
    return Panel(title, x_label, "top-1 %", series, tuple(marks), label, log=True)


def _series_of(group, rows, band=False):

    config = group.config
    network = look.network(config["model.group_size"], config["model.norm"])
    label = ", ".join([network, runs.resolution_name(config), *_short(group.setting)])
    native = points.resolution(config)["resolution"] == "native"
    return Series(label, config["model.norm"], config["model.group_size"], points.MEASURED, native, rows, band=band)

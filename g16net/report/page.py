"""`--mode=report`: one HTML page that needs nothing else, and its figures as PNG and SVG.

OUT/report.html         opens offline; figures are inside
OUT/figures/NAME.png    and NAME.svg, each figure with all its panels
OUT/report.json         every point with where it is from, what was left out, and the runs, for `--runs` of others
"""

import base64
import json
import os
import re
import tempfile

from g16net.errors import UserError
from g16net.report import figures, look, markup, points, published, runs
from g16net.run import records

SCALED = "In the names of sizes w is the factor of the channels and d that of the depth."


def write(patterns, folder, quoted=True):
    """Makes the report of the runs that `patterns` name (see `runs.load`) in `folder`. Returns the figures' summary.

    Args:
        quoted: whether the paper's readings are shown beside.

    Raises:
        UserError: no run is left to report, or `folder` cannot be written.
    """
    loaded = runs.load(patterns)
    planned = [one for one in loaded.costs if one.get("plan")]
    if not loaded.runs and not planned:
        raise UserError("no run to report:\n  " + "\n  ".join(loaded.problems or ["--runs names no run with figures"]))
    cut = _cutter(loaded.runs)
    groups = runs.group(loaded.runs)
    found = points.measured(groups, loaded.benchmarks)
    found += points.estimated(loaded.costs, found)
    if quoted and loaded.runs:
        found += points.of_paper(loaded.costs)
    drawn = [*figures.all_of(found), figures.curves(groups), figures.resolutions(found)]
    if planned:
        drawn = [*drawn, figures.plan(planned)] if loaded.runs else [figures.plan(planned)]
    try:
        os.makedirs(os.path.join(folder, "figures"), exist_ok=True)
        for figure in drawn:
            if figure.panels:
                look.save(
                    figure.panels, [os.path.join(folder, "figures", f"{figure.name}.{k}") for k in ("png", "svg")]
                )
        body = page(loaded, groups, found, drawn, cut)
        path = markup.write(os.path.join(folder, "report.html"), "g16net report", body)
        records.write_json(
            os.path.join(folder, "report.json"),
            {
                "mode": "report",
                "command": cut(records.command()),
                "left_out": list(map(cut, loaded.problems)),
                "points": found,
                **_everywhere(runs.packed(loaded), cut),
            },
        )
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={folder}: {error.strerror}; name a folder you may write to"
        ) from error
    return {
        "page": path,
        "runs": len(loaded.runs),
        "networks": len(groups),
        "figures": [figure.name for figure in drawn if figure.panels],
        "left_out": loaded.problems,
    }


def _cutter(loaded):
    """A function that cuts absolute paths in a text, as they are of one machine alone: what is below the folder that
    all runs have in common stays, and of others the last part, both after ".../"."""
    here = [run.folder for run in loaded if not run.folder.startswith("...")]  # not those of another report
    base = os.path.commonpath([os.path.dirname(os.path.abspath(folder)) for folder in here]) if here else os.sep

    def cut(text):
        text = text.replace(os.path.join(base, ""), ".../") if base != os.sep else text
        return re.sub(r"(?<![\w./])(?:/[^\s,'\"/]+)+(?=/)", "...", text)

    return cut


def _everywhere(value, change):
    """`value` of lists and dicts with every text in it changed."""
    if isinstance(value, dict):
        return {key: _everywhere(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_everywhere(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def page(loaded, groups, found, drawn, cut):
    """The page's body. `cut`: what makes paths of this machine short."""
    data = dict.fromkeys(runs.data_name(group.config) for group in groups)
    seeds = {len(group.runs) for group in groups}
    counts = "plans alone, no runs"
    if groups:
        counts = f"{len(loaded.runs)} runs of {len(groups)} settings on {', '.join(data)}; "
        counts += f"seeds a setting: {min(seeds)}" + (f" to {max(seeds)}" if len(seeds) > 1 else "")
    parts = [
        f"<h1>g16net: accuracy and efficiency</h1><p>{markup.text(counts)}.</p>",
        "<p class=faint>Three kinds of points, never in one front: <b>measured</b> in these runs (circle; square where "
        "trained at a reduced or growing size; star where the top was fine-tuned, cross where stages were too), "
        "<b>read by eye</b> off the paper’s figure (diamonds), and with a speed that is <b>estimated</b> by the "
        "performance model (triangles). Filled marks are "
        "group convolutions, open ones depthwise. Points are means over seeds, bars their range. "
        f"{SCALED if any(' w' in p['variant'] or ' d' in p['variant'] for p in found) else ''}</p>",
        _busy(groups, found),
    ]
    if loaded.problems:
        parts.append(f"<div class=problems><b>Left out</b>{markup.bullets(map(cut, loaded.problems))}</div>")
    for figure in drawn:
        parts.append(_figure(figure, found))
        if figure.name == "training" and figure.panels:
            parts.append(_equal_accuracy(found))
    if groups:
        parts += ["<h2>All results</h2>", _results(groups, found), "<h2>What made each</h2>", _settings(groups, cut)]
    if any(point["kind"] == points.PUBLISHED for point in found):
        source = published.load()
        parts.append(
            f"<p class=faint>The paper’s points: {markup.text(source['source'])}; {markup.text(source['machine'])}.</p>"
        )
    parts.append(f"<p class=faint>Made by <code>{markup.text(cut(records.command()))}</code></p>")
    return "\n".join(parts)


def _busy(groups, found):
    """A note where speeds are those of runs that had other work beside them."""
    if not any("busy run" in (p["train_speed_source"], p.get("infer_speed_source")) for p in found):
        return ""
    return (
        "<p class=note><b>Speeds are not the networks’ alone.</b> Training speeds of one setting differ up to "
        f"{points.steadiness(groups):.1f} times between its epochs and seeds: other work ran beside these runs. Axes "
        "marked “other work included” and the seconds below show that as well, and have no front and no factors. "
        "Speeds by mode benchmark, for all networks, take their place where they are given.</p>"
    )


def _figure(figure, found):
    head = f"<h2 id={figure.name}>{markup.text(figure.title)}</h2>"
    if not figure.panels:
        return f"{head}<p>No data for it here. This makes some:</p><pre>{markup.text(figure.command)}</pre>"
    images = []
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "panel.svg")
        for panel in figure.panels:  # each by itself, so that a phone shows them below each other
            look.save([panel], [path])
            with open(path, "rb") as file:
                encoded = base64.b64encode(file.read()).decode()
            images.append(f'<img alt="{markup.text(alt(panel))}" src="data:image/svg+xml;base64,{encoded}">')
    table = ""
    if figure.points:
        table = f"<details><summary>The points as a table</summary>{_points_table(figure.points)}</details>"
    return f"{head}<p>{markup.text(figure.caption)}</p><div class=panels>{''.join(images)}</div>{table}"


def alt(panel):
    """A panel in words: axes, and of each series the range."""
    lines = []
    for series in panel.series:
        ys = [y for _, y, *_ in series.points]
        span = f"{min(ys):.1f}" if len(ys) == 1 else f"{min(ys):.1f} to {max(ys):.1f}"
        lines.append(f"{series.label}: {span}")
    front = [f"{y:.1f} at {look.short(x)}" for x, y, _ in panel.front]
    lines += [f"{panel.front_label}: {', '.join(front)}"] if front else []
    return f"{panel.title}. {panel.y} against {panel.x}. " + "; ".join(lines)


def _points_table(rows):
    header = [
        "network",
        "kind",
        "test px",
        "fine-tuned",
        "top-1 %",
        "range",
        "multiply-adds",
        "train img/s",
        "infer img/s",
    ]
    cells = [
        [
            point["group"],
            figures.KINDS[point["kind"]],
            point["test_size"],
            " in ".join(filter(None, (point["layers"], point["folder"]))) or ("yes" if point["finetuned"] else "no"),
            *_spread(point["top1"]),
            *(_number(point[key]) for key in (figures.MACS, figures.TRAIN, figures.INFER)),
        ]
        for point in rows
    ]
    return markup.table(header, cells, words=range(4))


def _equal_accuracy(found):
    """How much faster the fastest network is that is at least as accurate, for each baseline."""
    parts = []
    for data, same in figures.by_data(points.at_native(found)):
        for kind in (points.MEASURED, points.PUBLISHED):
            own = [p for p in same if p["kind"] == kind and p["train_speed_source"] != "busy run"]
            rows = points.at_equal_accuracy(own, figures.TRAIN)
            cells = [
                [
                    row["baseline"],
                    f"{100 * row['top1']:.2f}",
                    row["fastest"],
                    f"{100 * row['fastest_top1']:.2f}",
                    f"{row['factor']:.2f}",
                ]
                for row in rows
            ]
            if cells:
                header = ["baseline", "top-1 %", "fastest to train, at least as accurate", "top-1 %", "times as fast"]
                parts.append(
                    f"<p>{markup.text(data)}, {figures.KINDS[kind]}:</p>" + markup.table(header, cells, words=(0, 2))
                )
    return "<h3>At equal accuracy</h3>" + "".join(parts) if parts else ""


def _results(groups, found):
    """A row for each setting, and for each choice of layers that were fine-tuned, with the seeds' mean and range."""
    header = ["data", "network", "seeds", "native px", "top-1 %", "range", "fine-tuned %", "range", "best %", "at px"]
    cells = []
    own = [point for point in found if point["kind"] == points.MEASURED]
    for group in groups:
        data = runs.data_name(group.config)
        rows = [point for point in own if (point["group"], point["data"]) == (group.name, data)]
        native = [point for point in rows if point["test_size"] == point["native_size"]]
        plain = next((point["top1"] for point in native if not point["finetuned"]), None)
        best = points.at_best(rows)
        for tuned in [point for point in native if point["finetuned"]] or [None]:
            seconds = points.finetune_seconds(group, *((tuned["layers"], tuned["folder"]) if tuned else ()))
            seeds, of_tuned = len(group.runs), tuned["top1"]["runs"] if tuned else len(group.runs)
            cells.append(
                [
                    data,
                    points.named(tuned) if tuned else group.name,
                    seeds if of_tuned == seeds else f"{seeds}, fine-tuned {of_tuned}",
                    group.config["data.eval_size"],
                    *_spread(plain),
                    *_spread(tuned and tuned["top1"]),
                    *((f"{100 * best[0]['top1']['mean']:.2f}", best[0]["test_size"]) if best else ("", "")),
                    _number(rows[0][figures.TRAIN]) if rows else "",
                    f"{rows[0]['train_seconds']:.0f}" if rows and rows[0]["train_seconds"] else "",
                    f"{seconds:.0f}" if seconds else "",
                ]
            )
    return markup.table(header + ["train img/s", "train s", "fine-tune s"], cells, words=range(2))


def _settings(groups, cut):
    """What the settings have in common, in what each differs, and the commands of its runs."""
    everything = [dict(group.key) for group in groups]
    fields = sorted(set().union(*everything))
    different = [field for field in fields if len({config.get(field) for config in everything}) > 1]
    parts = []
    for group, config in zip(groups, everything):
        own = [cut(f"{field} = {config.get(field, 'not there')}") for field in different]
        commands = [
            f"# seed {run.config['run.seed']}, {run.folder}{f' ({run.note})' if run.note else ''}" for run in group.runs
        ]
        lines = []
        for comment, run in zip(commands, group.runs):
            lines += [comment, *dict.fromkeys(run.commands.values())]
        parts.append(
            f"<details><summary>{markup.text(group.name)}</summary>"
            f"{markup.bullets(own) if own else '<p>The only setting.</p>'}"
            f"<pre>{markup.text(cut(chr(10).join(lines)))}</pre></details>"
        )
    common = [cut(f"{field} = {everything[0][field]}") for field in fields if field not in different]
    versions = sorted(
        {json.dumps(run.versions, sort_keys=True) for group in groups for run in group.runs if run.versions}
    )
    shown = [", ".join(f"{key} {value}" for key, value in json.loads(text).items()) for text in versions]
    return (
        "<p>Fields in which settings differ, and the commands of each; <code>.../</code> stands for folders of the "
        "machine that made them.</p>"
        + "".join(parts)
        + f"<details><summary>What all have in common</summary>{markup.bullets(common)}</details>"
        + f"<details><summary>Versions</summary>{markup.bullets(shown)}</details>"
    )


def _spread(top1):
    if not top1:
        return "", ""
    several = top1["runs"] and top1["runs"] > 1
    return f"{100 * top1['mean']:.2f}", f"{100 * top1['min']:.2f}–{100 * top1['max']:.2f}" if several else ""


def _number(value):
    return "" if value is None else look.short(value)

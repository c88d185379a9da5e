"""From groups of runs to points: one for each test size, before and after fine-tuning, with all that figures need.

A point is a dict. "kind" says where it is from and is never mixed: "measured" here, "published" (read off the paper's
figure) or "estimated" (speed by the performance model). "finetuned" says whether, "layers" which were tuned as the
config names them ("" where none were, or it is not known), "folder" where, if not in the usual one. "top1" has the
seeds' spread; costs and speeds are numbers or None: "multiply_adds" (of the test image), "train_images_per_second",
"infer_images_per_second".
"""

import statistics

from g16net.models import norms
from g16net.report import published, runs

MEASURED, PUBLISHED, ESTIMATED = "measured", "published", "estimated"
UNSTEADY = 1.5  # largest over least speed of one setting, from which on other work must have run beside it


def measured(groups, benchmarks=()):
    """The points of `groups`, whose runs have figures.

    A speed is that of the run, its input pipeline included, unless mode benchmark has timed every point of the data
    set: the two are never on one axis. "train_speed_source" and "infer_speed_source" say which it is: "benchmark",
    "run", or "busy run" where the runs of the data set had other work beside them (`steadiness` above `UNSTEADY`).
    """
    found, timed = [], {}
    for group in groups:
        for point in _of_group(group):
            found.append(point)
            progressive = point["resolution"] == "progressive"  # is at no one size
            for task, size in (("train", None if progressive else point["train_size"]), ("infer", point["test_size"])):
                timed[len(found) - 1, task] = _benchmark(benchmarks, group.config, task, size)
    for data in dict.fromkeys(point["data"] for point in found):
        same = [index for index, point in enumerate(found) if point["data"] == data]
        busy = steadiness([group for group in groups if runs.data_name(group.config) == data]) >= UNSTEADY
        for task in ("train", "infer"):
            everywhere = all(timed[index, task] for index in same)
            for index in same:
                found[index][f"{task}_speed_source"] = "benchmark" if everywhere else "busy run" if busy else "run"
                if everywhere:
                    found[index][f"{task}_images_per_second"] = timed[index, task]
    return found


def steadiness(groups):
    """The largest over the least training speed of an epoch within one of `groups`, at its worst; 1.0 without any."""
    worst = 1.0
    for group in groups:
        speeds = [record.get("images_per_second") for run in group.runs for record in run.history]
        speeds = [speed for speed in speeds if speed]
        worst = max(worst, max(speeds) / min(speeds)) if speeds else worst
    return worst


def _of_group(group):
    config = group.config
    train_size = config["data.train_size"]
    same = {
        "kind": MEASURED,
        "data": runs.data_name(config),
        "group": group.name,
        "setting": group.setting,
        "network": runs.network(config),
        "variant": runs.size_name(config),
        "group_size": config["model.group_size"],
        "norm": config["model.norm"],
        **resolution(config),
        "trained_at": runs.resolution_name(config),
        "train_size": train_size,
        "native_size": config["data.eval_size"],
        "train_images_per_second": _median(run.train.get("images_per_second") for run in group.runs),
        "train_seconds": _median(run.train.get("train_seconds") for run in group.runs),
    }
    rows = {}
    for run in group.runs:
        for *key, top1 in _results(run):
            rows.setdefault(tuple(key), []).append(top1)
    for (size, layers, folder), values in sorted(rows.items()):
        yield {
            **same,
            "test_size": size,
            "finetuned": layers != "",
            "layers": layers,
            "folder": folder,
            "top1": runs.spread(values),
            "multiply_adds": _of_size(group, size, "multiply_adds"),
            "infer_images_per_second": _of_size(group, size, "images_per_second"),
        }


def resolution(config):
    """{"resolution", "pixels"} of a run: "native", "reduced" or "progressive", and the share of the native size's
    pixels that it trains at (progressive: begins at), rounded; 0.5 for the half size of the variant table."""
    sizes, native = config["data.progressive"] or [config["data.train_size"]], config["data.eval_size"]
    share = (sizes[0] / native) ** 2
    if len(sizes) > 1:
        return {"resolution": "progressive", "pixels": round(share, 2)}
    if share >= 1:
        return {"resolution": "native", "pixels": 1.0}
    of_table = config["data.resolution"] == "half" and 0.43 < share < 0.58  # the table's sizes are half to about this
    return {"resolution": "reduced", "pixels": 0.5 if of_table else round(share, 2)}


def _results(run):
    """`(test size, layers that were fine-tuned or "", folder of that or "", top-1)` of a run, each once."""
    results = {}
    weights = runs.weights(run)
    if run.train:
        results[run.train.get("eval_size", run.config["data.eval_size"]), "", ""] = run.train["top1"]
    own = [row for row in run.evaluations if row["weights"] == weights and not runs.of_others(run, row)]
    results.update({(row["size"], "", ""): row["top1"] for row in own if not _in_other_precision(row)})
    for row in own:  # it counts where there is nothing else
        results.setdefault((row["size"], "", ""), row["top1"])
    for row in sorted(own_finetuned(run), key=_in_other_precision):  # the run's own precision first, too
        if row.get("weights", weights) == weights:  # those that it began from
            results.setdefault((row["size"], "", ""), row["top1_before"])
        key = row["size"], row.get("layers", "top"), row.get("folder", "")
        results[key] = results.get(key, row["top1"]) if _in_other_precision(row) else row["top1"]
    return [(*key, top1) for key, top1 in results.items()]


def own_finetuned(run):
    """The rows of a run's fine-tunings, without those on other images or of other weights than its own."""
    return [row for row in run.finetuned if not runs.of_others(run, row)]


def _in_other_precision(row):
    return runs.PRECISION in row.get("changed", {})


def _median(values):
    values = [value for value in values if value]
    return statistics.median(values) if values else None


def _of_size(group, size, key):
    return _median(row.get(key) for run in group.runs for row in _rows(run) if row["size"] == size)


def _rows(run):
    """All that was evaluated, whatever the weights: for what does not depend on them. Without the speeds of what was
    changed, such as the precision or where the images lie."""
    for row in run.evaluations + run.finetuned:
        yield dict(row, images_per_second=None) if row.get("changed") else row
    if run.train:
        of_training = {"size": run.train.get("eval_size", run.config["data.eval_size"])}
        of_training["multiply_adds"] = run.train.get("multiply_adds")
        yield of_training


def _benchmark(rows, config, task, size):
    """Images per second of the network by mode benchmark, of several batches the best."""
    found = [
        row["images_per_second"]["median"]
        for row in rows
        if (row["task"], row["size"]) == (task, size) and runs.is_of(row, config)
    ]
    return max(found) if found else None


def estimated(costs, points):
    """`points` with the speeds that a `costs.json` of their network estimates for the machine "cpu"."""
    rows = []
    for one in costs:
        efficiency = {found["machine"]: found["efficiency"] for found in one["comparisons"]}.get("cpu", 1.0)
        rows += [(row, row["images_per_second"] * efficiency) for row in one["rows"] if row["machine"] == "cpu"]

    def speed_of(point, task, size):
        wanted = task, size
        fitting = [v for row, v in rows if (row["task"], row["size"]) == wanted and runs.is_of(row, point["network"])]
        return fitting[-1] if fitting else None

    found = []
    for point in points:
        train = None if point["resolution"] == "progressive" else speed_of(point, "train", point["train_size"])
        infer = speed_of(point, "infer", point["test_size"])
        if train or infer:
            speed = {"train_images_per_second": train, "infer_images_per_second": infer}
            source = {"train_speed_source": "model", "infer_speed_source": "model"}
            found.append({**point, **speed, **source, "kind": ESTIMATED})
    return found


def of_paper(costs=()):
    """The readings, and the same accuracies with estimated speeds where a `costs.json` compares with the readings."""
    source = published.load()
    readings = []
    for row in published.rows():
        readings.append(
            {
                **row,
                "kind": PUBLISHED,
                "setting": "",
                "layers": "",
                "folder": "",
                "data": source["data"],
                "group": f"{row['variant']} G{row['group_size']} {row['norm']}, {row['train_size']} px"
                + ("" if row["finetuned"] else ", not fine-tuned"),
                "resolution": "native" if row["resolution"] == "native" else "reduced",
                "pixels": 1.0 if row["resolution"] == "native" else 0.5,
                "native_size": row["test_size"],
                "train_speed_source": "readings",
                "top1": {"mean": row["top1"], "min": row["top1"], "max": row["top1"], "runs": None},
                "infer_images_per_second": None,
            }
        )
    estimates = {}
    for one in (comparison for found in costs for comparison in found["comparisons"]):
        if one["name"] == "readings":
            for row in one["rows"]:
                estimates[row["variant"], row["group_size"], row["norm"], row["size"]] = row["estimate"]
    found = list(readings)
    for point in readings:
        key = point["variant"], point["group_size"], point["norm"], point["train_size"]
        if key in estimates and point["finetuned"]:
            speed = {"train_images_per_second": estimates[key], "train_speed_source": "model"}
            found.append({**point, **speed, "kind": ESTIMATED})
    return found


def sizes(points):
    """The networks' sizes, smallest first: by the multiply-adds of their cheapest point, then by name."""
    least = {}
    for point in points:
        cost = point["multiply_adds"] or float("inf")
        least[point["variant"]] = min(cost, least.get(point["variant"], float("inf")))
    return sorted(least, key=lambda name: (least[name], name))


def short_sizes(names):
    """{size: its name as short as it is clear among `names`}: `B0`; `w0.25 d0.3`, or `TINY w0.25 d0.3` where there are
    others of the family too."""
    scaled = {name.split(" ", 1)[0] for name in names if " " in name}
    return {name: name.split(" ", 1)[-1] if len(scaled) < 2 else name for name in names}


def at_native(points, finetuned=True):
    """Of each group and kind the points at the native test size: the fine-tuned ones, one for each choice of layers,
    where there are, or the plain; with `finetuned=False` the plain one where there is one."""
    native = [point for point in points if point["test_size"] == point["native_size"]]
    wanted = {(point["group"], point["kind"]) for point in native if point["finetuned"] == finetuned}
    return [p for p in native if p["finetuned"] == finetuned or (p["group"], p["kind"]) not in wanted]


def at_best(points):
    """Of each group and kind the point at the test size, fine-tuned or not, whose mean accuracy is the highest."""
    best = {}
    for point in points:
        key = point["group"], point["kind"]
        if key not in best or point["top1"]["mean"] > best[key]["top1"]["mean"]:
            best[key] = point
    return list(best.values())


def baseline(points):
    """The point that others are set in relation to, at native size, of the smallest network: G1 with the first norm
    that other libraries have too (BN, else GN, else LN)."""
    for norm in norms.published("timm"):
        found = [
            point
            for point in points
            if point["group_size"] == 1 and point["norm"] == norm and point["resolution"] == "native"
            if point["train_images_per_second"]
        ]
        if found:
            return min(found, key=lambda point: (point["multiply_adds"] or float("inf"), not point["finetuned"]))
    return None


def at_equal_accuracy(points, speed):
    """For each G1 point of the baseline's norm and native size the fastest point that is at least as accurate.

    Rows {"baseline", "top1", "fastest", "fastest_top1", "factor"}; `points` are of one kind and data.
    """
    base = baseline(points)
    rows = []
    for point in points:
        same = base and all(point[key] == base[key] for key in ("group_size", "norm", "resolution"))
        if not same or not point[speed]:
            continue
        able = [p for p in points if p[speed] and p["top1"]["mean"] >= point["top1"]["mean"]]
        fastest = max(able, key=lambda p: p[speed])
        rows.append(
            {
                "baseline": named(point),
                "top1": point["top1"]["mean"],
                "fastest": named(fastest),
                "fastest_top1": fastest["top1"]["mean"],
                "factor": fastest[speed] / point[speed],
            }
        )
    return rows


def named(point):
    """The group's name, and how it was fine-tuned."""
    return ", ".join([point["group"], *tuning(point)]) if point["kind"] == MEASURED else point["group"]


def tuning(point):
    """`["fine-tuned"]`, `["tuned from block6"]` where it was more than the top, or nothing: a part of a label."""
    how = {"": [], "top": ["fine-tuned"], "stages": [f"tuned from {_deepest(point)}"]}
    return how[tuned(point)] + ([f"in {point['folder']}"] if point["folder"] else [])


def tuned(point):
    """What was fine-tuned: "", "top", or "stages" where it was more than the top."""
    return ("stages" if _deepest(point) else "top") if point["finetuned"] else ""


def _deepest(point):
    return min(set(point["layers"].split(",")) - {"top", ""}, default="")  # block6 comes before block7


def finetune_seconds(group, layers=None, folder=""):
    """Seconds of a run's fine-tunings (those of `layers` in `folder`, where given) at all sizes, in the median over the
    group's runs that have any; None without."""

    def asked(row):
        return layers is None or (layers, folder) == (row.get("layers", "top"), row.get("folder", ""))

    return _median(sum(row.get("seconds", 0.0) for row in own_finetuned(run) if asked(row)) for run in group.runs)

"""Writes what the ablation's runs say to the paper's claims into pages, as Markdown tables.

    python docs/claims.py --runs=runs/ablation,runs/ablation_speed --pages=docs/ablation.md,README.md

Takes whatever runs are finished. Networks are compared run by run: same size, same seed, the difference of their top-1
in points. A page has a part, which is written anew, between `<!-- ablation NAME -->` and `<!-- end -->`; its NAME is
one of `accuracy`, `claims`, `costs`, `sizes`. Without `--pages` all parts are printed. Speeds are those of mode
benchmark alone.
"""

import argparse
import os
import re
import statistics
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from g16net.costs import counts  # noqa: E402
from g16net.models import architecture  # noqa: E402
from g16net.report import look, points, runs  # noqa: E402

PAIRS, SHARE = 6, 8 / 9  # pairs that a verdict needs, and the share of them that must agree
LEVEL = 0.3  # points: one standard deviation of a top-1 near 90 % over 10,000 test images
NEAR = 1.3  # times: costs that are called equal
# Trained at the test size; at a smaller one, then the top fine-tuned; then also its last stages
NATIVE, HALF, DEEP = "native", "half", "deep"
TRAINED = {NATIVE: "native", HALF: "half, fine-tuned", DEEP: "half, last stages fine-tuned"}

SHOW, CONTRADICT, CANNOT, FEW = "show it", "contradict it", "cannot tell", "too few pairs"


class Claim(NamedTuple):
    """`a` over `b`, each (network, NATIVE, HALF or DEEP). level: how far below still counts as level. cost: what must
    be equal, a key of a `Run`'s costs, instead of the size."""

    text: str
    a: tuple
    b: tuple
    level: float = 0.0
    cost: str = ""


def claims():
    """What section 6 of the paper and its summary figure claim, as far as these runs can speak to it."""
    found = []
    for norm in ("BN", "GN", "LN+PN"):
        pair = (f"G16 {norm}", NATIVE), (f"G1 {norm}", NATIVE)
        found.append(Claim(f"G16 is more accurate than G1, {norm}", *pair))
        found.append(Claim(f"G16 is more accurate than G1 at equal multiply-adds, {norm}", *pair, cost="multiply-adds"))
        found.append(Claim(f"G16 is more accurate than G1 at equal training time, {norm}", *pair, cost="time"))
    for conv in ("G16", "G1"):
        pair = (f"{conv} LN+PN", NATIVE), (f"{conv} BN", NATIVE)
        found.append(Claim(f"LN+PN is at least level with BN, {conv}", *pair, level=LEVEL))
    found.append(Claim("LN+PN is more accurate than LN, G16", ("G16 LN+PN", NATIVE), ("G16 LN", NATIVE)))
    for conv in ("G16", "G1"):
        pair = (f"{conv} LN+PN", NATIVE), (f"{conv} GN", NATIVE)
        found.append(Claim(f"LN+PN is more accurate than GN, {conv}", *pair))
    found.append(Claim("GN+PN is more accurate than GN, G16", ("G16 GN+PN", NATIVE), ("G16 GN", NATIVE)))
    for norm in ("LN+PN", "BN"):
        half, deep, native = (f"G16 {norm}", HALF), (f"G16 {norm}", DEEP), (f"G16 {norm}", NATIVE)
        found.append(Claim(f"native training is more accurate than half and fine-tuning, G16 {norm}", native, half))
        for cost, name in (("multiply-adds", "training multiply-adds"), ("time", "training time")):
            text = f"half and fine-tuning is more accurate than native at equal {name}, G16 {norm}"
            found.append(Claim(text, half, native, cost=cost))
        text = f"half and fine-tuning of the last stages is more accurate than native, G16 {norm}"
        found.append(Claim(text, deep, native))
        found.append(Claim(f"{text}, at equal training multiply-adds", deep, native, cost="multiply-adds"))
    return found


class Run(NamedTuple):
    """One training, with one of its fine-tunings where there are.

    top1: {(test size, fine-tuned): %}. costs: {"multiply-adds", "time": of the training, for an image}, where known; an
    image's multiply-adds are counted three times where it is trained with, once where it only goes through the frozen
    part in fine-tuning, whose features are kept; times are by mode benchmark, and not known where stages are tuned."""

    network: str
    kind: str
    size: str
    seed: int
    test_size: int
    top1: dict
    costs: dict

    @property
    def accuracy(self):
        return self.top1.get((self.test_size, self.kind != NATIVE))


def load(patterns):
    """Of the finished runs: a list of `Run`; the report's points, of all seeds together; and speeds by mode benchmark,
    {(size, network, "train" or "infer", pixels): images per second}."""
    loaded = runs.load(patterns)
    print(*loaded.problems, sep="\n", end="\n" if loaded.problems else "", file=sys.stderr)
    groups = runs.group(loaded.runs)
    everything = points.measured(groups, loaded.benchmarks)
    macs = {(p["variant"], _name(p), p["test_size"]): p["multiply_adds"] for p in everything if p["multiply_adds"]}
    speeds = {}
    for task, size in (("train", "train_size"), ("infer", "test_size")):
        for p in everything:
            if p[f"{task}_speed_source"] == "benchmark":
                speeds[p["variant"], _name(p), task, p[size]] = p[f"{task}_images_per_second"]
    found = []
    for group in groups:
        for run in group.runs:
            rows = points.measured([group._replace(runs=[run])])
            if not rows:  # evaluated with other weights than the run's alone
                continue
            one, config = rows[0], run.config
            network, train, native = (one["variant"], _name(one)), one["train_size"], one["native_size"]
            half, passes = train < native, config["run.epochs"]
            tuned = [p for p in rows if half and p["finetuned"] and not p["folder"]]
            kinds = {p["layers"]: DEEP if points.tuned(p) == "stages" else HALF for p in tuned}
            for layers, kind in (kinds or {"": HALF if half else NATIVE}).items():
                cost = {"multiply-adds": None, "time": None}
                if (*network, train) in macs and (*network, native) in macs:
                    cost["multiply-adds"] = 3 * passes * macs[(*network, train)]
                    if half:
                        cost["multiply-adds"] += (1 + 2 * tuned_share(config, layers)) * macs[(*network, native)]
                timed = (*network, "train", train) in speeds and (not half or (*network, "infer", native) in speeds)
                if timed and kind != DEEP:
                    cost["time"] = passes / speeds[(*network, "train", train)]
                    cost["time"] += 1 / speeds[(*network, "infer", native)] if half else 0.0
                own = [p for p in rows if p["layers"] in ("", layers) and not p["folder"]]
                top1 = {(p["test_size"], p["finetuned"]): 100 * p["top1"]["mean"] for p in own}
                found.append(Run(network[1], kind, network[0], config["run.seed"], native, top1, cost))
    return found, everything, speeds


def tuned_share(config, layers):
    """The share of a network's multiply-adds at its native size that are in `layers`, which fine-tuning trains."""
    variant = architecture.scaled(config["model.variant"], config["model.width"], config["model.depth"])
    shape = config["model.group_size"], config["model.expand_ratio"], config["model.norm"]
    rows = counts.layers(variant, *shape, config["data.eval_size"], num_classes=10)
    tuned = sum(row.macs for row in rows if row.name.startswith((*filter(None, layers.split(",")), "predictions")))
    return tuned / sum(row.macs for row in rows)


def _name(point):
    return look.network(point["group_size"], point["norm"])


def pairs(claim, found):
    """{size of `a`: differences in points by seed}; where costs are to be equal, `b` is the nearest in cost."""
    able = [run for run in found if run.accuracy is not None]
    differences = {}
    for a in able:
        others = [b for b in able if (b.network, b.kind, b.seed) == (*claim.b, a.seed)]
        if (a.network, a.kind) != claim.a:
            continue
        if claim.cost:
            own = a.costs[claim.cost]
            others = [b for b in others if own and b.costs[claim.cost]]
            apart = {id(b): max(own / b.costs[claim.cost], b.costs[claim.cost] / own) for b in others}
            others = sorted((b for b in others if apart[id(b)] <= NEAR), key=lambda b: apart[id(b)])[:1]
        else:
            others = [b for b in others if b.size == a.size]
        for b in others:
            differences.setdefault(a.size, []).append(a.accuracy - b.accuracy)
    return differences


def at_larger_test_size(found):
    """{size: differences in points}: of each plain network at the next test size above the one it was trained at."""
    differences = {}
    for run in found:
        larger = sorted(size for size, finetuned in run.top1 if size > run.test_size and not finetuned)
        if run.kind == NATIVE and larger:
            change = run.top1[larger[0], False] - run.accuracy
            differences.setdefault(run.size, []).append(change)
    return differences


def verdict(differences, level=0.0):
    """Of {size: differences}: a claim holds where every size's mean has its sign and 8 of 9 pairs have; the opposite
    is the same with the other sign; all else cannot be told. `level`: by so much `a` may be below."""
    values = [value for same in differences.values() for value in same]
    if len(values) < PAIRS or len(differences) < 2:
        return FEW
    means = [statistics.fmean(same) for same in differences.values()]
    needed = SHARE * len(values) - 1e-9

    def holds(value):
        return value >= -level if level else value > 0

    if all(map(holds, means)) and sum(map(holds, values)) >= needed:
        return SHOW
    if all(mean < -level for mean in means) and sum(value < -level for value in values) >= needed:
        return CONTRADICT
    return CANNOT


def parts(patterns):
    """{part of a page: its text}."""
    found, everything, speeds = load(patterns)
    sizes = points.sizes(everything)
    return {
        "accuracy": accuracy_table(found, sizes),
        "claims": claims_table(found, sizes),
        "costs": costs_table(everything, speeds, sizes),
        "sizes": sizes_table(found, sizes),
    }


def claims_table(found, sizes):
    rows = []
    compared = [(claim.text, pairs(claim, found), claim.level) for claim in claims()]
    larger = "natively trained networks are more accurate at the next larger test size"
    for text, differences, level in [*compared, (larger, at_larger_test_size(found), 0.0)]:
        values = [value for same in differences.values() for value in same]
        if values:
            span = f"{statistics.fmean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})"
            means = [f"{statistics.fmean(differences[s]):+.2f}" if s in differences else "–" for s in sizes]
            rows.append([text, span, *means, len(values), verdict(differences, level)])
    header = ["claim", "difference, mean (range)", *points.short_sizes(sizes).values(), "pairs", "these runs"]
    return markdown(header, rows)


def accuracy_table(found, sizes):
    rows = []
    for network, kind in _networks(found):
        cells = []
        for size in sizes:
            of = [r for r in found if (r.network, r.kind, r.size) == (network, kind, size)]
            cells.append(spread([r.accuracy for r in of if r.accuracy is not None]))
        rows.append([network, TRAINED[kind], *cells])
    return markdown(["network", "trained", *points.short_sizes(sizes).values()], rows)


def sizes_table(found, sizes):
    """Of the seeds that were tested at several sizes."""
    several = [run for run in found if len({size for size, _ in run.top1}) > 1 and run.kind != DEEP]  # as HALF's
    tested = sorted({size for run in several for size, _ in run.top1})
    rows = []
    for network, kind in _networks(several):
        for size, short in points.short_sizes(sizes).items():
            of = [r for r in several if (r.network, r.kind, r.size) == (network, kind, size)]
            cells = [spread([r.top1[at, False] for r in of if (at, False) in r.top1]) for at in tested]
            if of:
                rows.append([network, kind, short, *cells])
    return markdown(["network", "trained", "size", *(f"{size} px" for size in tested)], rows)


def costs_table(everything, speeds, sizes):
    """Multiply-adds and, where all was timed, images per second by mode benchmark."""
    rows, native = [], sorted({p["native_size"] for p in everything})
    train = sorted({p["train_size"] for p in everything}, reverse=True)
    for network in dict.fromkeys(map(_name, everything)):
        for size, short in points.short_sizes(sizes).items():
            of = [p for p in everything if (_name(p), p["variant"]) == (network, size)]
            macs = next((p["multiply_adds"] for p in of if p["test_size"] in native and p["multiply_adds"]), None)
            of_training = [speeds.get((size, network, "train", at)) for at in train]
            infer = [speeds.get((size, network, "infer", at)) for at in native]
            if of:
                cells = ["" if value is None else look.short(value) for value in (macs, *of_training, *infer)]
                rows.append([network, short, *cells])
    header = ["network", "size", "multiply-adds", *(f"train images/s, {at} px" for at in train)]
    return markdown(header + [f"infer images/s, {at} px" for at in native], rows)


def _networks(found):
    kinds = list(TRAINED)

    def place(key):
        group_size, norm = key[0].split()
        return kinds.index(key[1]) > 0, int(group_size[1:]), len(norm), norm, kinds.index(key[1])

    return sorted(dict.fromkeys((run.network, run.kind) for run in found), key=place)


def spread(values):
    """Mean, range and number of seeds."""
    if not values:
        return ""
    span = f", {min(values):.2f}–{max(values):.2f}, {len(values)} seeds" if len(values) > 1 else ", 1 seed"
    return f"{statistics.fmean(values):.2f}{span}"


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fill(page, texts):
    """Writes those parts of `page` anew that `texts` has. Returns their names."""
    with open(page, encoding="utf-8") as file:
        text = file.read()
    names = []

    def replaced(match):
        if match[2] not in texts:
            return match[0]
        names.append(match[2])
        return f"{match[1]}\n\n{texts[match[2]]}\n\n<!-- end -->"

    text = re.sub(r"(<!-- ablation (\w+) -->)\n.*?<!-- end -->", replaced, text, flags=re.DOTALL)
    with open(page, "w", encoding="utf-8") as file:
        file.write(text)
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", required=True, help="folders of runs and of benchmarks, with commas between")
    parser.add_argument("--pages", default="", help="pages to write to, with commas between")
    arguments = parser.parse_args()
    made = parts(arguments.runs.split(","))
    for path in filter(None, arguments.pages.split(",")):
        print(path, ", ".join(fill(path, made)))
    if not arguments.pages:
        print("\n\n".join(f"{name}\n\n{text}" for name, text in made.items()))

"""Writes how much training time each of the paper's improvements saves on CIFAR-10 into a page, as a Markdown table.

    python docs/headline.py --runs=runs/cifar10,runs/cifar10_speed,runs/cifar10_tuned --pages=docs/ablation.md

The runs are those of `cifar10:part=headline`, the speeds those of `--mode=benchmark` with `benchmark.input=true`, and
the seconds of fine-tuning those of the runs in the last folder of `--runs`, which must have had the machine for
themselves. A page has the table between `<!-- ablation headline -->` and `<!-- end -->`.
"""

import argparse
import math
import statistics
import sys
from typing import NamedTuple

import claims

from g16net.report import runs


class Step(NamedTuple):
    """A network and a training size of `experiments/sweeps/cifar10.py`, and what it adds to the one before."""

    adds: str
    network: str
    half: bool = False


STEPS = (
    Step("the baseline: G1 with GN at 32 pixels", "G1 gn"),
    Step("G16 in place of G1", "G16 gn"),
    Step("LN+PN in place of GN", "G16 ln_pn"),
    Step("24 pixels, then the last two stages at 32", "G16 ln_pn", half=True),
)
EPOCHS = 12  # of the baseline


def step_of(run):
    """The `Step` that a run is of, or None."""
    if run.config["model.variant"] != "CIFAR" or run.config["model.width"] is None or run.config["run.epochs"] > EPOCHS:
        return None
    half = run.config["data.train_size"] < run.config["data.eval_size"]
    named = [step for step in STEPS if (step.network, step.half) == (runs.network_name(run.config), half)]
    return named[0] if named else None


def accuracies(found):
    """{step: {epochs: [top-1 in % of each seed]}}."""
    table = {}
    for run in found:
        step = step_of(run)
        rows = run.finetuned if step and step.half else [run.train] if step and run.train else []
        for row in rows:
            table.setdefault(step, {}).setdefault(run.config["run.epochs"], []).append(100 * row["top1"])
    return table


def epochs_to(target, by_epochs):
    """Epochs after which the mean top-1 is `target`, by the logarithm of epochs between two trainings; the fewest that
    were trained where those are enough; None where the most are too few."""
    points = [(epochs, statistics.fmean(top1)) for epochs, top1 in sorted(by_epochs.items())]
    if points[0][1] >= target:
        return float(points[0][0])
    for (fewer, below), (more, above) in zip(points, points[1:]):
        if below < target <= above:
            share = (target - below) / (above - below)
            return math.exp(math.log(fewer) + share * (math.log(more) - math.log(fewer)))
    return None


def seconds_an_epoch(loaded, config):
    """Of the training of `config` from its input pipeline by mode benchmark, or None."""
    found = [
        row["with_input"]["images_per_second"]["median"]
        for row in loaded.benchmarks
        if (row["task"], row["size"]) == ("train", config["data.train_size"]) and runs.is_of(row, config)
        if row.get("with_input")
    ]
    return 50_000 // config["run.global_batch"] * config["run.global_batch"] / max(found) if found else None


def table(loaded, tuned):
    """The table; `tuned`: seconds of fine-tuning."""
    found = accuracies(loaded.runs)
    configs = {step_of(run): run.config for run in loaded.runs}
    if STEPS[0] not in found:
        raise SystemExit("error: no run of the baseline is finished; do those of cifar10:part=headline")
    target = statistics.fmean(found[STEPS[0]][EPOCHS])
    rows, first = [], None
    for step in filter(found.get, STEPS):
        epochs, each = epochs_to(target, found[step]), seconds_an_epoch(loaded, configs[step])
        added = tuned if step.half else 0.0
        total = epochs * each + added if None not in (epochs, each, added) else None
        first = first or total
        reached = f"{epochs:.1f}" if epochs else f"not in {max(found[step])}"
        cells = [f"{e}: {claims.spread(top1)}" for e, top1 in sorted(found[step].items())]
        times = [
            f"{each:.0f}" if each else "",
            f"{total:.0f}" if total else "",
            f"{first / total:.2f}" if total else "",
        ]
        rows.append([step.adds, "; ".join(cells), reached, *times])
    header = ["step", "epochs: top-1 %", f"epochs to {target:.2f} %", "seconds an epoch", "seconds in all", "times"]
    return claims.markdown(header, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", required=True, help="folders of runs and of benchmarks, with commas between")
    parser.add_argument("--pages", default="", help="pages to write to, with commas between")
    arguments = parser.parse_args()
    *patterns, alone = arguments.runs.split(",")
    seconds = [row["seconds"] for run in runs.load([alone]).runs for row in run.finetuned]
    text = table(runs.load(patterns), statistics.median(seconds) if seconds else None)
    for path in filter(None, arguments.pages.split(",")):
        claims.fill(path, {"headline": text})
    print(text)
    sys.exit(0)

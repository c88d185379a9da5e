"""Writes how much training time each of the paper's improvements saves on CIFAR-10 into a page; draws it too.

    python docs/headline.py --runs=runs/cifar10,runs/cifar10_speed,runs/cifar10_tuned --pages=docs/ablation.md \
        --figure=docs/images/headline.png

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

from g16net.report import look, runs


class Step(NamedTuple):
    """A network and a training size of `experiments/sweeps/cifar10.py`, and what it adds to the one before."""

    adds: str
    network: str
    width: float = 0.25
    half: bool = False


BASELINES = (Step("G1 with GN", "G1 gn"), Step("the same, twice as wide", "G1 gn", 0.5))
STEPS = (
    *BASELINES,
    Step("G16 in place of G1", "G16 gn"),
    Step("LN+PN in place of GN", "G16 ln_pn"),
    Step("24 pixels, then the last two stages at 32", "G16 ln_pn", half=True),
)
EPOCHS = 12  # of the baselines
LAYERS = "top,block7,block6"  # that the last step tunes


def step_of(run):
    """The `Step` that a run is of, or None."""
    config = run.config
    half = config["data.train_size"] < config["data.eval_size"]
    crop = "box" if half else "reflect"  # other runs of as many epochs tell pixels from boxes
    if config["model.variant"] != "CIFAR" or config["run.epochs"] > EPOCHS or config["data.crop"] != crop:
        return None
    this = runs.network_name(config), config["model.width"], half
    named = [step for step in STEPS if (step.network, step.width, step.half) == this]
    return named[0] if named else None


def tunings(run):
    """The rows of a run's fine-tunings that are its step's: of `LAYERS`, at the size of its tests, in the usual folder,
    and else as the training."""
    wanted = LAYERS, run.config["data.eval_size"], "", {}
    found = [
        ((row.get("layers"), row["size"], row.get("folder", ""), row.get("changed", {})), row) for row in run.finetuned
    ]
    return [row for how, row in found if how == wanted]


def accuracies(found):
    """{step: {epochs: [top-1 in % of each seed]}}."""
    table, names = {}, {}
    for group in runs.group([run for run in found if step_of(run)]):
        step, epochs = step_of(group.runs[0]), group.config["run.epochs"]
        rows = [row for run in group.runs for row in (tunings(run) if step.half else [run.train] if run.train else [])]
        if epochs in table.get(step, {}):
            raise SystemExit(f"error: two kinds of runs of {epochs} epochs: {names[step, epochs]}; {group.name}")
        if rows:
            table.setdefault(step, {})[epochs] = [100 * row["top1"] for row in rows]
            names[step, epochs] = group.name
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


def steps_of(loaded, tuned):
    """(step, {epochs: [top-1]}, seconds an epoch, seconds of fine-tuning) of the steps that are trained; seconds may be
    None."""
    found = accuracies(loaded.runs)
    configs = {step_of(run): run.config for run in loaded.runs}
    return [
        (step, found[step], seconds_an_epoch(loaded, configs[step]), tuned if step.half else 0.0)
        for step in filter(found.get, STEPS)
    ]


def table(loaded, tuned):
    """The table; `tuned`: seconds of fine-tuning."""
    steps = steps_of(loaded, tuned)
    found = {step: top1 for step, top1, *_ in steps}
    baselines = [step for step in BASELINES if EPOCHS in found.get(step, {})]
    if not baselines:
        raise SystemExit("error: no run of a baseline is finished; do those of cifar10:part=headline")
    targets = [statistics.fmean(found[step][EPOCHS]) for step in baselines]
    first, rows = {}, []
    for step, by_epochs, each, added in steps:
        cells = [f"{epochs}: {claims.spread(top1)}" for epochs, top1 in sorted(by_epochs.items())]
        row = [step.adds, "; ".join(cells), f"{each:.0f}" if each else ""]
        for target, baseline in zip(targets, baselines):
            epochs = epochs_to(target, by_epochs) if step == baseline or step not in BASELINES else None
            total = epochs * each + added if None not in (epochs, each, added) else None
            if step == baseline:
                first[target] = total
            said = f"{epochs:.1f} epochs" if epochs else "" if step in BASELINES else f"not in {max(by_epochs)} epochs"
            compared = total and first.get(target)
            row.append(f"{said}, {total:.0f} s, {first[target] / total:.2f} times" if compared else said)
        rows.append(row)
    header = ["step", "epochs: top-1 %", "seconds an epoch", *(f"to {target:.2f} %" for target in targets)]
    return claims.markdown(header, rows)


def draw(path, loaded, tuned):
    """Mean top-1 over training seconds, fine-tuning included, of the steps whose speed is known."""
    series = []
    for (step, by_epochs, each, added), colour in zip(steps_of(loaded, tuned), look.PALETTE):
        if None not in (each, added):
            spans = [(epochs, statistics.fmean(top1), min(top1), max(top1)) for epochs, top1 in by_epochs.items()]
            marks = [(epochs * each + added, *span, f"{epochs}") for epochs, *span in sorted(spans)]
            conv, norm = step.network.split()
            kind = norm, int(conv[1:]), "measured", not step.half
            series.append(look.Series(step.adds, *kind, marks, colour=colour))
    title = "CIFAR-10; numbers: epochs"
    panel = look.Panel(title, "seconds of training, two cores", "top-1 in %", series)
    look.save([panel], [path], columns=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", required=True, help="folders of runs and of benchmarks, with commas between")
    parser.add_argument("--pages", default="", help="pages to write to, with commas between")
    parser.add_argument("--figure", default="", help="image to draw accuracy over time to")
    arguments = parser.parse_args()
    *patterns, alone = arguments.runs.split(",")
    seconds = [row["seconds"] for run in runs.load([alone]).runs for row in tunings(run)]
    loaded, tuned_in = runs.load(patterns), statistics.median(seconds) if seconds else None
    text = table(loaded, tuned_in)
    if arguments.figure:
        draw(arguments.figure, loaded, tuned_in)
    for path in filter(None, arguments.pages.split(",")):
        claims.fill(path, {"headline": text})
    print(text)
    sys.exit(0)

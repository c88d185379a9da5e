"""Draws docs/images/channels.png: how far channels have drifted in trained networks, by depth and norm.

    python docs/figures/channels.py --runs=runs/a,runs/b --out=docs/images/channels.png

From `channel_moments.json` in each of the folders, which `--mode=channels` writes. Runs of one norm are seeds: their
mean is drawn, and their range as a band. Left: `drift`, the share of the power of normalised values that lies in their
channels' means. Right: `spread`, the standard deviation over channels of the logarithm of their standard deviation.
Strong lines: the norms after the blocks' spatial convolutions, whose means are printed; faint ones: all norms.
"""

import argparse
import json
import os
import re
import statistics
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from g16net.models.norms import NORMS  # noqa: E402
from g16net.report import look, runs  # noqa: E402

PANELS = {
    "drift": ("Means", "share of power in channel means"),
    "spread": ("Deviations", "spread of log deviations"),
}


def load(folders):
    """{norm: the layers of each seed} and the network's title; ValueError where runs are of several networks."""
    found, titles = {}, set()
    for folder in folders:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            config = runs.flat(json.load(file))
        with open(os.path.join(folder, "channel_moments.json"), encoding="utf-8") as file:
            moments = json.load(file)
        titles.add(f"{runs.data_name(config)}, {runs.size_name(config)} G{config['model.group_size']}")
        names = [row["layer"] for row in moments["layers"]]
        same = found.setdefault(config["model.norm"], [])
        same.append(moments["layers"])
        if names != [row["layer"] for row in next(iter(found.values()))[0]] or len(titles) > 1:
            raise ValueError(f"{folder} is not of the same network as {folders[0]}")
    return found, titles.pop()


def spatial(layers):
    """Places of the norms after the blocks' spatial convolutions."""
    return [i for i, row in enumerate(layers) if re.fullmatch(r"block\d+[a-z]_norm", row["layer"])]


def by_depth(seeds, key):
    """`(mean, least, most)` over the seeds for each layer."""
    values = [[row[key] for row in rows] for rows in zip(*seeds)]
    return [(statistics.fmean(same), min(same), max(same)) for same in values]


def draw(found, title, path):
    """Draws `found` (see `load`) to `path`."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = next(iter(found.values()))[0]
    places = spatial(rows)
    with matplotlib.rc_context(look.STYLE):
        figure = Figure(figsize=(10, 3.8), dpi=120, facecolor="white")
        FigureCanvasAgg(figure)
        for axes, (key, (name, label)) in zip(figure.subplots(1, 2), PANELS.items()):
            for norm, seeds in found.items():
                mean, low, high = zip(*by_depth(seeds, key))
                colour = NORMS[norm].colour
                text = NORMS[norm].label + (f", {len(seeds)} seeds" if len(seeds) > 1 else "")
                axes.plot(range(len(mean)), mean, color=colour, lw=0.7, alpha=0.35)
                axes.plot(places, [mean[i] for i in places], color=colour, marker="o", ms=4, label=text)
                if len(seeds) > 1:
                    own = ([band[i] for i in places] for band in (low, high))
                    axes.fill_between(places, *own, color=colour, alpha=0.15, lw=0)
            axes.set_xticks(places)
            axes.set_xticklabels([rows[i]["layer"][5:7] for i in places])
            axes.set_ylim(bottom=0)
            axes.set(xlabel="block", ylabel=label, title=f"{name}: {title}, trained")
            axes.legend()
        figure.tight_layout()
        figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", required=True, help="folders of runs with channel_moments.json, with commas between")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    loaded, of = load(arguments.runs.split(","))
    draw(loaded, of, arguments.out)
    for quantity in PANELS:
        for kind, layers in loaded.items():
            means = [by_depth(layers, quantity)[i][0] for i in spatial(layers[0])]
            print(quantity, kind, " ".join(f"{value:.3f}" for value in means))

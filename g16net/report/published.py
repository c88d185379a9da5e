"""What the paper's summary figure shows (arXiv 2106.03640), read by eye; `published.json` says how exactly."""

import json
import os


def load():
    """The file as it is: "source", "data", "machine", "variants", and "series" with figures for each variant."""
    with open(os.path.join(os.path.dirname(__file__), "published.json"), encoding="utf-8") as file:
        return json.load(file)


def rows():
    """A dict a point: "variant", "group_size", "norm", "resolution", "finetuned", "top1", "train_images_per_second".

    Where the figure has no marker for a speed, it is None.
    """
    found = load()
    for series in found["series"]:
        same = {key: series[key] for key in ("group_size", "norm", "resolution", "finetuned")}
        for variant, top1, speed in zip(found["variants"], series["top1"], series["train_images_per_second"]):
            yield {"variant": variant, **same, "top1": top1, "train_images_per_second": speed}

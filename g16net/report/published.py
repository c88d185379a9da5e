"""What the paper's summary figure shows (arXiv 2106.03640), read by eye; `published.json` says how exactly."""

import json
import os


def load():
    """The file as it is: "source", "data", "machine", "variants", and "series" with figures for each variant."""
    with open(os.path.join(os.path.dirname(__file__), "published.json"), encoding="utf-8") as file:
        return json.load(file)


def rows():
    """A dict a point: "variant", "group_size", "norm", "resolution", "finetuned", "train_size", "test_size",
    "multiply_adds" (counted, at the test size), "top1", "train_images_per_second" (None where no marker was read)."""
    found = load()
    for series in found["series"]:
        same = {key: series[key] for key in ("group_size", "norm", "resolution", "finetuned")}
        for index, variant in enumerate(found["variants"]):
            yield {
                "variant": variant,
                **same,
                "train_size": found[f"{series['resolution']}_sizes"][index],
                "test_size": found["native_sizes"][index],
                "multiply_adds": found["multiply_adds"][str(series["group_size"])][index],
                "top1": series["top1"][index],
                "train_images_per_second": series["train_images_per_second"][index],
            }

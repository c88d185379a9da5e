"""What others published: the paper's summary figure (arXiv 2106.03640), read by eye, as `published.json` says how
exactly; and training speeds of EfficientNets on one to many GPUs, `published_gpus.json`."""

import json
import os


def load():
    """The file as it is: "source", "data", "machine", "variants", and "series" with figures for each variant."""
    return _read("published.json")


def _read(name):
    with open(os.path.join(os.path.dirname(__file__), name), encoding="utf-8") as file:
        return json.load(file)


def gpus():
    """`(source, rows)`: training speeds on GPUs; each row a dict with "machine", "variant", "group_size",
    "expand_ratio", "norm", "size" in pixels, "devices", "global_batch", "dtype" and "train_images_per_second"."""
    found = _read("published_gpus.json")
    same = {"machine": found["machine"], **found["network"], "global_batch": found["global_batch"]}
    rows = [
        {
            **same,
            **{key: row[key] for key in ("variant", "size", "devices")},
            "dtype": dtype,
            "train_images_per_second": row[column],
        }
        for column, dtype in found["dtypes"].items()
        for row in found["rows"]
    ]
    return found["source"], rows


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

"""Run folders with made-up figures in the files and forms of real runs, for the tests of the report."""

import json
import random

from g16net import config as config_lib
from g16net.config import recipe
from g16net.report import runs
from g16net.run import records

EXPAND = {1: 6, 16: 4}


def write(
    folder, width=0.25, depth=0.3, group_size=16, norm="ln_pn", seed=0, train_size=48, top1=0.85, speed=300.0,
    finetuned=(), layers="top", gain=0.015, epochs=3, sizes=(32, 48, 64), data="/data/fashion-mnist", **fields,
):  # fmt: skip
    """Writes a run to `folder` (a pathlib.Path). `finetuned`: sizes at which `layers` were tuned, by which top-1 rose
    by `gain`; other fields as in `sweep.run`."""
    draw = random.Random(str(folder))
    config = config_lib.default()
    config.unlock()
    config.model.update(variant="TINY", width=width, depth=depth, group_size=group_size, norm=norm)
    config.model.expand_ratio = EXPAND[group_size]
    config.data.update(name="idx", dir=data, train_size=train_size, eval_size=48)
    config.run.update(seed=seed, epochs=epochs, global_batch=64)
    config.schedule.warmup_epochs = 0.1
    config.finetune.sizes = tuple(finetuned)
    for key, value in fields.items():
        section, name = key.split("__")
        config[section][name] = value
    folder.mkdir(parents=True)
    config_lib.save(recipe.resolve(config), folder / "config.json")
    command = {"command": f"launch.py --workdir={folder}", "versions": {"g16net": "0.1.0", "tensorflow": "2.21.0"}}
    for epoch in range(1, epochs + 1):
        accuracy = top1 - 0.2 * (1 - epoch / epochs) + draw.uniform(-0.005, 0.005)
        line = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "loss": 1 / epoch, "top1": accuracy}
        records.append_line(folder / "records.jsonl", dict(line, eval_top1=accuracy, eval_top1_average=accuracy))
    rows = []
    for size in sizes:
        figures = {"size": size, "top1": top1 - abs(size - train_size * 1.2) / 400, "top5": 1.0, "loss": 0.4}
        cost = {
            "multiply_adds": int(1e6 * (size / 48) ** 2 * width / 0.25 * depth / 0.3 * (1.4 if group_size > 1 else 1))
        }
        rows.append({**figures, **cost, "images_per_second": speed * 3 * (48 / size) ** 2})
        line = {"kind": "evaluation", "weights": "average", **rows[-1]}
        records.append_line(folder / "evaluations.jsonl", line)
    native = next(row for row in rows if row["size"] == 48)
    _dump(folder / "train.json", dict(command, mode="train", weights="average", top1=native["top1"], eval_size=48,
                                      images_per_second=speed, train_seconds=6e4 / speed))  # fmt: skip
    _dump(folder / "evaluate.json", dict(command, mode="evaluate", weights="average", **native, sizes=rows))
    for size in finetuned:
        row = {
            "size": size,
            "top1": native["top1"] + gain,
            "top1_before": native["top1"],
            "layers": layers,
            "seconds": 9.0,
        }
        (folder / "finetune" / str(size)).mkdir(parents=True)
        _dump(folder / "finetune" / str(size) / "finetune.json", row)
    return folder


def network(folder):
    """What rows of benchmarks and costs say of the network of a run."""
    return runs.network(runs.read(str(folder)).config)


def grid(folder, seeds=3):
    """A sweep's folder: sizes x (G1, G16) x norms x resolutions x seeds."""
    networks = [(1, norm) for norm in ("bn", "gn", "ln_pn")]
    networks += [(16, norm) for norm in ("bn", "gn", "ln", "gn_pn", "ln_pn")]
    draw = random.Random(0)
    for index, (width, depth) in enumerate(((0.25, 0.3), (0.25, 0.5), (0.35, 0.6))):
        for group_size, norm in networks:
            for half in (False, True) if group_size == 16 and norm in ("bn", "gn", "ln_pn") else (False,):
                base = (
                    0.84
                    + 0.012 * index
                    + 0.004 * (group_size > 1)
                    + 0.003 * ("pn" in norm)
                    + draw.uniform(-0.004, 0.004)
                )
                speed = 600 / (1 + 0.6 * index) * (1.25 if group_size > 1 else 1) * (0.9 if "pn" in norm else 1)
                for seed in range(seeds):
                    name = f"{index}-g{group_size}-{norm}-{'half' if half else 'native'}-{seed}"
                    write(
                        folder / name, width, depth, group_size, norm, seed, 32 if half else 48,
                        base + draw.uniform(-0.004, 0.004) - 0.01 * half, speed * (2.1 if half else 1), (48,) * half,
                    )  # fmt: skip
    _dump(folder / "sweep.json", {"mode": "sweep", "runs": []})
    return folder


def _dump(path, value):
    path.write_text(json.dumps(value))

"""Accuracy and loss over a whole split: every image once, batches padded and masked, sums in float64."""

import contextlib
import csv
import json
import os
import time

import numpy as np

from g16net.config import recipe
from g16net.costs import counts
from g16net.errors import ConfigError
from g16net.run import assemble, records
from g16net.run.workdir import Workdir
from g16net.training import runtime


class Evaluator:
    """Evaluates a model's present weights on one source.

    Args:
      config: the resolved run.
      model: takes images of any size that it was built for and returns logits.
      source: the evaluation source.
      devices: on which the model lies; they add up the figures (`Devices.scorer`).
      batches: `size -> batches` of (what `model` takes, labels, weights); by default the source's images.
    """

    def __init__(self, config, model, source, devices, batches=None):
        self.config, self.model, self.source = config, model, source
        self._score = devices.scorer(model, source, batches)

    def __call__(self, size, confusion=None):
        """Figures at `size` pixels: `top1`, `top5`, `loss` (cross-entropy without smoothing), `images`, `corrupt`
        (images that could not be read, which weigh nothing), `images_per_second` (without the first batch, which
        waits for the program to be made, where there are more).

        `confusion`: int64 [classes, classes], to which the counts of (true class, predicted class) are added.
        """
        started, first = time.time(), 0.0
        sums = np.zeros(4, np.float64)
        for batch_sums, *matrix in self._score(size, confusion is not None):
            sums += batch_sums
            if matrix:
                confusion += matrix[0]
            if not first:
                began, first = started, sums[3]
                started = time.time()
        images = int(round(float(sums[3])))
        timed, since = (images - first, started) if images > first else (images, began)
        return {
            "top1": float(sums[0] / images),
            "top5": float(sums[1] / images),
            "loss": float(sums[2] / images),
            "images": images,
            "corrupt": self.source.num_examples - images,
            "images_per_second": round(timed / (time.time() - since), 2),
        }


_kept = None  # while modes share: at most one, the text of a config -> its Evaluator


@contextlib.contextmanager
def sharing():
    """Context of modes that follow each other: one leaves its network, with the program of its evaluation, to the next.

    Only the network is shared: each mode reads the weights that it wants into it.
    """
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def keep(config, evaluator):
    """Leaves `evaluator`, with its network, to the modes that follow, where they share."""
    if _kept is not None and config.runtime.strategy == "default":
        _kept.clear()
        _kept[_text(config)] = evaluator


def kept(config, sizes):
    """The `Evaluator` that a mode before has left for the same `config`, if its network takes images of all `sizes`; or
    None. Its weights are those of the mode before: read the wanted ones into it (`assemble.trained`)."""
    evaluator = (_kept or {}).get(_text(config))
    takes = evaluator and evaluator.model.input_shape[1]
    return evaluator if evaluator and (takes is None or all(size == takes for size in sizes)) else None


def _text(config):
    return json.dumps(config.to_dict(), sort_keys=True)


@runtime.in_precision
def evaluate(config, workdir):
    """Evaluates the weights of `workdir` that `eval.weights` names at every size of `eval.sizes`. Returns the figures.

    Plain names hold the figures at `data.eval_size` (for fine-tuned weights: at their size; or the first of
    `eval.sizes`), `sizes` those of every size. Each is appended to `WORKDIR/evaluations.jsonl` too.
    ConfigError where the devices cannot do what is asked, UserError where the workdir holds no such weights.
    """
    check(config)
    devices = runtime.setup(config)
    which, usual = {"weights": config.eval.weights}, config.data.eval_size
    if config.eval.weights == "finetuned":
        usual = int(os.path.basename(assemble.finetuned_folder(config, workdir)))
        which.update(finetune_size=usual, finetune_folder=config.finetune.folder)
    sizes = list(config.eval.sizes) or [usual]
    evaluator = kept(config, sizes)
    with devices.evaluation_scope():
        model, class_names = assemble.trained(config, workdir, network=evaluator and evaluator.model)
    source = assemble.open_eval_source(config, workdir, class_names, "evaluate it")
    if evaluator is None or evaluator.model is not model or evaluator.source is not source:
        evaluator = Evaluator(config, model, source, devices)
        keep(config, evaluator)
    rows = []
    for size in sizes:
        confusion = np.zeros([source.num_classes] * 2, np.int64) if config.eval.per_class else None
        figures = evaluator(size, confusion) if config.eval.per_class else evaluator(size)
        row = dict(size=size, **figures, multiply_adds=multiply_adds(config, size, source.num_classes))
        if confusion is not None and devices.chief:
            row.update(write_classes(workdir, "-".join(map(str, which.values())), size, class_names, confusion))
        if devices.chief:
            records.append_line(Workdir(workdir).evaluations, {"kind": "evaluation", **which, **row})
        rows.append(row)
    main = rows[sizes.index(usual)] if usual in sizes else rows[0]
    return dict(main, **which, sizes=rows)


def check(config):
    """ConfigError where the devices cannot do what is asked."""
    if config.eval.per_class and config.runtime.strategy in runtime.IPU_STRATEGIES:
        raise ConfigError(
            f"eval.per_class=true cannot be had with runtime.strategy={config.runtime.strategy}; evaluate the workdir "
            "with --config.runtime.strategy=default"
        )


def multiply_adds(config, size, num_classes):
    """Multiply-adds for one image of `size` pixels."""
    return counts.count(**recipe.network(config), size=size, num_classes=num_classes).macs


def write_classes(workdir, weights, size, class_names, confusion):
    """Writes accuracy by class and the confusion matrix (rows: true classes) as CSV. Returns their paths."""
    folder = Workdir(workdir).by_class
    os.makedirs(folder, exist_ok=True)
    paths = {name: os.path.join(folder, f"{weights}-{size}px-{name}.csv") for name in ("per_class", "confusion")}
    images, right, predicted = confusion.sum(1), confusion.diagonal(), confusion.sum(0)
    rows = [
        [name, n, r / n if n else "", r / p if p else ""]
        for name, n, r, p in zip(class_names, images, right, predicted)
    ]
    _write_csv(paths["per_class"], [["class", "images", "top1", "precision"], *rows])
    matrix = [[name, *counts] for name, counts in zip(class_names, confusion)]
    _write_csv(paths["confusion"], [["true \\ predicted", *class_names], *matrix])
    return paths


def _write_csv(path, rows):
    with open(f"{path}.partial", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    os.replace(f"{path}.partial", path)

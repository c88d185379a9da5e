"""Accuracy and loss over a whole split: every image once, batches padded and masked, sums in float64."""

import contextlib
import csv
import json
import os
import re
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tensorflow import keras

from g16net.config import recipe
from g16net.costs import counts
from g16net.data.each import each
from g16net.data.order import Order
from g16net.data.sources.base import Source
from g16net.errors import ConfigError, UserError
from g16net.report import mistakes
from g16net.run import assemble, checkpoint, records, resolve, run_data
from g16net.run.devices import Devices
from g16net.run.workdir import Workdir
from g16net.training import runtime

WORST = 24  # mistakes that the page of an evaluation shows
# What chooses and prepares the images of an evaluation, beside their size.
CHOOSES = ("data.name", "data.dir", "data.layout", "data.holdout", "data.eval_split")
OF_IMAGES = (*CHOOSES, "data.eval_resize", "data.eval_crop", "data.exif", "data.max_pixels")
AS_THE_RUN = (*OF_IMAGES, "runtime.precision")  # and what else makes the figures the run's own


class Evaluator:
    """Evaluates a model's present weights on one source.

    Args:
      config: the resolved run.
      model: takes images of any size that it was built for and returns logits.
      source: the evaluation source.
      devices: on which the model lies; they add up the figures (`Devices.scorer`).
      batches: `size -> batches` of (what `model` takes, labels, weights); by default the source's images.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: keras.Model,
        source: Source,
        devices: Devices,
        batches: Optional[Callable] = None,
    ) -> None:
        self.config, self.model, self.source = config, model, source
        self._score = devices.scorer(model, source, batches)

    def prepare_again(self) -> None:
        """Lets the next call read and decode its images, which earlier ones may have kept, so that it is timed with
        that."""
        getattr(self._score, "forget", lambda: None)()  # other devices keep none

    def __call__(self, size, rows=None):
        """Figures at `size` pixels: `top1`, `top5`, `loss` (cross-entropy without smoothing), `images`, `corrupt`
        (images that could not be read, which weigh nothing), `images_per_second` (without the first batch, which
        waits for the program to be made, where there are more).

        `rows`: a list, to which an array with a row for each example is added (`Scorer.in_order`).
        """
        started, first = time.time(), 0.0
        sums = np.zeros(4, np.float64)
        parts = []
        for batch_sums, *part in self._score(size, rows is not None):
            sums += batch_sums
            parts += part
            if not first:
                began, first = started, sums[3]
                started = time.time()
        if rows is not None:
            rows.append(self._score.in_order(parts))
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


_kept: Optional[Dict[str, "Evaluator"]] = None  # while modes share: at most one, the text of a config -> its Evaluator


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Context of modes that follow each other: one leaves its network, with the program of its evaluation, to the next.

    Only the network is shared: each mode reads the weights that it wants into it.
    """
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def keep(config: ConfigDict, evaluator: Evaluator) -> None:
    """Leaves `evaluator`, with its network, to the modes that follow, where they share."""
    if _kept is not None and config.runtime.strategy == "default":
        _kept.clear()
        _kept[_text(config)] = evaluator


def kept(config: ConfigDict, sizes: Sequence[int]) -> Optional[Evaluator]:
    """The `Evaluator` that a mode before has left for the same `config`, if its network takes images of all `sizes`; or
    None. Its weights are those of the mode before: read the wanted ones into it (`assemble.trained`)."""
    evaluator = (_kept or {}).get(_text(config))
    takes = evaluator and evaluator.model.input_shape[1]
    return evaluator if evaluator and (takes is None or all(size == takes for size in sizes)) else None


def _text(config):
    return json.dumps(config.to_dict(), sort_keys=True)


@runtime.in_precision
def evaluate(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Evaluates the weights of `workdir` that `eval.weights` names at every size of `eval.sizes`. Returns the figures.

    Plain names hold the figures at the size of `assemble.at_test_size` (or the first of `eval.sizes`), `sizes` those of
    every size. Each is appended to `WORKDIR/evaluations.jsonl` too. `changed`, where it is there, holds the fields of
    `AS_THE_RUN` that are not as the run has them, and as "data.images" a digest of images that are not those of its
    training's end: such figures are not the run's own. `step` is the update whose weights they are.

    ConfigError where the devices cannot do what is asked, UserError where the workdir holds no such weights.
    """
    check(config)
    devices = runtime.setup(config)
    which, usual = {"weights": config.eval.weights}, assemble.at_test_size(config, workdir).data.eval_size
    if config.eval.weights == "finetuned":
        tuned = int(os.path.basename(assemble.finetuned_folder(config, workdir)))
        which.update(finetune_size=tuned, finetune_folder=config.finetune.folder)
    sizes = list(config.eval.sizes) or [usual]
    evaluator = kept(config, sizes)
    with devices.evaluation_scope():
        model, class_names = assemble.trained(config, workdir, network=evaluator and evaluator.model)
    source = assemble.open_eval_source(config, workdir, class_names, "evaluate it")
    if evaluator is None or evaluator.model is not model or evaluator.source is not source:
        evaluator = Evaluator(config, model, source, devices)
        keep(config, evaluator)
    else:
        evaluator.prepare_again()
    changed = changed_from_run(config, workdir, source=source)
    also: Dict[str, Any] = {"changed": changed} if changed else {}
    if config.eval.weights != "finetuned":
        also["step"] = checkpoint.newest_whole(Workdir(workdir).checkpoints)[1]["step"]
    rows = []
    for size in sizes:
        examples: Optional[List[Any]] = [] if config.eval.per_class else None
        figures = evaluator(size, examples)
        row = dict(size=size, **figures, multiply_adds=multiply_adds(config, size, source.num_classes))
        if examples is not None and devices.chief:
            weights = "-".join(re.sub(r"[^\w.]+", "_", str(value)) for value in (*which.values(), *changed.values()))
            row.update(write_classes(config, workdir, weights, size, source, examples[0], row))
        if devices.chief:
            records.append_line(Workdir(workdir).evaluations, {"kind": "evaluation", **which, **also, **row})
        rows.append(row)
    main = rows[sizes.index(usual)] if usual in sizes else rows[0]
    return dict(main, **which, **also, sizes=rows)


def changed_from_run(
    config: ConfigDict, workdir: str, fields: Sequence[str] = AS_THE_RUN, source: Optional[Source] = None
) -> Dict[str, Any]:
    """{field: value} of those `fields` that are not as the run in `workdir` has them. A folder that was moved or
    copied is the same one.

    `source`: what is evaluated. Where it is what the run was tested on in its training, it is no matter what chose it;
    {"data.images": a digest of it} where the fields choose the same images, but there are others by now.
    """
    own = resolve.of_run(workdir)
    if own is None:
        return {}
    pairs = {field: [of[field.split(".")[0]][field.split(".")[1]] for of in (own, config)] for field in fields}
    changed = {
        field: now
        for field, (before, now) in pairs.items()
        if before != now and not (field == "data.dir" and _same_folder(config, workdir, before))
    }
    if source is not None and run_data.tested_on(workdir, source):  # whatever they are called, and wherever they lie
        return {field: now for field, now in changed.items() if field not in CHOOSES}
    if source is None or set(changed) & set(CHOOSES):
        return changed
    digest = run_data.other_test_images(config, workdir, source)
    return {**changed, "data.images": digest} if digest else changed


def _same_folder(config, workdir, before):
    """Whether the folder of the data holds what `before` held in training, by its name, or where both are there, by
    the facts of the training split."""
    folders = [os.path.realpath(folder) for folder in (before, config.data.dir)]
    if len(set(folders)) == 1:
        return True
    if os.path.basename(folders[0]) != os.path.basename(folders[1]):
        return False
    if not os.path.exists(folders[0]):
        return True
    digest = (run_data.known(workdir) or {}).get("digest")
    try:
        return digest in (None, run_data.facts(config, assemble.open_source_of(config, "train"))["digest"])
    except UserError:  # there is no training split: nobody can tell
        return False


def check(config: ConfigDict) -> None:
    """ConfigError where the devices cannot do what is asked."""
    if config.eval.per_class and config.runtime.strategy in runtime.IPU_STRATEGIES:
        raise ConfigError(
            f"eval.per_class=true cannot be had with runtime.strategy={config.runtime.strategy}; evaluate the workdir "
            "with --config.runtime.strategy=default"
        )


def multiply_adds(config: ConfigDict, size: int, num_classes: int) -> int:
    """Multiply-adds for one image of `size` pixels."""
    return counts.count(**recipe.network(config), size=size, num_classes=num_classes).macs


def write_classes(
    config: ConfigDict, workdir: str, weights: str, size: int, source: Source, examples: Any, figures: Dict[str, Any]
) -> Dict[str, str]:
    """Writes accuracy by class and the confusion matrix (rows: true classes) as CSV, and both with the worst mistakes
    as a page. Returns their paths. `examples`: as `Scorer.in_order` gives them."""
    folder, names = Workdir(workdir).by_class, source.class_names
    os.makedirs(folder, exist_ok=True)
    start = os.path.join(folder, f"{weights}-{size}px")
    paths = {name: f"{start}-{name}.csv" for name in ("per_class", "confusion")}
    true, predicted = examples[examples[:, 3] > 0, :2].astype(int).T
    matrix = np.zeros([source.num_classes] * 2, np.int64)
    np.add.at(matrix, (true, predicted), 1)
    rows = mistakes.by_class(names, matrix)
    _write_csv(paths["per_class"], [["class", "images", "top1", "precision"], *rows])
    _write_csv(
        paths["confusion"], [["true \\ predicted", *names], *([name, *counts] for name, counts in zip(names, matrix))]
    )
    about = [
        f"{100 * figures['top1']:.2f} % of {figures['images']:,} images right at {size} pixels, {weights} weights",
        assemble.title(config),
        f"{source.name}, split {source.split}",
    ]
    shown = worst(config, source, size, examples)
    return dict(paths, classes_page=mistakes.write(f"{start}.html", about, names, matrix, shown))


def worst(config: ConfigDict, source: Source, size: int, examples: Any, most: int = WORST) -> List[Dict[str, Any]]:
    """The test images that were taken for a wrong class with the highest probability, falling, each as {"image":
    uint8 [size, size, 3], "file", "true", "predicted": names, "probability"}.

    `examples`: as `Scorer.in_order` gives them. The images are read again, as they were evaluated.
    """
    true, predicted, probability, weight = examples.T
    wrong = np.flatnonzero((weight > 0) & (true != predicted))
    wrong = wrong[np.argsort(-probability[wrong], kind="stable")][:most]
    if not len(wrong):
        return []
    prepare = assemble.eval_transform(config, size)
    rows = source.stream(Order(stop=source.num_examples, batch=config.eval.batch, epochs=1)).unbatch()
    rows = rows.filter(lambda row: tf.reduce_any(row["position"] == wrong))
    rows = rows.take(len(wrong))
    seen = each(rows, lambda row: (row["position"], row["id"], prepare(source.read(row), [0, 0])["image"]))
    found = {place: (example, image) for place, example, image in seen.as_numpy_iterator()}
    shown = [place for place in wrong if place in found]  # all but files that are gone by now
    files = source.locate(np.array([found[place][0] for place in shown], np.int64)).numpy()
    return [
        {
            "image": found[place][1],
            "file": file.decode("utf-8", "backslashreplace"),
            "true": source.class_names[int(true[place])],
            "predicted": source.class_names[int(predicted[place])],
            "probability": float(probability[place]),
        }
        for place, file in zip(shown, files)
    ]


def _write_csv(path, rows):
    with open(f"{path}.partial", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    os.replace(f"{path}.partial", path)

"""Images per second in training and inference, of one network or several, beside timm's and keras.applications'.

Each contender is a process of its own that lives through the benchmark (see `benchmark.contenders`). They take turns of
`benchmark.seconds`: all that have the same task, size and batch follow each other, `benchmark.rounds` times over, so
that a machine whose speed drifts is unfair to none. A matrix product takes its turn with them; multiply-adds per second
are compared with what it reached in the same round. A row's figure is the median of its turns; a ratio is the median of
the ratios within each round.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf
from absl import logging

import g16net
from g16net import config as config_lib
from g16net import extras, host
from g16net.config import batches, experiments, recipe
from g16net.costs import counts
from g16net.errors import ConfigError, RunError, UserError
from g16net.export import formats as export_formats
from g16net.report import runs, scaling
from g16net.run import assemble, run_data
from g16net.run.devices import compile_options

PEERS = ("timm", "keras")
PRODUCT, ROWS = "matrix product", 2048
# Formats of exported files that are timed (`contenders.exported`), and those that a peer's users make of its networks
FORMATS = {
    "saved_model": "SavedModel",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tflite": "LiteRT",
    "tflite:float16": "LiteRT float16",
    "tflite:int8": "LiteRT int8",
}
OF_PEERS = {"timm": ("onnx", "openvino"), "keras": ("saved_model", "openvino", "tflite")}
PACKAGES = {"onnx": ("export", "onnx", "onnxruntime"), "openvino": ("openvino", "onnx", "openvino")}  # extra, modules
# timm's networks: name with the variant's letter -> (group size, expand ratio, norm) for the count of multiply-adds
TIMM = {
    "efficientnet_b{}": (1, 6, "bn"),
    "efficientnet_b{}_gn": (1, 6, "gn"),
    "efficientnet_b{}_g8_gn": (8, 6, "gn"),
}
HERE = os.path.dirname(os.path.dirname(os.path.abspath(g16net.__file__)))


def check(config, peers=()):
    """Raises ConfigError for what cannot be timed; before anything is started."""
    if config.runtime.strategy != "default":
        raise ConfigError(
            f"--mode=benchmark times one device; runtime.strategy is {config.runtime.strategy}: leave it at default"
        )
    if config.benchmark.input and config.runtime.deterministic:
        raise ConfigError(
            "benchmark.input=true reads a clock in the pipeline, which runtime.deterministic=true does not allow; "
            "leave one of them out"
        )
    for batch in config.benchmark.batches:
        batches.split(batch, 1, config.runtime.micro_batch, config.runtime.grad_accumulation)
    for format in formats(config):
        extra, *modules = PACKAGES.get(format, ("",))
        for module in modules:
            extras.find(module, extra, f"benchmark.formats={format}")
        if format.startswith("tflite"):
            export_formats.FORMATS["tflite"].check(config)
    for _, _, options in ours(config):
        compile_options(options("float32")["config"])
    check_peers(config, peers)


def formats(config):
    """The formats of `benchmark.formats`."""
    return list(filter(None, config.benchmark.formats.split(",")))


def benchmark(config, workdir, peers=()):
    """Times every contender in every cell: each of `benchmark.tasks`, `.sizes`, `.batches` and `.precisions`. Those of
    `benchmark.formats` are exported files in their own runtimes; their task is "serve", their precision the file's.

    Returns the figures: `rows`, `ratios` of our rows over the others of the same task, size, batch and dtype, and
    `text`, the table. Several sizes, batches or variants are drawn to WORKDIR/benchmark.png too. A row of
    ours has as `network` the fields that say what was timed (`report.runs.network`); a peer's has None.

    Raises:
        RunError: a contender's process ended; with the end of its log.
    """
    classes = num_classes(config, workdir)
    contenders = [*ours(config), *foreign(config, peers, classes)]
    contenders += exported(config, contenders)
    product = ("product", PRODUCT, lambda dtype: {"dtype": dtype})
    sizes = config.benchmark.sizes or (config.data.train_size,)
    tasks = config.benchmark.tasks.split(",")
    tasks += ["serve"] if formats(config) else []
    cells = [(task, size, batch) for task in tasks for size in sizes for batch in config.benchmark.batches]
    precisions = config.benchmark.precisions.split(",")
    logging.info("Timing %d contenders in %d cells, %s", len(contenders), len(cells), ", ".join(precisions))
    load = os.getloadavg()[0]
    if load > 0.3 * host.cores():
        logging.warning(
            "This machine is busy (load %.1f). Ratios between our networks stand that; torch's figures do not, for its "
            "threads wait for each other at every operation.",
            load,
        )
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        running = []
        for precision in precisions:
            for module, name, options in [product, *contenders]:
                if module in PEERS and precision == "mixed_float16":
                    continue
                if module == "exported" and precision != precisions[0]:
                    continue
                common = {"threads": config.benchmark.threads or host.cores(), "num_classes": classes}
                given = dict(common, **options(precision if module == "ours" else recipe.dtype_of(precision)))
                given.update({"folder": folder} if module == "exported" else {})
                network = None
                if "config" in given:
                    network = runs.network(runs.flat(given["config"].to_dict()))
                    path = os.path.join(folder, f"{len(running)}.json")
                    config_lib.save(given["config"], path)
                    given["config"] = path
                dtype = given.pop("dtype", None) if module == "exported" else recipe.dtype_of(precision)
                contender = Contender(module, name, dtype, given, folder, network)
                running.append(stack.enter_context(contender))
        rows = prepare(running, cells, config.benchmark.input)
        for turn in range(config.benchmark.rounds):
            for row in rows:
                row.time(config.benchmark.seconds)
            logging.info("Round %d of %d is done", turn + 1, config.benchmark.rounds)
        if config.benchmark.layers:
            for row in rows:
                row.profile()
    figures = {
        "size": list(sizes),
        "classes": classes,
        "cores": host.cores(),
        "threads": config.benchmark.threads or host.cores(),
        "load_before": round(load, 2),
        "rounds": config.benchmark.rounds,
        "seconds_a_turn": config.benchmark.seconds,
        **summaries(rows),
    }
    picture = scaling.draw(figures["rows"], os.path.join(workdir, "benchmark.png"))
    return dict(figures, **({"picture": picture} if picture else {}), text=table(figures["rows"], figures["ratios"]))


def num_classes(config, workdir):
    """Classes of the networks: of the data where it is read or named, of the run in `workdir` where it holds one."""
    named = config.data.name != "synthetic" and not run_data.known(workdir)
    if config.benchmark.input or named:
        return assemble.open_source_of(config, "train").num_classes
    return run_data.num_classes(config, workdir)


# What contenders that are timed with their input read, and how: all but what they make of an image.
SAME_DATA = (
    "name", "dir", "num_classes", "num_examples", "train_split", "eval_split", "layout", "holdout", "input_key",
    "target_key", "label_offset", "cache", "cache_size", "cache_dir", "jpeg", "exif", "parallel", "service",
    "max_corrupt", "max_pixels", "mix_on_device",
)  # fmt: skip


def ours(config):
    """Our contenders as `(module, name, precision -> options)`: `config`, and those of `benchmark.experiments`."""
    found = {assemble.title(config): config}
    for text in config.benchmark.experiments.split():
        experiment, *changes = text.split("+")
        if experiment:
            other = experiments.load(experiment).unlock()
            for section in ("runtime", "benchmark"):
                other[section] = config[section].copy_and_resolve_references()
            for key in SAME_DATA:
                other.data[key] = config.data[key]
        else:
            other = config.copy_and_resolve_references().unlock()
        config_lib.override(other, [tuple(change.partition("=")[::2]) for change in changes])
        name = " +".join([assemble.title(other), *changes])
        if name in found:
            raise ConfigError(f"benchmark.experiments: {text!r} is {name!r}, which is timed already; leave it out")
        found[name] = recipe.resolve(other, begun=True)  # steps are timed, whatever their schedule

    def options(config):
        def of(precision):
            chosen = config.copy_and_resolve_references().unlock()
            chosen.runtime.precision = precision
            return {"config": recipe.resolve(chosen, begun=True)}

        return of

    return [("ours", name, options(chosen)) for name, chosen in found.items()]


def check_peers(config, peers):
    """UserError where one of `peers` is unknown, not installed, or has no network of this variant."""
    unknown = set(peers) - set(PEERS)
    if unknown:
        raise UserError(f"unknown peer {sorted(unknown)[0]!r}; --peers takes {', '.join(PEERS)} in --mode=benchmark")
    if peers and tf.config.list_physical_devices("GPU"):
        raise UserError("--peers compares on the CPU; hide the GPU from all of them: CUDA_VISIBLE_DEVICES=-1")
    if peers and not config.model.variant.startswith("B"):
        raise UserError(f"--peers have no model.variant={config.model.variant}; B0 to B7 have peers")
    if "timm" in peers:
        extras.find("timm", "peers", "--peers=timm")


def foreign(config, peers, classes):
    """The contenders of `peers`, of the same variant, with so many `classes`."""
    variant, found = config.model.variant, []
    sizes = config.benchmark.sizes or (config.data.train_size,)

    def options(model, kind, more):
        macs = {size: counts.count(variant, *kind, size=size, num_classes=classes).macs for size in sizes}
        return lambda dtype: {"model": model, "dtype": dtype, "multiply_adds": macs, **more}

    if "timm" in peers:
        there = ("", "_gn", "_g8_gn") if variant in ("B0", "B3") else ("",)  # what timm 1.0 has
        for pattern, kind in TIMM.items():
            if pattern.endswith(tuple(f"}}{end}" for end in there)):
                name = pattern.format(variant[1:])
                found.append(("timm", f"timm {name}", options(name, kind, {"compile": config.benchmark.compile})))
    if "keras" in peers:
        name = f"EfficientNet{variant}"
        found.append(("keras", f"keras.applications {name}", options(name, (1, 6, "bn"), {})))
    return found


def exported(config, contenders):
    """The files of `benchmark.formats` of those among `contenders` that have such files."""

    def options(format, module, of):
        def chosen(dtype):
            dtype = format.partition(":")[2] or "float32"
            more = of("float32") if module == "ours" else {"peer": module, **of("float32")}
            return {**more, "format": format, "dtype": dtype}

        return chosen

    return [
        ("exported", f"{name} in {FORMATS[format]}", options(format, module, of))
        for format in formats(config)
        for module, name, of in contenders
        if format in OF_PEERS.get(module, FORMATS)
    ]


class Contender:
    """A process of `benchmark.contenders`; a context that ends it. `network`: what it times, where it is ours."""

    def __init__(self, module, name, dtype, options, folder, network=None):
        self.module, self.name, self.dtype, self.network = module, name, dtype, network
        self.format = options.get("format", "")
        self.facts = {}
        self.log = os.path.join(folder, f"{module}-{name}-{dtype}.log".replace(" ", "_").replace("/", "_"))
        path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"g16net.benchmark.contenders.{module}", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(os.environ, PYTHONPATH=path),
                universal_newlines=True,
            )

    def ask(self, do, task, size, batch, **more):
        """The answer to an order; RunError where there is none."""
        try:
            self.process.stdin.write(json.dumps({"do": do, "task": task, "size": size, "batch": batch, **more}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()  # nothing where the process ended
        except OSError:
            line = ""
        answer = json.loads(line or "{}")
        if not line or "error" in answer:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                end = "".join(file.readlines()[-12:])
            what = answer.get("error") or f"its process ended with status {self.process.wait()}"
            if self.process.poll() == -9:
                what += " (killed, as the system does where memory runs out: take fewer contenders, sizes or images)"
            raise RunError(
                f"{self.name} ({self.dtype}) failed to {do} {task} at {size} pixels, batch {batch}: {what}\n{end}"
            )
        return answer

    def prepare(self, cell):
        """The facts of a cell, which is made when it is asked for first."""
        if cell not in self.facts:
            logging.info("Preparing %s, %s: %s at %d pixels, batch %d", self.name, self.dtype, *cell)
            self.facts[cell] = self.ask("prepare", *cell)
        return self.facts[cell]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Row:
    """One contender in one cell, and its turns. A matrix product's own cell is another than the one it has them in."""

    def __init__(self, contender, in_cell, with_input=False):
        self.contender, self.in_cell = contender, in_cell
        self.cell = cell = ("product", ROWS, 1) if contender.module == "product" else in_cell
        self.turns, self.input_turns, self.layers = [], [], {}
        self.facts = contender.prepare(cell)
        self.input_cell = ("train_input", *cell[1:]) if with_input else None
        if with_input:
            contender.prepare(self.input_cell)

    def time(self, seconds):
        if self.contender.module == "product":
            seconds /= 4
        self.turns.append(self.contender.ask("time", *self.cell, seconds=seconds))
        if self.input_cell:
            self.input_turns.append(self.contender.ask("time", *self.input_cell, seconds=seconds))

    def profile(self):
        self.layers = self.contender.ask("layers", *self.cell)

    @property
    def comparable(self):
        """What a row has to have in common with another for their ratio to mean something."""
        return self.in_cell, self.contender.dtype, self.contender.format

    @property
    def speeds(self):
        return np.array([turn["images"] / turn["seconds"] for turn in self.turns])


def prepare(running, cells, with_input):
    """A `Row` for each contender in each cell, in the order of their turns; the product has one with each cell."""
    rows = []
    for task, size, batch in cells:
        for contender in running:
            feeds = with_input and contender.module == "ours" and task == "train"
            if contender.module != "product" and (contender.module == "exported") != (task == "serve"):
                continue
            rows.append(Row(contender, (task, size, batch), feeds))
    return rows


def summaries(rows):
    """`rows` and `ratios` of the results as plain values."""
    limits = {
        (*row.in_cell, row.contender.dtype): row.speeds * row.facts["multiply_adds"]
        for row in rows
        if row.contender.module == "product"
    }
    own = [row for row in rows if row.contender.module != "product"]
    results = [
        {
            "name": PRODUCT,
            "task": "product",
            "dtype": dtype,
            "size": ROWS,
            "multiply_adds_per_second": spread(
                np.concatenate([limit for key, limit in limits.items() if key[-1] == dtype]), 0
            ),
        }
        for dtype in sorted({key[-1] for key in limits}, reverse=True)
    ]
    for row in own:
        task, size, batch = row.in_cell
        of_cell = {key[-1]: limit for key, limit in limits.items() if key[:-1] == row.in_cell}
        exported = row.contender.module == "exported"  # files of fewer bits compute in float32, or beside its product
        limit = of_cell.get(row.contender.dtype, of_cell.get("float32") if exported else None)
        share = None if limit is None else round(float(np.median(row.speeds * row.facts["multiply_adds"] / limit)), 3)
        seconds = [turn["cpu_seconds"] / turn["images"] for turn in row.turns]
        facts = {key: value for key, value in row.facts.items() if key not in ("multiply_adds", "peak_memory")}
        memory = row.facts["peak_memory"]
        result = {
            "name": row.contender.name,
            "network": row.contender.network,
            "task": task,
            "dtype": row.contender.dtype,
            "size": size,
            "batch": batch,
            "images_per_second": spread(row.speeds),
            "cpu_seconds_per_image": round(float(np.median(seconds)), 5),
            "peak_memory": memory,
            "peak_memory_per_image": memory and round(memory / batch),
            "multiply_adds_per_image": row.facts["multiply_adds"],
            "multiply_adds_per_second": round(float(np.median(row.speeds)) * row.facts["multiply_adds"]),
            "share_of_product": share,
            **facts,
        }
        if row.layers:
            result["layer_seconds"] = {name: round(value, 5) for name, value in row.layers.items()}
        if row.input_turns:
            speeds = [turn["images"] / turn["seconds"] for turn in row.input_turns]
            waits = [turn["waited"] / turn["seconds"] for turn in row.input_turns]
            result["with_input"] = {
                "images_per_second": spread(speeds),
                "waiting": round(float(np.median(waits)), 4),
            }
        results.append(result)
    ratios = [
        {
            "name": one.contender.name,
            "over": other.contender.name,
            "task": one.in_cell[0],
            "dtype": one.contender.dtype,
            "size": one.in_cell[1],
            "batch": one.in_cell[2],
            "ratio": spread(one.speeds / other.speeds, 3),
        }
        for index, one in enumerate(own)
        for other in own[index + 1 :]
        if one.contender.network and one.comparable == other.comparable
    ]
    return {"rows": results, "ratios": ratios}


def spread(values, digits=2):
    """Median, least and most of some values."""
    return {name: round(float(f(values)), digits) for name, f in (("median", np.median), ("min", min), ("max", max))}


def table(rows, ratios):
    """The results for a person."""
    lines = [
        f"{'task':5} {'dtype':8} {'size':>4} {'batch':>5}  {'contender':44} {'images/s':>8} {'from - to':>17} "
        f"{'MiB/image':>9} {'of product':>10}"
    ]
    for row in rows:
        if row["task"] == "product":
            limit = row["multiply_adds_per_second"]
            lines.append(
                f"{PRODUCT} of {row['size']} rows, {row['dtype']}: {limit['median'] / 1e9:.1f} "
                f"({limit['min'] / 1e9:.1f} - {limit['max'] / 1e9:.1f}) thousand million multiply-adds/s"
            )
            continue
        speed, memory, share = row["images_per_second"], row["peak_memory_per_image"], row["share_of_product"]
        of_product = "" if share is None else f"{share:.2f}"
        lines.append(
            f"{row['task']:5} {row['dtype']:8} {row['size']:4} {row['batch']:5}  {row['name']:44} "
            f"{speed['median']:8.1f} {speed['min']:8.1f} -{speed['max']:7.1f} "
            f"{'' if memory is None else format(memory / 2**20, '.1f'):>9} {of_product:>10}"
        )
        if "form" in row:
            others = ", ".join(f"{name} {rate:.1f}" for name, rate in row["forms"].items())
            lines.append(f"{'':26}{row['form']}; tried: {others}" if len(row["forms"]) > 1 else f"{'':26}{row['form']}")
        if "with_input" in row:
            fed = row["with_input"]
            lines.append(
                f"{'':26}with its input pipeline {fed['images_per_second']['median']:.1f} images/s, "
                f"{fed['waiting']:.1%} of the time waiting for it"
            )
        if "layer_seconds" in row:
            layers = row["layer_seconds"]
            shares = ", ".join(
                f"{name} {value / layers['step']:.0%}" for name, value in layers.items() if name != "step" and value
            )
            lines.append(f"{'':26}under the profiler {layers['step'] * 1000:.0f} ms a step: {shares}")
    for row in ratios:
        ratio = row["ratio"]
        lines.append(
            f"{row['task']:5} {row['dtype']:8} {row['size']:4} {row['batch']:5}  {row['name']} over {row['over']}: "
            f"{ratio['median']:.3f} ({ratio['min']:.3f} - {ratio['max']:.3f})"
        )
    return "\n".join(lines)

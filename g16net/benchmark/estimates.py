"""`--mode=costs`: what a network costs layer by layer, how fast `models.roofline` says it could run on some machines,
and how far such estimates are from what was observed."""

import csv
import math
import tempfile

from g16net import models
from g16net.benchmark import planning
from g16net.benchmark.tables import table
from g16net.config import experiments, recipe
from g16net.config import ipu as settings
from g16net.costs import counts, roofline
from g16net.errors import UserError, suggest
from g16net.models import architecture
from g16net.report import published, runs
from g16net.run import assemble, run_data
from g16net.run.workdir import Workdir

COMPARISONS = ("readings", "measured")
RATIOS = (  # what is to be explained: name, field, its two values
    ("G16 over G1", "group_size", 16, 1),
    ("LN+PN over GN", "norm", "ln_pn", "gn"),
    ("LN+PN over BN", "norm", "ln_pn", "bn"),
    ("half over native", "resolution", "half", "native"),
    ("B3 over B0", "variant", "B3", "B0"),
    ("B5 over B3", "variant", "B5", "B3"),
)
# What is measured for the comparison: B0, by (group size, norm), at the half and the native size.
MEASURED, SIZES, BATCH = ((16, "ln_pn"), (16, "bn"), (1, "bn")), (160, 224), 16
LIMITS = ("machine", "task", "dtype", "size", "batch", "images_per_second")  # columns shown


def costs(config, workdir, machines=("ipu_mk2", "a100_40gb", "cpu"), compare=(), devices=()):
    """Counts and estimates for `config`, in the text and in the figures; every layer in `WORKDIR/costs.csv`.

    Args:
        machines: names of `roofline.MACHINES`, or "cpu", which is this one, measured first.
        compare: "readings": with the paper's training speeds; "measured": with networks that are run here for it.
        devices: numbers of devices of each machine for which the whole run is planned, see `planning`.
    """
    check(config, machines, compare, devices)
    dtype, batch = recipe.dtype_of(config.runtime.precision), config.runtime.micro_batch or config.run.global_batch
    network = {**recipe.network(config), "num_classes": run_data.num_classes(config, workdir)}
    name = assemble.title(config)
    cpu = None
    if "cpu" in machines or "measured" in compare:
        from g16net.benchmark import measure

        norms = {network["norm"]} | ({norm for _, norm in MEASURED} if "measured" in compare else set())
        cpu = measure.machine("bfloat16" if dtype == "float16" else dtype, sorted(norms))
    known = {**roofline.MACHINES, "cpu": cpu}
    chosen = [known[name] for name in machines]
    sizes = {"train": config.data.train_size, "infer": config.data.eval_size}
    layers_path = Workdir(workdir).file("costs.csv")
    fields = runs.network(runs.flat(config.to_dict()))
    rows = [
        dict(
            estimate(name, machine, task, machine_dtype(machine, dtype), batch, {**network, "size": size}),
            network=fields,
        )
        for machine in chosen
        for task, size in sizes.items()
    ]
    kinds = by_kind(chosen, dtype, batch, {**network, "size": sizes["train"]})
    write_layers(layers_path, dtype, batch, {**network, "size": sizes["train"]})
    figures = {
        "name": name,
        "network": {**network, "variant": network["variant"]._asdict(), "batch": batch},
        "machines": [describe(machine) for machine in chosen],
        "kinds": kinds,
        "rows": rows,
        "layers": layers_path,
    }
    comparisons = []
    if "readings" in compare:
        comparisons.append(compare_readings())
    if "measured" in compare:
        comparisons.append(compare_measured(cpu))
    figures["comparisons"] = comparisons
    planned, numbers = {}, planning.device_counts(devices)
    if numbers:
        measured = next((one for one in comparisons if one["name"] == "measured"), None)
        planned = planning.make(
            config, workdir, chosen, numbers, network, lambda machine: machine_dtype(machine, dtype), measured
        )
        plan_text = planned.pop("text")
        picture = planning.draw(name, planned["plan"], network, Workdir(workdir).file("plan.png"))
        figures.update(planned, plan_picture=picture)
    shown = [{column: row[column] for column in LIMITS} for row in rows]
    figures["text"] = "\n\n".join(
        [
            f"Training of {name} at {sizes['train']} pixels, an image of a batch of {batch}, {dtype}; "
            "shares of the estimated time\n\n" + table(kinds),
            "Limits: images per second at efficiency 1\n\n" + table(shown),
        ]
        + [comparison_text(one) for one in comparisons]
        + ([plan_text] if planned else [])
    )
    return figures


def check(config, machines=(), compare=(), devices=()):
    """UserError for a machine or a comparison that there is not, or a plan that cannot be made."""
    check_names("--machines", machines, (*roofline.MACHINES, "cpu"))
    check_names("--compare", compare, COMPARISONS)
    planning.check(config, machines, devices)


def check_names(flag, given, known):
    """UserError for a name that the flag does not know."""
    for name in given:
        if name not in known:
            raise UserError(f"{flag}: no {name!r}. {suggest(name, known)}")


def machine_dtype(machine, dtype):
    """The run's dtype where the machine computes in it, or the fastest that it has in 2 bytes."""
    if dtype in machine.flops:
        return dtype
    return "float16" if "float16" in machine.flops else next(iter(machine.flops))


def estimate(name, machine, task, dtype, batch, network):
    """One estimate, at efficiency 1, as a row."""
    return {
        "name": name,
        "group_size": network["group_size"],
        "norm": network["norm"],
        "multiply_adds": counts.count(**network).macs,
        "machine": machine.name,
        "task": task,
        "dtype": dtype,
        "size": network["size"],
        "batch": batch,
        "images_per_second": roofline.images_per_second(machine, task=task, dtype=dtype, batch=batch, **network),
    }


def paper_network(variant, group_size, norm):
    """The arguments of `costs.count` and `efficientnet.build` of a network of the paper."""
    return models.parse(f"efficientnet_g{group_size}_{variant.lower()}_{norm}")


def network_name(network):
    """`B0 G16 ln_pn`."""
    return f"{network['variant']} G{network['group_size']} {network['norm']}"


def describe(machine):
    known = {key: value for key, value in machine._asdict().items() if value not in ((), {}, False, None)}
    return {**known, "links": machine.links._asdict()} if machine.links else known


def by_kind(machines, dtype, batch, network):
    """Rows by kind of layer in training: its counts and its share of the estimated time on each machine."""
    kinds, shares = {}, {}
    for machine in machines:
        parts = roofline.parts(machine, "train", machine_dtype(machine, dtype), batch, **network)
        total = sum(sum(part.seconds) for part in parts)
        for part in parts:
            row = shares.setdefault(part.kind, {})
            row[machine.name] = row.get(machine.name, 0.0) + sum(part.seconds) / total
    for part in reference_parts(dtype, batch, network):
        row = kinds.setdefault(part.kind, {"kind": part.kind, "multiply_adds": 0, "bytes": 0.0})
        row["multiply_adds"] += sum(one.macs for one in part.work)
        row["bytes"] += sum(one.bytes for one in part.work)
    for kind, row in kinds.items():
        row["flop_per_byte"] = 2 * row["multiply_adds"] / row["bytes"]
        row.update({f"{machine.name}_share": shares[kind][machine.name] for machine in machines})
    return list(kinds.values())


def reference_parts(dtype, batch, network, task="train"):
    """Work by layer where norms are one operation; of no machine in particular."""
    plain = roofline.Machine("any", {dtype: 1.0}, 1.0, {}, "", fused=True)
    return roofline.parts(plain, task, dtype, batch, **network)


def write_layers(path, dtype, batch, network):
    """Every layer's work for one image as CSV: forward, and forward with backward."""
    header = ["layer", "kind", "multiply_adds", "bytes", "flop_per_byte", "training_multiply_adds", "training_bytes"]
    forward = {part.name: part.work[0] for part in reference_parts(dtype, batch, network, "infer")}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header + ["training_flop_per_byte"])
        for part in reference_parts(dtype, batch, network):
            ahead = forward.get(part.name)
            macs, moved = sum(one.macs for one in part.work), sum(one.bytes for one in part.work)
            first = [ahead.macs, round(ahead.bytes), round(ahead.intensity, 3)] if ahead else [0, 0, 0]
            writer.writerow([part.name, part.kind, *first, macs, round(moved), round(2 * macs / moved, 3)])


def compare_readings():
    """The paper's training speeds on 16 IPUs beside the estimates for the published configurations."""
    machine, rows = roofline.MACHINES["ipu_mk2_x16"], []
    for point in published.rows():
        if point["finetuned"] and point["train_images_per_second"]:
            scale = architecture.VARIANTS[point["variant"]]
            group_size, norm, resolution = point["group_size"], point["norm"], point["resolution"]
            micro_batch = settings.published(point["variant"], group_size, norm, resolution).micro_batch
            size = getattr(scale, resolution)
            network = dict(paper_network(point["variant"], group_size, norm), size=size)
            row = estimate(network_name(network), machine, "train", "float16", micro_batch, network)
            same = {"variant": point["variant"], "resolution": resolution}
            rows.append({**row, **same, "observed": point["train_images_per_second"]})
    return compared("readings", published.load()["source"], machine.name, rows)


def compare_measured(machine):
    """Networks that mode benchmark times here, beside the estimates for this machine."""
    from g16net.benchmark import networks as benchmark

    (dtype,) = machine.flops
    config = experiments.load("g16_ln_pn").unlock()
    config.benchmark.update(
        experiments=" ".join(f"g{group_size}_{norm}" for group_size, norm in MEASURED[1:]),
        sizes=SIZES,
        batches=(BATCH,),
        precisions=dtype if dtype == "float32" else f"mixed_{dtype}",
        layers=False,
        rounds=3,
    )
    with tempfile.TemporaryDirectory() as folder:  # of its picture
        timed = benchmark.benchmark(config, folder)["rows"]
    return compared("measured", machine.source, machine.name, beside(machine, timed))


def beside(machine, timed):
    """The rows `timed` of networks of the paper by mode benchmark, with their estimates for `machine`."""
    rows = []
    for found in timed:
        if found["task"] == "product":
            continue
        variant, group_size, norm = (found["network"][f"model.{part}"] for part in ("variant", "group_size", "norm"))
        network = dict(paper_network(variant, group_size, norm), size=found["size"])
        row = estimate(network_name(network), machine, found["task"], found["dtype"], found["batch"], network)
        speed, scale = found["images_per_second"], architecture.VARIANTS[variant]
        same = {"variant": variant, "resolution": "half" if found["size"] == scale.half else "native"}
        rows.append({**row, **same, "min": speed["min"], "max": speed["max"], "observed": speed["median"]})
    return rows


def compared(name, source, machine, rows):
    """Errors of the estimates once one efficiency is fitted over all rows, and of ratios, which need none."""
    efficiency = roofline.fit([row["images_per_second"] for row in rows], [row["observed"] for row in rows])
    for row in rows:
        row["estimate"] = row["images_per_second"] * efficiency
        row["error"] = row["estimate"] / row["observed"] - 1
    errors = [abs(math.log(1 + row["error"])) for row in rows]
    return {
        "name": name,
        "source": source,
        "machine": machine,
        "efficiency": efficiency,
        "mean_error": math.exp(sum(errors) / len(errors)) - 1,
        "worst_error": max((row["error"] for row in rows), key=lambda error: abs(math.log(1 + error))),
        "rows": rows,
        "ratios": ratios(rows),
    }


def ratios(rows):
    """Ratios of speeds between rows that differ in one field: observed, estimated, and as multiply-adds alone say."""
    fields = ("variant", "group_size", "norm", "resolution", "task")
    by_key = {tuple(row[field] for field in fields): row for row in rows}
    found = []
    for name, field, upper, lower in RATIOS:
        for row in rows:
            other = by_key.get(tuple(lower if f == field else row[f] for f in fields))
            if row[field] != upper or other is None:
                continue
            observed = row["observed"] / other["observed"]
            estimated = row["estimate"] / other["estimate"]
            of = [f"G{row[f]}" if f == "group_size" else row[f] for f in fields if f != field]
            found.append(
                {
                    "ratio": name,
                    "of": " ".join(of),
                    "observed": observed,
                    "estimate": estimated,
                    "error": estimated / observed - 1,
                    "by_multiply_adds": other["multiply_adds"] / row["multiply_adds"],
                }
            )
    return found


def comparison_text(one):
    """A comparison for a person."""
    columns = ("name", "resolution", "task", "observed", "estimate", "error")
    head = (
        f"Estimates for {one['machine']} at a fitted efficiency of {one['efficiency']:.3f} against {one['name']}\n"
        f"({one['source']})\n"
        f"typical error {one['mean_error']:.0%}, worst {one['worst_error']:+.0%}"
    )
    return "\n\n".join([head, table([{c: row[c] for c in columns} for row in one["rows"]]), table(one["ratios"])])

"""The plan of `--mode=costs --devices=...`: a run on clusters of described machines, and the errors of such plans."""

import json
import math
import os

from g16net.benchmark.tables import table
from g16net.config import ipu as settings
from g16net.config import recipe
from g16net.costs import counts, plan, roofline
from g16net.errors import ConfigError, UserError
from g16net.models import architecture
from g16net.report import figures as pictures
from g16net.report import look, published
from g16net.run.workdir import Workdir

# Images/s that a core prepares, where nothing else is known: docs/data.md, "Speed", 224 pixels of JPEGs of 500 x 375.
INPUT_PER_CORE, INPUT_SOURCE = 3733 / 2, "measured on JPEGs of 500 x 375: docs/data.md"
LIKE = {
    "h100_80gb": "a100_80gb",
    "a100_40gb": "a100_80gb",
    "ipu_mk2_x16": "ipu_mk2",
}  # whose efficiency is assumed for want of another
POD = 16  # IPUs of the paper's readings
TABLE = ("machine", "size", "devices", "micro_batch", "gigabytes", "images_per_second", "efficiency", "exchange_share",
         "cores", "workers", "hours", "limit")  # fmt: skip


def device_counts(devices):
    """The numbers of `--devices` as a list, each once and in order; UserError where one is no whole number above 0."""
    for given in devices:
        if not (isinstance(given, int) or given.strip().isdigit()) or int(given) < 1:
            raise UserError(f"--devices: {given!r} is no whole number above 0; for example --devices=1,8,64")
    return sorted({int(given) for given in devices})


def check(config, machines, devices):
    """UserError for numbers of devices on which this run cannot be shared out, or a speed that is of no one machine."""
    numbers = device_counts(devices)
    given = [key for key in ("images_per_second", "efficiency") if config.costs[key] is not None] if config else []
    if len(given) > 1:
        raise UserError("costs.images_per_second implies costs.efficiency; give one of them")
    if given and numbers and len(machines) > 1:
        raise UserError(f"costs.{given[0]} is of one machine, but --machines={','.join(machines)}; name that one alone")
    if numbers and config.costs.images < config.run.global_batch:
        raise UserError(
            f"costs.images={config.costs.images} fill no batch of run.global_batch={config.run.global_batch}; give "
            f"more images, or --config.run.global_batch={config.costs.images}"
        )
    for name in machines if numbers else ():
        for resolution in resolutions(config):
            for number in numbers:
                try:
                    machine = roofline.MACHINES.get(name, roofline.Machine(name, {}, 1.0, {}, ""))
                    plan.share_out(machine, number, config.run.global_batch, layout(config, name, resolution)[0])
                except ValueError as error:
                    raise UserError(f"--{error}") from error


def resolutions(config):
    """{name: pixels} to plan for: the variant's native and half sizes, or the config's own where it is another."""
    variant, size = recipe.variant_of(config), config.data.train_size
    sizes = {"native": variant.native, "half": variant.half}
    sizes = {name: pixels for name, pixels in sizes.items() if pixels}
    return sizes if size in sizes.values() else {"own": size}


def layout(config, machine, resolution):
    """`(devices of a replica, largest micro-batch or None)`: on IPUs those of the published pipeline, where there is
    one, or of `ipu.splits`."""
    if not machine.startswith("ipu"):
        return 1, config.runtime.micro_batch
    model = config.model
    own = settings.power_of_two(len(settings.parse_splits(config.ipu.splits)) + 1), config.runtime.micro_batch
    if model.width or model.depth:
        return own
    try:
        row = settings.published(model.variant, model.group_size, model.norm, resolution)
    except ConfigError:
        return own
    return row.stages, row.micro_batch


def make(config, workdir, machines, devices, network, dtype_on, measured=None):
    """The plan as figures: "plan" (rows), "plan_scales_to", "plan_assumed", "plan_errors", and its "text".

    Args:
        machines: `roofline.Machine`s.
        devices: numbers of devices, in order.
        network: arguments of `counts.count` without a size.
        dtype_on: function from a machine to the dtype of compute there.
        measured: a comparison of this machine's estimates with what was measured on it, or None.
    """
    errors = calibrate({like(machine.name) for machine in machines})
    known = {one["machine"]: one["efficiency"] for one in errors}
    least = {one["machine"]: one["least_micro_batch"] for one in errors}
    per_core, source = input_speed(config, workdir)
    rows, ends = [], []
    assumed = [{"of": "input", "what": "images/s per core", "value": per_core, "source": source}]
    for machine in machines:
        if config.costs.network and machine.links:
            machine = machine._replace(links=machine.links._replace(between=1e9 * config.costs.network))
        share, why = efficiency(config, machine, dtype_on(machine), network, known, measured, workdir)
        assumed.append({"of": machine.name, "what": "efficiency", "value": share, "source": why})
        for resolution, size in resolutions(config).items():
            stages, micro_batch = layout(config, machine.name, resolution)
            arguments = dict(
                efficiency=share,
                dtype=dtype_on(machine),
                overlap=config.costs.overlap,
                stages=stages,
                micro_batch=micro_batch,
                recompute=config.runtime.recompute,
                **{**network, "size": size},
            )
            same = {"machine": machine.name, "resolution": resolution, "size": size, "dtype": dtype_on(machine)}
            of_fit = least.get(like(machine.name), 0) if "fitted" in why else 0
            for number in devices:
                found = plan.step(machine, number, config.run.global_batch, **arguments)
                row = row_of(config, machine, found, per_core, {**network, "size": size})
                rows.append({**same, **row, "extrapolated": 0 < found.micro_batch < of_fit})
            most, because = plan.scales_to(machine, config.run.global_batch, **arguments)
            ends.append({**same, "largest_micro_batch": found.largest_micro_batch, "devices": most, "then": because})
    figures = {"plan": rows, "plan_scales_to": ends, "plan_assumed": assumed, "plan_errors": errors}
    return {**figures, "text": text(config, figures)}


def row_of(config, machine, found, per_core, network):
    """A `plan.Step` as a row of costs.json, with the input and the whole recipe; None where there is no figure."""
    run = plan.Recipe(config.costs.images, config.run.epochs, config.run.global_batch)
    recompute = config.runtime.recompute or machine.recompute
    hours, work = plan.run(run, found, counts.count(**network).macs, recompute)
    cores = plan.input_cores(found.images_per_second, per_core)
    hosts = machine.links.cores * found.machines
    return {
        **{key: getattr(found, key) for key in ("devices", "replicas", "machines", "micro_batch", "accumulation")},
        "memory": found.memory,
        "images_per_second": found.images_per_second or None,
        "efficiency": found.efficiency or None,
        "step_seconds": found.seconds or None,
        "compute_seconds": found.compute or None,
        "exchange_seconds": found.exchange if found.micro_batch else None,
        "input_cores": cores,
        "host_cores": hosts,
        "service_workers": plan.service_workers(cores, hosts, config.costs.worker_cores),
        "steps": run.steps,
        "hours": hours,
        "device_hours": hours * found.devices if hours else None,
        "multiply_adds": work,
        "limits": list(found.limits),
    }


def input_speed(config, workdir):
    """`(images/s that a core prepares, where that is from)`."""
    if config.costs.input_images_per_second_per_core:
        return config.costs.input_images_per_second_per_core, "given"
    for row in read(workdir, "benchmark_data").get("rows", []):
        if row["name"] == "batch":
            return row["images_per_second_per_core"], "benchmark_data.json"
    return INPUT_PER_CORE, INPUT_SOURCE


def read(workdir, mode):
    """The figures of a mode that has ended in `workdir`, or {}."""
    path = Workdir(workdir).figures(mode)
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise UserError(
            f"{path} is not as g16net writes it ({error}); remove it, or run --mode={mode} again"
        ) from error


def efficiency(config, machine, dtype, network, known, measured, workdir):
    """`(share of the roofline that a device reaches, where that is from)`."""
    if config.costs.efficiency:
        return config.costs.efficiency, "given"
    if config.costs.images_per_second:
        images = config.runtime.micro_batch or config.run.global_batch
        here = dict(network, size=config.data.train_size)
        limit = roofline.images_per_second(machine._replace(devices=1), task="train", dtype=dtype, batch=images, **here)
        return config.costs.images_per_second / limit, "by costs.images_per_second"
    name = like(machine.name)
    if name in known:
        return known[name], f"fitted to published speeds{'' if machine.name.startswith(name) else f' of {name}'}"
    if machine.name == "cpu":
        before = [one for one in read(workdir, "costs").get("comparisons", []) if one["name"] == "measured"]
        for one in [measured, *before]:
            if one:
                return one["efficiency"], "fitted to networks that were run here"
    return 1.0, "an upper bound: no speed is known; measure one device and give --config.costs.images_per_second"


def like(name):
    """The machine whose efficiency is taken for the one called `name`: itself, or the nearest with published speeds."""
    return LIKE.get(name, name)


def calibrate(names):
    """The comparisons with published training speeds, see `against`, of those of the machines `names` that have any."""
    return [compare() for name, compare in (("ipu_mk2", readings), ("a100_80gb", gpu_speeds)) if name in names]


def readings():
    """Errors of the plan for 16 IPUs, micro-batches and pipelines as published, against the paper's training speeds."""
    machine, cases = roofline.MACHINES["ipu_mk2"], []
    for point in published.rows():
        if point["finetuned"] and point["train_images_per_second"]:
            scale, norm = architecture.VARIANTS[point["variant"]], point["norm"]
            row = settings.published(point["variant"], point["group_size"], norm, point["resolution"])
            network = {
                "variant": point["variant"],
                "group_size": point["group_size"],
                "expand_ratio": 6 if point["group_size"] == 1 else 4,
                "norm": norm,
                "size": getattr(scale, point["resolution"]),
            }
            batch = row.micro_batch * row.accumulation * row.replicas
            arguments = dict(network, dtype="float16", stages=row.stages, micro_batch=row.micro_batch)
            cases.append((POD, batch, arguments, point["train_images_per_second"], True))
    return against("readings", published.load()["source"], machine, cases)


def gpu_speeds():
    """Errors of the plan for one to 64 A100 against published speeds; the efficiency is fitted to those of one."""
    source, rows = published.gpus()
    machine, cases = roofline.MACHINES[rows[0]["machine"]], []
    for row in rows:
        network = {key: row[key] for key in ("variant", "group_size", "expand_ratio", "norm", "size", "dtype")}
        cases.append(
            (row["devices"], row["global_batch"], network, row["train_images_per_second"], row["devices"] == 1)
        )
    return against("published speeds", source, machine, cases)


def against(name, source, machine, cases):
    """The efficiency that is right in the geometric mean of those cases that are to be fitted, and all errors.

    cases: (devices, global batch, arguments of `plan.step`, images/s observed, whether it is fitted).
    """
    logs, passes = [], []
    for devices, batch, arguments, observed, fitted in cases:
        found = plan.step(machine, devices, batch, **arguments)
        passes.append(found.micro_batch)
        if fitted:
            logs.append(math.log(found.compute / (batch / observed - found.exchange)))
    share, rows = math.exp(sum(logs) / len(logs)), []
    for devices, batch, arguments, observed, _ in cases:
        speed = plan.step(machine, devices, batch, efficiency=share, **arguments).images_per_second
        rows.append(
            {
                **{key: arguments[key] for key in ("variant", "group_size", "norm", "size", "dtype")},
                "devices": devices,
                "observed": observed,
                "estimate": speed,
                "error": speed / observed - 1,
            }
        )
    errors = [abs(math.log(1 + row["error"])) for row in rows]
    return {
        "against": name,
        "source": source,
        "machine": machine.name,
        "efficiency": share,
        "least_micro_batch": min(passes),
        "typical_error": math.exp(sum(errors) / len(errors)) - 1,
        "worst_error": max((row["error"] for row in rows), key=lambda error: abs(math.log(1 + error))),
        "rows": rows,
    }


def draw(name, rows, network, path):
    """Draws the plan's `rows` of the network called `name` to `path`, which it returns; None without a speed."""
    panels = pictures.plan([{"name": name, "plan": rows, "network": network}]).panels
    if not panels:
        return None
    look.save(panels, [path], columns=3)
    return path


def text(config, figures):
    """The plan for a person."""
    shown = []
    for row in figures["plan"]:
        exchange = row["exchange_seconds"] / row["step_seconds"] if row["step_seconds"] else None
        limits = [limit.split(":")[0].split(",")[0] for limit in row["limits"]]
        values = {
            **row,
            "micro_batch": f"{row['micro_batch']} x {row['accumulation']}" if row["micro_batch"] else "-",
            "gigabytes": row["memory"] / 1e9,
            "exchange_share": exchange,
            "cores": row["input_cores"],
            "workers": row["service_workers"],
            "limit": "; ".join(limits + row["extrapolated"] * ["small micro-batch"]) or "-",
        }
        shown.append({key: values[key] for key in TABLE})
    first = figures["plan"][0]
    work = {}
    for row in figures["plan"]:  # the least: some machines recompute
        work[row["resolution"]] = min(row["multiply_adds"], work.get(row["resolution"], math.inf))
    amounts = ", ".join(f"{macs:.3g} at {name} resolution" for name, macs in work.items())
    head = (
        f"Plan: {config.costs.images:,} images, {config.run.epochs} epochs, {first['steps']:,} updates of "
        f"{config.run.global_batch}; multiply-adds {amounts}\n"
        "(estimates; training alone, without evaluation, start-up, input that is late, latency of the network)"
    )
    ends = []
    for one in figures["plan_scales_to"]:
        fits = f"up to {one['largest_micro_batch']:,} images fit on a device; " if one["largest_micro_batch"] else ""
        most = f"scales to {one['devices']} devices; then" if one["devices"] else "does not train:"
        ends.append(f"{one['machine']} at {one['size']} pixels: {fits}{most} {one['then']}")
    assumed = ["{of}: {what} {value:,.4g}, {source}".format(**one) for one in figures["plan_assumed"]]
    errors = [
        f"{one['machine']}, {len(one['rows'])} {one['against']}: typical error {one['typical_error']:.0%}, worst "
        f"{one['worst_error']:+.0%}; micro-batches from {one['least_micro_batch']} images up, smaller ones reach less"
        for one in figures["plan_errors"]
    ]
    if any(row["machine"] == "cpu" for row in figures["plan"]):
        errors.append("cpu: measured with one and two processes, docs/scale.md has the figures and the commands")
    errors = errors or ["none: nothing was published or measured for these machines; docs/scale.md has those of others"]
    parts = [
        f"{head}\n\n{table(shown)}",
        "Where it stops scaling\n" + _lines(ends),
        "Assumed\n" + _lines(assumed),
        "Errors of such plans\n" + _lines(errors),
    ]
    return "\n\n".join(parts)


def _lines(lines):
    return "\n".join(f"  {line}" for line in lines)

"""Reads what runs have written, and joins runs that differ in the seed alone. Opens JSON files only.

A run is a folder with `config.json`. Read are `train.json`, `records.jsonl`, `evaluations.jsonl`, `evaluate.json` and
`FOLDER/SIZE/finetune.json`, as far as they are there. `benchmark.json` and `costs.json` may lie in a run's folder or
in one of their own: their rows name the network. A report's `report.json` holds all that was read for it, and may be
read in their place, all of it or as a folder of its runs: `results/report.json/g16-*`.
"""

import fnmatch
import glob
import json
import os
import statistics
from typing import NamedTuple

from g16net import config as config_lib
from g16net.errors import UserError
from g16net.run import records
from g16net.run.workdir import Workdir

MODES = ("train", "finetune", "evaluate", "export", "benchmark", "costs")
# Fields that do not change what a run is: where data lies, how much is kept, which seed.
SAME_RUN = (
    "run.seed", "data.dir", "data.cache", "data.cache_size", "data.cache_dir", "data.parallel", "data.service",
    "runtime.steps_per_execution",
)  # fmt: skip
SAME_SECTIONS = ("eval", "export", "predict", "checkpoint", "finetune", "costs")
PRECISION = "runtime.precision"
# Fields that say which images of a data set train and test: of the same ones, the same name is the same data.
SELECTION = ("data.name", "data.train_split", "data.eval_split", "data.layout", "data.holdout")
DEFAULTS = json.loads(
    json.dumps({key: field.default for key, field in config_lib.FIELDS.items()})
)  # lists, as in files


class Run(NamedTuple):
    """One run folder.

    config: {"section.name": value}. train: the figures of the training. history: its epochs.
    evaluations: rows with "weights", "size", "top1", ..., and "changed" where they are of other images; the newest of
    each.
    finetuned: rows with "size", "top1", "top1_before", ..., and "folder" where it is not "finetune".
    commands: {mode: command}. versions: of the training. note: what else must be known of these figures.
    data, tested: digests of the training split and of the images tested on, "" where the run kept none.
    """

    folder: str
    config: dict
    train: dict
    history: list
    evaluations: list
    finetuned: list
    commands: dict
    versions: dict
    note: str = ""
    data: str = ""
    tested: str = ""


class Loaded(NamedTuple):
    """All that was found: runs; rows of benchmarks; `costs.json` files; a line for each thing that was left out."""

    runs: list
    benchmarks: list
    costs: list
    problems: list


def load(patterns):
    """What `patterns` name: folders of a run, folders of such folders (a sweep's), `report.json` files, runs in such a
    file, and globs."""
    loaded = Loaded([], [], [], [])
    for pattern in patterns:
        folder, _, names = os.path.expanduser(pattern).partition("report.json" + os.sep)
        if names and os.path.isfile(folder + "report.json"):
            _add_report(loaded, folder + "report.json", names)
            continue
        matched = [pattern] if os.path.exists(pattern) else sorted(glob.glob(os.path.expanduser(pattern)))
        if not matched:
            loaded.problems.append(f"{pattern}: no such folder or file")
        for path in matched:
            if os.path.isfile(path):
                if path == pattern or os.path.basename(path) == "report.json":  # globs match other files of sweeps
                    _add_report(loaded, path)
                continue
            inside = sorted(os.path.dirname(p) for p in glob.glob(os.path.join(glob.escape(path), "*", "*.json")))
            folders = [path] + [folder for folder in dict.fromkeys(inside) if _belongs(folder)]
            if not any(map(_belongs, folders)) and os.path.isdir(path):
                loaded.problems.append(f"{path}: no run here (no config.json), and no folder of runs")
            for folder in map(os.path.normpath, folders):
                _add(loaded, folder)
    _tell_data_apart(loaded.runs)
    return loaded


def _tell_data_apart(found):
    """Gives each data set (`Run.data`, `Run.tested`) one name, as "data" in the configs, and another one than those of
    its name and selection that are not the same. Runs that do not say what they were tested on are of the first set
    with their training split."""
    first, same = {}, {}
    for run in sorted(found, key=lambda run: not run.tested):
        named = run.config.pop("data", None)  # by a report, whose folders are cut off
        if run.data:
            selection = tuple(run.config.get(field) for field in SELECTION)
            of_training = first.setdefault((run.data, selection), {})
            tested = run.tested or next(iter(of_training), "")
            one = of_training.setdefault(tested, [data_name(run.config), named, []])
            one[1] = one[1] or named
            one[2].append(run)
    for (digest, selection), of_training in first.items():
        for tested, (name, named, alike) in of_training.items():
            mark = digest[:6] + (f" tested on {tested[:6]}" if len(of_training) > 1 else "")
            same.setdefault((name, selection), []).append((mark, named, alike))
    for (name, _), sets in same.items():
        above = [os.path.basename(os.path.dirname(alike[0].config["data.dir"] or "")) for *_, alike in sets]
        owns = [named or ("" if at in ("", "...") else f"{at}/{name}") for at, (_, named, _) in zip(above, sets)]
        for own, (mark, _, alike) in zip(owns, sets):
            shown = name if len(sets) == 1 else own if own and owns.count(own) == 1 else f"{name} {mark}"
            for run in alike:
                if shown != data_name(run.config):
                    run.config["data"] = shown


def _belongs(folder, kinds=("config", "benchmark", "costs")):
    return any(os.path.exists(os.path.join(folder, f"{name}.json")) for name in kinds)


def _add(loaded, folder):
    if not _belongs(folder) or folder in [run.folder for run in loaded.runs]:
        return
    try:
        if os.path.exists(Workdir(folder).config):
            run = read(folder)
            if run.train or not all(of_others(run, row) for row in run.evaluations + run.finetuned):
                loaded.runs.append(run)
                loaded.problems.extend(_other_weights(run))
            elif not _belongs(folder, ("benchmark", "costs")):
                loaded.problems.append(f"{folder}: not finished: it has no accuracy yet")
        timed = _json(Workdir(folder).figures("benchmark"), missing={}).get("rows", [])
        timed = [_checked(row, ("dtype", "size", "images_per_second")) for row in timed if row["task"] != "product"]
        loaded.benchmarks.extend(_named(timed, loaded, folder, "benchmark"))
        costs = _json(Workdir(folder).figures("costs"), missing={})
        if costs:
            rows = _named(_checked(costs, ("rows", "comparisons"))["rows"], loaded, folder, "costs")
            loaded.costs.append({**costs, "rows": rows})
    except (AttributeError, KeyError, TypeError) as error:
        loaded.problems.append(f"{folder}: not as g16net writes it: {type(error).__name__} {error}")
    except UserError as error:
        loaded.problems.append(str(error))


def packed(loaded):
    """All of a `Loaded` but its problems for a JSON file, which `load` reads. What all configs have in common is there
    once: today's defaults may not be tomorrow's."""
    configs = [run.config for run in loaded.runs]
    first = configs[0] if configs else {}
    common = {key: value for key, value in first.items() if all(c.get(key) == value for c in configs)}
    own = [{key: value for key, value in config.items() if key not in common} for config in configs]
    return {
        "config": common,
        "runs": [{**run._asdict(), "config": config} for run, config in zip(loaded.runs, own)],
        "benchmarks": loaded.benchmarks,
        "costs": loaded.costs,
    }


def _add_report(loaded, path, names=""):
    """`names`: of the runs to take, whose folders' last parts match this glob; benchmarks and costs are left then."""
    try:
        stored = _json(path)
        common = {**DEFAULTS, **stored["config"]}
        found = [Run(**{**one, "config": {**common, **one["config"]}}) for one in stored["runs"]]
        for run in found:
            group([run])  # reads the fields that say what a run is
        benchmarks = [_checked(row, ("task", "network", "size")) for row in stored["benchmarks"]]
        costs = [_checked(one, ("rows", "comparisons")) for one in stored["costs"]]
        if names:
            found = [run for run in found if fnmatch.fnmatchcase(os.path.basename(run.folder), names)]
            benchmarks, costs = [], []
            if not found:
                loaded.problems.append(f"{path}: holds no run named {names}")
        loaded.runs.extend(found)  # all of the file or nothing
        loaded.benchmarks.extend(benchmarks)
        loaded.costs.extend(costs)
    except UserError as error:
        loaded.problems.append(str(error))
    except (AttributeError, KeyError, TypeError) as error:
        loaded.problems.append(
            f"{path}: not the report.json of a report that holds its runs ({type(error).__name__} {error}); name the "
            "runs' folders, or make the report again from them"
        )


def _named(rows, loaded, folder, mode):
    """Those of `rows` that say which network they are of (None: a peer's); a line for the file where some do not."""
    if any("network" not in row for row in rows):
        loaded.problems.append(
            f"{folder}: {mode}.json is of an older version, whose rows do not say all of their network; its speeds are "
            f"left out; make it again with --mode={mode}"
        )
    return [row for row in rows if row.get("network")]


def of_others(run, row):
    """What an evaluation is of, in words, where it is not of this run's images and of its training's end; else "". What
    computes in another precision is the run's all the same."""
    changed = sorted((field, value) for field, value in row.get("changed", {}).items() if field != PRECISION)
    if changed:
        return "with " + ", ".join(f"{field}={value}" for field, value in changed)
    step = row.get("step")  # rows of older versions and of fine-tuned weights have none
    return f"of update {step}" if step not in (None, _last_step(run, step)) else ""


def _last_step(run, unknown=None):
    """The update with which the training of `run` ended; of adopted weights, and where it has not ended, 0."""
    if run.train:
        return run.train.get("steps", unknown)
    last = run.history[-1] if run.history else {}  # a run that shares its training has the records of it
    return last.get("step", unknown) if last.get("epoch") == run.config["run.epochs"] else 0


def _other_weights(run):
    """A line for each kind of weights or images whose evaluations are no figures of the run."""
    sizes = {}
    for row in run.evaluations + [row for row in run.finetuned if of_others(run, row)]:
        other = of_others(run, row)
        if other:
            end = f"ended with {_last_step(run)}" if _last_step(run) else "is not finished"
            own = "is without" if other.startswith("with") else end
            sizes.setdefault((other, own), []).append(row["size"])
        elif row["weights"] not in (weights(run), "finetuned"):
            sizes.setdefault((f"of {row['weights']} weights", f"has {weights(run)} ones"), []).append(row["size"])
    for (other, own), found in sizes.items():
        found = ", ".join(map(str, sorted(set(found))))
        yield f"{run.folder}: evaluations {other} at {found} px; the run {own}"


def weights(run):
    """The weights that the run's figures are of, "average" or "raw": those of its training's end."""
    chosen = run.config["eval.weights"]
    return run.train.get("weights") or ("average" if chosen == "finetuned" else chosen)


def read(folder):
    """The `Run` in `folder`. UserError, naming the file, where it is not one that g16net has written."""
    stored = _json(Workdir(folder).config)
    try:
        config = flat(stored)
        for key in ("model.variant", "model.norm", "model.group_size", "data.train_size", "data.eval_size", "run.seed"):
            config[key]
        # Fields that a run of an older version has not yet named were as their defaults are.
        config = {**DEFAULTS, **config}
    except (AttributeError, KeyError) as error:
        raise UserError(f"{folder}: config.json is not that of a resolved run ({error})") from None
    results = {mode: _json(os.path.join(folder, f"{mode}.json"), missing={}) for mode in MODES}
    try:
        data = _json(Workdir(folder).data, missing={})
        return Run(
            folder,
            config,
            _checked(results["train"], ("top1", "images_per_second", "train_seconds")),
            records.by_epoch(records.read_lines(Workdir(folder).records)),
            _evaluations(folder, results["evaluate"]),
            _finetuned(folder),
            {mode: result["command"] for mode, result in results.items() if "command" in result},
            results["train"].get("versions", {}),
            data=data.get("digest") or "",
            tested=data.get("tested", {}).get("digest") or "",
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: its files are not those of a run: {type(error).__name__} {error}") from None


def _json(path, missing=None):
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        if missing is None:
            raise UserError(f"{path} is not there") from None
        return missing
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object")
    return found


def _checked(row, keys):
    if row:
        for key in keys:
            row[key]
    return row


def _evaluations(folder, evaluate):
    """The newest row of each weights, size and images; fine-tuned weights have rows of their own kind elsewhere."""

    def key(row):
        return row["weights"], row.get("finetune_size"), row["size"], str(sorted(row.get("changed", {}).items()))

    rows = {key(row): row for row in records.read_lines(Workdir(folder).evaluations)}
    for row in evaluate.get("sizes", []):
        row = {**evaluate, **row}
        rows.setdefault(key(row), row)
    return [_checked(row, ("top1", "size")) for row in rows.values()]


def _finetuned(folder):
    rows = []
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*", "*", "finetune.json"))):
        name = os.path.relpath(path, folder).split(os.sep)[0]
        row = _checked(_json(path), ("size", "top1", "top1_before"))
        rows.append({**row, **({"folder": name} if name != "finetune" else {})})
    return rows


class Group(NamedTuple):
    """Runs that differ in the seed alone.

    key: their fields, as sorted pairs of field and text. setting: those in which other groups of the same network,
    training size and data differ, as text; "" where there are none.
    """

    name: str
    setting: str
    key: tuple
    runs: list

    @property
    def config(self):
        return self.runs[0].config


def group(runs):
    """The groups of `runs`, named by size, group size, norm and training pixels, and by other fields that differ."""
    by_key = {}
    for run in runs:
        same = by_key.setdefault(_key(run.config), {})
        seed = run.config["run.seed"]
        same[seed] = _joined(same[seed], run) if seed in same else run
    by_key = {key: list(same.values()) for key, same in by_key.items()}
    by_name = {}
    for key, members in by_key.items():
        by_name.setdefault((data_name(members[0].config), _name(members[0].config)), []).append((key, members))
    groups = []
    for (_, name), same in by_name.items():
        common = set.intersection(*(set(key) for key, _ in same))
        for key, members in same:
            own = [f"{field}={value}" for field, value in key if (field, value) not in common]
            own.sort(key=lambda text: not text.startswith("run."))  # how long it was trained, first
            setting = ", ".join(own)
            groups.append(Group(f"{name}, {setting}" if own else name, setting, key, members))
    return sorted(groups, key=lambda group: _order(group.config))


def _order(config):
    model = [config.get(f"model.{part}") or 0 for part in ("width", "depth")]
    norm = config["model.norm"]
    names = data_name(config), config["model.variant"]
    return (*names, *model, config["model.group_size"], len(norm), norm, -config["data.train_size"])


def _joined(one, other):
    """Two runs of the same training and seed (a sweep shares trainings) as one: a seed counts once."""
    kept = one if one.train else other
    return kept._replace(
        evaluations=one.evaluations + other.evaluations,
        finetuned=one.finetuned + other.finetuned,
        commands={**one.commands, **{f"{mode} of {other.folder}": text for mode, text in other.commands.items()}},
    )


def _key(config):
    fields = [
        (field, json.dumps(value).strip('"'))
        for field, value in config.items()
        if field not in (*SAME_RUN, "data") and field.split(".")[0] not in SAME_SECTIONS
    ]
    decoded = [("data.cache_size", str(config["data.cache_size"]))] if config["data.cache"] == "decoded" else []
    return tuple(sorted([*fields, ("data", data_name(config)), *decoded]))


def _name(config):
    return f"{size_name(config)} {network_name(config)}, {resolution_name(config)}"


def size_name(config):
    """`B0`, or `TINY w0.25 d0.3` where width and depth are not the variant's."""
    changed = [f"{part[0]}{config[f'model.{part}']:g}" for part in ("width", "depth") if config.get(f"model.{part}")]
    return " ".join([config["model.variant"], *changed])


def flat(sections):
    """{"section.name": value} of a config's sections."""
    return {f"{section}.{name}": value for section, names in sections.items() for name, value in names.items()}


def network(config):
    """The fields of a flat config that say which network was timed, and how it computes: `model.*` and four more.

    Rows of benchmarks and costs have them as "network". What images are shifted and divided by takes no time.
    """
    return {
        key: value
        for key, value in config.items()
        if key in ("runtime.strategy", "runtime.precision", "runtime.recompute", "runtime.jit")
        or key.startswith("model.")
        and key not in ("model.mean", "model.std")
    }


def is_of(row, config):
    """Whether a row with "network" is of the network of `config`; fields that the row lacks were as by default."""
    return all(row["network"].get(key, DEFAULTS.get(key)) == value for key, value in network(config).items())


def network_name(config):
    """`G16 ln_pn`."""
    return f"G{config['model.group_size']} {config['model.norm']}"


def resolution_name(config):
    """Training pixels, growing ones with a dash."""
    sizes = config.get("data.progressive") or [config["data.train_size"]]
    return f"{sizes[0]}-{sizes[-1]} px" if len(sizes) > 1 else f"{sizes[0]} px"


def data_name(config):
    """The data's name: of local files the folder's."""
    if "data" in config:
        return config["data"]
    folder = os.path.basename(os.path.normpath(config.get("data.dir") or ""))
    name = config.get("data.name", "")
    fetched = name.startswith(("tfds:", "hf:"))  # whose folder is a cache of many
    return name if fetched or folder in ("", ".") else folder


def spread(values):
    """{"mean", "min", "max", "runs"} of the numbers among `values`, or None."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values), "runs": len(values)}

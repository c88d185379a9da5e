"""What a sweep is: a file whose `get_runs(arg)` returns a list of `run(...)`; `grid(...)` makes one from axes."""

import itertools
import os
import re

from g16net import config as config_lib
from g16net.config import experiments, recipe
from g16net.errors import ConfigError, UserError, suggest
from g16net.run import resolve

DATA = ("data.name", "data.dir")  # fields that name data, as `data` does
MODES = ("train", "finetune", "evaluate", "export")  # what a run may do


def run(name, experiment, modes=("train", "evaluate"), data="", **fields):
    """One run of a sweep as a dict.

    Args:
        name: of its folder.
        experiment: as after `--experiment=`.
        modes: as after `--mode=`, in order.
        data: as after `--data=`.
        **fields: changed fields, with two underscores for the point: `run__seed=1`.
    """
    return {
        "name": name,
        "experiment": experiment,
        "modes": tuple(modes),
        "data": data,
        "fields": {key.replace("__", "."): value for key, value in fields.items()},
    }


def grid(name, experiment, modes=("train", "evaluate"), data="", fields=None, **axes):
    """Runs for every combination of `axes`, the last one changing fastest.

    Args:
        name, experiment: with the axes' names in braces: "{norm}-{seed}", "g16_{norm}:demo". A value of an axis may be
            a dict: it is filled in by its key "name", and its other keys are fields as below.
        fields: fields of every run, as {"run.seed": "{seed}"} or with plain values. Texts are filled in too, and a text
            that is one axis' name in braces alone becomes its value.
        **axes: names and lists of values.
    """
    runs = []
    for values in itertools.product(*axes.values()):
        own, extra = {}, {}
        for axis, value in zip(axes, values):
            own[axis] = value["name"] if isinstance(value, dict) else value
            if isinstance(value, dict):
                extra.update({key.replace("__", "."): item for key, item in value.items() if key != "name"})
        filled = {key: _fill(value, own) for key, value in (fields or {}).items()}
        runs.append(run(name.format(**own), experiment.format(**own), modes, data))
        runs[-1]["fields"].update({**filled, **extra})
    return runs


def _fill(value, own):
    alone = re.fullmatch(r"\{(\w+)\}", value) if isinstance(value, str) else None
    if alone and alone.group(1) in own:
        return own[alone.group(1)]
    return value.format(**own) if isinstance(value, str) else value


def load(experiment, assignments=(), data=""):
    """The runs of the sweep file `experiment` (`NAME`, `FILE.py` or `FILE.py:ARG`), checked.

    `assignments`, `[(key, text), ...]`, are set in every run, and so is `data`, unless it is "", in place of all data
    that the runs name, by fields too. Each run gets "after", the run that trains for it or None, and "cpus" and "gpus",
    what it asks of a cluster. Raises UserError, which names the run, for what would end one later.
    """
    module, arg = experiments.module(experiment, "sweeps")
    if not hasattr(module, "get_runs"):
        raise ConfigError(
            f"sweep file {module.__file__!r} has no function get_runs(arg); see experiments/sweeps/norms.py"
        )
    runs, names, trainers = module.get_runs(arg), set(), {}
    if not runs:
        raise ConfigError(f"sweep file {module.__file__!r}: get_runs({arg!r}) gives no runs")
    given = {key for key, _ in assignments}
    named = sorted({_data_of(one, given) for one in runs} - {""})
    if data and len(named) > 1:
        raise UserError(f"--data={data}: the runs name several data sets, {' and '.join(named)}; leave it out")
    for one in runs:
        if data:
            one["data"] = data
            # a set by its name may lie in a folder that a run names without a set
            placed = data.startswith(("tfds:", "hf:")) and DATA[0] not in one["fields"]
            replaced = DATA[:1] if placed else DATA
            one["fields"] = {key: value for key, value in one["fields"].items() if key not in replaced}
        one["fields"] = {**one["fields"], **{key: config_lib.parse_value(key, text) for key, text in assignments}}
        _check(one, names)
        names.add(one["name"])
        config = _resolved(one)
        one["cpus"], one["gpus"] = config.sweep.cpus, config.sweep.gpus
        trained = (one["data"], config.data.dir, recipe.training_key(config))
        one["after"] = trainers.get(trained)
        if "train" in one["modes"]:
            trainers.setdefault(trained, one["name"])
    return runs


def _data_of(one, given):
    """The data that a run names, by `data` or by fields that are not `given` on the command line; "" for none."""
    fields = [str(one["fields"][key]) for key in DATA if key in one["fields"] and key not in given]
    return " ".join(filter(None, [one["data"], *fields]))


def part(runs, shard):
    """The runs of the part that `shard` names: "3/10" is the third of ten, "" all. Runs that share a training are in
    the same part. UserError for a part that does not exist."""
    if not shard:
        return runs
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    index, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= parts:
        raise UserError(f"--shard={shard} is not a part of the runs; --shard=3/10 is the third of ten")
    sizes, places = [0] * parts, {}
    for one in runs:  # each training to the smallest part so far
        if not one["after"]:
            places[one["name"]] = sizes.index(min(sizes))
        places[one["name"]] = place = places[one["after"] or one["name"]]
        sizes[place] += 1
    return [one for one in runs if places[one["name"]] == index - 1]


def _check(one, names):
    where = f"run {one['name']!r} of the sweep"
    if not re.fullmatch(r"\w[\w.,=+-]*", one["name"]):
        raise ConfigError(f"{where}: its name is that of a folder, of letters, digits and _.,=+-; give another one")
    if one["name"] in names:
        raise ConfigError(f"{where} is there twice; put all that differs into the names")
    for mode in one["modes"]:
        if mode not in MODES:
            raise ConfigError(f"{where}: unknown mode {mode!r}. {suggest(mode, MODES)}")
    for key in one["fields"]:
        config_lib.field_of(key)


def _resolved(one):
    try:
        return resolve.resolve(_assignments(one), one["experiment"], one["data"] or None)[0]
    except UserError as error:
        raise ConfigError(f"run {one['name']!r} of the sweep: {error}") from None


def arguments(one, workdir):
    """The arguments of launch.py that make this run."""
    given = [f"--experiment={one['experiment']}", f"--mode={','.join(one['modes'])}"]
    given += [f"--data={one['data']}"] if one["data"] else []
    given += [f"--workdir={os.path.join(workdir, one['name'])}"]
    return given + [f"--config.{key}={text}" for key, text in _assignments(one)]


def _assignments(one):
    return [(key, _text(value)) for key, value in one["fields"].items()]


def _text(value):
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)

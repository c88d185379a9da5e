"""From what a command names (an experiment, data, a workdir, assignments) to the resolved config of its run."""

import os
from typing import Optional, Sequence, Tuple

from ml_collections import ConfigDict

from g16net import config as config_lib
from g16net.config import experiments, recipe
from g16net.data.detect import detect, prepared_imagenet
from g16net.errors import UserError
from g16net.run.start import start_tensorflow
from g16net.run.workdir import Workdir


def of_run(workdir: str) -> Optional[ConfigDict]:
    """The config of the run in `workdir`, with what it left open filled in as in that of a command; None: it has none.

    Runs of older versions lack fields, which are as their defaults.
    """
    stored = Workdir(workdir).config
    return recipe.derive(config_lib.load(stored)) if os.path.exists(stored) else None


def resolve(
    assignments: Sequence[Tuple[str, str]],
    experiment: Optional[str],
    data: Optional[str] = None,
    workdir: Optional[str] = None,
) -> Tuple[ConfigDict, str, bool]:
    """`(config, name, demo)` of the experiment, the data and the assignments on the command line.

    Without an experiment, the config of the run in `workdir`.
    """
    if not experiment:
        stored = workdir and Workdir(workdir).config
        if not stored or not os.path.exists(stored):
            raise UserError("name an experiment: --experiment=g16_ln_pn (see --list), or the --workdir of a run")
        config = config_lib.load(stored)
        demo = False
    else:
        config = experiments.load(experiment)
        demo = config.data.name == "auto" and not data and not any(k.startswith("data.name") for k, _ in assignments)
    if data:
        config.data.name, config.data.dir = detect(data)
    config_lib.override(config, assignments)
    if demo or config.data.name == "auto":
        found = prepared_imagenet(config.data.dir)
        demo = not found
        if found:
            config.data.name, config.data.dir = found
        elif config.data.dir:
            config.data.name, config.data.dir = detect(config.data.dir)
            demo = False
        else:
            config = experiments.load(str(experiment), demo=True)
            config_lib.override(config, assignments)
    given = {key for key, _ in assignments}
    place = workdir or os.path.join("runs", experiments.run_name(str(experiment), demo))
    begun = place if Workdir(place).begun and os.path.exists(Workdir(place).config) else None
    # the config of a run that goes on has what its weights brought
    if config.init.checkpoint and (experiment or "init.checkpoint" in given and not begun):
        start_tensorflow(devices=False)
        from g16net.weights import detect as foreign_weights

        foreign_weights.settle(config, given, begun)
    name = experiments.run_name(experiment, demo) if experiment else os.path.basename(str(workdir))
    for key in ("dir", "cache_dir"):  # the run is resumed from any folder
        if config.data[key] and "://" not in config.data[key]:
            config.data[key] = os.path.abspath(os.path.expanduser(config.data[key]))
    return recipe.resolve(config, begun=bool(begun)), name, demo

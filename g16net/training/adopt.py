"""A run made of weights that exist: those of `init.checkpoint` as the checkpoint of a run that has made no step.

So published weights are evaluated, exported and asked for predictions as trained ones are, and a training that is
started in the same workdir begins with them.
"""

from typing import Any, Dict

from ml_collections import ConfigDict

from g16net.data import identity
from g16net.errors import ConfigError, UserError
from g16net.models import efficientnet
from g16net.optim.weight_average import WeightAverage
from g16net.run import assemble, checkpoint, run_data
from g16net.run.workdir import Workdir
from g16net.training import runtime, train, warm_start


@runtime.in_precision
def adopt(config: ConfigDict, workdir: str) -> Dict[str, Any]:
    """Writes the checkpoint of step 0 with the weights of `init.checkpoint`, whose classes are those of the data.

    UserError where the weights have not a classifier for just these.
    """
    check(config)
    devices = runtime.setup(config)
    source, _ = assemble.open_sources(config)
    steps = max(source.num_examples // config.run.global_batch, 1)  # fewer images can be evaluated all the same
    model, _, _, optimizer = train.build(config, devices, source.num_classes, steps)
    average = WeightAverage(model, config.regularise.average)
    _, kept = warm_start.load(config, model, source.class_names)
    others = run_data.class_names_of_weights(config.init.checkpoint)
    known = None if others is None else {identity.plain(name) for name in others}
    new = [name for name in source.class_names if known is not None and identity.plain(name) not in known]
    if kept or new:
        raise UserError(
            f"init.checkpoint={config.init.checkpoint} has no classifier for the {source.num_classes} classes of "
            f"{run_data.where(config)} ({', '.join(kept[:2] or new[:5])}): as they are, its weights can be used on "
            "data with their own classes alone; train them on these first: --mode=train"
        )
    run_data.keep(config, workdir, source)
    saved = checkpoint.Checkpoints(
        Workdir(workdir).checkpoints,
        checkpoint.state(model, optimizer, average),
        background=False,
        data=run_data.facts(config, source),
        accumulation=devices.updates.optimizer_accumulation,
    )
    return {
        "weights_of": config.init.checkpoint,
        "weights": sum(len(layer.weights) for layer in efficientnet.learnt(model)),
        "classes": source.num_classes,
        "checkpoint": saved.save(0, epoch=0, in_epoch=0, steps=steps),
    }


def check(config: ConfigDict) -> None:
    """UserError where no weights are named, ConfigError where several processes would make the run at once."""
    if not config.init.checkpoint:
        raise UserError("--mode=adopt needs the weights: --config.init.checkpoint=FILE")
    if config.runtime.strategy not in ("default", "mirrored"):
        raise ConfigError(
            f"--mode=adopt writes a run in one process; got runtime.strategy={config.runtime.strategy}. Run it once "
            "with --config.runtime.strategy=default, and the other modes on that workdir with yours"
        )

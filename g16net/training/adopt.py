"""A run made of weights that exist: those of `init.checkpoint` as the checkpoint of a run that has made no step.

So published weights are evaluated, exported and asked for predictions as trained ones are, and a training that is
started in the same workdir begins with them.
"""

import glob
import hashlib
import json
import os
from typing import Any, Dict

from ml_collections import ConfigDict

from g16net.data import identity
from g16net.errors import ConfigError, UserError
from g16net.models import efficientnet
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
    source, tested = assemble.open_sources(config)
    steps = max(source.num_examples // config.run.global_batch, 1)  # fewer images can be evaluated all the same
    model, _, _, optimizer = train.build(config, devices, source.num_classes, steps)
    average = assemble.average(config, model)
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
    run_data.keep(config, workdir, source, tested)
    saved = checkpoint.Checkpoints(
        Workdir(workdir).checkpoints,
        checkpoint.state(model, optimizer, average),
        background=False,
        data=run_data.facts(config, source),
        accumulation=devices.updates.optimizer_accumulation,
    )
    return {
        "weights_of": config.init.checkpoint,
        "digest": digest(config.init.checkpoint),
        "weights": sum(len(layer.weights) for layer in efficientnet.learnt(model)),
        "classes": source.num_classes,
        "checkpoint": saved.save(0, epoch=0, in_epoch=0, steps=steps),
    }


def digest(path: str) -> str:
    """Of the weights at `path`: a file, the prefix or folder of a TensorFlow 1 checkpoint, or a run's newest."""
    if os.path.isdir(path):
        inner = Workdir(path).checkpoints
        files = checkpoint.manifest_of(path).get("files") or checkpoint.newest_manifest(
            inner if os.path.isdir(inner) else path
        ).get("files")
        if files:
            return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
        names = sorted(glob.glob(os.path.join(glob.escape(path), "*.index")))
    else:
        names = [path if os.path.exists(path) else f"{path}.index"]
    return hashlib.sha256("".join(map(checkpoint.sha256, names)).encode()).hexdigest()[:16]


def check_weights(config: ConfigDict, workdir: str) -> None:
    """UserError where the run in `workdir` is one of adopted weights, and `init.checkpoint` holds others by now."""
    begun = Workdir(workdir).begun and checkpoint.newest_manifest(Workdir(workdir).checkpoints)
    path, kept = config.init.checkpoint, Workdir(workdir).figures("adopt")
    if not begun or begun.get("step") or not os.path.exists(kept):
        return
    with open(kept, encoding="utf-8") as file:
        then = json.load(file)
    if then.get("weights_of") != path or not (os.path.exists(path) or os.path.exists(f"{path}.index")):
        return
    if then.get("digest") not in (None, digest(path)):
        raise UserError(
            f"{workdir!r} holds weights that init.checkpoint={path} had when they were taken over; it holds others "
            "now. Give another --workdir for these, or leave --config.init.checkpoint out to go on with those"
        )


def check(config: ConfigDict) -> None:
    """UserError where no weights are named, ConfigError where several processes would make the run at once."""
    if not config.init.checkpoint:
        raise UserError("--mode=adopt needs the weights: --config.init.checkpoint=FILE")
    if config.runtime.strategy not in ("default", "mirrored"):
        raise ConfigError(
            f"--mode=adopt writes a run in one process; got runtime.strategy={config.runtime.strategy}. Run it once "
            "with --config.runtime.strategy=default, and the other modes on that workdir with yours"
        )

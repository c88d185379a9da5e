"""Checkpoints as the published TensorFlow 1 code wrote them: names, shapes, and files with values of ours."""

import json
import os

import numpy as np
import tensorflow as tf
from helpers import GOLDEN


def published_variables(key, group_size, proxy, classes=10):
    """Names and shapes of the published network's variables, from the facts alone: the golden block table."""
    with open(os.path.join(GOLDEN, "block_tables.json"), encoding="utf-8") as file:
        table = json.load(file)[key]
    shapes = {}

    def norm_act(scope, channels):
        if proxy:
            shapes[f"all/{scope}/proxy"] = (6, 1, 1, channels)
        else:
            shapes.update({f"all/{scope}/GroupNorm/{kind}": (channels,) for kind in ("beta", "gamma")})

    shapes["all/block0/conv/conv2d/kernel"] = (3, 3, 3, table["stem"])
    norm_act("block0", table["stem"])
    out = None
    for name, kernel, _, inputs, expanded, out, ratio, groups, reduced, *_ in table["blocks"]:
        block = f"block{name}"
        if ratio != 1:
            shapes[f"all/{block}/a/conv/conv2d/kernel"] = (1, 1, inputs, expanded)
            norm_act(f"{block}/a", expanded)
        shapes[f"all/{block}/b/conv/conv2d/kernel"] = (kernel, kernel, expanded // groups, expanded)
        norm_act(f"{block}/b", expanded)
        for number, ends in ((1, (expanded, reduced)), (2, (reduced, expanded))):
            scope = f"all/{block}/b/{block}/SE/{block}/b/{number}/conv2d"
            shapes[f"{scope}/kernel"], shapes[f"{scope}/bias"] = (1, 1, *ends), ends[1:]
        shapes[f"all/{block}/c/conv/conv2d/kernel"] = (1, 1, expanded, out)
        shapes[f"all/{block}/c/GroupNorm/gamma"] = (out,)
        if not proxy:
            shapes[f"all/{block}/c/GroupNorm/beta"] = (out,)
    shapes["all/Top/conv/conv2d/kernel"] = (1, 1, out, table["top"])
    norm_act("Top", table["top"])
    shapes["all/Top/logits/dense/kernel"] = (table["top"], classes)
    shapes["all/Top/logits/dense/bias"] = (classes,)
    return shapes


def write_checkpoint(values, prefix):
    """A TensorFlow 1 checkpoint with the given variables, an optimiser's slot for each, and a step."""
    tensors = {**values, **{f"{name}/RMSProp": np.ones_like(value) for name, value in values.items()}}
    tensors["global_step"] = np.int64(450)
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )
    tf.compat.v1.train.update_checkpoint_state(os.path.dirname(prefix), prefix)

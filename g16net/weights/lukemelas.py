"""Weights in the naming of lukemelas' EfficientNet-PyTorch, which packages of other weights share (the Lite ones).

The networks are those of timm's `tf_` models: depthwise, batch norm with epsilon 1e-3, 'SAME' padding. So their names
become timm's, which is all there is to do:

    theirs                                           timm's
    _conv_stem, _bn0                                 conv_stem, bn1
    _blocks.N._expand_conv, _bn0                     blocks.STAGE.INDEX.conv_pw, bn1 (not in the first stage)
    _blocks.N._depthwise_conv, _bn1                  blocks.STAGE.INDEX.conv_dw, bn2 (bn1 in the first stage)
    _blocks.N._se_reduce, _se_expand                 blocks.STAGE.INDEX.se.conv_reduce, se.conv_expand
    _blocks.N._project_conv, _bn2                    blocks.STAGE.INDEX.conv_pwl, bn3 (conv_pw, bn2 in the first stage)
    _conv_head, _bn1, _fc                            conv_head, bn2, classifier
"""

import re
from typing import Dict, Mapping, Tuple

from g16net.weights import timm

TOP_LEVEL = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
PARTS = {
    "_expand_conv": "expand_conv",
    "_bn0": "expand_norm",
    "_depthwise_conv": "conv",
    "_bn1": "norm",
    "_se_reduce": "se",
    "_se_expand": "se",
    "_project_conv": "project_conv",
    "_bn2": "project_norm",
}
INSIDE = {"_se_reduce": ".conv_reduce", "_se_expand": ".conv_expand"}
_NAME = re.compile(r"(adv-)?efficientnet-(b\d|lite\d)-[0-9a-f]{8}")


def names(shapes: Mapping[str, Tuple[int, ...]]) -> Dict[str, str]:
    """{their name: timm's} of weights with these `shapes` by their names; what is unknown keeps its name.

    A stage begins where the blocks' output has another number of channels, as in every EfficientNet of that library.
    """
    found, stage, index, channels = {}, -1, 0, None
    places = {}
    for number in range(sum(name.endswith("._project_conv.weight") for name in shapes)):
        out = shapes.get(f"_blocks.{number}._project_conv.weight", (None,))[0]
        stage, index = (stage, index + 1) if out == channels else (stage + 1, 0)
        places[str(number)], channels = (stage, index), out
    for name in shapes:
        base, _, kind = name.rpartition(".")
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", base)
        if base in TOP_LEVEL:
            found[name] = f"{TOP_LEVEL[base]}.{kind}"
        elif block and block[1] in places and block[2] in PARTS:
            stage, index = places[block[1]]
            parts = timm.PARTS if stage else timm.PARTS_WITHOUT_EXPANSION
            part = parts.get(PARTS[block[2]])
            found[name] = f"blocks.{stage}.{index}.{part}{INSIDE.get(block[2], '')}.{kind}" if part else name
        else:
            found[name] = name
    return found


def preprocessing(file: str, variant: str) -> Tuple[timm.Input, str]:
    """`(input, doubt)` of the weights in a file of this name; `doubt` is empty, or says why it is a guess.

    The library's own evaluation scales the short side to the image's size and crops nothing else off; of the Lite
    weights, whose packages bring none, it is that of timm's.
    """
    published = _NAME.match(file)
    doubt = "" if published else "its name is not that of a published file; values of those"
    if variant.startswith("LITE"):
        return timm.preprocessing(f"tf_efficientnet_{variant.lower()}"), doubt
    mean, std = (timm.HALF, timm.HALF) if published and published[1] else (timm.MEAN, timm.STD)
    return timm.Input(mean, std, "bicubic", 1.0), doubt

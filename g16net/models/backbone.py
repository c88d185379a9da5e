"""The feature maps of a network, for the heads of detection and segmentation.

    features = backbone(timm_weights.load("tf_efficientnet_lite0.safetensors", "tf_efficientnet_lite0"), (3, 4, 5))
    maps = features(images)  # {"P3": [batch, height / 8, width / 8, 40], "P4": ..., "P5": ...}

Level l is the last map with stride 2^l, as in timm's `features_only` and keras-hub's `pyramid_outputs`. With a
batch-independent norm a detector that takes one or two images a step trains on the same statistics as it is tested on.
"""

import re
from typing import Optional, Sequence

from g16net.compat import keras
from g16net.models import architecture


def backbone(model: keras.Model, out_levels: Optional[Sequence[int]] = None) -> keras.Model:
    """A model of the feature maps of `model`, made of its layers: images -> {"P3": map, ...}.

    Args:
        model: of `efficientnet.build`, with weights or without, with a top or without.
        out_levels: numbers of levels, (3, 4, 5) for strides 8, 16 and 32; all where None.

    Raises:
        ValueError: for a level that the network has not, or another kind of model.
    """
    stride, maps = 1, {}
    for layer in model.layers:
        if re.fullmatch(r"stem_conv|block\d[a-z]+_conv", layer.name):
            stride *= layer.strides if isinstance(layer.strides, int) else layer.strides[0]
        elif re.fullmatch(r"block\d[a-z]+_(project_norm|add)", layer.name):
            maps[stride.bit_length() - 1] = layer.output
    if not maps:
        raise ValueError(f"{model.name} has no blocks; give a model of efficientnet.build")
    numbers = architecture.check_levels(out_levels, list(maps))
    return keras.Model(model.input, {f"P{number}": maps[number] for number in numbers}, name=f"{model.name}_features")

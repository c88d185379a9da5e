"""G16-EfficientNet with batch norm: group convolution alone, without the change of norm.

Expect: no published figure for these sizes.
Run: launch.py --experiment=g16_bn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import recipe


def get_config(arg=""):
    config = recipe.get_config(arg)
    config.model.group_size = 16
    config.model.expand_ratio = 4
    config.model.norm = "bn"
    return config

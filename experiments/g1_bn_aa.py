"""G1-EfficientNet with batch norm and AutoAugment: the original EfficientNet with its augmentation.

Expect: no published figure under this recipe.
Run: launch.py --experiment=g1_bn_aa:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.group_size = 1
    config.model.expand_ratio = 6
    config.model.norm = "bn"
    config.data.augment = "autoaugment"
    config.data.mixup, config.data.cutmix = 0.0, 1.0  # the policy takes their place
    return config

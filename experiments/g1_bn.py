"""G1-EfficientNet with batch norm: the original EfficientNet under this recipe.

Expect: no published figure under this recipe.
On CIFAR-10 (docs/ablation.md): 84.4 %, TINY at width 0.5 and depth 0.3, 30 epochs, one seed.
Run: launch.py --experiment=g1_bn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.group_size = 1
    config.model.expand_ratio = 6
    config.model.norm = "bn"
    return config

"""G1-EfficientNet (depthwise, expansion 6) with group norm: the paper's baseline.

Expect: top-1, B0..B5: 76.16 78.23 79.21 80.66 81.98 82.84 % without fine-tuning,
79.10 80.80 81.44 82.07 82.90 83.40 % with it (readings off the published summary figure).
On CIFAR-10 (docs/ablation.md): 81.7 %, CIFAR at width 0.5 and depth 0.3, 12 epochs, one seed, the groups of adjacent
channels.
Run: launch.py --experiment=g1_gn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.group_size = 1
    config.model.expand_ratio = 6
    config.model.norm = "gn"
    config.model.strided_groups = True  # as the published networks: channel c in group c modulo 4
    return config

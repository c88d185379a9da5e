"""G16-EfficientNet with group norm of 4 groups: the paper's group-convolution baseline.

Expect: top-1 at native resolution after fine-tuning, B0..B5: 79.08 80.82 81.46 82.32 83.21 83.96 %
(readings off the published summary figure). At half resolution: 77.85 80.01 80.83 81.67 82.76 83.6 %.
On CIFAR-10 (docs/ablation.md): 80.4 %, TINY at width 0.25 and depth 0.3, 30 epochs, one seed, float32, the groups of
adjacent channels.
Run: launch.py --experiment=g16_gn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.norm = "gn"
    config.model.strided_groups = True  # as the published networks: channel c in group c modulo 4
    return config

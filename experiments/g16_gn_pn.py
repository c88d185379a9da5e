"""G16-EfficientNet with group norm and proxy-normalised activations.

Expect: no published figure for these sizes.
On CIFAR-10 (docs/ablation.md): 80.7 %, TINY at width 0.25 and depth 0.3, 30 epochs, one seed, float32, the groups of
adjacent channels.
Run: launch.py --experiment=g16_gn_pn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.norm = "gn_pn"
    config.model.strided_groups = True  # as the published networks: channel c in group c modulo 4
    return config

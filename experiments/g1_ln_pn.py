"""G1-EfficientNet with layer norm and proxy-normalised activations: the norm alone, without group convolution.

Expect: no published figure for these sizes.
On CIFAR-10 (docs/ablation.md): 81.0 %, TINY at width 0.5 and depth 0.3, 30 epochs, one seed.
Run: launch.py --experiment=g1_ln_pn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.group_size = 1
    config.model.expand_ratio = 6
    return config

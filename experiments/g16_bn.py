"""G16-EfficientNet with batch norm: group convolution alone, without the change of norm.

Expect: no published figure for these sizes.
On CIFAR-10 (docs/ablation.md): 81.8 %, TINY at width 0.25 and depth 0.3, 30 epochs, three seeds;
85.3 %, CIFAR at the same, one seed, float32.
Run: launch.py --experiment=g16_bn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.norm = "bn"
    return config

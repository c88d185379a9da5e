"""G16-EfficientNet with layer norm and plain activations: what proxy normalisation is compared with.

Expect: below g16_ln_pn; no published figure for these sizes.
On CIFAR-10 (docs/ablation.md): 80.5 %, TINY at width 0.25 and depth 0.3, 30 epochs, one seed, float32.
Run: launch.py --experiment=g16_ln:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import experiments


def get_config(arg=""):
    config = experiments.load("g16_ln_pn", arg)
    config.model.norm = "ln"
    return config

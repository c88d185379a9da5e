"""G16-EfficientNet with layer norm and proxy-normalised activations: the paper's network.

Expect: top-1 at native resolution after fine-tuning, B0..B5: 79.42 81.34 81.81 82.63 83.39 84.06 %
(readings off the published summary figure, about 0.03 %). At half resolution: 78.30 80.50 81.18 81.98 83.00 83.81 %.
Run: launch.py --experiment=g16_ln_pn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)
"""

from g16net.config import recipe


def get_config(arg=""):
    config = recipe.get_config(arg)
    config.model.group_size = 16
    config.model.expand_ratio = 4
    config.model.norm = "ln_pn"
    return config

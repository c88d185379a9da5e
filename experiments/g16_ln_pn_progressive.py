"""G16-EfficientNet with LN+PN, trained at sizes that grow: half the final size at first, in four equal parts.

Expect: no published figure; about 60 % of the multiply-adds of training at the final size throughout.
Run: launch.py --experiment=g16_ln_pn_progressive:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the
     embedded digits; parts=4 sizes)
"""

from g16net import config as config_lib
from g16net.config import experiments, recipe


def get_config(arg=""):
    args = config_lib.parse_arg(arg, variant="", resolution="native", small=False, demo=False, parts=4)
    rest = [part for part in arg.split(",") if not part.strip().startswith("parts")]
    config = experiments.load("g16_ln_pn", ",".join(rest))
    config_lib.check_fields(config)  # an unknown variant has no sizes
    config.data.progressive = recipe.progressive_sizes(config.model.variant, args.resolution, args.parts)
    return config

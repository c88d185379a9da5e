"""Every norm at group sizes 1 and 16, over three seeds, each trained, fine-tuned and tested at several sizes.

Expect: LN+PN matches or beats BN, GN with proxy norm beats GN (paper, section 6), where the data is ImageNet. The demo
form on digits shows the machinery; its differences mean little.
Run: launch.py --mode=sweep --experiment=norms --workdir=runs/norms --jobs=2
     (after a colon: variant=B0, resolution=native, seeds=3, `demo` for the embedded digits)
"""

from g16net import config as config_lib
from g16net import sweep
from g16net.models import architecture

NETWORKS = [
    {"name": f"g{group_size}_{norm}", "model.norm": norm, "model.group_size": group_size, "model.expand_ratio": ratio}
    for group_size, ratio in ((1, 6), (16, 4))
    for norm in ("bn", "gn", "ln", "gn_pn", "ln_pn")
]


def get_runs(arg=""):
    args = config_lib.parse_arg(arg, variant="", resolution="native", seeds=3, demo=False)
    start = "demo" if args.demo else f"resolution={args.resolution}"
    variant = args.variant or ("CIFAR" if args.demo else "B0")
    scale = architecture.VARIANTS[variant]
    size = (scale.half or scale.native) if args.resolution == "half" else scale.native
    sizes = tuple(size + scale.stride * step for step in (0, 1, 2))
    return sweep.grid(
        name="{network}-{seed}",
        experiment=f"g16_ln_pn:{start},variant={variant}",
        modes=("train", "finetune", "evaluate"),
        fields={"run.seed": "{seed}", "finetune.sizes": sizes, "eval.sizes": sizes},
        network=NETWORKS,
        seed=list(range(args.seeds)),
    )

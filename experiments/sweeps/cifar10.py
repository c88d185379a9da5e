r"""The paper's claims on CIFAR-10: norms, groups, rates; small networks of the family, 30 epochs, hours on two cores.

Two sizes of about the same parameters: "t" with maps of 16 pixels (TINY, stem stride 2), "c" with maps of 32 (CIFAR).
G1 is twice as wide as G16 and has 0.93 to 0.98 of its multiply-adds. Written down before the runs:

- Recipe: SGD with Nesterov momentum, batch 128, cosine after one epoch of warm-up, L2 of 5e-4; regularised as the
  paper's B0 (mixup 0.1, label smoothing 0.1, no CutMix), stochastic depth 0.9, an average of the weights by updates
  (0.999), which is what is tested; shifts filled by reflection, flips; mixed bfloat16.
- Rate: per convolution and norm the best top-1 of 0.05, 0.1 and 0.2 after 10 epochs at size "t" with seed 100
  (`cifar10:part=rates`), for both sizes and all seeds; 0.1 where it is within 0.3 points of the best.
- Claims: LN+PN is at least level with BN (0.3 points), G16 and G1; LN+PN above LN, GN+PN above GN (G16), LN+PN above
  GN (both); G16 above G1 at equal multiply-adds with BN, GN and LN+PN.
- Pairs and verdict: same size, same seed, 0 to 2; as in `docs/claims.py`: the mean of both sizes and all six pairs
  have the sign, or it cannot be told.

Run: launch.py --mode=sweep --experiment=cifar10:part=norms --workdir=runs/cifar10 --jobs=2 --data=cifar10
     (parts: rates, norms; `--data` names CIFAR-10 in any form that is read)
"""

from g16net import config as config_lib
from g16net import sweep

# variant, and width and depth by group size
SIZES = {"t": ("TINY", {16: (0.25, 0.3), 1: (0.5, 0.3)}), "c": ("CIFAR", {16: (0.25, 0.3), 1: (0.5, 0.3)})}
NETWORKS = ("g16-bn", "g16-ln_pn", "g1-bn", "g1-ln_pn", "g16-gn", "g1-gn", "g16-ln", "g16-gn_pn")
RATES = (0.05, 0.1, 0.2)
RATE = {}  # by network, where it is not 0.1: see the rule above
FIELDS = {
    "data.train_size": 32,
    "data.eval_size": 32,
    "data.crop": "reflect",
    "data.mixup": 0.1,
    "data.cutmix": 1.0,
    "run.epochs": 30,
    "run.global_batch": 128,
    "optim.name": "sgd",
    "optim.weight_decay": 5e-4,
    "schedule.warmup_epochs": 1.0,
    "regularise.survival_prob": 0.9,
    "regularise.ema": 0.999,
    "runtime.precision": "mixed_bfloat16",
    "eval.every_epochs": 5,
}


def one(size, network, seed, name="", **changes):
    conv, _, norm = network.partition("-")
    group_size = int(conv[1:])
    variant, scale = SIZES[size]
    width, depth = scale[group_size]
    fields = {
        **FIELDS,
        "model.width": width,
        "model.depth": depth,
        "model.group_size": group_size,
        "model.expand_ratio": 6 if group_size == 1 else 4,
        "model.norm": norm,
        "optim.learning_rate": RATE.get(network, 0.1),
        "run.seed": seed,
        **changes,
    }
    return sweep.run(name or f"{size}-{network}-{seed}", f"g16_ln_pn:small,variant={variant}", ["train"], **fields)


def rates():
    short = {"run.epochs": 10}
    return [
        one("t", network, 100, f"rate-{rate}-{network}", **short, **{"optim.learning_rate": rate})
        for network in NETWORKS
        for rate in RATES
    ]


def norms(seeds):
    """Whole grids before more seeds: a sweep cut short is of use."""
    return [one(size, network, seed) for seed in range(seeds) for size in SIZES for network in NETWORKS]


def get_runs(arg=""):
    args = config_lib.parse_arg(arg, part="norms", seeds=3)
    return {"rates": rates, "norms": lambda: norms(args.seeds)}[args.part]()

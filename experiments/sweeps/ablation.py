r"""Convolutions x norms x resolutions at three sizes and three seeds: the paper's claims on Fashion-MNIST, in hours.

Small networks of the family (stem stride 2, widths 0.25 and 0.35) at 48 pixels, from images of 28; half of that are
32 pixels, fine-tuned (top) and tested at 48. One pass over the 60,000 images. The rate was chosen once, by
`ablation:rates`, as the best mean accuracy of three networks, and is the same for all. `docs/ablation.md` says what
each claim of the paper comes to here.
Expect: G16 above G1 at each size; LN+PN at least level with BN; half and fine-tuned a little below native at its cost.
Run: launch.py --mode=sweep --experiment=ablation --workdir=runs/ablation --jobs=2 \
         --data=/usr/share/datasets/fashion-mnist
"""

from g16net import config as config_lib
from g16net import sweep

SIZES = {"s": (0.25, 0.3), "m": (0.25, 0.5), "l": (0.35, 0.6)}  # width, depth
NORMS = {"g1": ("bn", "gn", "ln_pn"), "g16": ("bn", "gn", "ln", "gn_pn", "ln_pn")}
HALF = ("g16-bn", "g16-gn", "g16-ln_pn")
RATES = (0.0025, 0.005, 0.01)
RATE = 0.005
FIELDS = {
    "data.train_size": 48,
    "data.eval_size": 48,
    "data.flip": True,
    "run.epochs": 1,
    "run.global_batch": 64,
    "schedule.warmup_epochs": 0.1,
    "regularise.survival_prob": 1.0,
    "regularise.average": 0.0,
    "eval.weights": "raw",
    "eval.batch": 250,
}


def network(name):
    conv, _, norm = name.partition("-")
    group_size = int(conv[1:])
    return {"model.group_size": group_size, "model.expand_ratio": 6 if group_size == 1 else 4, "model.norm": norm}


def one(size, name, seed, half=False, rate=RATE):
    width, depth = SIZES[size]
    fields = dict(FIELDS, **network(name), **{"model.width": width, "model.depth": depth, "run.seed": seed})
    fields.update({"optim.learning_rate": rate, "eval.sizes": (32, 48, 64)})
    modes = ["train", "evaluate"]
    if half:
        fields.update({"data.train_size": 32, "finetune.sizes": (48,), "finetune.learning_rate": rate / 4})
        fields.update({"finetune.epochs": 1, "finetune.warmup_epochs": 0.1, "finetune.global_batch": 64})
        modes.insert(1, "finetune")
    title = f"{size}-{name}-{'half' if half else 'native'}-{seed}"
    return sweep.run(title, "g16_ln_pn:demo,variant=TINY", modes, **fields)


def get_runs(arg=""):
    args = config_lib.parse_arg(arg, seeds=3, rates=False)
    if args.rates:
        tried = ("g1-bn", "g16-bn", "g16-ln_pn")
        return [
            dict(one("s", name, seed=100, rate=rate), name=f"rate-{rate}-{name}") for rate in RATES for name in tried
        ]
    names = [f"{conv}-{norm}" for conv, norms in NORMS.items() for norm in norms]
    runs = []
    for seed in range(args.seeds):  # the outer loop: a sweep that is cut short has whole grids
        for size in SIZES:
            runs += [one(size, name, seed) for name in names]
            runs += [one(size, name, seed, half=True) for name in HALF]
    return runs

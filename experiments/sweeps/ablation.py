r"""Convolutions x norms x resolutions at three sizes and three seeds: the paper's claims on Fashion-MNIST, in hours.

Small networks of the family (stem stride 2, widths 0.25 and 0.35) at 48 pixels, from images of 28; half of that are
32 pixels, fine-tuned (the top; the last two stages too) and tested at 48. Two passes over the 60,000 images. The rate
was chosen once, by `ablation:rates` (one pass), as the best mean accuracy of three networks, and is the same for all.
Expect: G16 above G1 at each size; LN+PN at least level with BN; half and fine-tuned a little below native at its cost.
Run: launch.py --mode=sweep --experiment=ablation --workdir=runs/ablation --jobs=2 \
         --data=/usr/share/datasets/fashion-mnist
"""

from g16net import config as config_lib
from g16net import sweep

SIZES = {"s": (0.25, 0.3), "m": (0.25, 0.5), "l": (0.35, 0.6)}  # width, depth
TEST_SIZES = (32, 48, 64)  # of seed 0; the others at 48 alone
# Trained at the test size; at half of it, then the top fine-tuned; of the same training, the last two stages too.
NATIVE, HALF, DEEP = "native", "half", "deep"
CORE = (("g1-bn", NATIVE), ("g16-bn", NATIVE), ("g16-ln", NATIVE), ("g16-ln_pn", NATIVE), ("g16-ln_pn", HALF))
REST = (("g16-gn", NATIVE), ("g16-gn_pn", NATIVE), ("g1-gn", NATIVE), ("g1-ln_pn", NATIVE), ("g16-bn", HALF))
LAST = (("g16-bn", DEEP), ("g16-ln_pn", DEEP))
RATES = (0.005, 0.01, 0.02)
RATE = 0.005
FIELDS = {
    "data.train_size": 48,
    "data.eval_size": 48,
    "data.flip": True,
    "model.mean": (72.9, 72.9, 72.9),  # of the training images, as the recipe has ImageNet's
    "run.epochs": 2,
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


def one(size, name, seed, kind=NATIVE, rate=RATE):
    width, depth = SIZES[size]
    fields = dict(FIELDS, **network(name), **{"model.width": width, "model.depth": depth, "run.seed": seed})
    fields.update({"optim.learning_rate": rate, "eval.sizes": TEST_SIZES if seed == 0 else (48,)})
    modes = ["train", "evaluate"]
    if kind != NATIVE:
        fields.update({"data.train_size": 32, "finetune.sizes": (48,), "finetune.learning_rate": rate / 4})
        fields.update({"finetune.epochs": 1, "finetune.warmup_epochs": 0.1, "finetune.global_batch": 64})
        modes = ["train", "finetune", "evaluate"]
    if kind == DEEP:
        fields["finetune.layers"] = "top,block7,block6"
        modes = ["train", "finetune"]  # HALF has the rest
    return sweep.run(f"{size}-{name}-{kind}-{seed}", "g16_ln_pn:demo,variant=TINY", modes, **fields)


def get_runs(arg=""):
    args = config_lib.parse_arg(arg, seeds=3, rates=False)
    if args.rates:
        tried = ("g1-bn", "g16-bn", "g16-ln_pn")
        trials = [(name, rate, one("s", name, seed=100, rate=rate)) for rate in RATES for name in tried]
        for name, rate, trial in trials:
            trial["name"] = f"rate-{rate}-{name}"
            trial["fields"]["run.epochs"] = 1
        return [trial for _, _, trial in trials]
    # What the claims hang on comes first, and whole grids come before more seeds: a sweep cut short is of use.
    return [
        one(size, name, seed, kind)
        for part in (CORE, REST, LAST)
        for seed in range(args.seeds)
        for size in SIZES
        for name, kind in part
    ]

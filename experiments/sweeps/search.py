"""Learning rates x norms on the embedded digits: every combination to its end, or by ASHA, which stops bad ones early.

The grid is a sweep. As a script, this file gives the same combinations to Ray Tune: after 1 and 3 epochs a run goes on
only if it is among the best third so far.
Expect: a third of the epochs (measured: 49 of 135, 12 of 15 runs stopped) and a good combination, 97.2 %, if not always
the best: the grid's is bn at 0.03 with 98.1 %, which ASHA stopped at 10 % after one epoch.
Run: launch.py --mode=sweep --experiment=search --workdir=runs/search --jobs=2
     python experiments/sweeps/search.py --workdir=runs/asha     # pip install 'g16net[cluster]'
"""

import argparse
import os

from g16net import sweep

EXPERIMENT, DATA = "g16_ln_pn:demo,variant=NANO", "digits"
RATES = (0.01, 0.003, 0.03, 0.001, 0.0003)  # the likely ones first: ASHA compares with what has ended
NORMS = ("bn", "gn", "ln_pn")
EPOCHS = 9


def get_runs(arg=""):
    fields = {"model.norm": "{norm}", "optim.learning_rate": "{rate}", "run.epochs": EPOCHS}
    return sweep.grid("{norm}-{rate}", EXPERIMENT, ["train"], DATA, fields, norm=NORMS, rate=RATES)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", default="runs/asha", help="a folder that all nodes share")
    parser.add_argument("--cluster", help="auto or HOST:PORT; without it Ray starts on this machine for the search")
    args = parser.parse_args()

    import ray
    from ray import tune

    from g16net.search import trainable

    ray.init(address=args.cluster, log_to_driver=False)
    workdir = os.path.abspath(args.workdir)
    tuner = tune.Tuner(
        trainable(EXPERIMENT, DATA, workdir, run__epochs=EPOCHS),
        param_space={"model.norm": tune.grid_search(list(NORMS)), "optim.learning_rate": tune.grid_search(list(RATES))},
        tune_config=tune.TuneConfig(
            metric="top1",
            mode="max",
            scheduler=tune.schedulers.ASHAScheduler("epoch", max_t=EPOCHS, grace_period=1, reduction_factor=3),
            reuse_actors=True,  # the next run is forked from a process that has imported TensorFlow
        ),
        run_config=tune.RunConfig(name="tune", storage_path=workdir, verbose=1),
    )
    results = sorted(tuner.fit(), key=lambda result: -result.metrics.get("top1", 0.0))
    for result in results:
        space = ", ".join(f"{key}={result.config[key]}" for key in sorted(result.config))
        print(f"{result.metrics.get('epoch', 0):3} epochs  {100 * result.metrics.get('top1', 0.0):6.2f} %  {space}")
    epochs = sum(result.metrics.get("epoch", 0) for result in results)
    stopped = sum(result.metrics.get("epoch", 0) < EPOCHS for result in results)
    print(f"{stopped} of {len(results)} runs stopped early; {epochs} epochs of the grid's {EPOCHS * len(results)}")


if __name__ == "__main__":
    main()

"""Search for settings: a run as a trainable of Ray Tune, whose schedulers stop bad runs early by their epochs' records.

    from ray import tune
    from g16net.search import trainable

    tuner = tune.Tuner(
        trainable("g16_ln_pn:demo", "digits", "runs/search"),
        param_space={"optim.learning_rate": tune.loguniform(1e-3, 1e-1), "model.norm": tune.choice(["bn", "ln_pn"])},
        tune_config=tune.TuneConfig(
            metric="top1", mode="max", num_samples=20, scheduler=tune.schedulers.ASHAScheduler("epoch", max_t=30)
        ),
    )
    tuner.fit()

A whole script: `experiments/sweeps/search.py`.
"""

import multiprocessing.connection
import os

from g16net import extras
from g16net.cli.main import main
from g16net.run import records
from g16net.run.workdir import Workdir
from g16net.sweep import local, state
from g16net.sweep.grid import arguments, run

POLL_SECONDS = 0.2  # between looks for the record of a new epoch


def trainable(experiment, data, workdir, **fields):
    """A class for `ray.tune.Tuner`; what it is given by `param_space` are fields: `{"optim.learning_rate": 0.01}`.

    It reports the record of each epoch, with `top1` of the averaged weights where there are any. A trial is the run in
    `WORKDIR/TRIAL`; where its node dies (`tune.FailureConfig(max_failures=3)`), it resumes from its newest checkpoint.

    Args:
        experiment, data: as after `--experiment=` and `--data=`.
        workdir: a folder that all nodes share.
        **fields: those of every trial, with two underscores for the point: `run__epochs=30`.
    """
    tune = extras.need("ray.tune", "cluster", "g16net.search")
    workdir, cwd = os.path.abspath(workdir), os.getcwd()

    class Run(tune.Trainable):
        def setup(self, config):
            one = run(self.trial_id, experiment, ["train"], data, **{**fields, **config})
            self._folder = os.path.join(workdir, one["name"])
            self._seen, self._top1 = 0, None
            argv = ["launch.py"] + arguments(one, workdir)
            threads = int(self.trial_resources.required_resources.get("CPU", 0)) if self.trial_resources else None
            self._process = local.start(
                main, argv, self._folder, threads=threads or None, environment=local.gpus(), cwd=cwd
            )

        def step(self):
            """The record of the next epoch."""
            files = Workdir(self._folder)
            while True:
                running = self._process.exitcode is None  # before its records are read
                epochs = records.by_epoch(records.read_lines(files.records))
                record = next((record for record in epochs if record["epoch"] > self._seen), None)
                if record:
                    break
                if not running:
                    raise RuntimeError(local.last_line(os.path.join(self._folder, "run.log")))
                multiprocessing.connection.wait([self._process.sentinel], timeout=POLL_SECONDS)
            self._seen = record["epoch"]
            self._top1 = record.get("eval_top1_average", record.get("eval_top1", self._top1))
            last = self._seen == state.read(files.config)["run"]["epochs"]
            if last:
                self._process.join(local.SAVE_SECONDS)  # it writes its figures
            return {**record, "top1": self._top1, "workdir": self._folder, "done": last}

        def save_checkpoint(self, checkpoint_dir):
            """The state is in the workdir."""

        def load_checkpoint(self, checkpoint):
            """The run has found it there."""

        def reset_config(self, new_config):
            self.cleanup()
            self.setup(new_config)
            return True

        def cleanup(self):
            """Ends a run that was stopped."""
            local.end([self._process])

    return Run

"""What several test files need: where things are, tiny runs, commands, runs that die."""

import itertools
import os
import subprocess
import sys
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GOLDEN = os.path.join(ROOT, "tests", "golden")


# Parameters


def pairs(*choices):
    """The product of all `choices` but the last, whose values come in turns, so that any two values still meet."""
    *firsts, last = choices
    places = itertools.product(*(range(len(choice)) for choice in firsts))
    return [(*(c[i] for c, i in zip(firsts, place)), last[sum(place) % len(last)]) for place in places]


# Images


def pixels(batch, size):
    """float32 [batch, size, size, 3] of whole numbers up to 255."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype("float32")


# Runs


def changed(config, **changes):
    """The resolved `config` with `changes` given as section__field=value."""
    from g16net import recipe

    for key, value in changes.items():
        section, field = key.split("__")
        config[section][field] = value
    return recipe.resolve(config)


def tiny(experiment="g16_ln_pn:demo,variant=NANO", **changes):
    """A resolved config of one epoch over 64 synthetic pictures of 5 classes, in batches of 16, with the smallest
    network; `changes` as section__field=value."""
    from g16net import experiments

    config = experiments.load(experiment)
    config.data.name, config.data.num_examples, config.data.num_classes = "synthetic", 64, 5
    config.run.epochs, config.run.global_batch, config.eval.batch = max(len(config.data.progressive), 1), 16, 32
    config.schedule.warmup_epochs = 0.0
    return changed(config, **changes)


class Died(Exception):
    """How a test ends a run."""


def train_until(step, action, config, workdir):
    """Trains `config` in `workdir`, with `action()` after the `step`-th update counted from where the run starts."""
    from g16net import train

    position, count = train.Position.on_train_batch_end, [0]

    def counted(self, batch, logs=None):
        position(self, batch, logs)
        count[0] += 1
        if count[0] == step:
            action()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Position, "on_train_batch_end", counted)
        train.train(config, str(workdir))


def die():
    raise Died


# Commands


def command(*arguments):
    """The command line of `launch.py` with `arguments`."""
    return [sys.executable, os.path.join(ROOT, "launch.py"), *arguments]


def launch(*arguments, cwd=ROOT, **environment):
    """`launch.py` in a process of its own, which chooses the Keras generation itself; the finished process."""
    inherited = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    return subprocess.run(
        command(*arguments),
        cwd=str(cwd),
        env=dict(inherited, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )


def call(capsys, *arguments):
    """`(status, what it printed)` of a command in this process."""
    from g16net import cli

    cli.FLAGS.unparse_flags()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(["g16net", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return end.value.code, out + err


def wait_for(condition, seconds=120):
    """Returns once `condition()` holds."""
    until = time.time() + seconds
    while not condition():
        assert time.time() < until, "waited in vain"
        time.sleep(0.05)

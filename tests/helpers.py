"""What several test files need: where things are, tiny runs, commands, runs that die."""

import itertools
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

# What does not depend on the Keras generation, yet takes a while with each: with Keras 3 in `make test-all`.
slow_with_keras3 = pytest.mark.slow if os.environ.get("TF_USE_LEGACY_KERAS") == "0" else pytest.mark.run

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GOLDEN = pathlib.Path(ROOT, "tests", "golden")


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
    from g16net.config import recipe

    for key, value in changes.items():
        section, field = key.split("__")
        config[section][field] = value
    return recipe.resolve(config)


def tiny(experiment="g16_ln_pn:demo,variant=NANO", **changes):
    """A resolved config of one epoch over 64 synthetic pictures of 5 classes with the smallest network: training in
    batches of 16, evaluation in batches of 24, which leave a remainder; `changes` as section__field=value."""
    from g16net.config import experiments

    config = experiments.load(experiment)
    config.data.name, config.data.num_examples, config.data.num_classes = "synthetic", 64, 5
    config.run.epochs, config.run.global_batch, config.eval.batch = max(len(config.data.progressive), 1), 16, 24
    config.schedule.warmup_epochs = 0.0
    return changed(config, **changes)


def untrained_run(workdir, config):
    """Makes `workdir`, a pathlib.Path, a run of `config` with a checkpoint of a network that was not trained. Returns
    its path as text."""
    from g16net import config as config_lib
    from g16net.optim.weight_average import WeightAverage
    from g16net.run import assemble, checkpoint, records

    workdir.mkdir(exist_ok=True)
    config_lib.save(config, str(workdir / "config.json"))
    source = assemble.open_source_of(config, "eval")
    records.write_json(str(workdir / "classes.json"), list(source.class_names))
    model = assemble.model(config, source.num_classes)
    average = WeightAverage(model, config.regularise.average)
    average.update(model)
    variables = checkpoint.state(model=model, average=average)
    checkpoint.Checkpoints(str(workdir / "checkpoints"), variables, background=False).save(1, epoch=config.run.epochs)
    return str(workdir)


class Died(Exception):
    """How a test ends a run."""


def train_until(step, action, config, workdir):
    """Trains `config` in `workdir`, with `action()` after the `step`-th update counted from where the run starts."""
    from g16net.training import callbacks, train

    position, count = callbacks.Position.on_train_batch_end, [0]

    def counted(self, batch, logs=None):
        position(self, batch, logs)
        count[0] += 1
        if count[0] == step:
            action()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Position, "on_train_batch_end", counted)
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
    """`(status, what it printed)` of a command in this process; what modes print past `sys.stdout` takes `capfd` in the
    place of `capsys`."""
    from g16net.cli import main as cli

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


# Checkpoints


def check_held_back(saved, model, data, steps, monkeypatch):
    """A save whose thread is held back until training has gone on holds the values of its own step alone."""
    import numpy as np
    import tensorflow as tf
    from tensorflow import keras

    trained_on, write, expected = threading.Event(), saved._write, {}

    def late(*arguments):
        assert trained_on.wait(60)
        write(*arguments)

    monkeypatch.setattr(saved, "_write", late)

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not expected:
                expected.update({name: value.numpy() for name, value in saved.variables.items()})
                saved.save(1, epoch=0)

    model.fit(data, steps_per_epoch=steps, callbacks=[Save()], verbose=0)
    assert any(np.any(saved.variables[name].numpy() != value) for name, value in expected.items())
    trained_on.set()
    saved.wait()
    stored = tf.train.load_checkpoint(os.path.join(saved.directory, "00000001", "state"))
    for name, value in expected.items():
        np.testing.assert_array_equal(stored.get_tensor(name), value, err_msg=name)

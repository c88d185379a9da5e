"""Replicas and workers: each setting trains as one device does at the same global batch."""

import json
import os
import signal
import socket
import subprocess
import time
import types

import helpers
import pytest
import tensorflow as tf

from g16net import compat
from g16net.config.batches import split
from g16net.errors import ConfigError
from g16net.run import records, scoring
from g16net.training import callbacks, evaluate, train

pytestmark = [
    pytest.mark.run,
    pytest.mark.skipif(compat.KERAS3, reason="Keras 3 cannot fit on several workers (keras-team/keras#20585)"),
]

# Draws of dropout and stochastic depth differ from replica to replica.
PLAIN = ["--config.regularise.survival_prob=1", "--config.regularise.dropout=0"]


def command(workdir, *options, epochs=2, mode="train"):
    return helpers.command(
        "--experiment=g16_ln_pn:demo,variant=NANO", f"--mode={mode}", "--data=synthetic",
        "--config.data.num_examples=64", "--config.data.num_classes=5", f"--config.run.epochs={epochs}",
        "--config.run.global_batch=16", "--config.eval.batch=24", "--config.schedule.warmup_epochs=0",
        f"--workdir={workdir}", *options,
    )  # fmt: skip


def start(*arguments, **kwargs):
    return subprocess.Popen(
        command(*arguments, **kwargs), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )


def finish(process, status=0, timeout=900):
    """What the process printed."""
    try:
        output = process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == status, output
    return output


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(*workdirs, options=(), count=2, **kwargs):
    """The processes, the chief first, in one workdir or in one each."""
    addresses = ",".join(f"localhost:{port}" for port in free_ports(count))
    return [
        start(
            workdirs[index % len(workdirs)], "--config.runtime.strategy=multiworker",
            f"--config.runtime.workers={addresses}", f"--config.runtime.worker={index}", *options, **kwargs,
        )
        for index in range(count)
    ]  # fmt: skip


def history(workdir):
    return records.by_epoch(records.read_lines(os.path.join(workdir, "records.jsonl")))


def assert_same_trajectory(workdir, reference):
    ours, theirs = history(workdir), history(reference)
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs):
        for key in ("loss", "eval_loss", "eval_loss_average"):
            assert one[key] == pytest.approx(other[key], rel=2e-4), key
        assert abs(one["eval_top1"] - other["eval_top1"]) < 0.01


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of a run on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    train.train(as_alone(), str(workdir))
    return workdir


def as_alone(**changes):
    return helpers.tiny(run__epochs=2, regularise__survival_prob=1.0, regularise__dropout=0.0, **changes)


@pytest.mark.slow
def test_two_workers_train_as_one_and_the_chief_alone_writes(alone, tmp_path):
    workdirs = tmp_path / "chief", tmp_path / "other"
    chief, other = start_workers(*workdirs, options=PLAIN)
    outputs = finish(chief), finish(other)
    assert_same_trajectory(workdirs[0], alone)
    assert (workdirs[0] / "train.json").exists() and (workdirs[0] / "checkpoints").is_dir()
    assert not workdirs[1].exists() or not os.listdir(workdirs[1])
    assert "2 replicas in 2 processes" in outputs[0]
    assert "Everything is in" in outputs[0] and "Everything is in" not in outputs[1]


@pytest.mark.slow
def test_two_workers_evaluate_together_and_the_chief_exports(tmp_path):
    options = [*PLAIN, "--config.eval.per_class=true"]
    chief, other = start_workers(tmp_path, options=options, mode="train,evaluate,export")
    outputs = finish(chief), finish(other)
    assert "Everything is in" in outputs[0] and "Everything is in" not in outputs[1]
    figures = json.loads((tmp_path / "evaluate.json").read_text())
    assert figures["images"] == 64
    assert figures["loss"] == pytest.approx(history(tmp_path)[-1]["eval_loss_average"], rel=1e-5)
    assert (tmp_path / "saved_model").is_dir()
    pages = [(tmp_path / "classes" / "average-32px.html").read_text()]
    finish(start(tmp_path, *options, mode="evaluate"))  # alone
    pages.append((tmp_path / "classes" / "average-32px.html").read_text())
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_batch_norm_on_two_workers_saves_equal_statistics(tmp_path):
    chief, other = start_workers(tmp_path, options=[*PLAIN, "--config.model.norm=bn"], epochs=1)
    finish(chief), finish(other)
    assert history(tmp_path)[0]["eval_loss"] > 0


@pytest.mark.parametrize(
    "options",
    [["--config.runtime.virtual_cpus=2"], pytest.param(["--config.runtime.virtual_cpus=1"], marks=pytest.mark.slow)],
)
def test_mirrored_devices_train_as_one(options, alone, tmp_path):
    options = ["--config.runtime.strategy=mirrored", "--config.eval.per_class=true", *options, *PLAIN]
    output = finish(start(tmp_path, *options, mode="train,evaluate"))
    assert_same_trajectory(tmp_path, alone)
    assert ("2 replicas in 1 process" in output) == ("virtual_cpus=2" in str(options))
    page = tmp_path / "classes" / "average-32px.html"  # names the files of the worst mistakes
    mirrored = page.read_text()
    evaluate.evaluate(as_alone(eval__per_class=True), str(tmp_path))
    assert page.read_text() == mirrored


@pytest.mark.slow
def test_figures_of_batch_norm_on_replicas_are_those_of_their_checkpoint(tmp_path):
    options = [
        "--config.runtime.strategy=mirrored",
        "--config.runtime.virtual_cpus=2",
        "--config.model.norm=bn",
        *PLAIN,
    ]
    options += ["--config.regularise.average=0", "--config.eval.weights=raw"]
    finish(start(tmp_path, *options, epochs=2))
    (record,) = history(tmp_path)[1:]
    found = evaluate.evaluate(as_alone(model__norm="bn", eval__weights="raw", regularise__average=0.0), str(tmp_path))
    assert record["eval_loss"] == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.slow
def test_accumulation_on_two_replicas_trains_as_one_pass_on_one(alone, tmp_path):
    options = [
        "--config.runtime.virtual_cpus=2",
        "--config.runtime.grad_accumulation=2",
        "--config.runtime.micro_batch=4",
    ]
    output = finish(start(tmp_path, "--config.runtime.strategy=mirrored", *options, *PLAIN))
    assert_same_trajectory(tmp_path, alone)
    assert "2 replicas in 1 process" in output


@pytest.mark.slow
def test_a_killed_worker_ends_the_others_who_say_so_and_all_go_on(tmp_path):
    options = [*PLAIN, "--config.checkpoint.every_steps=5"]
    chief, other = start_workers(tmp_path, options=options, epochs=500)
    while not history(tmp_path):
        assert chief.poll() is None, chief.communicate()[0]
        time.sleep(0.2)
    other.send_signal(signal.SIGKILL)
    output = finish(chief, status=1, timeout=120)
    finish(other, status=-signal.SIGKILL)
    assert "error: worker 0 of 2 lost the others" in output and "start all workers again" in output
    before = sorted(os.listdir(tmp_path / "checkpoints"))[-1]
    chief, other = start_workers(tmp_path, options=options, epochs=500)
    while sorted(os.listdir(tmp_path / "checkpoints"))[-1] <= before:
        assert chief.poll() is None, chief.communicate()[0]
        time.sleep(0.2)
    other.send_signal(signal.SIGTERM)  # one is told to stop: both save and end
    output = finish(chief, status=143, timeout=120)
    assert f"Restored {tmp_path}/checkpoints/" in output and "stopped by a signal to another worker at step" in output
    assert "stopped by SIGTERM" in finish(other, status=143)


@pytest.mark.slow
def test_a_second_process_in_a_workdir_is_refused(tmp_path):
    first = start(tmp_path, epochs=500)
    while not history(tmp_path):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.2)
    output = finish(start(tmp_path, epochs=500), status=2)
    assert f"is in use: process {first.pid} on" in output
    first.send_signal(signal.SIGTERM)
    assert "the same command goes on from there" in finish(first, status=143)


@pytest.mark.parametrize("chief", [True, False])
def test_the_chief_alone_records(chief, tmp_path):
    devices = types.SimpleNamespace(chief=chief)
    book = callbacks.Bookkeeping(as_alone(), str(tmp_path), None, None, None, None, None, devices, None, None, None)
    book._record({"kind": "epoch", "epoch": 1, "step": 4, "loss": 1.0})
    assert [row["loss"] for row in history(tmp_path)] == ([1.0] if chief else [])
    assert sorted(os.listdir(tmp_path)) == (["records.jsonl", "tensorboard"] if chief else [])


def test_statistics_that_replicas_keep_for_themselves_become_their_mean():
    class Statistic:
        synchronization, value = tf.VariableSynchronization.ON_READ, None

        def numpy(self):
            return 3.0  # what reading it across replicas gives

        def assign(self, value):
            self.value = value

    kept, shared = Statistic(), Statistic()
    shared.synchronization = tf.VariableSynchronization.AUTO
    scoring._one_for_all(types.SimpleNamespace(non_trainable_weights=[kept, shared]))
    assert (kept.value, shared.value) == (3.0, None)


def test_a_batch_that_does_not_divide_among_the_replicas():
    with pytest.raises(ConfigError, match="x 3 replicas = 126, not run.global_batch=128"):
        split(128, replicas=3)


def test_no_tpu(tmp_path, capsys):
    options = ("--config.runtime.strategy=tpu", "--config.runtime.tpu=local")
    status, shown = helpers.call(capsys, *command(tmp_path, *options)[2:])
    assert status == 2 and "runtime.strategy=tpu found no TPU by runtime.tpu='local'" in shown
    assert not history(tmp_path)

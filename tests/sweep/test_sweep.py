"""Sweeps: what a file declares, the queue between processes, and real runs that fail, are killed and are taken over."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, command, slow_with_keras3, wait_for
from made_data import class_folders

from g16net import native, sweep
from g16net.config import experiments
from g16net.errors import ConfigError, UserError

HEAD = "from g16net import sweep\ndef get_runs(arg=''):\n    return "
# Seconds a run: 64 synthetic pictures, eight updates an epoch.
QUICK = (
    "{'data.num_examples': 64, 'data.num_classes': 5, 'data.eval_size': 32, 'run.global_batch': 8, 'run.epochs': 1, "
    "'finetune.epochs': 1}"
)
TINY, NANO = (f"g16_ln_pn:demo,variant={variant}" for variant in ("TINY", "NANO"))


def write(path, text):
    path.write_text(HEAD + text + "\n")
    return str(path)


# What a file declares


def test_grid_fills_names_experiments_and_fields():
    runs = sweep.grid(
        "{net}-{seed}",
        "g16_{net}:demo",
        fields={"run.seed": "{seed}", "eval.sizes": (32, 48), "data.dir": "at/{seed}"},
        net=["ln", {"name": "gn", "model__norm_groups": 8}],
        seed=[1, 2],
    )
    assert [one["name"] for one in runs] == ["ln-1", "ln-2", "gn-1", "gn-2"]
    assert runs[3]["experiment"] == "g16_gn:demo"
    assert runs[3]["fields"] == {
        "run.seed": 2,
        "eval.sizes": (32, 48),
        "data.dir": "at/2",
        "model.norm_groups": 8,
    }
    assert runs[0]["fields"]["run.seed"] == 1 and "model.norm_groups" not in runs[0]["fields"]


def test_runs_of_the_same_training_train_once(tmp_path):
    path = write(
        tmp_path / "file.py",
        f"""[
        sweep.run("a", "{TINY}", data="digits"),
        sweep.run("b", "{TINY}", data="digits", finetune__sizes=(48,), modes=["finetune"]),
        sweep.run("c", "{TINY}", data="digits", run__seed=7),
        sweep.run("d", "{TINY}", data="synthetic"),
        sweep.run("e", "{TINY}", data="digits", eval__sizes=(32, 64)),
    ]""",
    )
    assert [one["after"] for one in sweep.load(path)] == [None, "a", None, None, "a"]
    assert sweep.load(path, [("run.seed", "3")])[2]["after"] == "a"


def test_the_same_run_on_other_data_is_another_training(tmp_path):
    for name in ("first", "second"):
        class_folders(str(tmp_path / name), {"ant": 4, "bee": 4})
    folders = {"a": "first", "b": "second", "c": "first"}
    runs = [f"sweep.run({n!r}, {TINY!r}, data={str(tmp_path / folder)!r})" for n, folder in folders.items()]
    path = write(tmp_path / "file.py", f"[{', '.join(runs)}]")
    assert [one["after"] for one in sweep.load(path)] == [None, None, "a"]


@pytest.mark.parametrize(
    "text, match",
    [
        ("[]", "gives no runs"),
        (f"[sweep.run('a/b', '{TINY}')]", "'a/b'.*its name"),
        (f"[sweep.run('queue', '{TINY}')]", "'queue'.*its name"),
        (f"[sweep.run('a', '{TINY}')] * 2", "'a'.*twice"),
        (f"[sweep.run('a', '{TINY}', modes=['trian'])]", "'a'.*'trian'.*'train'"),
        (f"[sweep.run('a', '{TINY}', run__epoch=3)]", "run.epochs"),
        (f"[sweep.run('a', '{TINY}', run__epochs=0)]", "'a'.*run.epochs.*at least 1"),
        ("[sweep.run('a', 'g16_lnpn')]", "g16_ln_pn"),
        (f"[sweep.run('a', '{TINY}', finetune__sizes=(50,))]", "'a'.*48 or 64"),
        (f"[sweep.run('a', '{TINY}', data='/no/such')]", "'a'.*/no/such"),
    ],
)
def test_mistakes_are_found_before_the_first_run(tmp_path, text, match):
    with pytest.raises(UserError, match=match):
        sweep.sweep(write(tmp_path / "file.py", text), str(tmp_path / "runs"))
    assert not os.path.exists(tmp_path / "runs")


def test_a_file_without_get_runs(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="no function get_runs"):
        sweep.load(str(tmp_path / "empty.py"))
    with pytest.raises(ConfigError, match="use --mode=sweep"):
        experiments.load(write(tmp_path / "file.py", "[]"))
    with pytest.raises(ConfigError, match="unknown sweep 'norm'. Did you mean 'norms'"):
        sweep.load("norm")


@pytest.mark.parametrize("text", experiments.names("sweeps") + ["norms:demo", "ablation:rates"])
def test_every_sweep_that_ships_is_sound(text):
    runs = sweep.load(text, data="digits")
    assert len({one["name"] for one in runs}) == len(runs) >= 2


def test_another_run_under_a_known_name_is_refused(tmp_path):
    runs = [dict(sweep.run("a", TINY, run__seed=1), after=None)]
    sweep.settle(runs, str(tmp_path))
    sweep.settle(runs + [dict(sweep.run("b", TINY), after=None)], str(tmp_path))
    with pytest.raises(UserError, match=r"run 'a'; it differs in\n  fields: .*1.*2"):
        sweep.settle([dict(sweep.run("a", TINY, run__seed=2), after=None)], str(tmp_path))
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 2


# The queue


def test_the_life_of_a_claim(tmp_path):
    queue = sweep.Queue(str(tmp_path))
    assert queue.state("a") == (sweep.WAITING, 0, {})
    claim = queue.claim("a")
    assert queue.state("a")[:2] == (sweep.RUNNING, 1)
    assert sweep.Queue(str(tmp_path)).claim("a") is None
    claim.finish(sweep.FAILED, error="ValueError: no")
    state, attempt, result = queue.state("a")
    assert (state, attempt, result["error"]) == (sweep.FAILED, 1, "ValueError: no")
    assert queue.claim("a") is None, "not without being asked"
    again = queue.claim("a", retry_before=time.time())
    assert again.attempt == 2 and queue.state("a")[:2] == (sweep.RUNNING, 2)
    again.finish(sweep.DONE)
    assert queue.state("a")[:2] == (sweep.DONE, 2)
    assert queue.claim("a", retry_before=time.time()) is None


def test_an_untouched_claim_of_another_machine_goes_stale(tmp_path, monkeypatch):
    elsewhere, here = sweep.Queue(str(tmp_path), stale=0.3), sweep.Queue(str(tmp_path), stale=0.3)
    monkeypatch.setattr(sweep, "place", lambda: "elsewhere")
    claim = elsewhere.claim("a")
    monkeypatch.undo()
    for _ in range(6):  # touched: alive, however long it takes
        assert here.state("a")[0] == sweep.RUNNING
        time.sleep(0.1)
        assert claim.touch()
    assert here.state("a")[0] == sweep.RUNNING
    time.sleep(0.4)
    assert here.state("a")[0] == sweep.STALE
    assert here.claim("a").attempt == 2
    assert not claim.touch(), "the old owner learns that it lost"


def test_a_claim_that_ended_while_it_was_taken_over_stays_ended(tmp_path, monkeypatch):
    queue = sweep.Queue(str(tmp_path))
    claim = queue.claim("a")
    claim.finish(sweep.DONE, seconds=3.0)
    monkeypatch.setattr(queue, "state", lambda name: (sweep.STALE, 1, {}))  # what was seen a moment before
    assert queue.claim("a") is None
    monkeypatch.undo()
    state, attempt, result = queue.state("a")
    assert (state, attempt, result["seconds"]) == (sweep.DONE, 2, 3.0)


CLAIMER = """
import os, sys, time
from g16net import sweep
queue = sweep.Queue(sys.argv[1])
while not os.path.exists(sys.argv[2]):
    pass
got = [name for name in map(str, range(40)) if queue.claim(name)]
print(" ".join(got), flush=True)
sys.stdin.read()  # alive, so that its claims are not stale
"""


@pytest.mark.run
@pytest.mark.once
@pytest.mark.parametrize("stale", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_run_is_claimed_twice(tmp_path, stale):
    folder, go = str(tmp_path / "queue"), str(tmp_path / "go")
    if stale:  # of a process that is gone
        code = f"from g16net import sweep\nq = sweep.Queue({folder!r})\nfor i in range(40): q.claim(str(i))"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMER, folder, go],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            universal_newlines=True,
        )
        for _ in range(4)
    ]
    time.sleep(1.0)
    open(go, "w").close()
    lines = [claimer.stdout.readline().split() for claimer in claimers]
    for claimer in claimers:
        claimer.communicate()
    assert sorted(sum(lines, []), key=int) == list(map(str, range(40)))
    attempts = {name.split(".")[1] for name in os.listdir(folder)}
    assert attempts == ({"1", "2"} if stale else {"1"})


def test_last_line_prefers_the_error(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("Traceback\n  file\nValueError: the loss\nsome warning at exit\n\n")
    assert sweep.last_line(str(log)) == "ValueError: the loss"
    log.write_text("one\ntwo\n")
    assert sweep.last_line(str(log)) == "two"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell a process' cores")
@pytest.mark.parametrize(
    "jobs, expected",
    [(1, [{2, 3, 5}]), (2, [{2}, {3, 5}]), (3, [{2}, {3}, {5}]), (4, [None] * 4)],
)
def test_runs_at_a_time_share_the_cores_that_the_scheduler_has(jobs, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 3, 2})
    assert sweep.shares(jobs) == expected


# Real runs


@slow_with_keras3
def test_failures_are_isolated_named_and_tried_again_on_demand(tmp_path):
    path = write(
        tmp_path / "file.py",
        f"""[
        dict(one, fields=dict({QUICK}, **one["fields"])) for one in (
            sweep.run("good", "{NANO}", data="synthetic"),
            sweep.run("tuned", "{NANO}", data="synthetic", modes=["finetune"]),
            sweep.run("bad", "{NANO}", data="synthetic", run__global_batch=100),
            sweep.run("blocked", "{NANO}", data="synthetic", run__global_batch=100, modes=["finetune"]),
        )
    ]""",
    )
    workdir, shown = str(tmp_path / "runs"), []
    summary = sweep.sweep(path, workdir, jobs=2, show=shown.append)
    rows = {row["name"]: row for row in summary["runs"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "good": "done",
        "tuned": "done",
        "bad": "failed",
        "blocked": "blocked",
    }
    assert "run.global_batch=100 is more than the 64 images" in rows["bad"]["error"]
    assert "the training of bad failed" in rows["blocked"]["error"]
    assert os.path.realpath(os.path.join(workdir, "tuned", "checkpoints")).endswith("good/checkpoints")
    assert json.loads(open(os.path.join(workdir, "tuned", "finetune.json")).read())["size"] == 32
    assert rows["good"]["top1"] == json.loads(open(os.path.join(workdir, "good", "evaluate.json")).read())["top1"]
    own = len(sweep.shares(2)[0] or ()) or native.cores()
    assert f"CPU, {own} core" in open(os.path.join(workdir, "good", "run.log")).read()
    assert "for the training of good" in shown[0] and "2 done, 1 failed, 0 running" in shown[-1]
    assert json.loads(open(os.path.join(workdir, "sweep.json")).read())["runs"] == summary["runs"]

    again = sweep.sweep(path, workdir, jobs=2, show=shown.append)
    assert [row["attempt"] for row in again["runs"]] == [1, 1, 1, 0] and again["seconds"] < 5
    again = sweep.sweep(path, workdir, jobs=2, retry=True, show=shown.append)
    assert [(row["state"], row["attempt"]) for row in again["runs"]] == [
        ("done", 1),
        ("done", 1),
        ("failed", 2),
        ("blocked", 0),
    ]


def claim_of(workdir):
    """Who works on the first attempt of the long run."""
    with open(os.path.join(workdir, "queue", "long.1.claim"), encoding="utf-8") as file:
        return json.loads(file.read())


def start(path, workdir):
    return subprocess.Popen(
        command("--mode=sweep", f"--experiment={path}", f"--workdir={workdir}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        # A shell ignores it for what it starts in the background, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def long_run(tmp_path):
    path = write(
        tmp_path / "file.py",
        f"[dict(one, fields=dict({QUICK}, **one['fields'])) for one in ("
        f"sweep.run('long', '{TINY}', data='synthetic', run__epochs=8, modes=['train']),)]",
    )
    return path, str(tmp_path / "runs"), tmp_path / "runs" / "long" / "checkpoints" / "00000016"


@pytest.mark.slow
def test_a_killed_worker_is_taken_over_and_its_run_resumes(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    first = start(path, workdir)
    wait_for(checkpoint.exists)
    owner = claim_of(workdir)
    assert owner["pid"] != first.pid
    os.kill(first.pid, signal.SIGKILL)
    os.kill(owner["pid"], signal.SIGKILL)
    first.communicate()
    second = start(path, workdir)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert json.loads(open(os.path.join(workdir, "sweep.json")).read())["runs"][0]["attempt"] == 2
    result = json.loads(open(os.path.join(workdir, "long", "train.json")).read())
    assert 2 <= result["resumed_from_epoch"] < 8 and result["epochs"] == 8


@pytest.mark.slow
def test_a_run_outlives_its_scheduler_and_is_not_done_twice(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    first = start(path, workdir)
    wait_for(checkpoint.exists)
    os.kill(first.pid, signal.SIGKILL)
    second = start(path, workdir)
    output, _ = second.communicate(timeout=300)
    first.stdout.close()
    assert second.returncode == 0, output
    assert sorted(os.listdir(os.path.join(workdir, "queue"))) == ["long.1.claim", "long.1.json"]
    assert json.loads(open(os.path.join(workdir, "long", "train.json")).read())["resumed_from_epoch"] == 0


@pytest.mark.slow
def test_an_interrupt_ends_the_runs_and_leaves_them_to_go_on(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    scheduler = start(path, workdir)
    wait_for(checkpoint.exists)
    run = claim_of(workdir)["pid"]
    os.kill(run, signal.SIGINT)  # a terminal sends it to all
    os.kill(scheduler.pid, signal.SIGINT)
    output, _ = scheduler.communicate(timeout=60)
    assert scheduler.returncode == 130 and "the same command goes on" in output, output
    wait_for(lambda: not sweep._alive(run), seconds=20)
    queue = sweep.Queue(os.path.join(workdir, "queue"))
    assert queue.state("long")[0] == sweep.STALE


@pytest.mark.slow
def test_a_run_killed_under_a_living_scheduler_fails_by_name(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    scheduler = start(path, workdir)
    wait_for(checkpoint.exists)
    os.kill(claim_of(workdir)["pid"], signal.SIGKILL)
    output, _ = scheduler.communicate(timeout=120)
    assert scheduler.returncode == 1
    assert "ended by signal 9" in output and "1 failed" in output


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_goes_on_under_its_scheduler(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    scheduler = start(path, workdir)
    wait_for(checkpoint.exists)
    os.kill(claim_of(workdir)["pid"], signal.SIGTERM)
    output, _ = scheduler.communicate(timeout=300)
    assert scheduler.returncode == 0, output
    assert "long.2.json" in os.listdir(os.path.join(workdir, "queue"))

"""Sweeps: what a file declares, what folders say, and real runs that fail, are killed and go on, here and on Ray."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers import command, slow_with_keras3, wait_for
from made_data import class_folders

from g16net import host, sweep
from g16net.cli.main import main
from g16net.config import experiments
from g16net.errors import ConfigError, UserError
from g16net.run import records
from g16net.sweep import local, state
from g16net.sweep.grid import part

HEAD = "from g16net import sweep\ndef get_runs(arg=''):\n    return "
# Seconds a run: 64 synthetic pictures, eight updates an epoch.
QUICK = (
    "{'data.num_examples': 64, 'data.num_classes': 5, 'data.eval_size': 32, 'run.global_batch': 8, 'run.epochs': 1, "
    "'finetune.epochs': 1}"
)
LONG = 60  # epochs, of which some are left whenever the run is ended
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
    with pytest.raises(UserError, match="--data=digits: the runs name several data sets, .*first and .*second"):
        sweep.load(path, data="digits")
    named = write(tmp_path / "named.py", f"[sweep.run('a', {TINY!r}, data={str(tmp_path / 'first')!r})]")
    assert sweep.load(named, data="digits")[0]["data"] == "digits"
    placed = write(tmp_path / "placed.py", f"[sweep.run('a', {TINY!r}, data__dir='/data/tfds')]")
    assert sweep.load(placed, data="tfds:mnist")[0]["fields"]["data.dir"] == "/data/tfds"
    assert "data.dir" not in sweep.load(placed, data="digits")[0]["fields"]
    fields = "data__name='folder', data__dir="
    runs = [f"sweep.run({n!r}, {TINY!r}, {fields}{str(tmp_path / folder)!r})" for n, folder in folders.items()]
    path = write(tmp_path / "fields.py", f"[{', '.join(runs)}]")
    assert [one["after"] for one in sweep.load(path)] == [None, None, "a"]
    with pytest.raises(UserError, match="--data=digits: the runs name several data sets, .*first and .*second"):
        sweep.load(path, data="digits")
    (one,) = sweep.load(write(tmp_path / "one.py", f"[{runs[0]}]"), data="digits")
    assert (one["data"], one["fields"]) == ("digits", {})
    one, _, _ = sweep.load(path, [("data.name", "folder"), ("data.dir", str(tmp_path / "second"))], data="digits")
    assert (one["fields"]["data.name"], one["fields"]["data.dir"]) == ("folder", str(tmp_path / "second"))


@pytest.mark.parametrize(
    "text, match",
    [
        ("[]", "gives no runs"),
        (f"[sweep.run('a/b', '{TINY}')]", "'a/b'.*its name"),
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
        sweep.sweep(write(tmp_path / "file.py", text), str(tmp_path / "runs"), main)
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


@pytest.mark.parametrize(
    "text, parts, expected",
    [
        ("abcd", 2, ["ac", "bd"]),
        ("aabbc", 2, ["aac", "bb"]),  # letters: trainings; runs of the same one stay together
        ("ab", 3, ["a", "b", ""]),
        ("abcde", 1, ["abcde"]),
    ],
)
def test_shards_are_all_runs_once(text, parts, expected):
    runs = [{"name": f"{letter}{place}", "after": None} for place, letter in enumerate(text)]
    for place, one in enumerate(runs):
        first = runs[text.index(text[place])]["name"]
        one["after"] = None if first == one["name"] else first
    found = [part(runs, f"{index}/{parts}") for index in range(1, parts + 1)]
    assert ["".join(one["name"][0] for one in shard) for shard in found] == expected
    assert part(runs, "") == runs


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/x", "-1/3"])
def test_no_shard(shard):
    with pytest.raises(UserError, match="--shard=3/10 is the third of ten"):
        part([], shard)


# What the folder says


def one_run(**fields):
    return dict(sweep.run("a", TINY, **fields), after=None)


def test_another_run_under_a_known_name_is_refused(tmp_path):
    folder = state.Sweepdir(str(tmp_path))
    runs = [one_run(run__seed=1)]
    state.settle(runs, folder)
    state.settle(runs + [dict(sweep.run("b", TINY), after=None)], folder)
    with pytest.raises(UserError, match=r"run 'a'; it differs in\n  fields: .*1.*2"):
        state.settle([one_run(run__seed=2)], folder)
    state.settle([one_run(run__seed=1, sweep__cpus=4)], folder)  # where it runs does not make it another one
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 2


def test_states_are_what_the_folders_say(tmp_path):
    folder = state.Sweepdir(str(tmp_path))
    runs = [one_run(), dict(sweep.run("b", TINY, ["finetune"]), after="a")]

    def states(**known):
        return [found for found, _ in state.states_of(runs, folder, **known).values()]

    def write(path, **figures):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(json.dumps(figures))

    assert states() == ["waiting", "waiting"]
    assert states(running={"a"}) == ["running", "waiting"]
    write("a/train.json", wall_seconds=3.0)
    assert states() == ["waiting", "waiting"], "it is to evaluate too"
    assert states(ended={"a"}) == ["done", "waiting"], "whatever a slow file system shows"
    write("a/failed.json", error="ValueError: no", seconds=1.0)
    assert states() == ["failed", "blocked"]
    state.forgive(runs, folder)
    write("a/evaluate.json", wall_seconds=2.0)
    assert states() == ["done", "waiting"]
    assert state.states_of(runs, folder)["a"][1]["seconds"] == 5.0
    write("b/finetune.json", failed=True)
    assert states() == ["done", "waiting"]


@pytest.mark.parametrize(
    "first, second, refused",
    [
        ("", "", True),
        ("", "1/2", True),
        ("1/2", "", True),
        ("1/2", "1/2", True),
        ("1/2", "2/2", False),
        ("1/2", "2/3", True),  # other parts, of which some runs may be in both
    ],
)
def test_one_scheduler_for_a_run(tmp_path, first, second, refused):
    with state.alone(state.Sweepdir(str(tmp_path), first)):
        if refused:
            with pytest.raises(UserError, match=f"is in use: process {os.getpid()} on .* --workdir"):
                with state.alone(state.Sweepdir(str(tmp_path), second)):
                    pass
        else:
            with state.alone(state.Sweepdir(str(tmp_path), second)):
                pass
    with state.alone(state.Sweepdir(str(tmp_path), second)):
        pass


def test_last_line_prefers_the_error(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("Traceback\n  file\nValueError: the loss\nsome warning at exit\n\n")
    assert local.last_line(str(log)) == "ValueError: the loss"
    log.write_text("one\ntwo\n")
    assert local.last_line(str(log)) == "two"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell a process' cores")
@pytest.mark.parametrize(
    "jobs, expected",
    [(1, [{2, 3, 5}]), (2, [{2}, {3, 5}]), (3, [{2}, {3}, {5}]), (4, [None] * 4)],
)
def test_runs_at_a_time_share_the_cores_that_the_scheduler_has(jobs, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5, 3, 2})
    assert local.shares(jobs) == expected


# Real runs


@slow_with_keras3
def test_failures_are_isolated_named_and_tried_again_on_demand(tmp_path):
    path = write(
        tmp_path / "file.py",
        f"""[
        dict(one, fields=dict({QUICK}, **one["fields"])) for one in (
            sweep.run("good", "{NANO}", data="synthetic"),
            sweep.run("again", "{NANO}", data="synthetic", modes=["evaluate"]),
            sweep.run("bad", "{NANO}", data="synthetic", run__global_batch=100),
            sweep.run("blocked", "{NANO}", data="synthetic", run__global_batch=100, modes=["finetune"]),
        )
    ]""",
    )
    workdir, shown = str(tmp_path / "runs"), []
    summary = sweep.sweep(path, workdir, main, jobs=2, show=shown.append)
    rows = {row["name"]: row for row in summary["runs"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "good": "done",
        "again": "done",
        "bad": "failed",
        "blocked": "blocked",
    }
    assert "run.global_batch=100 is more than the 64 images" in rows["bad"]["error"]
    assert "the training of bad failed" in rows["blocked"]["error"]
    assert os.path.realpath(os.path.join(workdir, "again", "checkpoints")).endswith("good/checkpoints")
    assert rows["again"]["top1"] == rows["good"]["top1"]
    assert rows["good"]["top1"] == json.loads(open(os.path.join(workdir, "good", "evaluate.json")).read())["top1"]
    own = len(local.shares(2)[0] or ()) or host.cores()
    assert f"CPU, {own} core" in open(os.path.join(workdir, "good", "run.log")).read()
    assert "for the training of good" in shown[0] and "2 done, 1 failed, 0 running" in shown[-1]
    assert json.loads(open(os.path.join(workdir, "sweep.json")).read())["runs"] == summary["runs"]

    again = sweep.sweep(path, workdir, main, jobs=2, show=shown.append)
    assert again["runs"] == summary["runs"] and again["seconds"] < 5
    assert attempts(workdir, "good", "again", "bad") == [1, 1, 1]
    again = sweep.sweep(path, workdir, main, jobs=2, retry=True, show=shown.append)
    assert [row["state"] for row in again["runs"]] == ["done", "done", "failed", "blocked"]
    assert attempts(workdir, "good", "again", "bad") == [1, 1, 2]
    assert not os.path.exists(os.path.join(workdir, "blocked"))


def attempts(workdir, *names):
    """How often each run was started."""
    return [open(os.path.join(workdir, name, "run.log")).read().count("$ launch.py") for name in names]


def process_of(workdir):
    """The process of the long run."""
    with open(os.path.join(workdir, "long", ".lock"), encoding="utf-8") as file:
        return int(file.read().split()[1])


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(path, workdir, *flags):
    return subprocess.Popen(
        command("--mode=sweep", f"--experiment={path}", f"--workdir={workdir}", *flags),
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
        f"sweep.run('long', '{NANO}', data='synthetic', run__epochs={LONG}, checkpoint__keep={LONG}, modes=['train']),"
        ")]",
    )
    return path, str(tmp_path / "runs"), tmp_path / "runs" / "long" / "checkpoints" / "00000016"


def result_of(workdir):
    with open(os.path.join(workdir, "long", "train.json"), encoding="utf-8") as file:
        return json.load(file)


def check_goes_on(path, workdir):
    """The same command resumes the run and ends it."""
    second = start(path, workdir)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert 2 <= result_of(workdir)["resumed_from_epoch"] < LONG == result_of(workdir)["epochs"]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_by_the_same_command(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    first = start(path, workdir)
    wait_for(checkpoint.exists)
    run = process_of(workdir)
    assert run != first.pid
    os.kill(first.pid, signal.SIGKILL)
    os.kill(run, signal.SIGKILL)
    first.communicate()
    check_goes_on(path, workdir)


@pytest.mark.slow
def test_a_run_ends_with_its_scheduler_and_saves(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    first = start(path, workdir)
    wait_for(checkpoint.exists)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    check_goes_on(path, workdir)  # at once, while the run may still be saving
    assert "stopped by SIGTERM" in open(os.path.join(workdir, "long", "run.log")).read()


@pytest.mark.slow
def test_a_second_scheduler_is_refused(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    first = start(path, workdir)
    wait_for(checkpoint.exists)
    second = start(path, workdir)
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 2 and f"is in use: process {first.pid} on" in output
    assert "running" in sweep.plan(path, workdir)
    assert first.wait(timeout=300) == 0
    first.stdout.close()


@pytest.mark.slow
def test_an_interrupt_ends_the_runs_and_leaves_them_to_go_on(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    scheduler = start(path, workdir)
    wait_for(checkpoint.exists)
    run = process_of(workdir)
    os.kill(run, signal.SIGINT)  # a terminal sends it to all
    os.kill(scheduler.pid, signal.SIGINT)
    output, _ = scheduler.communicate(timeout=60)
    assert scheduler.returncode == 130 and "the same command goes on" in output, output
    assert not alive(run)
    assert "long  waiting" in sweep.plan(path, workdir)
    check_goes_on(path, workdir)


@pytest.mark.slow
def test_a_run_killed_under_a_living_scheduler_fails_by_name(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    scheduler = start(path, workdir)
    wait_for(checkpoint.exists)
    os.kill(process_of(workdir), signal.SIGKILL)
    output, _ = scheduler.communicate(timeout=120)
    assert scheduler.returncode == 1
    assert "ended by signal 9" in output and "1 failed" in output


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_goes_on_under_its_scheduler(tmp_path):
    path, workdir, checkpoint = long_run(tmp_path)
    scheduler = start(path, workdir)
    wait_for(checkpoint.exists)
    os.kill(process_of(workdir), signal.SIGTERM)
    output, _ = scheduler.communicate(timeout=300)
    assert scheduler.returncode == 0, output
    assert attempts(workdir, "long") == [2]


@pytest.mark.slow
def test_shards_make_the_whole(tmp_path):
    path = write(
        tmp_path / "file.py",
        f"""[
        dict(one, fields=dict({QUICK}, **one["fields"])) for one in (
            sweep.run("a", "{NANO}", data="synthetic", modes=["train"]),
            sweep.run("b", "{NANO}", data="synthetic", modes=["train"], run__seed=1),
            sweep.run("c", "{NANO}", data="synthetic", modes=["evaluate"]),
        )
    ]""",
    )
    workdir = str(tmp_path / "runs")
    first = sweep.sweep(path, workdir, main, shard="1/2")
    assert [(row["name"], row["state"]) for row in first["runs"]] == [("a", "done"), ("c", "done")]
    second = sweep.sweep(path, workdir, main, shard="2/2")
    assert [(row["name"], row["state"]) for row in second["runs"]] == [("b", "done")]
    assert {"sweep-1of2.json", "sweep-2of2.json"} <= set(os.listdir(workdir))
    assert "3 done" in sweep.plan(path, workdir)


# On Ray


def test_without_ray_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    path = write(tmp_path / "file.py", f"[sweep.run('a', '{NANO}', data='synthetic')]")
    with pytest.raises(UserError, match=r"--cluster needs the package 'ray'.*pip install 'g16net\[cluster\]'"):
        sweep.sweep(path, str(tmp_path / "runs"), main, cluster="auto")
    assert not os.path.exists(tmp_path / "runs")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; the second one may be killed."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster()
    made.add_node(num_cpus=1, object_store_memory=100 * 2**20, include_dashboard=False)
    made.second = made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield made
    made.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    "address, match",
    [
        ("127.0.0.1:1", "no Ray cluster answers at --cluster=127.0.0.1:1.*ray start --head"),
        ("ray://127.0.0.1:1", "no Ray cluster answers"),
        ("nowhere", "no address; give auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_no_cluster_is_told_within_seconds(tmp_path, address, match):
    pytest.importorskip("ray")
    path = write(tmp_path / "file.py", f"[sweep.run('a', '{NANO}', data='synthetic')]")
    began = time.monotonic()
    with pytest.raises(UserError, match=match):
        sweep.sweep(path, str(tmp_path / "runs"), main, cluster=address)
    assert time.monotonic() - began < 20 and not os.path.exists(tmp_path / "runs")


@pytest.mark.slow
def test_what_the_cluster_cannot_do_is_told_before_the_first_run(tmp_path, cluster, monkeypatch):
    from g16net.sweep import cluster as engine

    workdir = str(tmp_path / "runs")
    path = write(tmp_path / "file.py", f"[sweep.run('a', '{NANO}', data='synthetic', sweep__gpus=1.0)]")
    with pytest.raises(
        UserError, match=r"no node .* sweep.cpus=1 and sweep.gpus=1 that run 'a' asks for .*has 1 and 0"
    ):
        sweep.sweep(path, workdir, main, cluster=cluster.address)
    assert not os.path.exists(workdir)
    path = write(tmp_path / "file.py", f"[sweep.run('a', '{NANO}', data='synthetic')]")
    version = engine.g16net.__version__
    monkeypatch.setattr(engine, "_look", lambda path: (False, version))
    with pytest.raises(UserError, match="does not see --workdir=.*a folder that all nodes share"):
        sweep.sweep(path, workdir, main, cluster=cluster.address)
    monkeypatch.setattr(engine, "_look", lambda path: (True, "0.0"))
    with pytest.raises(UserError, match="has g16net 0.0, this machine"):
        sweep.sweep(path, workdir, main, cluster=cluster.address)
    assert not os.path.exists(os.path.join(workdir, "a"))


@pytest.mark.slow
def test_an_interrupt_ends_the_runs_of_a_cluster_and_leaves_them_to_go_on(tmp_path, cluster):
    path, workdir, checkpoint = long_run(tmp_path)
    scheduler = start(path, workdir, f"--cluster={cluster.address}")
    wait_for(checkpoint.exists)
    run = process_of(workdir)
    os.kill(scheduler.pid, signal.SIGINT)
    output, _ = scheduler.communicate(timeout=100)
    assert scheduler.returncode == 130 and "the same command goes on" in output, output
    assert not alive(run)
    assert "stopped by SIGTERM" in open(os.path.join(workdir, "long", "run.log")).read()
    check_goes_on(path, workdir)


@pytest.mark.slow
def test_a_trial_reports_its_epochs_and_stops_early(tmp_path, cluster):
    import ray
    from ray import tune

    from g16net.search import trainable

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        fields = {"run__epochs": 6, "run__global_batch": 8, "data__num_examples": 64, "data__num_classes": 5}
        tuner = tune.Tuner(
            trainable(NANO, "synthetic", str(tmp_path / "runs"), data__eval_size=32, **fields),
            param_space={"optim.learning_rate": tune.grid_search([0.001, -1.0])},
            tune_config=tune.TuneConfig(metric="top1", mode="max"),
            run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), stop={"epoch": 2}, verbose=0),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    good, bad = sorted(results, key=lambda result: result.error is not None)
    assert good.metrics["epoch"] == 2 and good.metrics["top1"] > 0
    lines = open(os.path.join(good.metrics["workdir"], "records.jsonl")).read().splitlines()
    assert 2 <= len(lines) < 6
    assert "optim.learning_rate" in str(bad.error)


@pytest.mark.slow
def test_a_sweep_on_a_cluster_outlives_a_node_and_gives_the_local_figures(tmp_path, cluster):
    path = write(
        tmp_path / "file.py",
        f"""[
        dict(one, fields=dict({QUICK}, **one["fields"])) for one in (
            sweep.run("long-0", "{NANO}", data="synthetic", run__seed=0, run__epochs=6),
            sweep.run("long-1", "{NANO}", data="synthetic", run__seed=1, run__epochs=6),
            sweep.run("after", "{NANO}", data="synthetic", run__seed=0, run__epochs=6, modes=["finetune"]),
            sweep.run("bad", "{NANO}", data="synthetic", run__global_batch=100),
        )
    ]""",
    )
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    checkpoints = [tmp_path / "there" / f"long-{seed}" / "checkpoints" / "00000008" for seed in (0, 1)]

    def kill():
        wait_for(lambda: all(checkpoint.exists() for checkpoint in checkpoints))
        cluster.remove_node(cluster.second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    remote = sweep.sweep(path, there, main, cluster=cluster.address, show=lambda text: None)
    killer.join()
    assert [row["state"] for row in remote["runs"]] == ["done", "done", "done", "failed"]
    assert "run.global_batch=100 is more than" in remote["runs"][3]["error"]
    assert sorted(attempts(there, "long-0", "long-1")) == [1, 2]
    same = sweep.sweep(path, here, main, jobs=2, show=lambda text: None)
    for mine, theirs in zip(same["runs"], remote["runs"]):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    for seed in (0, 1):
        losses = [
            [record["loss"] for record in records.by_epoch(records.read_lines(f"{folder}/long-{seed}/records.jsonl"))]
            for folder in (here, there)
        ]
        assert losses[0] == losses[1] and len(losses[0]) == 6

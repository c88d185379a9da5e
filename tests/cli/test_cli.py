"""The command line as a user types it: exit status, messages, and the files of a run."""

import json
import os
import platform
import subprocess
import sys

import pytest
from helpers import ROOT, call, launch, slow_with_keras3, tiny, untrained_run
from made_data import class_folders

from g16net import compat
from g16net import config as config_lib
from g16net.benchmark import networks
from g16net.cli import command, environment
from g16net.cli import main as cli
from g16net.cli.modes import MODES
from g16net.config import FIELDS
from g16net.errors import ConfigError, RunError, UserError
from g16net.report import look
from g16net.run import assemble, resolve, scoring
from g16net.run.signals import Stopped
from g16net.run.workdir import Workdir
from g16net.training import evaluate

# launch.py chooses the Keras generation itself
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}


@pytest.mark.run
@pytest.mark.once
@pytest.mark.parametrize("given", [None, "0"])
def test_onednn_is_on_where_the_user_says_nothing(given):
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "TF_ENABLE_ONEDNN_OPTS"}
    environment.update({"TF_ENABLE_ONEDNN_OPTS": given} if given else {})
    code = "import os, g16net.cli.main; print(os.environ.get('TF_ENABLE_ONEDNN_OPTS'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    x86 = platform.machine() in ("x86_64", "AMD64") and compat.TF_VERSION >= (2, 9)  # not with the IPU SDK
    assert done.stdout.decode().split() == [given or ("1" if x86 else "None")]


@pytest.mark.run
@pytest.mark.once
@pytest.mark.parametrize("flag", ["--dry_run", "--mode=train"])
def test_another_backend_is_refused_in_one_sentence(flag, tmp_path):
    arguments = "--experiment=g16_ln_pn:demo", f"--workdir={tmp_path}/run", flag
    done = launch(*arguments, KERAS_BACKEND="jax", TF_USE_LEGACY_KERAS="0")
    assert done.returncode == 2 and not os.listdir(tmp_path)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "backend is" in done.stderr and "Set KERAS_BACKEND=tensorflow" in done.stderr


@pytest.mark.run
@pytest.mark.once
def test_a_reader_that_has_enough_gets_no_traceback():
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "launch.py", "--list"]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    done = subprocess.run(closed, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.once
@pytest.mark.parametrize(
    "installed, expected",
    [
        ({"tensorflow": "2.21.0"}, True),
        ({"tensorflow": "2.6.3+gc3.4"}, False),  # the IPU SDK's
        ({"tensorflow": "2.6.5"}, False),
        ({"tensorflow-cpu": "2.9.1"}, True),
        ({"tensorflow-cpu": "2.8.0"}, False),
        ({"tf-nightly": "2.22.0.dev20260101"}, True),
    ],
)
def test_onednn_waits_for_a_tensorflow_that_has_it_for_good(installed, expected, monkeypatch):
    def version(name):
        if name not in installed:
            raise environment.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(environment.metadata, "version", version)
    assert environment.onednn_is_mature() == expected


@pytest.mark.run
@pytest.mark.once
def test_list_and_help_need_no_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported TensorFlow')")
    listed = launch("--list", PYTHONPATH=str(tmp_path))
    assert listed.returncode == 0, listed.stderr
    assert "g16_ln_pn" in listed.stdout and "paper's network" in listed.stdout
    helped = launch("--help", PYTHONPATH=str(tmp_path))
    assert "--experiment" in helped.stdout and "--workdir" in helped.stdout


@pytest.mark.once
def test_help_on_a_mode_and_on_everything(capsys):
    status, text = call(capsys, "--help=all")
    assert status == 0
    for field in FIELDS:
        assert f"--config.{field}=" in text, field
    assert "--workdir" in text and "g16_ln_pn_progressive" in text
    status, text = call(capsys, "--help=predict")
    assert status == 0 and "--images" in text and "--config.predict.top=5" in text
    assert "--config.optim" not in text and "Needs a trained run" in text
    status, text = call(capsys, "--help=predct")
    assert status == 2 and "no such mode" in text and "predict" in text


@pytest.mark.parametrize(
    "error, expected", [(RunError("it broke"), 1), (UserError("no"), 2), (Stopped("SIGTERM", 7, "runs/x"), 143)]
)
@pytest.mark.once
def test_how_a_command_ends_is_in_its_status(error, expected, capsys, monkeypatch):
    def execute(*_):
        raise error

    monkeypatch.setattr(cli.command, "execute", execute)
    status, text = call(capsys, "--experiment=g16_ln_pn")
    assert status == expected and str(error) in text


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ([], ["name an experiment", "--list"]),
        (["--experiment=g16_ln_pn:size=3"], ["'size'", "variant"]),
        (["--experiment=g16_ln_pn", "--data=/no/such/folder"], ["/no/such/folder", "no such folder"]),
        (["--experiment=g16_ln_pn", "--config.data.name=tfds:imagenet2012"], ["imagenet2012", "looked"]),
        (["--experiment=g16_ln_pn", "--nonsense=1"], ["nonsense"]),
        (["--experiment=g16_ln_pn", "stray"], ["'stray'"]),
        (["--workdir=/no/such/workdir"], ["name an experiment"]),
    ],
)
def test_mistakes_end_with_status_2_and_one_clear_error(arguments, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    status, shown = call(capsys, *arguments)
    assert status == 2
    last = shown[shown.rindex("error: ") :] if "error: " in shown else shown
    for part in parts:
        assert part in last
    assert not os.listdir(tmp_path), "nothing is written before the mistake is found"


@pytest.mark.run
@pytest.mark.once
def test_a_mistake_is_the_status_of_the_process(tmp_path):
    result = launch("--experiment=g16_lnpn", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ") and "Did you mean 'g16_ln_pn'?" in result.stderr


def test_dry_run_says_what_a_run_would_be(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    status, shown = call(capsys, "--experiment=g16_ln_pn", "--dry_run")
    assert status == 0
    for part in ("1,696,004", "82,744,832", "digits", "steps", "memory"):
        assert part in shown, shown
    assert not os.listdir(tmp_path)


FILES = {
    "checkpoints",
    "classes.json",
    "config.json",
    "curves.png",
    "evaluate.json",
    "export.json",
    "records.jsonl",
    "saved_model",
    "tensorboard",
    "train.json",
    "versions.json",
}
NANO = ["--experiment=g16_ln_pn:demo,variant=NANO", "--config.run.global_batch=128", "--workdir=run"]


def counted(monkeypatch, owner, name):
    """What calls of `owner.name` returned from now on, in a list."""
    function, results = getattr(owner, name), []

    def call_and_note(*args):
        results.append(function(*args))
        return results[-1]

    monkeypatch.setattr(owner, name, call_and_note)
    return results


@slow_with_keras3
def test_one_command_trains_evaluates_and_exports_and_the_workdir_is_enough_later(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = {}
    for owner, name in ((evaluate.Evaluator, "__call__"), (assemble, "model"), (scoring.Scorer, "_sums")):
        made[name] = counted(monkeypatch, owner, name)
    short = ["--config.run.epochs=2", "--config.schedule.warmup_epochs=0"]
    status, shown = call(capsys, *NANO, "--data=digits", *short)
    assert status == 0 and "DEMO FORM" not in shown, shown
    # Nothing twice: the first epoch's average is its weights, and the last epoch's figures are the run's.
    assert {name: len(results) for name, results in made.items()} == {"__call__": 4, "model": 1, "_sums": 1}
    assert set(os.listdir("run")) >= FILES
    figures = {mode: json.loads((tmp_path / "run" / f"{mode}.json").read_text()) for mode in ("train", "evaluate")}
    assert figures["evaluate"]["images"] == 359
    for name in ("top1", "top5", "loss"):
        assert figures["evaluate"][name] == figures["train"][name] == made["__call__"][2][name]
    assert figures["train"]["top1_raw"] == made["__call__"][1]["top1"]

    status, shown = call(capsys, *NANO, "--data=digits", *short, "--config.model.norm=bn")
    assert status == 2 and "model.norm: ln_pn -> bn" in shown

    status, shown = call(capsys, "--workdir=run", "--mode=evaluate", "--config.eval.sizes=48,32")
    assert status == 0, shown
    rows = json.loads((tmp_path / "run" / "evaluate.json").read_text())["sizes"]
    assert [row["size"] for row in rows] == [48, 32]
    assert rows[1]["loss"] == pytest.approx(figures["evaluate"]["loss"], rel=1e-5)

    monkeypatch.setattr(look, "save", lambda panels, paths: [open(path, "wb").close() for path in paths])  # slow
    status, shown = call(capsys, "--mode=report", "--noquoted", "--runs=run", "--workdir=report")
    assert status == 0, shown
    points = json.loads((tmp_path / "report" / "report.json").read_text())["points"]
    assert [(point["test_size"], point["finetuned"]) for point in points] == [(32, False), (48, False)]
    assert [point["top1"]["mean"] for point in points] == [pytest.approx(row["top1"]) for row in rows[::-1]]


@pytest.mark.slow
def test_the_whole_road_and_again(tmp_path):
    arguments = ["--experiment=g16_ln_pn:variant=NANO", "--config.run.epochs=2", "--workdir=run"]
    result = launch(*arguments, cwd=tmp_path, TFDS_DATA_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("DEMO FORM") == 2
    assert set(os.listdir(tmp_path / "run")) >= FILES
    figures = {mode: json.loads((tmp_path / "run" / f"{mode}.json").read_text()) for mode in ("train", "evaluate")}
    assert figures["evaluate"]["images"] == 359
    assert figures["evaluate"]["top1"] == figures["train"]["top1"]
    assert 0 <= figures["train"]["top1"] <= figures["train"]["top5"] <= 1
    assert figures["train"]["images_per_second"] > 0

    again = launch(*arguments, "--mode=train", cwd=tmp_path, TFDS_DATA_DIR=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "run" / "train.json").read_text())["resumed_from_epoch"] == 2

    other = launch(*arguments, "--config.model.norm=bn", cwd=tmp_path, TFDS_DATA_DIR=str(tmp_path))
    assert other.returncode == 2 and "model.norm: ln_pn -> bn" in other.stderr

    # without an experiment, the workdir's own
    alone = launch("--workdir=run", "--mode=evaluate", "--config.eval.sizes=32,64", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    sizes = json.loads((tmp_path / "run" / "evaluate.json").read_text())["sizes"]
    assert [row["size"] for row in sizes] == [32, 64]

    # the export loads where there is only TensorFlow
    code = (
        "import sys, tensorflow as tf\n"
        "model = tf.saved_model.load('run/saved_model')\n"
        "for size in (32, 47):\n"
        "    out = model.signatures['serving_default'](images=tf.zeros([2, size, size, 3], tf.uint8))\n"
        "    assert out['logits'].shape == (2, 10), out\n"
        "assert not any(name.split('.')[0] == 'g16net' for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=str(tmp_path))


def test_the_data_is_found_from_any_folder(tmp_path, monkeypatch):
    from g16net.run import resolve

    for name in ("train/ant", "train/bee", "val/ant"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for data, assignments in (("photos", []), ("./photos/", []), (None, [("data.dir", "photos")])):
        config, _, _ = resolve.resolve(assignments + [("data.cache_dir", "kept")], "g16_ln_pn:small,variant=TINY", data)
        assert config.data.dir == str(tmp_path / "photos") and config.data.cache_dir == str(tmp_path / "kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve.resolve([], "g16_ln_pn:small", "~/photos")[0].data.dir == str(tmp_path / "photos")


def test_a_flag_of_paths_may_come_again_and_keeps_commas():
    from g16net.cli import main as cli

    cli.FLAGS(["g16net", "--images=a,b.jpg", "--images=c.jpg", "--runs=one,two"])
    assert cli.FLAGS.images == ["a,b.jpg", "c.jpg"] and cli.FLAGS.runs == ["one,two"]


def test_what_tensorflow_says_of_data_is_told_without_its_nodes(monkeypatch, tmp_path):
    import tensorflow as tf

    from g16net.cli import command
    from g16net.errors import RunError
    from g16net.training import evaluate

    def broken(config, workdir):
        tf.io.decode_png(b"no picture").numpy()

    monkeypatch.setattr(evaluate, "evaluate", broken)
    with pytest.raises(RunError, match="--mode=evaluate ended: ") as told:
        command.run_mode("evaluate", None, str(tmp_path))
    assert not any(mark in str(told.value) for mark in ("{{", "}}", "[Op:"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("run"), tiny())


@pytest.mark.parametrize("mode", [mode for mode, row in MODES.items() if not row.alone])
def test_what_can_be_done_passes_all_that_is_checked_before(mode, run, tmp_path, capsys):
    class_folders(tmp_path / "images", {"a": 1})
    weights = [f"--workdir={tmp_path}/new", "--data=synthetic", f"--config.init.checkpoint={run}"]
    more = {
        "adopt": ["--experiment=g16_ln_pn:demo,variant=NANO", "--config.data.num_classes=5", *weights],
        "verify_export": ["--mode=export,verify_export"],
        "predict": [f"--images={tmp_path}/images"],
    }
    status, shown = call(capsys, f"--workdir={run}", "--dry_run", f"--mode={mode}", *more.get(mode, []))
    assert status == 0 and "parameters" in shown, shown


def test_what_new_trainings_alone_are_asked_is_not_asked_of_a_run_that_has_begun(tmp_path):
    changes = dict(schedule__name="constant", schedule__warmup_epochs=5.0, run__epochs=3)
    workdir = untrained_run(tmp_path / "run", tiny())
    stored = config_lib.load(Workdir(workdir).config).unlock()
    config_lib.override(stored, [(key.replace("__", "."), str(value)) for key, value in changes.items()])
    config_lib.save(stored, Workdir(workdir).config)
    config, _, _ = resolve.resolve([], None, None, workdir)
    command.check_workdir({"predict": MODES["predict"]._replace(checks=())}, config, workdir)
    networks.check(config)
    with pytest.raises(ConfigError, match="more than run.epochs=3"):
        tiny(**changes)


def test_a_command_that_describes_another_network_than_the_runs_is_refused_in_every_mode(tmp_path):
    workdir, own = untrained_run(tmp_path / "run", tiny()), tiny(model__mean=(127.5,) * 3)
    for mode in ("predict", "channels", "verify_export", "evaluate"):
        rows = {mode: MODES[mode]._replace(checks=())}
        command.check_workdir(rows, tiny(), workdir)
        with pytest.raises(UserError, match="(?s)another run; it differs in.*model.mean"):
            command.check_workdir(rows, own, workdir)
    with pytest.raises(UserError, match="PRE_COMPILE left.*--workdir of its own"):
        command.check_workdir({"train": MODES["train"]}, tiny(ipu__connection="PRE_COMPILE"), workdir)

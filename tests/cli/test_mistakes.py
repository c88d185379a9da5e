"""The mistakes of docs/troubleshooting.md: each is made, and the page's message must be what the user sees.

The page's tables hold `| what happened | message | what to do |`; a message's parts, cut at `...`, must come in this
order in what the command prints. Here stands how each mistake is made, under the page's own words.
"""

import fcntl
import importlib.util
import os
import pickle
import re
import shutil
import subprocess

import numpy as np
import pages
import pytest
import tensorflow as tf
from helpers import call as launch
from helpers import command

from g16net import compat, config, extras
from g16net.config import experiments, recipe
from g16net.models import efficientnet
from g16net.optim.weight_average import WeightAverage
from g16net.run import assemble, checkpoint, records, run_data
from g16net.weights import timm as timm_weights

RUN = "--experiment=g16_ln_pn:small,variant=TINY"


def table():
    """{what happened: message} of the page's tested tables."""
    with open(os.path.join(pages.ROOT, "docs", "troubleshooting.md"), encoding="utf-8") as file:
        tested = file.read().split("<!-- tested elsewhere -->")[0]
    rows = re.findall(r"^\| (.+?) \| `(.+?)` \| (.+) \|$", tested, re.MULTILINE)
    return {title: message for title, message, _ in rows}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data of many faults, and the workdir of a run at its first of 30 epochs."""
    root = tmp_path_factory.mktemp("place")
    png = tf.io.encode_png(np.full((8, 8, 3), 99, np.uint8)).numpy()

    def images(folder, count):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            (root / folder / f"{number}.png").write_bytes(png)

    for split, count in (("train", 8), ("val", 2)):
        for name in ("cat", "dog"):
            images(f"photos/{split}/{name}", count)
        images(f"three/{split}/ape", count)
        for name in ("cat", "dog"):
            images(f"three/{split}/{name}", count)
    images("hollow/cat", 5), images("hollow/dog", 0)
    images("renamed/train/cat", 8), images("renamed/val/cat", 2)
    images("renamed/train/wolf", 8), images("renamed/val/wolf", 2)
    images("grown/train/cat", 9), images("grown/val/cat", 2)
    images("grown/train/dog", 8), images("grown/val/dog", 2)
    images("single/cat", 1), images("single/dog", 1)
    images("flat", 3)
    images("only_val/val/cat", 2)
    images("more/train/cat", 2), images("more/val/cat", 2), images("more/val/dog", 2)
    images("tabled", 3)
    (root / "tabled" / "labels.csv").write_text("image,label\n")
    images("high/cats", 3)
    for name in ("first/cat", "first/dog", "second/cat", "second/dog", "beside/cat", "beside/dog", "beside/test"):
        images(name, 2)
    images("splits/train", 2), images("splits/test", 2)
    images("kaggle/train/cat", 2), images("kaggle/train/dog", 2), images("kaggle/test", 2)
    for name in ("first", "second"):
        (root / "unnamed").mkdir(exist_ok=True)
        (root / name).rename(root / "unnamed" / name)
    images("gone/cat", 2), images("gone/dog", 2)
    (root / "gone" / "bee").symlink_to("/nowhere")
    images("bytes/cat", 2), images("bytes/caf\udce9", 2)
    images("records", 0)
    (root / "records" / "train-00000-of-00002").write_bytes(b"")
    for name, data in (
        ("tars/train-0000.tar", b"no tar"),
        ("pickles/data_batch_1", b""),
        ("pickles/batches.meta", b""),
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    (root / "nothing").mkdir()
    (root / "file.jpg").write_bytes(png)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (root / "torch.pth").write_bytes(pickle.dumps({}))
    if importlib.util.find_spec("safetensors"):
        timm_weights.save(efficientnet.build("TINY", 1, 6, "bn", 2), str(root / "timm.safetensors"))
    (root / "mine.py").write_text("NOTHING = 1\n")

    run = experiments.load("g16_ln_pn:small,variant=TINY")
    config.override(run, [("data.name", "folder"), ("data.dir", str(root / "photos")), ("run.global_batch", "4")])
    run = recipe.resolve(run)
    work = root / "run"
    work.mkdir()
    config.save(run, work / "config.json")
    (work / "classes.json").write_text('["cat", "dog"]')
    model = assemble.model(run, 2, 32)
    average = WeightAverage(model, 0.5)
    average.update()
    saved = checkpoint.Checkpoints(str(work / "checkpoints"), checkpoint.state(model, average=average))
    saved.save(2, epoch=1, in_epoch=0)
    saved.wait()
    shutil.copytree(work, root / "kept")
    records.write_json(root / "kept" / "data.json", run_data.facts(run, assemble.open_source_of(run, "train")))
    (root / "fresh").mkdir()
    config.save(run, root / "fresh" / "config.json")
    return root


HOW = {  # what happened: the command's arguments; {} stands for the folder of `place`
    "no experiment and no run named": [],
    "experiment misspelt": ["--experiment=g16_lnpn"],
    "missing experiment file": ["--experiment={}/none.py"],
    "experiment file without `get_config`": ["--experiment={}/mine.py"],
    "a sweep run as an experiment": ["--experiment={root}/experiments/sweeps/norms.py"],
    "unknown experiment argument": ["--experiment=g16_ln_pn:size=64"],
    "unknown variant": ["--experiment=g16_ln_pn:variant=B9", "--data={}/photos"],
    "half resolution of B6 or B7": ["--experiment=g16_ln_pn:variant=B7,resolution=half", "--data={}/photos"],
    "field misspelt": [RUN, "--config.run.epoch=3"],
    "field of the wrong type": [RUN, "--config.run.epochs=ten"],
    "value out of range": [RUN, "--config.run.epochs=-1"],
    "value not among the choices": [RUN, "--config.model.norm=layer"],
    "field given as a flag": [RUN, "--epochs=3"],
    "`--` forgotten": [RUN, "epochs=3"],
    "mode misspelt": [RUN, "--mode=trian"],
    "unknown export format": ["--workdir={}/run", "--mode=export", "--format=pytorch"],
    "missing data folder": [RUN, "--data={}/nowhere"],
    "`--data` is a file": [RUN, "--data={}/file.jpg"],
    "empty data folder": [RUN, "--data={}/nothing"],
    "images without class folders": [RUN, "--data={}/flat"],
    "images without class folders, labels in a table": [RUN, "--data={}/tabled"],
    "splits whose images are not in class folders": [RUN, "--data={}/splits", "--workdir={}/w"],
    "a folder one level too high or too low": [RUN, "--data={}/high", "--dry_run"],
    "splits with unusual names": [RUN, "--data={}/unnamed", "--workdir={}/w"],
    "a test folder among the class folders": [RUN, "--data={}/beside", "--workdir={}/w"],
    "training images only, or next to a test folder without classes": [RUN, "--data={}/kaggle", "--workdir={}/w"],
    "class folder that is a broken link": [RUN, "--data={}/gone", "--dry_run"],
    "class folder whose name is not UTF-8": [RUN, "--data={}/bytes", "--workdir={}/w"],
    "class folder without an image": [RUN, "--data={}/hollow", "--workdir={}/w"],
    "classes with a single image": [RUN, "--data={}/single", "--workdir={}/w"],
    "`val` without `train`": [RUN, "--data={}/only_val", "--workdir={}/w"],
    "class only in the test split": [RUN, "--data={}/more", "--workdir={}/w"],
    "record file missing": [RUN, "--data={}/records", "--workdir={}/w"],
    "tar shard cut off": [RUN, "--data={}/tars", "--workdir={}/w"],
    "CIFAR as pickles": [RUN, "--data={}/pickles", "--workdir={}/w"],
    "Hugging Face set that is not here": [
        RUN, "--data=hf:some/set", "--config.data.dir={}/nothing", "--workdir={}/w",
    ],
    "batch larger than the training set": [RUN, "--data={}/photos", "--config.run.global_batch=768", "--workdir={}/w"],
    "batch that does not divide": [
        RUN, "--data={}/photos", "--workdir={}/w", "--mode=train", "--config.run.global_batch=8",
        "--config.runtime.micro_batch=3",
    ],
    "fine-tuning size that does not fit": ["--experiment=g16_ln_pn", "--data={}/photos", "--config.finetune.sizes=200"],
    "warm-up longer than the run": ["--experiment=g16_ln_pn", "--data={}/photos", "--config.run.epochs=4"],
    "averaged weights turned off, but evaluated": [
        "--experiment=g16_ln_pn", "--data={}/photos", "--config.regularise.average=0",
    ],
    "decoded cache without a folder": [RUN, "--config.data.cache=decoded"],
    "dynamic loss scale without float16": [RUN, "--config.runtime.dynamic_loss_scale=true"],
    "IPU without its SDK": [
        RUN, "--data={}/photos", "--workdir={}/w", "--mode=train", "--config.run.global_batch=8",
        "--config.runtime.strategy=ipu",
    ],
    "several machines, but none named": [RUN, "--data={}/photos", "--config.runtime.strategy=multiworker"],
    "missing weights file": [RUN, "--data={}/photos", "--config.init.checkpoint={}/none.safetensors"],
    "weights of another network": [RUN, "--data={}/photos", "--config.init.checkpoint={}/timm.safetensors"],
    "torch's pickle as weights": [RUN, "--data={}/photos", "--config.init.checkpoint={}/torch.pth"],
    "workdir of a run with other settings": [
        RUN, "--data={}/photos", "--workdir={}/run", "--config.run.global_batch=4", "--config.model.norm=ln",
    ],
    "workdir that cannot be written": [
        RUN, "--data={}/photos", "--config.run.global_batch=4", "--workdir={}/file.jpg/w",
    ],
    "two trainings in one workdir": ["--workdir={}/run", "--mode=train"],
    "workdir that was never trained": ["--workdir={}/fresh", "--mode=evaluate"],
    "data with other classes than the run's": ["--workdir={}/run", "--mode=evaluate", "--data={}/three"],
    "class folder renamed, added or removed since training": ["--workdir={}/run", "--data={}/renamed"],
    "images added or removed during an unfinished run": ["--workdir={}/kept", "--data={}/grown"],
    "fine-tuning before training has finished": ["--workdir={}/run", "--mode=finetune"],
    "fine-tuned weights that do not exist": [
        "--workdir={}/run", "--mode=evaluate", "--config.eval.weights=finetuned",
    ],
    "prediction without images": ["--workdir={}/run", "--mode=predict"],
    "missing image": ["--workdir={}/run", "--mode=predict", "--images={}/nowhere.jpg"],
    "image that cannot be read": ["--workdir={}/run", "--mode=predict", "--images={}/broken.jpg"],
    "package of an extra missing": ["--workdir={}/run", "--mode=export", "--format=onnx"],
    "nothing exported yet": ["--workdir={}/run", "--mode=verify_export"],
}  # fmt: skip


def test_every_mistake_of_the_page_is_made():
    assert set(table()) == set(HOW)
    assert len(HOW) >= 30


@pytest.mark.once
@pytest.mark.parametrize("title", HOW)
def test_the_message_is_the_pages(title, place, capsys, monkeypatch):
    arguments = [part.replace("{}", str(place)).replace("{root}", pages.ROOT) for part in HOW[title]]
    monkeypatch.setenv("TFDS_DATA_DIR", str(place))
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.chdir(place)
    if title == "IPU without its SDK" and compat.KERAS3:
        pytest.skip("Keras 3 has a message of its own, as the SDK's is Keras 2.6")
    held = None
    if title == "two trainings in one workdir":
        held = open(place / "run" / ".lock", "a+", encoding="utf-8")
        fcntl.flock(held, fcntl.LOCK_EX)
    if title == "package of an extra missing":
        real = extras.importlib.import_module

        def missing(name):
            if name.split(".")[0].startswith("onnx"):
                raise ImportError(f"No module named {name!r}")
            return real(name)

        monkeypatch.setattr(extras.importlib, "import_module", missing)
    before = sorted(os.listdir(place))
    if title == "weights of another network":
        pytest.importorskip("safetensors")
    status, printed = launch(capsys, *arguments)
    if held:
        held.close()
    assert status == (1 if title == "image that cannot be read" else 2), printed
    rest = " ".join(printed.split())
    for part in table()[title].split("..."):
        part = " ".join(part.split())
        assert part in rest, f"{part!r} is not, or not there, in:\n{printed}"
        rest = rest[rest.index(part) + len(part) :]
    assert sorted(set(os.listdir(place)) - set(before)) in ([], ["w"])


def test_a_start_that_failed_leaves_the_workdir_free(place, capsys):
    arguments = [RUN, f"--data={place}/photos", f"--workdir={place}/again", "--mode=train"]
    status, _ = launch(capsys, *arguments, "--config.run.global_batch=768")
    assert status == 2 and not os.path.exists(place / "again")
    status, _ = launch(capsys, *arguments, "--config.run.global_batch=8", "--config.runtime.micro_batch=3")
    assert status == 2
    status, printed = launch(
        capsys, *arguments, "--config.run.global_batch=8", "--config.runtime.micro_batch=5"
    )  # another mistake, and not "holds another run"
    assert status == 2 and "micro_batch=5" in printed


@pytest.mark.parametrize("left", ["checkpoints", "records.jsonl", "train.json"])
def test_a_workdir_without_its_checkpoints_is_still_another_run(place, capsys, tmp_path, left):
    settings = experiments.load(RUN.partition("=")[2])
    settings.run.global_batch = 4
    config.save(recipe.resolve(settings), str(tmp_path / "config.json"))
    (tmp_path / left).mkdir()
    status, printed = launch(
        capsys, RUN, f"--data={place}/photos", f"--workdir={tmp_path}", "--config.run.global_batch=8"
    )
    assert status == 2 and "holds another run" in printed and "4 -> 8" in printed


def test_memory_that_is_not_there_is_told_with_the_remedy():
    from g16net.training import train

    class Devices:
        failed = staticmethod(lambda error: None)

    class Position:
        step = 4

    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[768,32,112,112]")
    told = str(train.run_error(error, Devices(), "runs/b0", Position()))
    assert "out of memory in the run in 'runs/b0' at step 5" in told and "grad_accumulation=2" in told


@pytest.mark.run
@pytest.mark.once
def test_version():
    shown = subprocess.run(command("--version"), stdout=subprocess.PIPE, universal_newlines=True, check=True).stdout
    import g16net

    assert shown == f"g16net {g16net.__version__}\n"

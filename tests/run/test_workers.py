"""Who takes part in a run of several processes."""

import json
import socket

import pytest

from g16net import config as config_lib
from g16net.run import workers

TWO = "a:1,b:2"


def settings(workers="", worker=None):
    config = config_lib.default()
    config.runtime.workers, config.runtime.worker = workers, worker
    return config


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


def test_a_list_with_an_index():
    assert workers.cluster(settings(TWO, 1)) == (["a:1", "b:2"], 1)


def test_a_list_in_which_this_host_is_named():
    assert workers.cluster(settings(f"elsewhere:1,{socket.gethostname()}:2"))[1] == 1
    with pytest.raises(config_lib.ConfigError, match="names this host .* 0 times.*runtime.worker=0"):
        workers.cluster(settings(TWO))


@pytest.mark.parametrize(
    "cluster, task, expected",
    [
        ({"worker": ["a:1", "b:2"]}, {"type": "worker", "index": 1}, 1),
        ({"chief": ["a:1"], "worker": ["b:2"]}, {"type": "chief", "index": 0}, 0),
        ({"chief": ["a:1"], "worker": ["b:2"]}, {"type": "worker", "index": 0}, 1),
    ],
)
def test_tf_config(cluster, task, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert workers.cluster(settings()) == (["a:1", "b:2"], expected)


@pytest.mark.parametrize("text", ["{", "{}", '{"cluster": {"worker": ["a:1"]}}', "[1]"])
def test_a_broken_tf_config_is_shown(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(config_lib.ConfigError, match="TF_CONFIG is not whole"):
        workers.cluster(settings())


@pytest.mark.parametrize(
    "text, index, message",
    [
        ("a:1,b", 0, "'b' is not HOST:PORT"),
        ("a:1,a:1", 0, "comes twice"),
        (TWO, 2, "worker 2 is none of the 2"),
    ],
)
def test_a_wrong_list_is_refused(text, index, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        workers.cluster(settings(text, index))


def test_nothing_to_go_by():
    with pytest.raises(config_lib.ConfigError, match="runtime.workers=host0.*slurm.*TF_CONFIG"):
        workers.cluster(settings())


def test_slurm(monkeypatch):
    for name, value in {
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_PROCID": "3",
        "SLURM_STEP_NODELIST": "gpu[08-09],login",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_JOB_ID": "123456",
    }.items():
        monkeypatch.setenv(name, value)
    addresses = ["gpu08:23456", "gpu08:23457", "gpu09:23456", "gpu09:23457", "login:23456"]
    assert workers.cluster(settings("slurm")) == (addresses, 3)
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(config_lib.ConfigError, match="SLURM_PROCID.*srun"):
        workers.cluster(settings("slurm"))


def test_slurm_names():
    assert workers.expand("n[1-3,07],m,k[9-10]-ib") == ["n1", "n2", "n3", "n07", "m", "k9-ib", "k10-ib"]
    assert workers.per_node("4,2(x3)") == [4, 2, 2, 2]

"""Who takes part in a run of several processes: from TF_CONFIG, a list of hosts, or Slurm. Starts no TensorFlow."""

import json
import os
import socket
from typing import List, Tuple

from ml_collections import ConfigDict

from g16net.errors import ConfigError

EXAMPLE = "--config.runtime.workers=host0:12345,host1:12345"


def cluster(config: ConfigDict) -> Tuple[List[str], int]:
    """`(addresses, index)`: HOST:PORT of every worker, the chief first, and which of them this process is.

    In this order: `runtime.workers` with `runtime.worker` (or this host's place in the list), then the environment
    variable TF_CONFIG, as Kubeflow and TensorFlow's documentation have it.

    Raises:
        ConfigError: there is neither, or what is there is not whole.
    """
    if config.runtime.workers and config.runtime.workers != "slurm":
        return _listed(config.runtime.workers, config.runtime.worker)
    if config.runtime.workers == "slurm":
        return _slurm()
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        raise ConfigError(
            f"runtime.strategy=multiworker needs to know its workers; give {EXAMPLE} (the same in every process), "
            "--config.runtime.workers=slurm under srun, or set TF_CONFIG"
        )
    try:
        parsed = json.loads(text)
        hosts, task = parsed["cluster"], parsed["task"]
        chiefs = list(hosts.get("chief", ()))
        addresses = chiefs + list(hosts.get("worker", ()))
        index = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"TF_CONFIG is not whole ({error!r}): {text!r}; it reads "
            '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    return _checked(addresses, index, "TF_CONFIG")


def _listed(text, index):
    addresses = [part.strip() for part in text.split(",") if part.strip()]
    if index is None:
        own = {socket.gethostname(), socket.getfqdn(), socket.gethostname().split(".")[0]}
        found = [i for i, address in enumerate(addresses) if address.rpartition(":")[0] in own]
        if len(found) != 1:
            raise ConfigError(
                f"runtime.workers={text} names this host ({', '.join(sorted(own))}) {len(found)} times; say which of "
                "them this process is: --config.runtime.worker=0 for the first"
            )
        index = found[0]
    return _checked(addresses, index, "runtime.workers")


def _slurm():
    """One worker a task of the job step: node names from Slurm's environment, ports from the job's number."""
    try:
        tasks, index = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ["SLURM_PROCID"])
        nodes = expand(os.environ["SLURM_STEP_NODELIST"])
        each = per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        first = 20000 + int(os.environ["SLURM_JOB_ID"]) % 20000
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"runtime.workers=slurm reads the environment that srun gives each task, and {error} is missing or odd; "
            "start the processes with srun"
        ) from None
    addresses = [f"{node}:{first + i}" for node, count in zip(nodes, each) for i in range(count)]
    if len(addresses) != tasks:
        raise ConfigError(f"Slurm's environment lists {len(addresses)} tasks, but the job step has {tasks}")
    return _checked(addresses, index, "Slurm's environment")


def expand(text: str) -> List[str]:
    """Host names of Slurm's short form: `n[01-03,7],m2` -> `n01 n02 n03 n7 m2`."""
    names, rest = [], text
    while rest:
        comma, bracket = rest.find(","), rest.find("[")
        if bracket == -1 or -1 < comma < bracket:
            name, _, rest = rest.partition(",")
            names.append(name)
            continue
        prefix, (inside, _, rest) = rest[:bracket], rest[bracket + 1 :].partition("]")
        suffix, _, rest = rest.partition(",")
        for part in inside.split(","):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                names.append(f"{prefix}{number:0{len(low)}d}{suffix}")
    return names


def per_node(text: str) -> List[int]:
    """Tasks on each node of Slurm's short form: `2(x3),1` -> 2 2 2 1."""
    counts = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


def _checked(addresses, index, where):
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"{where}: {address!r} is not HOST:PORT; write it as in {EXAMPLE}")
    if len(set(addresses)) != len(addresses):
        raise ConfigError(f"{where}: an address comes twice in {', '.join(addresses)}; give each worker its own port")
    if not 0 <= index < len(addresses):
        raise ConfigError(f"{where}: worker {index} is none of the {len(addresses)}; they count from 0")
    return addresses, index

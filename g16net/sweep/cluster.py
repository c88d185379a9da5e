"""Runs as tasks of a Ray cluster: each asks for cores and GPUs, and starts again elsewhere when its node dies.

A task starts the process of its run as `local` does and waits for it. The runs' folders are the only state: a task that
Ray starts again finds the run's newest checkpoint there.
"""

import multiprocessing.connection
import os
import socket
import uuid

import g16net
from g16net import extras
from g16net.errors import UserError
from g16net.sweep import local

NODE_LOSSES = 10  # of a run, after which it counts as failed
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0  # for every node to start a process and look at the workdir


class Cluster:
    """Starts runs on the Ray cluster at `address`, and says which have ended.

    UserError where Ray is missing, no cluster answers, or no node has what one of `runs` asks for.
    """

    def __init__(self, address, runs):
        self.ray = extras.need("ray", "cluster", "--cluster")
        self._mine = connect(self.ray, address)
        self._tasks = {}  # reference: (name, log, its size before)
        self._runs = runs
        try:
            self._nodes = check_resources(self.ray, runs)
        except UserError:
            self._leave()
            raise
        self._task = self.ray.remote(_task)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for reference in self._tasks:
            self.ray.cancel(reference)
        if self._tasks:  # each saves first
            self.ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=local.SAVE_SECONDS)
        self._leave()

    def _leave(self):
        if self._mine:
            self.ray.shutdown()

    def prepare(self, workdir):
        """UserError where a node does not see `workdir`, or has another g16net."""
        probe(self.ray, self._nodes, workdir)

    @property
    def running(self):
        """The names of the runs in work; the others wait for Ray to place them."""
        return {name for name, log, size in self._tasks.values() if _size(log) > size}

    def has_room(self):
        return True  # Ray has a queue

    def start(self, one, main, argv, folder, trainer):
        """Hands the run `one` to Ray; the other arguments are those of `local.work`."""
        options = {"num_cpus": one["cpus"], "num_gpus": one["gpus"], "max_retries": NODE_LOSSES, "name": one["name"]}
        log = os.path.join(folder, "run.log")
        size = _size(log)
        reference = self._task.options(**options).remote(one["cpus"], os.getcwd(), main, argv, folder, trainer)
        self._tasks[reference] = one["name"], log, size

    def ended(self, seconds):
        """Waits so long at most; yields `(name, exit status, what is known of the failure)` of each run that ended."""
        self.ray.wait(list(self._tasks), timeout=seconds)
        for reference in self.ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)[0]:
            name, _, _ = self._tasks.pop(reference)
            try:
                yield name, self.ray.get(reference), ""
            except self.ray.exceptions.RayTaskError as error:
                yield name, None, f"{type(error.cause).__name__}: {error.cause}"
            except self.ray.exceptions.RayError as error:
                yield name, None, f"its node was lost more than {NODE_LOSSES} times ({type(error).__name__})"


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def _task(cpus, cwd, *job):
    """On a node: does a run in a process of its own. Returns its exit status."""
    process = local.start(*job, threads=cpus, environment=local.gpus(), cwd=cwd)
    try:
        while process.exitcode is None:  # Ray cancels a task between two steps of Python
            multiprocessing.connection.wait([process.sentinel], timeout=0.5)
    finally:
        local.end([process])
    return process.exitcode


def connect(ray, address):
    """Connects to the cluster at `address`; False where this process was connected before. UserError where there is
    none."""
    if ray.is_initialized():
        return False
    start = "start one by `ray start --head`, or drop --cluster to run on this machine alone (docs/cluster.md)"
    if address != "auto":
        host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--cluster={address} is no address; give auto, HOST:PORT or ray://HOST:PORT")
        try:  # Ray itself waits for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise UserError(f"no Ray cluster answers at --cluster={address} ({error}); {start}") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"no Ray cluster answers at --cluster={address} ({first}); {start}") from None
    return True


def check_resources(ray, runs):
    """The nodes that can do one of `runs`. UserError where none can do some run."""
    nodes = [node for node in ray.nodes() if node["Alive"]]

    def able(node, one):
        has = node["Resources"]
        return has.get("CPU", 0) >= one["cpus"] and has.get("GPU", 0) >= one["gpus"]

    for one in runs:
        if not any(able(node, one) for node in nodes):
            best = "; ".join(
                f"{node['NodeManagerAddress']} has {node['Resources'].get('CPU', 0):g} and "
                f"{node['Resources'].get('GPU', 0):g}"
                for node in nodes
            )
            raise UserError(
                f"no node of the cluster has the sweep.cpus={one['cpus']} and sweep.gpus={one['gpus']:g} that run "
                f"{one['name']!r} asks for ({best}); ask for less: --config.sweep.cpus=1 --config.sweep.gpus=0"
            )
    return [node for node in nodes if any(able(node, one) for one in runs)]


def probe(ray, nodes, workdir):
    """UserError where one of `nodes` does not see the folder `workdir` of this machine, has another g16net, or does not
    answer."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    path = os.path.join(workdir, f".probe-{uuid.uuid4().hex}")
    with open(path, "w", encoding="utf-8"):
        pass
    task = ray.remote(num_cpus=0, max_retries=0)(_look)
    try:
        asked = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[task.options(scheduling_strategy=there).remote(path)] = node["NodeManagerAddress"]
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
        if silent:
            where = ", ".join(asked[reference] for reference in silent)
            raise UserError(f"no answer within {PROBE_SECONDS:g} s from {where}; see `ray status`")
        for reference in answered:
            try:
                sees, version = ray.get(reference)
            except ray.exceptions.RayError as error:
                why = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                raise UserError(
                    f"the node {asked[reference]} cannot run g16net ({why}); install the same g16net[cluster] there"
                ) from None
            if version != g16net.__version__:
                raise UserError(
                    f"the node {asked[reference]} has g16net {version}, this machine {g16net.__version__}; install the "
                    "same on all nodes"
                )
            if not sees:
                raise UserError(
                    f"the node {asked[reference]} does not see --workdir={workdir} of this machine; give a folder that "
                    "all nodes share"
                )
    finally:
        os.remove(path)


def _look(path):
    """On a node: whether it sees the file, and its g16net."""
    return os.path.exists(path), g16net.__version__

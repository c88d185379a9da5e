"""Shared settings: quiet TensorFlow on the CPU, tiers held to what they say, memory given back between modules."""

import ctypes
import gc
import os
import resource
import sys

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Compiling is what tests on JAX take their time for: half of it without what makes programs fast.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# `make test-backends`: Keras on JAX or PyTorch, in processes that import no TensorFlow.
collect_ignore = [] if os.environ.get("KERAS_BACKEND") in ("jax", "torch") else ["backends"]

# Not the point of any test: the compiler of the native operations, and what Python asks about the machine.
TOOLS = {"c++", "g++", "gcc", "cc", "clang", "clang++", "ld", "ldconfig", "uname", "lscpu", "file"}
started = []  # names of the programs that the tests of this process started


def note_process(event, arguments):
    if event == "subprocess.Popen":
        executable, command = arguments[:2]
        name = os.path.basename(os.fsdecode(executable or (command if isinstance(command, str) else command[0])))
        if name not in TOOLS:
            started.append(name)


sys.addaudithook(note_process)


def pytest_collection_modifyitems(items):
    """Files that run things or read data come first, then those of many tests: no worker is left with a long one."""
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def weight(item):
        others = files[item.path]
        long = item.path.parent.name == "data" or any(one.get_closest_marker("run") for one in others)
        return not long, -len(others), str(item.path)

    items.sort(key=weight)


@pytest.fixture(autouse=True)
def tier(request):
    """A test of the quick tier starts no process: what does is marked `run`, or `slow`."""
    before = len(started)
    yield
    marked = request.node.get_closest_marker("run") or request.node.get_closest_marker("slow")
    assert marked or len(started) == before, f"this test started {started[before:]}: mark it `run`"


@pytest.fixture(autouse=True)
def fresh_flags():
    """The command line is one for the whole process: what a test parsed is forgotten after it."""
    yield
    if "g16net.cli.main" in sys.modules:
        sys.modules["g16net.cli.main"].FLAGS.unparse_flags()


@pytest.fixture(autouse=True)
def any_operations():
    """Deterministic operations, once asked for, hold for the process, and TensorFlow's way back is not public."""
    yield
    config = sys.modules.get("tensorflow.python.framework.config")
    if hasattr(config, "disable_op_determinism"):
        config.disable_op_determinism()


@pytest.fixture
def cache_home(tmp_path, monkeypatch):
    """What runs remember for each other, this test alone knows; the native operations are built once for all."""
    from g16net import native

    native.library()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Graphs and models of a module are freed at its end: Keras keeps them, TensorFlow those with a custom gradient,
    such as any `tf.nn.silu`, which it registers for good, and glibc what was freed."""
    yield
    if "tensorflow" in sys.modules:
        from tensorflow import keras
        from tensorflow.python.framework import ops

        keras.backend.clear_session()
        gradients = ops.gradient_registry._registry
        for name in [name for name in gradients if name.startswith("CustomGradient-")]:
            del gradients[name]
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


# What a run of the tests took, over all its workers


def usage():
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "cpu": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "peak_gb": own.ru_maxrss * 1024 / 1e9,
        "processes": len(started),
    }


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["usage"] = usage()


class Usage:
    """Collects `usage` of the workers; loaded in the process that has some."""

    def __init__(self):
        self.workers = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        self.workers.append(getattr(node, "workeroutput", {}).get("usage"))

    def pytest_terminal_summary(self, terminalreporter):
        workers = [one for one in self.workers if one] or [usage()]
        terminalreporter.write_line(
            f"{sum(one['cpu'] for one in workers) / 60:.1f} minutes of CPU, peak memory "
            f"{', '.join(format(one['peak_gb'], '.2f') for one in workers)} GB, "
            f"{sum(one['processes'] for one in workers)} processes started"
        )


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Usage())

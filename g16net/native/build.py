"""Compiles `ops.cc` with the machine's C++ compiler: `python -m g16net.native.build`.

The library lies in the user's cache folder under a name made of everything that it depends on: source, flags, compiler,
TensorFlow and the CPU's features, for which it is compiled. So a home folder that several kinds of machines share holds
one file for each, and none ever runs on a CPU that lacks an instruction. A failed attempt leaves its messages in a
`.log` file and is not repeated until one of these changes, or this module is run.

`CXX` names another compiler than the first of g++, c++ and clang++.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time

import tensorflow as tf
from absl import logging

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = (
    "ops.cc", "kernels.h", "vectors.h", "conv.h", "conv_small.h", "proxy.h", "update.h", "pool.h", "exact.h", "mixup.h",
    "resize.h", "small.h",
)  # fmt: skip
# Floats may be taken as finite (minimum and maximum are then one instruction); nothing is reordered.
FLAGS = (
    "-std=c++14 -O3 -march=native -fPIC -shared -fno-math-errno -fno-trapping-math -ffinite-math-only -fno-signed-zeros"
).split()
if platform.machine().lower() in ("x86_64", "amd64"):
    FLAGS.append("-mprefer-vector-width=512")


def compiler():
    """The path of a C++ compiler, or None."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def folder():
    """The user's folder for compiled libraries."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(cache, "g16net", "native")


def cpu_features():
    """What tells this CPU's instructions from another's."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return " ".join(sorted(line.split(":", 1)[1].split()))
    return platform.processor()


def library_path(cxx):
    """Where the library of this source, TensorFlow, compiler and CPU lies, whether built or not."""
    sources = []
    for name in SOURCES:
        with open(os.path.join(HERE, name), "rb") as file:
            sources.append(file.read())
    version = subprocess.run([cxx, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout
    parts = [*sources, version, *map(str.encode, [" ".join(FLAGS), tf.__version__, platform.machine(), cpu_features()])]
    return os.path.join(folder(), hashlib.sha256(b"\0".join(parts)).hexdigest()[:20] + ".so")


@contextlib.contextmanager
def _lock(path):
    import fcntl  # absent on Windows, where there is no native path

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(again=False):
    """The path of the compiled library, compiling it where it does not exist yet.

    Args:
        again: compile even if it exists or failed before.

    Raises:
        OSError: there is no compiler, it fails, or the cache folder cannot be written; the message says which.
    """
    cxx = compiler()
    if cxx is None:
        raise OSError("no C++ compiler found; install g++ or set CXX")
    path = library_path(cxx)
    if os.path.exists(path) and not again:
        return path
    os.makedirs(folder(), exist_ok=True)
    log = path[: -len(".so")] + ".log"
    with _lock(path[: -len(".so")] + ".lock"):
        if not again:
            if os.path.exists(path):  # another process was faster
                return path
            if os.path.exists(log):
                raise OSError(f"the compiler failed before, see {log}; try again by python -m g16net.native.build")
        start = time.monotonic()
        handle, temporary = tempfile.mkstemp(suffix=".so", dir=folder())
        os.close(handle)
        try:
            command = [
                cxx,
                *FLAGS,
                os.path.join(HERE, SOURCES[0]),
                "-o",
                temporary,
                *tf.sysconfig.get_compile_flags()[:1],
            ]
            command += [*tf.sysconfig.get_link_flags(), "-pthread"]
            result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if result.returncode:
                with open(log, "wb") as file:
                    file.write(" ".join(command).encode() + b"\n" + result.stdout)
                raise OSError(f"{cxx} failed, see {log}")
            os.replace(temporary, path)  # other processes see all of it or nothing
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
        with contextlib.suppress(FileNotFoundError):
            os.remove(log)
    logging.info("Compiled the native operations in %.0f s: %s", time.monotonic() - start, path)
    return path


if __name__ == "__main__":
    logging.set_verbosity(logging.INFO)
    try:
        build(again=True)
    except (OSError, ImportError) as error:
        sys.exit(f"g16net: {error}")

"""Freed memory is kept, in any thread, unless the user's environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from g16net.run import allocator

BLOCK = 64 << 20
CODE = f"""
import ctypes, resource, threading
from g16net.run.allocator import keep_memory

keep_memory()
libc = ctypes.CDLL(None)
libc.prctl(41, 1, 0, 0, 0)  # no large pages, one fault for each of which would do
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def use():
    block = libc.malloc({BLOCK})
    libc.memset(block, 1, {BLOCK})
    libc.free(block)

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: [use() for _ in range(times)])
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(1)
print(faults(4) * resource.getpagesize() / {BLOCK})
"""


@pytest.mark.once
@pytest.mark.run
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.skipif(not allocator.wanted(), reason="another kind of machine")
@pytest.mark.parametrize(
    "environment, cleared",
    [({}, 0), ({"MALLOC_MMAP_MAX_": "65536"}, 4), ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, 4)],
)
def test_freed_memory_is_kept(environment, cleared):
    inherited = {name: os.environ[name] for name in os.environ if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = {**inherited, **environment}
    run = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, universal_newlines=True, check=True
    )
    assert float(run.stdout) == pytest.approx(cleared, abs=0.2)

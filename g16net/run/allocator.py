"""What the C library does with memory that was freed.

A training step on a CPU allocates and frees the same hundreds of MB each time. By default glibc returns large freed
blocks to the system at once; when they are allocated again, the system has to clear every page of 4 KiB anew. For B0
at 224 pixels with 16 images on two cores that is 150 MB, and a tenth of the time of each step. Kept, they cost no more
memory at the peak.
"""

import ctypes
import glob
import os

from g16net import host

# Number and value of an option of glibc's `mallopt`, and the words by which a user's environment sets such a thing.
OPTIONS = (
    (-4, 0, ("MALLOC_MMAP", "glibc.malloc.mmap")),  # no block is a mapping of its own
    (-1, -1, ("MALLOC_TRIM", "glibc.malloc.trim")),  # the end of the heap is not returned
    (-8, 1, ("MALLOC_ARENA", "glibc.malloc.arena")),  # one heap for all threads: other heaps cannot hold large blocks
)
ACCELERATORS = "/dev/nvidia[0-9]*", "/dev/kfd", "/dev/ipu[0-9]*", "/dev/accel*"
CORES = 16  # threads of more may wait for each other at one heap: not measured


def wanted() -> bool:
    """Whether the tensors of this machine are in memory that `keep_memory` would keep."""
    return host.cores() <= CORES and not any(glob.glob(pattern) for pattern in ACCELERATORS)


def keep_memory() -> None:
    """Makes glibc keep freed memory, but for what the user's environment sets.

    Nothing is done with another C library, on machines with accelerators, and where more than `CORES` cores may be
    used.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return
    if not wanted():
        return
    settings = " ".join([*os.environ, os.environ.get("GLIBC_TUNABLES", "")])
    for option, value, words in OPTIONS:
        if not any(word in settings for word in words):
            mallopt(option, value)

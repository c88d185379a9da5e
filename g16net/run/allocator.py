"""What the C library does with memory that was freed.

A training step allocates and frees the same hundreds of MB each time. glibc by default gives large blocks back to the
system at once, which has to clear their pages anew, one fault for each 4 KiB: 150 MB, and a tenth of the time of a step
of B0 at 224 pixels with 16 images on two cores. Kept, they cost no more memory at the peak.
"""

import ctypes
import os

# By the environment variable with which a user sets it: the number of glibc's `mallopt`, and our value.
OPTIONS = {
    "MALLOC_MMAP_MAX_": (-4, 0),  # no block is a mapping of its own
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),  # the end of the heap is not given back
    "MALLOC_ARENA_MAX": (-8, 1),  # other heaps than the main one take no large blocks
}


def keep_memory() -> None:
    """Makes glibc keep freed memory, but for what the user's environment says. Other C libraries stay as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return
    for variable, (option, value) in OPTIONS.items():
        if variable not in os.environ:
            mallopt(option, value)

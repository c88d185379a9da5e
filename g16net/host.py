"""What this process may use of the machine it runs on, told without TensorFlow."""

import os


def cores() -> int:
    """Cores that this process may run on: of a machine's 64, two under `taskset -c 0,1`."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

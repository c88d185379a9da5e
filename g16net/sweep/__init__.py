"""Many runs from one file: a queue in a shared folder that any number of processes and machines work off.

    launch.py --mode=sweep --experiment=experiments/sweeps/norms.py --workdir=DIR --jobs=2

Each run has a folder `DIR/NAME` that is the workdir of an ordinary run, a process of its own, and what it printed in
`run.log`. Runs whose training is the same train once: the first trains, the others wait for it and take its
checkpoints.

The queue is files in `DIR/queue`, made so that only one process can make each: `NAME.1.claim` says who works on the
first attempt and is touched while he does; `NAME.1.json` says how it ended. A claim that its owner no longer touches is
taken over by making `NAME.2.claim`, which again only one can. See `queue.Queue`.
"""

from g16net.sweep.engine import plan, settle, sweep
from g16net.sweep.grid import grid, load, run

__all__ = ["grid", "load", "plan", "run", "settle", "sweep"]

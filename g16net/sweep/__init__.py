"""Many runs from one file, on the cores of this machine or on a Ray cluster.

    launch.py --mode=sweep --experiment=experiments/sweeps/norms.py --workdir=DIR --jobs=2
    launch.py --mode=sweep --experiment=experiments/sweeps/norms.py --workdir=/shared/DIR --cluster=auto

Each run has a folder `DIR/NAME`, which is the workdir of an ordinary run, a process of its own, and what it printed in
`run.log`. Runs whose training is the same train once: the first trains, the others wait for it and take its
checkpoints.

What has been done is what the folders say (`state`), so a sweep that was killed goes on by the same command. One loop
(`engine`) starts the runs that are ready and takes note of those that ended; where they run is up to `local` or
`cluster`. `g16net.search` hands runs to Ray Tune instead.
"""

from g16net.sweep.engine import plan, sweep
from g16net.sweep.grid import grid, load, run

__all__ = ["grid", "load", "plan", "run", "sweep"]

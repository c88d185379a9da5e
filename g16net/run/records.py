"""What a run writes: JSON files that are whole or not there, record lines, and the versions that made them."""

import json
import os
import platform
import shlex
import sys
import time
from typing import Any, Dict, List

import g16net
from g16net.errors import UserError
from g16net.run.workdir import Workdir


def write_json(path: str, value: Any) -> None:
    """Writes `value` as JSON so that a reader never sees half a file."""
    partial = f"{path}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
    os.replace(partial, path)


_locks: Dict[str, Any] = {}  # held to the end of the process, however it ends


def lock(workdir: str) -> None:
    """Makes this process the one that trains in `workdir`. UserError, naming the other one, where there is another."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    path = os.path.realpath(Workdir(workdir).lock)
    if path in _locks:
        return
    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"{workdir!r} is in use: {holder} trains there; wait for it, stop it, or give another --workdir"
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    _locks[path] = file


def append_line(path: str, value: Any) -> None:
    """Appends `value` as one JSON line, after one that a crash has cut off, too."""
    line = f"{json.dumps(value)}\n".encode()
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def read_lines(path: str) -> List[Dict[str, Any]]:
    """The records of a file of JSON lines; a line cut off by a crash is left out."""
    records = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
    return records


def by_epoch(records: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Epoch records in order, the newest of each epoch (a resumed run repeats those after its checkpoint)."""
    newest = {record["epoch"]: record for record in records if record.get("kind") == "epoch"}
    return [newest[epoch] for epoch in sorted(newest)]


def versions() -> Dict[str, str]:
    """Versions of everything that decides a run's numbers."""
    import numpy
    import tensorflow as tf

    from g16net import compat

    return {
        "g16net": g16net.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": compat.KERAS_VERSION,
        "numpy": numpy.__version__,
        "machine": platform.platform(),
    }


def command() -> str:
    """The command line as a user could type it."""
    return shlex.join([os.path.basename(sys.argv[0])] + sys.argv[1:])


def finish(workdir: str, mode: str, started: float, figures: Dict[str, Any]) -> Dict[str, Any]:
    """Writes `WORKDIR/<mode>.json`: the command, the versions, the wall time in seconds and the mode's figures.

    `started`: by `time.monotonic`.
    """
    result = {
        "mode": mode,
        "command": command(),
        "versions": versions(),
        "wall_seconds": round(time.monotonic() - started, 3),
        **figures,
    }
    write_json(Workdir(workdir).figures(mode), result)
    return result

"""Who works on which run of a sweep: files in one folder that all machines see."""

import json
import os
import socket
import time
import uuid

from g16net.run import records

STALE_SECONDS = 120.0  # without a touch, after which the claim of another machine is taken over

DONE, FAILED, RUNNING, STALE, WAITING, BLOCKED = "done", "failed", "running", "stale", "waiting", "blocked"


class Queue:
    """Who works on which run: files in one folder that all machines see.

    An attempt n of a run is claimed by making `NAME.n.claim`, which the file system lets one process do. It is in
    work until `NAME.n.json` tells its end. Attempt n + 1 may be claimed where n failed and is to be tried again, and
    where the claim n is stale: its process is gone (on this machine), or it was not touched for `stale` seconds by the
    clock of the process that looks, so that machines need not agree about the time.
    """

    def __init__(self, folder, stale=STALE_SECONDS):
        self.folder, self.stale = folder, stale
        self._seen = {}  # claim: (its time, when that was first seen here)

    def state(self, name):
        """`(state, attempt, result)` of a run; the result is what `finish` was told."""
        attempt = self._attempt(name)
        if not attempt:
            return WAITING, 0, {}
        result = read(self._path(name, attempt, "json"))
        if result:
            return result["state"], attempt, result
        return (STALE if self._is_stale(name, attempt) else RUNNING), attempt, {}

    def claim(self, name, retry_before=0.0):
        """The `Claim` of a run that waits, is stale, or failed before the time `retry_before`; None otherwise."""
        state, attempt, result = self.state(name)
        again = state == FAILED and result["time"] < retry_before
        if state not in (WAITING, STALE) and not again:
            return None
        os.makedirs(self.folder, exist_ok=True)
        owner = {"place": place(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        try:
            file = os.open(self._path(name, attempt + 1, "claim"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return None
        with os.fdopen(file, "w") as opened:
            json.dump(owner, opened)
        # Its owner may have ended the attempt that looked stale in the moment before the new claim was there.
        ended = attempt and not again and read(self._path(name, attempt, "json"))
        claim = Claim(self._path(name, attempt + 1, "claim"), self._path(name, attempt + 1, "json"), owner, attempt + 1)
        if ended:
            claim.finish(**{k: v for k, v in ended.items() if k not in ("time", "place", "pid", "attempt")})
            return None
        return claim

    def _attempt(self, name):
        """The newest attempt; 0: none."""
        attempt = 0
        while os.path.exists(self._path(name, attempt + 1, "claim")):
            attempt += 1
        return attempt

    def _is_stale(self, name, attempt):
        path = self._path(name, attempt, "claim")
        try:
            touched = os.stat(path).st_mtime_ns
        except OSError:
            return False
        owner = read(path)
        if owner and owner["place"] == place() and not _alive(owner["pid"]):
            return True
        seen, since = self._seen.get(path, (None, 0.0))
        if seen != touched:
            self._seen[path] = (touched, time.monotonic())
            return False
        return time.monotonic() - since > self.stale

    def _path(self, name, attempt, end):
        return os.path.join(self.folder, f"{name}.{attempt}.{end}")


class Claim:
    """The right to work on one attempt of a run; sent from the process that claimed to the one that works."""

    def __init__(self, path, result, owner, attempt):
        self.path, self.result, self.owner, self.attempt = path, result, owner, attempt

    def take(self):
        """Makes this process the owner."""
        self.owner = dict(self.owner, place=place(), pid=os.getpid())
        records.write_json(self.path, self.owner)

    def touch(self):
        """Says that the work goes on. False where the claim was taken over by another process."""
        newer = f"{self.path[: -len('.claim')].rpartition('.')[0]}.{self.attempt + 1}.claim"
        owner = read(self.path)
        if os.path.exists(newer) or not owner or owner["token"] != self.owner["token"]:
            return False
        os.utime(self.path)
        return True

    def finish(self, state, **result):
        """Says how the attempt ended: `DONE` or `FAILED`."""
        owner = {key: self.owner[key] for key in ("place", "pid")}
        records.write_json(
            self.result, {"state": state, "time": time.time(), "attempt": self.attempt, **owner, **result}
        )


def place():
    """Where a process id means the same process: machine, its start, and the namespace of processes."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", _first_line), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(read(path))
        except OSError:  # not Linux
            pass
    return "/".join(parts)


def _first_line(path):
    with open(path, encoding="utf-8") as file:
        return file.readline().strip()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"  # ended, and not yet waited for
    except OSError:
        return True


def read(path):
    """A JSON file, or None where it is not there (or not whole)."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None

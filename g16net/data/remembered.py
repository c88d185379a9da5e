"""What was found out about files at some cost, kept for the next run in the user's cache folder."""

import hashlib
import json
import os
import uuid
from typing import Any, Callable, Sequence

import tensorflow as tf
from absl import logging


def remembered(what: str, paths: Sequence[str], find: Callable[[], Sequence[Any]], **facts: Any) -> Any:
    """One entry of `find()`, a list that JSON can hold, for each of `paths`.

    From the cache where the files' names, sizes and times and the `facts` are those of an earlier call.
    """
    key = [[os.path.abspath(path), *_written(path)] for path in paths]
    text = json.dumps([key, facts] if facts else key, sort_keys=True)
    name = f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    path = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "g16net", name)
    found = _read(path, len(paths))
    if found is None:
        found = find()
        _write(path, found)
    return found


def aside(path: str) -> str:
    """A name beside `path` to write under: no other process takes it, on other machines neither, nor in other
    containers, in each of which the first process is number 1."""
    return f"{path}.{uuid.uuid4().hex}"


def _written(path):
    """Bytes and time of a file; TensorFlow's own time has whole seconds only."""
    if "://" in path:
        stat = tf.io.gfile.stat(path)
        return stat.length, stat.mtime_nsec
    return os.stat(path).st_size, os.stat(path).st_mtime_ns


def _read(path, entries):
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) and len(found) == entries else None


def _write(path, found):
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(aside(path), "w", encoding="utf-8") as file:
            json.dump(found, file)
        os.replace(file.name, path)
    except OSError as error:
        logging.info("What was found about %s is not kept for the next run: %s", os.path.basename(path), error)

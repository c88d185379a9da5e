"""Checkpoints that are whole or not there: written aside, summed, then renamed; verified before they are read.

DIR/00000450/state.index, state.data-*   what `tf.train.Checkpoint` writes
DIR/00000450/manifest.json               epoch and step, and the SHA-256 of every file
"""

import hashlib
import json
import os
import re
import shutil

import tensorflow as tf
from absl import logging

from g16net import records


class Checkpoints:
    """The checkpoints of one run in one folder.

    Args:
      directory: made on the first save.
      keep: how many of the newest to keep.
      trackables: what to save and restore, by name.
    """

    def __init__(self, directory, keep=3, **trackables):
        self.directory = directory
        self.keep = keep
        self._checkpoint = tf.train.Checkpoint(**trackables)

    def save(self, step, **meta):
        """Writes a checkpoint of `step`; `meta` (JSON values) goes into its manifest. Returns its folder."""
        final = os.path.join(self.directory, f"{step:08d}")
        partial = f"{final}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        self._checkpoint.write(os.path.join(partial, "state"))
        sums = {name: _sha256(os.path.join(partial, name)) for name in sorted(os.listdir(partial))}
        records.write_json(os.path.join(partial, "manifest.json"), {"step": step, **meta, "files": sums})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in _folders(self.directory)[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def restore_latest(self):
        """Restores the newest checkpoint that is whole. Returns its manifest, or None where there is none."""
        folder, manifest = newest_whole(self.directory)
        if folder is None:
            return None
        self._checkpoint.read(os.path.join(folder, "state")).assert_existing_objects_matched()
        logging.info("Restored %s", folder)
        return manifest


def newest_whole(directory):
    """`(folder, manifest)` of the newest undamaged checkpoint in `directory`, or `(None, None)`."""
    for folder in reversed(_folders(directory)):
        problem, manifest = _verify(folder)
        if not problem:
            return folder, manifest
        logging.warning("Checkpoint %s is damaged (%s); falling back to the one before.", folder, problem)
    return None, None


def read(folder, **trackables):
    """Reads the named parts of the checkpoint in `folder` into `trackables`, leaving the rest of it unread."""
    status = tf.train.Checkpoint(**trackables).read(os.path.join(folder, "state"))
    status.assert_existing_objects_matched()
    status.expect_partial()


def _folders(directory):
    if not os.path.isdir(directory):
        return []
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if re.fullmatch(r"\d{8,}", name)]


def _verify(folder):
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        for name, expected in manifest["files"].items():
            if _sha256(os.path.join(folder, name)) != expected:
                return f"{name} does not match its sum", None
    except (OSError, ValueError, KeyError) as error:
        return str(error), None
    return None, manifest


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()

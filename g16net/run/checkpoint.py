"""Checkpoints that are whole or not there: written aside, summed, then renamed; verified before they are read.

DIR/00000450/state.index, state.data-*   TensorFlow's checkpoint format; `tf.train.load_checkpoint` reads it
DIR/00000450/manifest.json               epoch and step, the training split's facts, and the SHA-256 of every file

The tensors bear plain names ("model/block1a_conv/kernel", "optimizer/rms/block1a_conv/kernel", "average/..."), the same
in every Keras generation, so that parts can be read into other models and scripts. A save copies all values to the
host, in milliseconds, and writes them in a thread beside the training; `tf.train.Checkpoint` itself would hold up a
step for half a second, and its own asynchronous form loses the optimizer's state in the first save (TensorFlow 2.21).
"""

import functools
import hashlib
import json
import os
import re
import shutil
import threading
from typing import Any, Dict, Optional, Tuple

import tensorflow as tf
from absl import logging
from tensorflow import keras

from g16net import compat
from g16net.errors import RunError, UserError
from g16net.run import records


def state(model: Any = None, optimizer: Any = None, average: Any = None) -> Dict[str, Any]:
    """{name: variable} of everything that a run has to keep, for `Checkpoints` and `read`.

    The state of random layers is part of it.
    """
    variables = {}
    if model is not None:
        variables.update(model_state(model))
        for layer in model.layers:
            if getattr(layer, "random", None) is not None:
                variables.update({f"random/{layer.name}/{name}": v for name, v in layer.random.variables().items()})
    if optimizer is not None:
        kept = compat.optimizer_state(optimizer, model.trainable_variables)
        variables.update({f"optimizer/{name}": v for name, v in kept.items()})
    if average is not None:
        variables.update({f"average/{name}": v for name, v in average.named().items()})
    return variables


def model_state(model: keras.Model) -> Dict[str, Any]:
    """{name: variable} of a model's weights."""
    floating = [v for v in model.weights if tf.as_dtype(v.dtype).is_floating]  # Keras 3 counts random states in
    return {f"model/{compat.name_of(v)}": v for v in floating}


class Checkpoints:
    """The checkpoints of one run in one folder.

    Args:
      directory: made on the first save.
      variables: {name: variable}, as `state` gives them.
      keep: how many of the newest to keep; the best one (by the `score` in its manifest) is kept besides.
      write: False in the processes that take part in a save without writing: reading a variable may need all of them.
      background: write beside the training; `wait` before the end.
      data: the facts of the training split (`data.identity`), which go into every manifest; None: unknown.
      accumulation: passes that the optimizer adds up for an update. Saves come between updates, so that what it has
        added up, nothing, is left out where another number restores.

    Raises:
      RunError: from `save` and `wait`, where the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        directory: str,
        variables: Dict[str, Any],
        keep: int = 3,
        write: bool = True,
        background: bool = True,
        data: Any = None,
        accumulation: int = 1,
    ) -> None:
        self.directory, self.keep, self.write, self.background = directory, keep, write, background
        self.data, self.accumulation = data, accumulation
        self.variables = dict(variables)
        self.shares = compat.on_cpu() and not tf.distribute.has_strategy()  # see `_snapshot`
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None

    def save(self, step: int, **meta: Any) -> str:
        """Saves `step`; `meta` (JSON values) goes into the manifest. Returns the checkpoint's folder.

        Waits for the save before, and raises what went wrong with it.

        Raises:
            RunError: the disk is full, or the folder cannot be written; the checkpoints before are kept.
        """
        self.wait()
        final = os.path.join(self.directory, f"{step:08d}")
        names, values = list(self.variables), [_snapshot(v, self.shares) for v in self.variables.values()]
        if not self.write:
            return final
        meta = {"step": step, "accumulation": self.accumulation, **meta, **({"data": self.data} if self.data else {})}
        if not self.background:
            self._write(final, names, values, meta)
            return final

        def work():
            try:
                self._write(final, names, values, meta)
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()
        return final

    def wait(self) -> None:
        """Returns when the last save is on the disk. Raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, final, names, values, meta):
        partial = f"{final}.partial"
        try:
            _remove_partial(self.directory)
            os.makedirs(partial)
            with tf.device("CPU"):
                tf.raw_ops.SaveV2(
                    prefix=os.path.join(partial, "state"),
                    tensor_names=names,
                    shape_and_slices=[""] * len(names),
                    tensors=values,
                )
            sums = {name: sha256(os.path.join(partial, name)) for name in sorted(os.listdir(partial))}
            records.write_json(os.path.join(partial, "manifest.json"), {**meta, "files": sums})
            for name in os.listdir(partial):
                _sync(os.path.join(partial, name))
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            _sync(self.directory)
            self._prune()
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise RunError(
                f"cannot save the checkpoint {final}: {compat.reason(error)}. The checkpoints before it are kept; make "
                "room, or let the folder be written to, and run the same command again to go on from the newest"
            ) from error

    def _prune(self):
        """Removes all but the newest `keep` and the best."""
        folders = _folders(self.directory)
        old = folders[: -self.keep]
        scores = {folder: manifest_of(folder).get("score") for folder in folders} if old else {}
        scored = [folder for folder in folders if scores.get(folder) is not None]
        best = max(scored, key=lambda folder: scores[folder]) if scored else None
        for folder in old:
            if folder != best:
                shutil.rmtree(folder, ignore_errors=True)

    def restore_latest(self) -> Optional[Dict[str, Any]]:
        """Restores the newest checkpoint that is whole. Returns its manifest, or None where there is none."""
        folder, manifest = newest_whole(self.directory)
        if folder is None:
            return None
        variables = self.variables
        if manifest.get("accumulation", self.accumulation) != self.accumulation:
            variables = {name: v for name, v in variables.items() if not name.startswith(compat.ACCUMULATORS)}
        stored = tf.train.load_checkpoint(os.path.join(folder, "state"))
        absent = [name for name in compat.LATE if name in variables and not stored.has_tensor(name)]
        if absent:
            logging.warning("%s has no %s, which start over.", folder, ", ".join(absent))
        read(folder, {name: v for name, v in variables.items() if name not in absent})
        logging.info("Restored %s", folder)
        return manifest


def newest_whole(directory: str) -> Tuple[Optional[str], Any]:
    """`(folder, manifest)` of the newest undamaged checkpoint in `directory`, or `(None, None)`."""
    for folder in reversed(_folders(directory)):
        problem, manifest = _verify(folder)
        if not problem:
            return folder, manifest
        logging.warning("Checkpoint %s is damaged (%s); falling back to the one before.", folder, problem)
    return None, None


def newest_manifest(directory: str) -> Dict[str, Any]:
    """The manifest of the newest checkpoint that has a readable one, without a look at the other files; {}: none."""
    return next(filter(None, map(manifest_of, reversed(_folders(directory)))), {})


def read(folder: str, variables: Dict[str, Any]) -> None:
    """Reads the tensors named in `variables` ({name: variable}) from the checkpoint in `folder` into them.

    Raises:
        UserError: one is not there or has another shape; then none is changed.
    """
    prefix = os.path.join(folder, "state")
    stored = tf.train.load_checkpoint(prefix)
    shapes = stored.get_variable_to_shape_map()
    for name, variable in variables.items():
        shape = list(variable.shape)
        if shapes.get(name) != shape:
            found = f"has the shape {shapes[name]} there" if name in shapes else "is not in it"
            raise UserError(
                f"the checkpoint {folder} is of another network or version: {name} {shape} {found}; train in another "
                "--workdir, or use the settings and the version that wrote it"
            )
    with tf.device("CPU"):
        dtypes = [tf.as_dtype(variable.dtype) for variable in variables.values()]
        values = tf.raw_ops.RestoreV2(
            prefix=prefix, tensor_names=list(variables), shape_and_slices=[""] * len(variables), dtypes=dtypes
        )
    for variable, value in zip(variables.values(), values):
        variable.assign(value)


def _snapshot(variable, shares):
    """The present value on the host, which later updates leave as it is.

    TensorFlow on a CPU lets what was read share the variable's buffer, and writes the next update elsewhere. The
    devices of a strategy may update in place, as an IPU does, so what they hold is copied.
    """
    if shares and _is_tensorflows(type(variable)):
        return tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    return tf.convert_to_tensor(variable).numpy()


@functools.lru_cache(maxsize=None)
def _is_tensorflows(kind):
    """Whether variables of this class are TensorFlow's own, and not Keras 3's."""
    return issubclass(kind, tf.Variable)


def _folders(directory):
    if not os.path.isdir(directory):
        return []
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if re.fullmatch(r"\d{8,}", name)]


def _remove_partial(directory):
    """Removes what killed runs left half written."""
    if os.path.isdir(directory):
        for name in os.listdir(directory):
            if re.fullmatch(r"\d{8,}\.partial", name):
                shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def manifest_of(folder: str) -> Dict[str, Any]:
    """The manifest of the checkpoint in `folder`; {} where it has none that can be read."""
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def _verify(folder):
    try:
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        for name, expected in manifest["files"].items():
            if sha256(os.path.join(folder, name)) != expected:
                return f"{name} does not match its sum", None
    except (OSError, ValueError, KeyError) as error:
        return str(error), None
    return None, manifest


def _sync(path):
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: str) -> str:
    """Of the content of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()

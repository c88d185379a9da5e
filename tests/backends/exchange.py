"""A process of one backend that writes `.keras` files or reads those of others: `exchange.py write|read FOLDER`.

Reading prints, as the last line, what `read` returns as JSON.
"""

import glob
import json
import os
import sys

import numpy as np
from backends import network

from g16net import compat
from g16net.compat import keras
from g16net.models import portable


def label():
    return f"{compat.BACKEND}_keras{compat.KERAS_VERSION[0]}"


def write(folder):
    """A trained network in the form that both generations read, and with Keras 3 as a whole, with its optimizer."""
    images, ids = network.batch()
    for name in network.NAMES[:2]:
        model = network.compiled(network.filled(name))
        model.fit(images, ids, batch_size=6, epochs=1, verbose=0)
        start = os.path.join(folder, f"{label()}-{name}")
        portable.save(model, f"{start}-portable.keras")
        if compat.KERAS3:
            model.save(f"{start}-whole.keras")
        np.save(f"{start}.npy", model.predict(images, verbose=0))


def read(folder):
    """Differences of the logits of all files, {file: number}, and the steps of their optimizers, {file: number}."""
    images, _ = network.batch()
    differences, steps = {}, {}
    for path in sorted(glob.glob(os.path.join(folder, "*.keras"))):
        if path.endswith("whole.keras") and not compat.KERAS3:
            continue
        model = keras.models.load_model(path)
        expected = np.load(f"{path.rsplit('-', 1)[0]}.npy")
        file = os.path.basename(path)
        logits = keras.ops.convert_to_numpy(model(images, training=False)) if compat.KERAS3 else model(images).numpy()
        differences[file] = float(np.abs(logits - expected).max() / np.abs(expected).max())
        if path.endswith("whole.keras"):
            steps[file] = int(model.optimizer.iterations)
    return differences, steps


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2])
    else:
        print("\n" + json.dumps(read(sys.argv[2])))

"""A network whose weights are NumPy's draws, the same on every backend, and what it computes: logits, before and after
three updates. `python tests/backends/network.py FILE` writes them; tests/golden/logits.npz holds TensorFlow's.
"""

import sys
import zlib

import numpy as np

from g16net import compat, models
from g16net.models import efficientnet
from g16net.optim.losses import SmoothedCrossEntropy, Top1
from g16net.optim.rmsprop import RMSProp
from g16net.optim.schedules import ExponentialStaircase

NAMES = (
    "efficientnet_g16_nano_ln_pn",
    "efficientnet_g1_nano_bn",
    "efficientnet_g16_nano_gn_pn",
    "efficientnet_g4_nano_gn",
)
CLASSES = 5


def draws(name, shape):
    """Values for the weight `name`: kernels that keep the variance, scales around 1, shifts around 0."""
    random = np.random.RandomState(zlib.crc32(name.encode()) % 2**31)
    kind = name.split("/")[-1]
    if kind.endswith("kernel"):
        return random.randn(*shape) * np.sqrt(2 / np.prod(shape[:-1]))
    values = 0.2 * random.randn(*shape)
    return 1 + np.abs(values) if kind in ("gamma", "moving_variance") else values


def filled(name, **overrides):
    """The model `name` with such weights, without what draws at random."""
    model = models.create(name, num_classes=CLASSES, **{"survival_prob": 1.0, "dropout": 0.0, **overrides})
    for layer in efficientnet.learnt(model):
        for weight in layer.weights:
            weight.assign(draws(compat.name_of(weight), tuple(weight.shape)).astype("float32"))
    return model


def batch(count=12, size=37):
    """`(images, class ids)`; an odd size, so that 'SAME' padding is uneven."""
    random = np.random.RandomState(0)
    return random.randint(0, 256, (count, size, size, 3)).astype("float32"), np.arange(count, dtype="int32") % CLASSES


def compiled(model, **arguments):
    """`model` with the recipe's optimizer and loss."""
    optimizer = RMSProp(ExponentialStaircase(0.02, 10, 2, drops=5, rate=0.5), weight_decay=1e-3, **arguments)
    model.compile(optimizer, loss=SmoothedCrossEntropy(CLASSES), metrics=[Top1()])
    return model


def results(name):
    """{what: array} of the network `name`."""
    images, ids = batch()
    model = compiled(filled(name))
    before = model.predict(images, verbose=0)
    history = model.fit(images, ids, batch_size=4, epochs=1, shuffle=False, verbose=0).history
    after = model.predict(images, verbose=0)
    return {"logits": before, "loss": np.float32(history["loss"]), "top1": np.float32(history["top1"]), "after": after}


if __name__ == "__main__":
    np.savez(sys.argv[1], **{f"{name}/{what}": value for name in NAMES for what, value in results(name).items()})

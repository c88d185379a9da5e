"""What this machine reaches, measured in seconds: the figures that `models.roofline` asks of a machine."""

import os
import platform
import socket
import statistics
import threading
import time

import tensorflow as tf
from tensorflow import keras

from g16net import compat, host, layers
from g16net.benchmark import contenders
from g16net.costs import counts, roofline
from g16net.models import efficientnet
from g16net.models import norms as known

MATRIX = 1024  # rows and columns of the matrix product
COPIED = 2**24  # elements of the tensor that is read and written
FEATURES = (8, 28, 28, 192)  # batch, height, width and channels of the grouped convolutions
WIDTHS = (1, 4, 16, 24, 48)  # channels in a group
PIECE = 2**23  # bytes in a piece of what is sent to this machine itself
NORMED = (16, 56, 56, 96)  # batch, height, width and channels of what is normalised


def machine(dtype="float32", norms=("bn", "ln_pn"), seconds=0.1):
    """This machine as a `roofline.Machine`: a matrix product of 1,024 rows, a pass over 64 MiB, grouped 3x3 and 5x5
    convolutions of some widths, and `norms` with their activation, forward and backward. Each is the fastest of about
    `seconds` of repetitions, as a limit is asked for, and others may be at work here too."""
    a, long = tf.random.normal([MATRIX, MATRIX]), tf.zeros([COPIED])
    a = tf.cast(a, dtype)
    product, passed = tf.function(tf.linalg.matmul), tf.function(lambda x: x + 1.0)
    flops = 2 * MATRIX**3 / min(times(lambda: product(a, a), 5 * seconds))
    bandwidth = 2 * 4 * COPIED / min(times(lambda: passed(long), seconds))
    return roofline.Machine(
        "cpu",
        {dtype: flops},
        bandwidth,
        {dtype: 1},
        f"measured here: {platform.platform()}",
        tuple((width, *_share(width, dtype, flops, seconds)) for width in WIDTHS),
        {norm: _norm_rates(norm, dtype, seconds) for norm in norms},
        fused=True,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        links=_links(seconds),
    )


def _links(seconds):
    """Of a plan for several of this machine: each a worker, and its loopback in the place of the network."""
    rate = loopback(seconds)
    return roofline.Links(rate, rate, 1, host.cores(), "measured here: bytes through a local TCP connection")


def loopback(seconds=0.1):
    """Bytes/s through a TCP connection of this machine with itself, the median of pieces of 8 MiB."""
    piece = bytes(PIECE)
    with socket.create_server(("localhost", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    with sender, receiver:
        buffer = memoryview(bytearray(PIECE))

        def transfer():
            thread = threading.Thread(target=sender.sendall, args=(piece,))
            thread.start()
            left = PIECE
            while left:
                left -= receiver.recv_into(buffer[:left])
            thread.join()

        transfer()
        found, end = [], time.perf_counter() + seconds
        while len(found) < 3 or time.perf_counter() < end:
            started = time.perf_counter()
            transfer()
            found.append(time.perf_counter() - started)
    return PIECE / statistics.median(found)


def _share(width, dtype, flops, seconds):
    """The share of `flops` that grouped convolutions reach, forward and backward."""
    batch, height, wide, channels = FEATURES
    with policy(dtype):
        convs = [layers.GroupConv2D(kernel, group_size=width) for kernel in (3, 5)]
    _, ahead, back = pass_seconds(convs, FEATURES, dtype, seconds)
    work = 2 * batch * height * wide * channels * width * (9 + 25)
    return work / ahead / flops, 2 * work / back / flops


def _norm_rates(norm, dtype, seconds):
    """Bytes/s of a norm with its activation: at inference, in training forward, and backward."""
    batch, *shape = NORMED
    with policy(dtype):
        stack = [efficientnet.norm_layer(norm, shape[-1], "swish")]
    inference, *trained = pass_seconds(stack, NORMED, dtype, seconds)
    kind = known.NORMS[norm]
    if kind.over_batch:  # TensorFlow makes it a part of the convolution before it: what is left is the activation
        inference = pass_seconds([keras.layers.Activation("swish")], NORMED, dtype, seconds)[0]
    kinds = ("norm",) if kind.owns_activation else ("norm", "activation")
    rows = [counts.Layer("stem_norm", kind, shape[0], shape[1], shape[2], shape[2], 1, 1, 1, 0, 0, 0) for kind in kinds]
    without, within = (
        [roofline.work(row, row.elements, norm, dtype, batch, training, fused=True) for row in rows]
        for training in (False, True)
    )
    moved = [sum(work[0].bytes for work in without)]
    moved += [sum(work[index].bytes for work in within) for index in (0, 1)]
    return tuple(batch * size / time for size, time in zip(moved, (inference, *trained)))


def pass_seconds(stack, shape, dtype, seconds):
    """Seconds of a stack of layers on an input of `shape`: at inference, in training forward, and backward."""
    x = tf.random.normal(shape, dtype=dtype)

    def forward(x, training):
        for layer in stack:
            x = layer(x, training=training) if isinstance(layer, layers.BatchNorm) else layer(x)
        return x

    def infer(x):
        return forward(x, False)

    def ahead(x):
        return forward(x, True)

    def back(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = ahead(x)
        return y, tape.gradient(y, [x] + [weight for layer in stack for weight in layer.trainable_weights])

    runs = [tf.function(run) for run in (infer, ahead, back)]
    found = [min(times(lambda run=run: run(x), seconds)) for run in runs]
    return found[0], found[1], max(found[2] - found[1], 0.3 * found[1])  # noise must not make a pass free


def policy(dtype):
    """Context in which layers are made that compute in `dtype`."""
    return compat.policy(dtype if dtype == "float32" else f"mixed_{dtype}")


def times(run, seconds, least=3):
    """Seconds of each turn of `run`, after two to warm up, over about `seconds` and at least `least` turns."""
    contenders.settle(run()), contenders.settle(run())
    found, end = [], time.perf_counter() + seconds
    while len(found) < least or time.perf_counter() < end:
        started = time.perf_counter()
        contenders.settle(run())
        found.append(time.perf_counter() - started)
    return found

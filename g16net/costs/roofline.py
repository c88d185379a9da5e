"""How fast a network could run on a machine, from the tables alone: the roofline model, layer by layer. Pure Python.

A layer's pass takes the longer of two times: its multiply-adds at the rate of the machine's dot products, and its bytes
at the rate of its memory (Williams et al., "Roofline", 2009). Dot-product hardware takes vectors of a fixed length, so
a convolution whose groups hold fewer channels leaves a part of it idle: a depthwise convolution uses 1 of 16 places of
an IPU's float16 unit, a group of 16 all of them (arXiv 2106.03640, section 3). What is computed besides dot products
(norms, activations, gates, additions) has no multiply-adds here and costs its bytes.

    seconds(pass) = max(2 multiply-adds / (peak x share of the vector), bytes / bandwidth)
    images/s = devices x efficiency / sum over layers and passes of seconds

`efficiency` is the only free number: what a real machine reaches of that limit, one value for all networks.
"""

import math
from typing import Dict, NamedTuple, Optional, Tuple

from g16net.costs import counts
from g16net.models import norms

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PROXY_POINTS = 200  # evaluations of the activation for a channel's proxy statistics, in float32
OPTIMISER_BYTES = 28  # of a weight in an update: value, gradient, two accumulators read; value and accumulators written


class Links(NamedTuple):
    """How devices reach each other, for `plan`.

    within: bytes/s that a device sends to others of its machine while it receives as many.
    between: bytes/s that a whole machine, all its network adapters together, sends to others.
    per_machine: devices in a machine.
    cores: CPU cores of a machine's host, which may prepare the input; 0: the host is not a part of the machine.
    source: where the figures are from.
    """

    within: float
    between: float
    per_machine: int
    cores: int
    source: str


class Machine(NamedTuple):
    """What the model knows of a machine.

    flops: {dtype: FLOP/s of dense matrix products}, two for a multiply-add, of one device.
    bandwidth: bytes/s of the memory that holds the activations, of one device.
    vector: {dtype: channels of a group that the dot-product hardware takes at a time}; 1: no such limit.
    shares: ((channels of a group, rate over that of the matrix product forward, the same backward), ...), measured;
        where given they hold for grouped convolutions instead of the vector's length. A convolution that reads its
        input from cache many times can pass 1.
    norm_rates: {norm: bytes/s of a norm with its activation at inference, in training forward, and backward}, measured;
        where given they hold for norms and activations instead of the bandwidth, as their arithmetic takes time too.
    fused: whether a norm with its activation and proxy is one operation, or one after the other.
    recompute: whether training computes the forward pass again in the backward pass.
    source: where the figures are from.
    memory: bytes of a device that hold weights and activations; 0: not known.
    links: `Links`; None: not known.
    """

    name: str
    flops: Dict[str, float]
    bandwidth: float
    vector: Dict[str, int]
    source: str
    shares: Tuple[Tuple[int, float, float], ...] = ()
    norm_rates: Dict[str, Tuple[float, float, float]] = {}
    fused: bool = False
    recompute: bool = False
    devices: int = 1
    memory: float = 0
    links: Optional[Links] = None


_MK2 = Machine(
    "ipu_mk2",
    {"float16": 250e12, "float32": 62.5e12},
    47.5e12,
    {"float16": 16, "float32": 8},
    "Graphcore's product brief of the GC200: 250 TFLOP/s float16 and 62.5 TFLOP/s float32, 47.5 TB/s to 900 MB on "
    "chip, 1,472 tiles; 16 float16 channels a dot product: arXiv 2106.03640; 8 in float32: assumed, half of it",
    recompute=True,
    memory=900e6,
    links=Links(
        160e9,
        16 * 2 * 12.5e9,
        64,
        0,
        "Graphcore's product brief of the GC200: ten IPU-Links, 320 GB/s in both directions, 64 IPUs of an IPU-POD64 "
        "in one domain; IPU-M2000 data sheet: two Gateway-Links of 100 Gbit/s for each four IPUs between domains; the "
        "host is a server of the user's choice",
    ),
)
_A100 = Machine(
    "a100_40gb",
    {"bfloat16": 312e12, "float16": 312e12, "float32": 156e12},
    1555e9,
    {"bfloat16": 8, "float16": 8, "float32": 4},
    "NVIDIA's data sheet: 312 TFLOP/s bfloat16, 156 TFLOP/s float32 (TF32), 1,555 GB/s; channels a tensor core takes "
    "at a time: 16 bytes of them, the alignment that cuDNN's guide asks for",
    fused=True,
    memory=40e9,
    links=Links(
        300e9,
        8 * 25e9,
        8,
        128,
        "DGX A100 user guide: eight GPUs, NVLink of 600 GB/s in both directions, eight ConnectX-6 adapters of 200 "
        "Gbit/s for compute, two EPYC 7742 of 64 cores",
    ),
)
_H100 = _A100._replace(
    name="h100_80gb",
    flops={"bfloat16": 989.4e12, "float16": 989.4e12, "float32": 494.7e12},
    bandwidth=3350e9,
    memory=80e9,
    source="NVIDIA's data sheet of the H100 SXM, without sparsity: 989.4 TFLOP/s bfloat16, 494.7 TFLOP/s float32 "
    "(TF32), 3.35 TB/s; channels a tensor core takes at a time: as the A100",
    links=Links(
        450e9,
        8 * 50e9,
        8,
        112,
        "DGX H100 user guide: eight GPUs, NVLink of 900 GB/s in both directions, eight ConnectX-7 adapters of 400 "
        "Gbit/s for compute, two Xeon Platinum 8480C of 56 cores",
    ),
)
_C5 = Machine(
    "c5_metal",
    {"float32": 48 * 3.0e9 * 2 * 2 * 16},
    2 * 6 * 8 * 2933e6,
    {"float32": 1},
    "Amazon EC2 c5.metal: two Xeon Platinum 8275CL of 24 cores at 3.0 GHz with two AVX-512 units of 16 float32 "
    "multiply-adds each, and, as all of this generation (Cascade Lake), six channels of DDR4-2933 each; clocks fall "
    "under AVX-512, so that the rate is an upper bound",
    fused=True,
    memory=192 * 2**30,
    links=Links(25e9 / 8, 25e9 / 8, 1, 48, "EC2's instance types: 192 GiB, a network of 25 Gbit/s"),
)
MACHINES = {
    machine.name: machine
    for machine in (
        _MK2,
        _MK2._replace(name="ipu_mk2_x16", devices=16),
        _A100,
        _A100._replace(name="a100_80gb", bandwidth=2039e9, memory=80e9, source=_A100.source.replace("1,555", "2,039")),
        _H100,
        _C5,
    )
}


class Work(NamedTuple):
    """What a pass of a layer does for one image: multiply-adds, and bytes read and written."""

    macs: float
    bytes: float

    @property
    def intensity(self):
        """FLOP a byte, two for a multiply-add."""
        return 2 * self.macs / self.bytes if self.bytes else 0.0


def work(row, inputs, norm, dtype="float32", batch=1, training=False, fused=False):
    """The passes of a layer for one image: `(forward,)`, or `(forward, backward)` in training, as `Work`.

    Args:
        row: a `costs.Layer`.
        inputs: elements of its input.
        norm: the network's, a name in `norms.NORMS`.
        dtype: of activations, and of weights as they are used.
        batch: images that share one reading of the weights.
        training: whether a batch norm reads its statistics off the batch, and whether there is a backward pass.
        fused: see `Machine`.
    """
    size, outputs, weights = DTYPE_BYTES[dtype], row.elements, row.params / batch
    extra = (0, 0)
    if row.kind in ("conv", "group_conv", "dense"):
        # Backward: the gradient of the input from output's gradient and weights; that of the weights from both again.
        moved = inputs + outputs + weights, 2 * inputs + 2 * outputs + 2 * weights
    elif row.kind == "squeeze_excite":
        moved = 3 * inputs + weights, 4 * inputs + 2 * weights  # pooled; gated. Backward: gate's gradient; input's
    elif row.kind == "norm":
        moved = [passes * inputs for passes in _norm_passes(row, norm, training, fused)]
        if norms.get(norm).proxied and row.activated and training:  # at inference they are constants
            points = 4 * PROXY_POINTS * row.out_channels / batch
            extra = (2 * points, 4 * points) if not fused else (0, 0)
    else:
        moved = {"activation": (2, 3), "add": (3, 3), "pool": (1, 1)}[row.kind]
        moved = [passes * inputs for passes in moved]
    passes = [Work(row.macs, size * moved[0] + extra[0]), Work(2 * row.macs, size * moved[1] + extra[1])]
    return tuple(passes if training else passes[:1])


def _norm_passes(row, norm, training, fused):
    """Times that a norm, with what it owns, goes over its elements: `(forward, backward)`."""
    kind = norms.get(norm)
    forward, backward = kind.passes
    if kind.over_batch and not training:
        if fused:
            return 0, 0  # part of the convolution before it
        forward -= 1  # its statistics are constants
    if fused:
        return forward, backward
    if row.activated and kind.owns_activation:
        forward, backward = forward + 2, backward + 3
        if kind.proxied:  # less the proxy's mean, times its scale
            forward, backward = forward + 4, backward + 4
    return forward, backward


def share(row, machine, dtype, backward=False):
    """The share of the matrix-product rate that a layer's dot products can reach by the width of its groups."""
    width = row.in_channels // row.groups
    if row.kind == "group_conv" and machine.shares:
        return _interpolated(width, [(group, back if backward else ahead) for group, ahead, back in machine.shares])
    vector = machine.vector.get(dtype, 1)
    return width / (vector * math.ceil(width / vector))


def _interpolated(width, points):
    """By the logarithm of the width between the measured ones, and the nearest beyond them."""
    points = sorted(points)
    for (low, first), (high, second) in zip(points, points[1:]):
        if low <= width <= high:
            return first + (second - first) * math.log(width / low) / math.log(high / low)
    return points[0][1] if width < points[0][0] else points[-1][1]


class Part(NamedTuple):
    """The estimate of one layer for one image: a pass' work and seconds on one device at efficiency 1."""

    name: str
    kind: str
    work: Tuple[Work, ...]
    seconds: Tuple[float, ...]
    bound: str


def parts(machine, task="train", dtype="float32", batch=16, **network):
    """The layers of a network on a machine as a list of `Part`, the weight update last in training.

    Args:
        machine: a `Machine`.
        task: "train" or "infer".
        dtype: one of the machine's `flops`.
        batch: images in a pass of one device.
        **network: as in `costs.layers`.
    """
    if task not in ("train", "infer"):
        raise ValueError(f"task must be 'train' or 'infer'; got {task!r}")
    if dtype not in machine.flops:
        raise ValueError(f"{machine.name} has no rate for {dtype!r}; known: {', '.join(machine.flops)}")
    training, norm = task == "train", network.get("norm", "ln_pn")
    rows = counts.layers(**network)
    inputs = [counts.image_elements(network.get("variant", "B0"), network.get("size"))] + [r.elements for r in rows]
    found = []
    for row, elements in zip(rows, inputs):
        passes = work(row, elements, norm, dtype, batch, training, machine.fused)
        if training and machine.recompute:
            passes = passes[:1] + passes
        times = []
        for index, one in enumerate(passes):
            backward = training and index == len(passes) - 1
            compute = 2 * one.macs / (machine.flops[dtype] * share(row, machine, dtype, backward))
            rate = machine.bandwidth
            if row.kind in ("norm", "activation") and norm in machine.norm_rates:
                rate = machine.norm_rates[norm][training + backward]
            times.append((compute, one.bytes / rate))
        bound = "compute" if sum(c for c, _ in times) > sum(b for _, b in times) else "memory"
        found.append(Part(row.name, row.kind, passes, tuple(max(pair) for pair in times), bound))
    if training:
        moved = OPTIMISER_BYTES * sum(row.params for row in rows) / batch
        found.append(Part("update", "update", (Work(0, moved),), (moved / machine.bandwidth,), "memory"))
    return found


def images_per_second(machine, efficiency=1.0, **arguments):
    """The estimate, of all the machine's devices; `arguments` as in `parts`."""
    return machine.devices * efficiency / sum(sum(part.seconds) for part in parts(machine, **arguments))


def fit(estimates, observed):
    """The one efficiency for which estimates at efficiency 1 are right in the geometric mean."""
    ratios = [math.log(seen / estimate) for estimate, seen in zip(estimates, observed)]
    return math.exp(sum(ratios) / len(ratios))

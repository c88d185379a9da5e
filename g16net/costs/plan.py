"""How long a run would take on a cluster that one has not rented yet, from the tables alone. Pure Python.

The roofline gives the seconds of one device; to these comes the exchange of gradients, once per weight update:

    compute = images of a replica per update / images per second of a replica
    ring    = 2 (n - 1) / n x bytes of gradients / bandwidth         among n devices of a machine, then among machines
    step    = compute + ring - what of it is hidden behind the last backward pass

A ring all-reduce sends every byte twice, less the share that a device already has (Patarasu and Yuan, 2009). The model
knows no latency, no stragglers, no other traffic on the network, and one efficiency for all batch sizes. A replica is
one device, or the devices of its pipeline.
"""

import math
from typing import NamedTuple

from g16net.costs import counts, roofline

GRADIENT_BYTES = 4  # float32, in mixed precision too: the weights are float32
ENOUGH = 0.5  # share of linear scaling below which more devices are not worth their price


class Recipe(NamedTuple):
    """How much is trained. images: in the training split; a remainder that fills no batch is left out."""

    images: int
    epochs: int
    global_batch: int

    @property
    def steps(self):
        """Weight updates of the whole run."""
        return self.epochs * (self.images // self.global_batch)


class Memory(NamedTuple):
    """Bytes that training keeps on one device; `image` for each image of a micro-batch, the rest once."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    image: float

    @property
    def fixed(self):
        """Bytes that do not depend on the micro-batch."""
        return self.weights + self.gradients + self.optimizer + self.average

    def total(self, micro_batch):
        """Bytes with a micro-batch of so many images."""
        return self.fixed + micro_batch * self.image

    def largest_micro_batch(self, capacity):
        """The most images whose activations fit in `capacity` bytes beside the weights; 0: not even one does."""
        return max(int((capacity - self.fixed) // self.image), 0)


def memory(dtype="float32", recompute=False, stages=1, **network):
    """`Memory` of one device.

    Args:
        dtype: of activations; in 2 bytes, a copy of the weights in it is kept as well.
        recompute: whether only the input of each block is kept, and one block at a time is computed again.
        stages: devices over which a replica's layers are spread, taken as evenly.
        **network: as in `counts.layers`.

    Temporaries, the framework, and in a pipeline the inputs of the micro-batches in flight come on top.
    """
    rows, size = counts.layers(**network), roofline.DTYPE_BYTES[dtype]
    params = sum(row.params for row in rows) / stages
    image = counts.image_elements(network.get("variant", "B0"), network.get("size"))
    kept = (_recomputed(rows, image) if recompute else image + sum(_inner(rows))) * size
    return Memory(params * (4 + (size if size < 4 else 0)), params * 4, params * 8, params * 4, kept / stages)


def _inner(rows):
    """Of each layer the elements of its output that the gradient of the next one needs, as `counts.count` has it."""
    users = [row.kind for row in rows[1:]] + ["pool"]  # nothing follows the last layer
    return [row.elements if user not in ("add", "pool") else 0 for row, user in zip(rows, users)]


def _recomputed(rows, image):
    """Elements that are kept where blocks are computed again: the input of each, and the inside of the largest."""
    kept, largest, given, inside, block = 0, 0, image, 0, None
    for row, inner in zip(rows, _inner(rows)):
        name = row.name.split("_")[0]
        if name != block:
            kept, inside, block = kept + given, 0, name
        inside += inner
        largest, given = max(largest, inside), row.elements
    return kept + largest


def all_reduce(machine, devices, size, stages=1):
    """`(within, between)`: seconds of a ring among the devices of each machine, and of one among the machines.

    Args:
        machine: a `roofline.Machine` with `links`.
        devices: all devices, of which `stages` make up a replica.
        size: bytes of a replica's gradients.
        stages: the devices of a stage exchange its part of the gradients; all stages do so at a time.

    Raises:
        ValueError: the machine has no links, or `devices` is no multiple of `stages`.
    """
    links, replicas = _links(machine), _replicas(machine, devices, stages)
    machines = -(-devices // links.per_machine)
    inside = min(replicas, max(links.per_machine // stages, 1))
    within = 2 * (inside - 1) / inside * size / stages / links.within
    return within, 2 * (machines - 1) / machines * size / links.between


def _links(machine):
    if machine.links is None:
        raise ValueError(f"{machine.name} has no links, and nothing is known of how its devices exchange gradients")
    return machine.links


def _replicas(machine, devices, stages):
    if devices < 1:
        raise ValueError(f"devices={devices} must be a whole number above 0; for example {stages}")
    if devices % stages:
        near = sorted({max(devices // stages, 1) * stages, (devices // stages + 1) * stages})
        raise ValueError(
            f"devices={devices}: a replica of this network takes {stages} devices of {machine.name}; give a multiple, "
            f"such as {' or '.join(map(str, near))}, or plan for other machines"
        )
    return devices // stages


def share_out(machine, devices, global_batch, stages=1):
    """`(replicas, images of each per update)`; 0 images where there are more replicas than images.

    Raises:
        ValueError: `devices` is below 1 or no multiple of `stages`, or the global batch cannot be shared out evenly.
    """
    replicas = _replicas(machine, devices, stages)
    if replicas <= global_batch and global_batch % replicas:
        below = max(number for number in range(1, replicas) if global_batch % number == 0)
        raise ValueError(
            f"devices={devices}: a global batch of {global_batch} images is not divisible by {replicas} replicas; take "
            f"{below * stages} devices, or --config.run.global_batch={-(-global_batch // replicas) * replicas}"
        )
    return replicas, global_batch // replicas


class Step(NamedTuple):
    """One weight update on a cluster, estimated.

    devices, replicas, machines: what takes part. micro_batch x accumulation x replicas = the global batch; 0 where not
        one image fits in memory, or there are fewer images than replicas, and then there are no other figures.
    memory: bytes on a device. largest_micro_batch: that fits there; None where its memory is not known.
    compute, exchange, hidden: seconds of one update; of `exchange`, `hidden` are behind the backward pass.
    images_per_second: of all devices. efficiency: that over as many times one replica's.
    limits: what speaks against so many devices, in words.
    """

    devices: int
    replicas: int
    machines: int
    micro_batch: int
    accumulation: int
    memory: float
    largest_micro_batch: int
    compute: float
    exchange: float
    hidden: float
    images_per_second: float
    efficiency: float
    limits: tuple

    @property
    def seconds(self):
        """Of one update."""
        return self.compute + self.exchange - self.hidden


def step(
    machine,
    devices,
    global_batch,
    efficiency=1.0,
    dtype="float32",
    overlap=0.0,
    stages=1,
    micro_batch=None,
    recompute=False,
    **network,
):
    """The `Step` of a network on `devices` of a machine's kind.

    Args:
        machine: a `roofline.Machine` with `links`; its own `devices` do not count.
        devices: all of them; replicas of `stages` devices each.
        global_batch: images per weight update.
        efficiency: of `roofline.images_per_second`.
        dtype: one of the machine's `flops`.
        overlap: share of the exchange that may run beside the backward pass of the last micro-batch.
        stages: devices of a replica.
        micro_batch: images in a pass, at most; None: as many as fit.
        recompute: as in `memory`; a machine that recomputes does so always.
        **network: as in `counts.layers`.

    Raises:
        ValueError: the global batch cannot be shared out evenly, or as `all_reduce`.
    """
    links = _links(machine)
    replicas, share = share_out(machine, devices, global_batch, stages)
    machines = -(-devices // links.per_machine)
    kept = memory(dtype, recompute or machine.recompute, stages, **network)
    largest = kept.largest_micro_batch(machine.memory) if machine.memory else None
    nothing = Step(devices, replicas, machines, 0, 0, kept.fixed, largest, 0.0, 0.0, 0.0, 0.0, 0.0, ())
    if not share:
        return nothing._replace(limits=(f"fewer than one image per replica: {global_batch} for {replicas}",))
    if largest == 0:
        return nothing._replace(limits=("memory: not one image fits on a device",))
    at_most = [number for number in (micro_batch, largest) if number]

    def passes(images):
        micro = largest_divisor(images, min([images, *at_most]))
        return micro, _pass_seconds(machine, efficiency, dtype, stages, micro, recompute, network)

    micro, (seconds, backward) = passes(share)
    alone, (alone_seconds, _) = (micro, (seconds, 0)) if replicas == 1 else passes(global_batch)
    accumulation = share // micro
    size = GRADIENT_BYTES * sum(row.params for row in counts.layers(**network))
    compute, exchange = accumulation * seconds, sum(all_reduce(machine, devices, size, stages))
    found = nothing._replace(
        micro_batch=micro,
        accumulation=accumulation,
        memory=kept.total(micro),
        compute=compute,
        exchange=exchange,
        hidden=min(overlap * exchange, backward),
    )
    speed = global_batch / found.seconds
    scaled = speed / (replicas * alone / alone_seconds)
    return found._replace(images_per_second=speed, efficiency=scaled, limits=_limits(found, scaled))


def _limits(found, efficiency):
    limits = []
    if found.exchange > found.compute:
        exchange, compute = (f"{1e3 * seconds:.3g} ms" for seconds in (found.exchange, found.compute))
        limits.append(f"exchange of gradients above compute: {exchange} against {compute}")
    if efficiency < ENOUGH:
        limits.append(f"efficiency {efficiency:.2f}, below {ENOUGH}")
    return tuple(limits)


def _pass_seconds(machine, efficiency, dtype, stages, micro_batch, recompute, network):
    """`(seconds, of them backward)` of a micro-batch on a replica."""
    parts = roofline.parts(
        machine._replace(recompute=recompute or machine.recompute), "train", dtype, micro_batch, **network
    )
    scale = micro_batch / (efficiency * stages)
    backward = sum(part.seconds[-1] for part in parts if len(part.seconds) > 1)
    return scale * sum(sum(part.seconds) for part in parts), scale * backward


def largest_divisor(number, at_most):
    """The largest divisor of `number` that is not above `at_most`."""
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)


def scales_to(machine, global_batch, stages=1, **arguments):
    """`(devices, what stops the next)`: the most devices that share the global batch evenly and meet no limit.

    Arguments as in `step`. `(0, why)` where not even one replica can train; beyond one image per replica there is
    nothing to share out.
    """
    best = 0
    for replicas in [number for number in range(1, global_batch + 1) if global_batch % number == 0]:
        found = step(machine, replicas * stages, global_batch, stages=stages, **arguments)
        if found.limits:
            return best, f"{found.devices} devices: {'; '.join(found.limits)}"
        best = found.devices
    return best, f"one image per replica; a larger run.global_batch than {global_batch} would share out further"


def run(recipe, found, macs, recompute=False):
    """`(hours, multiply-adds)` of all weight updates of a `Recipe` on a `Step`'s cluster; hours None without a speed.

    Args:
        macs: multiply-adds of one image forward; training counts three times as many, four with `recompute`.
    """
    work = (4 if recompute else 3) * macs * recipe.steps * recipe.global_batch
    return (recipe.steps * found.seconds / 3600 if found.micro_batch else None), work


def input_cores(images_per_second, per_core):
    """CPU cores that prepare so many images per second, where one prepares `per_core`; a whole number.

    Raises:
        ValueError: `per_core` is not above 0.
    """
    if per_core <= 0:
        raise ValueError(f"a core must prepare more than 0 images/s; got {per_core}")
    return math.ceil(images_per_second / per_core)


def service_workers(cores, hosts, worker_cores):
    """Workers of tf.data's service, of `worker_cores` cores each, for what the `hosts` cores of the trainers leave.

    Raises:
        ValueError: `worker_cores` is below 1.
    """
    if worker_cores < 1:
        raise ValueError(f"a worker has at least one core; got {worker_cores}")
    return math.ceil(max(cores - hosts, 0) / worker_cores)

"""This project's networks: the training step of `train.train`, and inference as `evaluate` does it.

Options: `config`, the path of a saved config, and `threads`. Cells have the tasks "train", "infer" and "train_input",
which trains from the run's own input pipeline in place of one batch in memory.
"""

import functools
import glob
import json
import os
import re
import sys
import tempfile

from g16net.benchmark import contenders

IMAGES_AN_EPOCH = 1281167  # ImageNet's: sets the schedule, whose warm-up keeps random labels from doing harm
PROFILED_STEPS = 3


def main(options):
    from g16net.run.start import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    from g16net import compat, config, native
    from g16net.data.waiting import Waiting
    from g16net.run import assemble
    from g16net.run.devices import compile_options
    from g16net.training import runtime, train

    tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(options["threads"])
    settings = config.load(options["config"]).unlock()
    classes = options["num_classes"]

    @functools.lru_cache(maxsize=None)
    def network(size, batch, mixing=False):
        """(config, devices, network, what trains), as a run of this size and batch has them."""
        run = settings.copy_and_resolve_references()
        run.data.mix_on_device = mixing
        run.data.train_size, run.run.global_batch, run.data.progressive = size, batch, ()
        devices = runtime.setup(run)
        with compat.policy(run.runtime.precision):
            built = train.build(run, devices, classes, IMAGES_AN_EPOCH // batch)
        return run, devices, built.model, built.trainer

    def images(size, batch):
        return tf.cast(tf.random.uniform([batch, size, size, 3], 0, 256), tf.uint8)

    def training(size, batch, pipeline):
        # one batch in memory is mixed already
        run, devices, model, trainer = network(size, batch, settings.data.mix_on_device and pipeline)
        waiting = Waiting() if pipeline else None
        if pipeline:
            source = assemble.open_source_of(run, "train")
            data = devices.feed(assemble.train_batches(run, source, size=size))
        else:
            targets = tf.random.uniform([batch], 0, classes, tf.int32)
            data = devices.feed(tf.data.Dataset.from_tensors((images(size, batch), targets)).repeat())
        data = waiting.watch(data) if waiting else data
        steps = devices.updates.steps_per_execution
        trainer.fit(data, steps_per_epoch=steps, verbose=0)  # makes the function below
        batches, step = iter(data), trainer.train_function
        facts = {} if pipeline else {"multiply_adds": 3 * macs(run, size, classes), "native": native.enabled()}
        done = devices.updates.micro_batch * steps
        return contenders.Work(
            lambda: step(batches),
            done,
            facts,
            layers=lambda: layer_seconds(lambda: step(batches)),
            extra=waiting and waiting.read,
            memory=contenders.peak_tensors,
        )

    def inference(size, batch):
        run, _, model, _ = network(size, batch)
        batch_images = images(size, batch)
        call = tf.function(lambda x: model(x, training=False), **compile_options(run))
        step = lambda: call(batch_images)  # noqa: E731
        facts = {"multiply_adds": macs(run, size, classes), "native": native.enabled()}
        return contenders.Work(step, batch, facts, layers=lambda: layer_seconds(step), memory=contenders.peak_tensors)

    def make(task, size, batch):
        return inference(size, batch) if task == "infer" else training(size, batch, task == "train_input")

    contenders.serve(make)


def macs(config, size, classes):
    from g16net.training.evaluate import multiply_adds

    return multiply_adds(config, size, classes)


def layer_seconds(step):
    """Seconds of one `step` by kind of layer, as TensorFlow's profiler sees them; they add up to its `step`."""
    import tensorflow as tf

    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3, python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder, options=options)
        try:
            for _ in range(PROFILED_STEPS):
                step()
        finally:
            tf.profiler.experimental.stop()
        (path,) = glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True)
        seconds = divide(operations(path))
    return {kind: spent / PROFILED_STEPS for kind, spent in seconds.items()}


def operations(path):
    """The operations of a profile as `(begin, end, kind)`, in seconds; several can run at a time."""
    try:
        from tensorflow.tsl.profiler.protobuf import xplane_pb2
    except ImportError:  # before TensorFlow 2.12
        from tensorflow.core.profiler.protobuf import xplane_pb2
    space = xplane_pb2.XSpace()
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    found = []
    for plane in space.planes:
        kinds = {key: kind(data.name) for key, data in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                if kinds[event.metadata_id]:
                    begin = line.timestamp_ns * 1e-9 + event.offset_ps * 1e-12
                    found.append((begin, begin + event.duration_ps * 1e-12, kinds[event.metadata_id]))
    return found


OPERATION = re.compile(r"([\w./\-]+):(\w+)")
CALLS = re.compile(r"If|While|Case|PartitionedCall|RemoteCall")  # they hold operations
LAYERS = (  # part of an operation's path -> kind; the first that is found
    (r"proxy/", "proxy"),
    (r"_conv/", "convolution"),
    (r"_(norm|activation)/", "norm_activation"),
    (r"_se/", "squeeze_excite"),
    (r"RMSProp|rmsprop", "optimizer"),  # last, for what is computed again for a gradient lies in the optimizer's scope
)
KINDS = ("convolution", "norm_activation", "proxy", "squeeze_excite", "optimizer", "input", "other", "idle")


def kind(name):
    """The kind of layer of a profiler's event, one of `KINDS`; None for what is no operation."""
    match = OPERATION.fullmatch(name)
    if not match or CALLS.search(match[2]) or "::" in name:
        return None
    path, operation = match[1], match[2]
    if operation.startswith("Iterator"):
        return "input"
    return next((layer for pattern, layer in LAYERS if re.search(pattern, f"{path}:{operation}")), "other")


def divide(found):
    """{kind: seconds} of operations `(begin, end, kind)`: where several run at a time, each has its share of it.

    "idle" is when none runs, between the first and the last; "step" the sum of all.
    """
    edges = sorted(edge for begin, end, kind in found for edge in ((begin, 1, kind), (end, -1, kind)))
    seconds, running = dict.fromkeys(KINDS, 0.0), dict.fromkeys(KINDS, 0)
    for (now, change, kind), (after, _, _) in zip(edges, edges[1:]):
        running[kind] += change
        busy = sum(running.values())
        for name, count in running.items():
            if count:
                seconds[name] += (after - now) * count / busy
        if not busy:
            seconds["idle"] += after - now
    return dict(seconds, step=sum(seconds.values()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

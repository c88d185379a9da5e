"""From a source and a transform to batches, the same ones however often a run is interrupted or shared.

    source.stream(order)    which examples come next, one step's at a time: cheap, in order
      -> one step           its examples are read and transformed side by side, batched, repaired, mixed; a few steps
                            are in work at once, over the borders of epochs
      -> count              of images left out, in order
      -> prefetch

What is drawn for an example depends on (seed, epoch, position) alone. All of it is graph operations without Python
behind them (but for a source that `cache` keeps on disk), so that tf.data's service can run it elsewhere; there without
the native operations, which a worker lacks.

An image that raises in the source's `read` or in the transform leaves its place in a training batch to the next sound
one of the same batch, the last ones to the first; in evaluation it weighs 0. Each is named on stderr with the reason,
up to `MOST_NAMED` per epoch. Corrupt ones, more than a share of which in an epoch ends the run, are told from those
that are sound but larger than the run wants. Nothing else shifts: a resumed run meets the same batches.
"""

from g16net.compat import tensorflow_only  # noqa: F401  isort: skip  says first what is missing

import contextlib
import sys
import uuid
from typing import Any, Callable, Optional, Tuple

import tensorflow as tf
from absl import logging

from g16net import compat, host, native
from g16net.data import order as orders
from g16net.data import transforms
from g16net.data.sources.base import Source
from g16net.errors import UserError

MAX_CORRUPT = 0.01
PREFETCH = 2  # batches made ahead
MOST_NAMED = 100  # images left out that are named in an epoch


def steps_per_epoch(source: Source, global_batch: int, count: int = 1, shard_by: str = "position") -> int:
    """Whole global batches in an epoch, for `count` workers.

    The remainder is left out of that epoch; the next epoch has another order, so that every example is seen.
    """
    if shard_by == "position":
        return source.num_examples // global_batch
    return min(_part(source, i, count).num_examples for i in range(count)) // (global_batch // count)


@compat.as_written
def train_batches(
    source: Source,
    transform: Callable,
    global_batch: int,
    seed: int,
    start_epoch: int = 0,
    start_step: int = 0,
    epochs: Optional[int] = None,
    shard: Tuple[int, int] = (0, 1),
    shard_by: str = "position",
    mix: Optional[Callable] = None,
    max_corrupt: float = MAX_CORRUPT,
    corrupt_log: Optional[str] = None,
    num_parallel_calls: Optional[int] = None,
    service: Optional[str] = None,
    judge: Callable = transforms.reason,
    many: Optional[Callable] = None,
    job: Optional[str] = None,
) -> Any:
    """Shuffled training batches, without a pause between epochs.

    Args:
        source: a `Source`.
        transform: `(record, seed) -> {"image": uint8 [size, size, 3], "label": int}` of graph operations, with static
            shapes; seed is int32 [2].
        global_batch: examples in a step over all workers.
        seed: non-negative integer; of the order and of every draw.
        start_epoch, start_step: where the stream starts; what came before is not read.
        epochs: epoch before which it ends; None: endless.
        shard: `(index, count)` of this worker. Each gets global_batch / count examples of every step.
        shard_by: "position": the workers' slices of a step side by side are the step of one worker alone, byte for
            byte (but for the places of corrupt images); a source of record files is then read by every worker.
            "file": each worker reads its own files (index::count) and shuffles among them.
        mix: `(images, labels, seed) -> (images, targets)` on this worker's batch; seed is int32 [2].
        max_corrupt: share of an epoch's images that may be corrupt before the run ends.
        corrupt_log: file to which the names of images left out are appended, each with the reason; None: stderr.
        num_parallel_calls: images of a step that are in work at once; None: two per core.
        service: address ("grpc://host:port") of a tf.data service's dispatcher. Its workers share out the epochs'
            steps, or groups of record files, in no fixed order. Each comes at most once: the few that a dying worker
            had in hand are lost. All trainers of one `job` take from one stream; `shard` only says how large a batch
            is. Leave `epochs` None with it: the end of a finite stream waits until a dead worker is back.
        judge: encoded bytes that the transform raised on -> (why: string, large: bool, whether that is the size alone),
            as `transforms.reason`.
        many: for a source with `read_many`: `(images, seeds) -> images`, what `transform` makes of each, uint8
            [rows, size, size, 3], with seeds int32 [rows, 2]; a batch then takes no operations for each image. None:
            images one by one.
        job: with `service`: the name of a stream that several trainers share; one that no other and no earlier run on
            the dispatcher has, which would be given its batches. None: a stream of its own.

    Returns:
        A tf.data.Dataset of (images: uint8 [batch, size, size, 3], targets: int32 [batch], or what `mix` gives). It is
        not autotuned (see `compat.set_untuned`): say how parallel your own stages behind it are.

    Raises:
        UserError: the batch does not divide, or is larger than the source; several trainers without a `job`.
        tf.errors.InvalidArgumentError (when run): too many corrupt images, labels out of range.
    """
    index, count = shard
    if global_batch % count or not 0 <= index < count:
        raise UserError(f"a global batch of {global_batch} does not divide among {count} workers (this is {index})")
    if shard_by not in ("position", "file"):
        raise UserError(f'shard_by is {shard_by!r}; use "position" or "file"')
    batch, by_file = global_batch // count, shard_by == "file" and not service
    steps = steps_per_epoch(source, global_batch, count, "file" if by_file else "position")
    if not steps:
        raise UserError(
            f"a global batch of {global_batch} is more than the {source.num_examples} images of {source.name}, split "
            f"{source.split}; set it to at most {max(source.num_examples // count, 1) * count}"
        )
    if service and count > 1 and not job:
        raise UserError(f"data.service={service}: the {count} workers share its batches by the name of a job; give one")
    start_epoch, start_step = start_epoch + start_step // steps, start_step % steps
    order = orders.Order(steps * global_batch, global_batch, seed, start_epoch, start_step * global_batch, epochs)
    if service:  # the workers' batches are cut from one stream
        order = order._replace(batch=batch, stop=order.stop // batch * batch)
    elif by_file:
        source = _part(source, index, count)
        order = order._replace(stop=steps * batch, batch=batch, start=start_step * batch)
    else:
        order = order._replace(index=index, count=count)
    logging.info(
        "%s, split %s: %s images, %s steps of %d per epoch, worker %d of %d, from epoch %d step %d; beside the batches "
        "up to %.0f MB are held",
        source.name, source.split, f"{source.num_examples:,}", f"{steps:,}", global_batch, index, count, start_epoch,
        start_step, source.held_bytes / 1e6,
    )  # fmt: skip

    def with_seeds(rows):
        position = rows["position"]
        if by_file:  # as if the workers' slices lay side by side in every step
            position = position // batch * global_batch + index * batch + position % batch
        return dict(rows, seed=orders.seeds(orders.TRANSFORM, seed, rows["epoch"], position))

    def finish(done, rows):
        if mix is None:
            return done["image"], done["label"]
        mix_seed = orders.seeds(orders.MIXING, seed, rows["epoch"][0], rows["position"][0])
        return mix(done["image"], done["label"], mix_seed)

    rows = source.stream(order)
    if service:  # a worker's share of record files need not end with a whole batch
        rows = rows.filter(lambda rows: tf.equal(tf.size(rows["id"]), batch))
    with native.disabled() if service else contextlib.nullcontext():  # its workers know TensorFlow's operations alone
        data = _batches(
            source, transform, rows.map(with_seeds), batch, finish, max_corrupt * order.stop / order.count, corrupt_log,
            num_parallel_calls, repair=True, judge=judge, many=None if service else many,
        )  # fmt: skip
    if service:
        # The dispatcher compares no data sets: who names a job that it knows goes on in that one's stream.
        name = f"{source.name}-{source.split}-{job or uuid.uuid4().hex}-{start_epoch}-{start_step}"
        share = tf.data.experimental.service.distribute("distributed_epoch", service, job_name=name)
        data = data.with_options(_options()).apply(share)  # for its workers
    return data.prefetch(PREFETCH).with_options(_options())


@compat.as_written
def eval_batches(
    source: Source,
    transform: Callable,
    batch: int,
    shard: Tuple[int, int] = (0, 1),
    max_corrupt: float = MAX_CORRUPT,
    corrupt_log: Optional[str] = None,
    num_parallel_calls: Optional[int] = None,
    judge: Callable = transforms.reason,
    many: Optional[Callable] = None,
) -> Any:
    """Every example of the source exactly once over all workers, each worker with the same number of batches.

    Worker i of n has the i-th contiguous part. Batches are filled up with blank images of weight 0; corrupt images
    are blank and weigh 0 too. Weights sum to the number of sound images.

    Args:
        transform: as in `train_batches`; its seed is always [0, 0].
        batch: examples in a batch of this worker.
        The others: as in `train_batches`.

    Returns:
        A finite tf.data.Dataset of (images: uint8 [batch, size, size, 3], labels: int32 [batch],
        weights: float32 [batch]).

    Raises:
        UserError: for a shard that is none.
    """
    index, count = shard
    if not 0 <= index < count:
        raise UserError(f"worker {index} of {count} does not exist; workers count from 0")
    each = -(-source.num_examples // (count * batch))  # batches of a worker
    begin, end = (min(i * each * batch, source.num_examples) for i in (index, index + 1))
    rows = source.stream(orders.Order(stop=end, batch=batch, start=begin // batch * batch, epochs=1))
    if begin == end:
        rows = rows.take(0)
    empty = {name: tf.zeros([0] + spec.shape[1:], spec.dtype) for name, spec in rows.element_spec.items()}
    missing = each - -(-(end - begin) // batch)
    rows = rows.concatenate(tf.data.Dataset.from_tensors(empty).repeat(missing))

    def with_seeds(rows):
        return dict(rows, seed=tf.zeros([tf.size(rows["id"]), 2], tf.int32))

    def finish(done, rows):
        return done["image"], done["label"], tf.cast(done["sound"], tf.float32)

    data = _batches(
        source, transform, rows.map(with_seeds), batch, finish, max_corrupt * (end - begin), corrupt_log,
        num_parallel_calls, repair=False, judge=judge, many=many,
    )  # fmt: skip
    return data.prefetch(PREFETCH).with_options(_options())


def _batches(
    source, transform, rows, batch, finish, most_corrupt, corrupt_log, num_parallel_calls, repair, judge, many
):
    """From rows (vectors of at most `batch` examples' places) to what `finish` makes of each batch.

    `finish` gets {"image", "label", "sound": bool [batch]} and the rows.
    """
    calls = num_parallel_calls or 2 * host.cores()
    steps = min(max(2, -(-2 * calls // batch)), 16)  # in work at once, so that small batches keep the cores busy too

    def example(slot, row):
        done = transform(source.read(row), row["seed"])
        return {"slot": slot, "image": done["image"], "label": tf.cast(done["label"], tf.int32)}

    def at_once(rows):
        """What `step` has of all `example`s, with the blank."""
        images, labels = source.read_many(rows)
        slots = tf.cast(tf.where(labels >= 0)[:, 0], tf.int32)
        images = many(images, rows["seed"])
        done = {"slot": slots, "image": tf.gather(images, slots), "label": tf.gather(labels, slots)}
        return {name: tf.concat([v, tf.zeros([1, *v.shape[1:]], v.dtype)], 0) for name, v in done.items()}

    def step(rows):
        count = tf.size(rows["id"])
        if many:
            return tf.data.Dataset.from_tensors(rows).map(at_once).map(lambda done: whole(done, rows, count))
        images = tf.data.Dataset.from_tensor_slices((tf.range(count), rows))
        images = images.map(example, num_parallel_calls=calls, deterministic=True)
        if not images.element_spec["image"].shape.is_fully_defined():
            raise ValueError(f"the transform gives images of shape {images.element_spec['image'].shape}, not static")
        blank = {name: tf.zeros(spec.shape, spec.dtype) for name, spec in images.element_spec.items()}
        images = compat.ignore_errors(images)
        # The blank comes last, so that a step without any sound image still gives a batch.
        images = images.concatenate(tf.data.Dataset.from_tensors(blank)).batch(batch + 1)
        return images.map(lambda done: whole(done, rows, count))

    def whole(done, rows, count):
        slots = done["slot"][:-1]
        found = tf.size(slots)
        sound = tf.scatter_nd(slots[:, tf.newaxis], tf.ones_like(slots), [batch]) > 0
        lines, large = tf.cond(
            found < count,
            lambda: _left_out(source, rows, tf.logical_not(sound[:count]), judge),
            lambda: (tf.zeros([0], tf.string), tf.zeros([0], tf.bool)),
        )
        place = _next_sound(slots, sound, batch, lines) if repair else _own(slots, sound, batch)

        def filled(column):
            column = tf.cond(tf.equal(found, batch), lambda: column[:-1], lambda: tf.gather(column, place))
            column.set_shape([batch] + column.shape[1:])
            return column

        done = {"image": filled(done["image"]), "label": filled(done["label"]), "sound": sound}
        valid = (done["label"] >= 0) & (done["label"] < source.num_classes)
        worst = tf.argmin(tf.cast(valid, tf.int32))
        in_range = tf.debugging.Assert(
            tf.reduce_all(valid),
            [
                f"{source.name}, split {source.split}: label outside 0..{source.num_classes - 1}:",
                done["label"][worst],
                "in this batch; are the labels off by one, or num_classes wrong?",
            ],
        )
        with tf.control_dependencies([in_range]):
            done["label"] = tf.identity(done["label"])
        epoch = tf.reduce_max(tf.concat([rows["epoch"], [0]], 0))
        return finish(done, rows), epoch, lines, large

    def counted(state, item):
        """Names the images left out and adds up those of an epoch: (epoch, corrupt ones, all)."""
        batch_of, epoch, lines, large = item
        same = tf.equal(epoch, state[0])
        total = tf.math.count_nonzero(~large) + tf.where(same, state[1], 0)
        before = tf.where(same, state[2], 0)
        named = tf.cond(tf.size(lines) > 0, lambda: _name(lines, before, corrupt_log), tf.no_op)
        few = tf.debugging.Assert(
            tf.cast(total, tf.float64) <= most_corrupt,
            [
                f"{source.name}, split {source.split}: too many corrupt images:",
                total,
                f"in this epoch, more than the {most_corrupt:.1f} that max_corrupt allows. They are named in the log "
                "with the reasons: fix or remove them, or raise max_corrupt; the last is",
                _first(lines),
            ],
        )
        with tf.control_dependencies([few] if named is None else [few, named]):
            return (epoch, tf.identity(total), before + tf.size(lines, tf.int64)), batch_of

    data = rows.interleave(step, cycle_length=steps, block_length=1, num_parallel_calls=steps, deterministic=True)
    zero = tf.constant(0, tf.int64)
    return data.scan((zero, zero, zero), counted)


def _next_sound(slots, sound, batch, lines):
    """For each place of a batch the row, among those found, that goes there: its own, or the next sound place's."""
    some = tf.debugging.Assert(
        tf.size(slots) > 0,
        [
            "too many corrupt images: not one image of a whole batch could be read, such as",
            tf.concat([lines, [""]], 0)[0],
        ],
    )
    with tf.control_dependencies([some]):
        after = tf.searchsorted(tf.sort(slots), tf.range(batch)) % tf.maximum(tf.size(slots), 1)
    return tf.gather(tf.argsort(slots), after)


def _own(slots, sound, batch):
    """For each place of a batch its own row, or the blank one, which is the last."""
    rows = tf.scatter_nd(slots[:, tf.newaxis], tf.range(tf.size(slots)), [batch])
    return tf.where(sound, rows, tf.size(slots))


def fault(source: Source, row: Any, judge: Callable) -> Any:
    """`(why, large)` for a row that the source's `read` or the transform raised on: scalars, string and bool.

    Args:
        judge: as in `train_batches`.
    """
    if source.fault is not None:
        return source.fault(row, judge)
    if not source.encoded:
        return tf.constant("cannot be prepared"), tf.constant(False)
    data, there = transforms.attempt(lambda row: source.read(row)["image"], row, default=tf.constant(""))
    why, large = judge(data)
    return tf.where(there, why, "cannot be read: gone, larger than is read, or not allowed"), there & large


def _left_out(source, rows, bad, judge):
    """(`PATH: why` of each bad row, whether that is its size alone): string and bool [bad rows]."""
    rows = {name: tf.boolean_mask(column, bad) for name, column in rows.items()}
    signature = tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.bool)
    why, large = tf.map_fn(lambda row: fault(source, row, judge), rows, fn_output_signature=signature)
    return tf.strings.join([source.locate(rows["id"]), ": ", why]), large


def _first(lines):
    return tf.concat([lines, [""]], 0)[0]


def _name(lines, before, path):
    """Prints the lines of images left out, where `before` have been named in this epoch."""
    stream = f"file://{path}" if path else sys.stderr
    few = lines[: tf.maximum(MOST_NAMED - before, 0)]
    few = tf.cond(
        (before <= MOST_NAMED) & (before + tf.size(lines, tf.int64) > MOST_NAMED),
        lambda: tf.concat([few, [f"and others, not named in this epoch beyond {MOST_NAMED}"]], 0),
        lambda: few,
    )
    text = tf.strings.reduce_join(tf.strings.join(["Image left out: ", few]), separator="\n")
    return tf.cond(tf.size(few) > 0, lambda: tf.print(text, output_stream=stream), tf.no_op)


def _part(source, index, count):
    if source.part is None:
        raise UserError(f'{source.name} has no record files to share out; use shard_by="position", free of cost here')
    return source.part(index, count)


def _options():
    options = tf.data.Options()
    compat.set_deterministic(options, True)
    compat.set_untuned(options)
    # The workers' shares are cut here; TensorFlow must not cut again.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options

"""The trainings of a sweep on one GPU, by Keras 3 on JAX: runs that differ in seed or rate alone are one program.

    python tools/gpu_sweep.py plan --experiment=cifar10:part=norms --data=cifar10 --out=plan     # where TensorFlow is
    python tools/gpu_sweep.py train --plan=plan --workdir=runs/cifar10 --seconds=600             # where the GPU is

`plan` writes the resolved configs and the photographs, a folder of JPEG files for each class. `train` needs JAX, Keras
and this checkout, no TensorFlow; wheels in PLAN are unpacked for it. It leaves a folder for each run that ends, with
`config.json`, `records.jsonl` and `train.json` as `launch.py` writes them, which `--mode=report` reads. Runs that have
ended there are left alone, so a second call goes on.

- Runs are taken in the plan's order, three at a time of the same network, batch, length and regularisation: they train
  side by side (`jax.vmap`), each with its own weights, order and draws, while the next ones are compiled. A group that
  would not end within `--seconds` is given up, and said. Where runs called `rate-RATE-...` of a network have ended,
  its others take the rate that they choose, see `experiments/sweeps/cifar10.py`.
- A step is the product's: its networks under the mixed policy, its loss, schedule and SGD, a norm over the whole batch
  (or over each `runtime.micro_batch`, one after the other as far as moving averages go), the weight average by updates.
  Order, shifts, flips and mixup are written here in JAX as `g16net.data` has them on TensorFlow; their draws differ.
- Under vmap a grouped convolution would be three times as many groups, so convolutions have forms that a GPU has fast
  operations for, see `convolution`. Products in float32 are not rounded to TF32.

On one H100, measured: an epoch of three networks of size "t" takes 1.9 s (mixed bfloat16, 128 images each), building
and compiling them 20 to 110 s of the CPU, which JAX_COMPILATION_CACHE_DIR spares the next call.
"""

import argparse
import collections
import concurrent.futures
import functools
import glob
import io
import json
import lzma
import os
import sys
import threading
import time
import zipfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

TOGETHER = 3  # networks in a group
AHEAD = 2  # groups that are compiled while one trains
EVAL_BATCH = 500
OWN = ("run.seed", "optim.learning_rate")  # fields in which networks of a group may differ
# Fields that would change a training here, and the values that are written
KNOWN = {
    "optim.name": ["sgd"],
    "optim.clip_norm": [0.0],
    "optim.layer_decay": [1.0],
    "schedule.name": ["cosine"],
    "data.crop": ["reflect", "pad"],
    "data.augment": ["none"],
    "data.cutmix": [1.0],
    "data.progressive": [[]],
    "init.checkpoint": [""],
}
LEVEL = 0.003  # top-1 by which the usual rate may be below the best


# Where TensorFlow is


def plan(options):
    """Writes what `train` needs, from the sweep and the photographs (a folder of JPEG files for each class)."""
    from g16net.sweep.grid import _resolved, load

    os.makedirs(options.out, exist_ok=True)
    rows = []
    for experiment in options.experiment:
        for one in load(experiment, (), options.data):
            rows.append({"name": one["name"], "config": json.loads(json.dumps(_resolved(one).to_dict()))})
    with open(os.path.join(options.out, "runs.json"), "w", encoding="utf-8") as file:
        json.dump(rows, file)
    for split in ("train", "test"):
        folder = os.path.join(options.data, split)
        files, labels = [], []
        for index, name in enumerate(sorted(os.listdir(folder))):
            for path in sorted(glob.glob(os.path.join(folder, name, "*"))):
                with open(path, "rb") as file:
                    files.append(file.read())
                labels.append(index)
        with lzma.open(os.path.join(options.out, f"{split}.xz"), "wb") as file:
            np.savez(
                file,
                sizes=np.array([len(data) for data in files]),
                data=np.frombuffer(b"".join(files), np.uint8),
                labels=np.array(labels, np.int32),
            )


# Where the GPU is


def photographs(folder, split):
    """uint8 [images, height, width, 3] and int32 [images]."""
    from PIL import Image

    with lzma.open(os.path.join(folder, f"{split}.xz")) as file:
        stored = np.load(io.BytesIO(file.read()))
    data, ends = stored["data"].tobytes(), np.cumsum(stored["sizes"])
    spans = zip(ends - stored["sizes"], ends)
    images = [np.asarray(Image.open(io.BytesIO(data[begin:end])).convert("RGB")) for begin, end in spans]
    return np.stack(images), stored["labels"]


def flat(config):
    return {f"{section}.{key}": value for section, part in config.items() for key, value in part.items()}


def groups(rows):
    """Lists of at most `TOGETHER` rows whose configs differ in `OWN` alone, in the plan's order."""
    found = collections.OrderedDict()
    for row in rows:
        config = flat(row["config"])
        same = {key: value for key, value in config.items() if key not in OWN}
        kind = row["name"].startswith("rate-"), json.dumps(same, sort_keys=True)
        found.setdefault(kind, []).append(row)
    return [rows[i : i + TOGETHER] for rows in found.values() for i in range(0, len(rows), TOGETHER)]


def network(config, seed, num_classes):
    from g16net import compat
    from g16net.models import efficientnet
    from g16net.models.architecture import get_variant

    variant = get_variant(config["model.variant"])
    changed = {key: config[f"model.{key}"] for key in ("width", "depth") if config[f"model.{key}"]}
    model = {
        key: config[f"model.{key}"]
        for key in (
            "group_size expand_ratio norm activation norm_groups norm_group_size norm_epsilon strided_groups mean std "
            "proxy_epsilon quadrature"
        ).split()
    }
    with compat.policy(config["runtime.precision"]):
        return efficientnet.build(
            variant._replace(**changed),
            num_classes=num_classes,
            input_size=config["data.train_size"],
            dropout=config["regularise.dropout"],
            survival_prob=config["regularise.survival_prob"],
            seed=seed,
            **model,
        )


# Convolutions under vmap


def convolution(jax, original):
    """What stands in for `jax.lax.conv_general_dilated`: matrix products for one pixel, sums of shifted products for
    groups of one channel, kernels with zeros instead of other groups."""

    def conv(lhs, rhs, window_strides, padding, *args, feature_group_count=1, **others):
        strides, groups = tuple(window_strides), feature_group_count
        if rhs.shape[:2] == (1, 1) and strides == (1, 1) and groups == 1:
            return jax.lax.dot_general(lhs, rhs[0, 0], (((lhs.ndim - 1,), (0,)), ((), ())))
        if rhs.shape[2] == 1 and groups > 1:
            return shifted(jax, lhs, rhs, strides[0])
        rhs = dense(jax, rhs, groups) if groups > 1 else rhs
        return original(lhs, rhs, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return conv


def dense(jax, kernel, groups):
    """The kernel of a convolution without groups, with zeros, for one with groups."""
    size, _, width, channels = kernel.shape
    own = np.arange(width * groups)[:, None] // width == np.arange(channels)[None] // (channels // groups)
    return jax.numpy.where(own, jax.numpy.tile(kernel, (1, 1, groups, 1)), 0).astype(kernel.dtype)


def shifted(jax, x, w, strides):
    """A depthwise 'SAME' convolution as a sum of shifted products, which XLA makes one pass of."""
    numpy = jax.numpy
    size = w.shape[0]
    height, width = (-(-n // strides) for n in x.shape[1:3])
    pads = [max((out - 1) * strides + size - n, 0) for out, n in zip((height, width), x.shape[1:3])]
    padded = numpy.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
    total = 0.0
    for i in range(size):
        for j in range(size):
            part = padded[:, i : i + strides * (height - 1) + 1 : strides, j : j + strides * (width - 1) + 1 : strides]
            total += part.astype("float32") * w[i, j, 0].astype("float32")
    return total.astype(x.dtype)


# One program for the networks of a group


def augmented(jax, config, images, key):
    """The batch shifted and mirrored as `g16net.data.transforms.small_image` does it; uint8."""
    numpy, size = jax.numpy, images.shape[1]
    pad = size // 8
    shift, mirror = jax.random.split(key)
    begin = jax.random.randint(shift, (2, len(images), 1), 0, 2 * pad + 1)
    place = numpy.arange(size) + begin - pad
    inside = (place >= 0) & (place < size)
    place = (size - 1) - abs((size - 1) - abs(place))  # the mirror image of what lies outside
    rows, columns = place
    flip = jax.random.bernoulli(mirror, 0.5, (len(images), 1)) & config["data.flip"]
    columns, within = (numpy.where(flip, part[:, ::-1], part) for part in (columns, inside[1]))
    result = images[numpy.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    if config["data.crop"] == "pad":
        result = result * (inside[0][:, :, None, None] & within[:, None, :, None])
    return result


def mixed(jax, config, images, labels, key):
    """Mixup as in `g16net.data.mixing`: float32 images of whole numbers, targets [batch, terms, 2]."""
    numpy, alpha = jax.numpy, config["data.mixup"]
    images = images.astype("float32")
    if not alpha:
        return images, numpy.stack([labels.astype("float32"), numpy.ones(len(labels))], -1)[:, None]
    m = jax.random.beta(key, alpha, alpha, (len(labels),))
    m = numpy.maximum(m, 1 - m)
    share = m[:, None, None, None]
    images = numpy.round(share * images + (1 - share) * numpy.roll(images, 1, 0))
    ids = numpy.stack([labels, numpy.roll(labels, 1)], 1).astype("float32")
    return images, numpy.stack([ids, numpy.stack([m, 1 - m], 1)], -1)


class Group:
    """The networks of `rows`, trained side by side; compiled when it is made. `building`: a lock."""

    def __init__(self, jax, rows, data, building):
        from g16net.optim.losses import SmoothedCrossEntropy
        from g16net.optim.optimizers import SGD

        self.jax, self.rows, self.data = jax, rows, data
        self.config = config = flat(rows[0]["config"])
        for key, values in KNOWN.items():
            if config[key] not in values:
                raise ValueError(f"{rows[0]['name']}: {key}={config[key]!r} is not written here, only {values}")
        if not config["regularise.ema"]:
            raise ValueError(f"{rows[0]['name']}: regularise.ema=0: the average here is by updates")
        classes = int(data["train"][1].max()) + 1
        self.batch, self.epochs = config["run.global_batch"], config["run.epochs"]
        self.steps = len(data["train"][1]) // self.batch
        with building, jax.default_device(jax.devices("cpu")[0]):  # many small programs, each to be compiled
            models = [network(config, row["config"]["run"]["seed"], classes) for row in rows]
            self.optimizer = SGD(1.0, momentum=config["optim.momentum"], weight_decay=config["optim.weight_decay"])
            self.optimizer.build(models[0].trainable_variables)
        self.model = models[0]
        self.loss = SmoothedCrossEntropy(classes, label_smoothing=config["regularise.label_smoothing"])
        slots = self.optimizer.variables
        (self.rate,) = [i for i, slot in enumerate(slots) if slot is self.optimizer._learning_rate]

        def stacked(lists):
            return [jax.numpy.stack([np.asarray(v.value) for v in same]) for same in zip(*lists)]

        weights, others = ([getattr(m, f"{kind}_variables") for m in models] for kind in ("trainable", "non_trainable"))
        moving = [v.path.split("/")[-1].startswith("moving") for v in self.model.non_trainable_variables]
        self.moving = [i for i, yes in enumerate(moving) if yes]
        weights, others = stacked(weights), stacked(others)
        self.state = {
            "weights": weights,
            "others": others,
            "slots": stacked([slots] * len(models)),
            "average": [jax.numpy.zeros_like(w) for w in weights + [others[i] for i in self.moving]],
            "updates": jax.numpy.zeros(len(rows)),
        }
        self.compile(building)

    def of_batch(self, weights, others, images, targets):
        """`(loss, (new others, share of right answers))`. Micro-batches are passes of their own."""
        jax, micro = self.jax, self.config["runtime.micro_batch"]
        call = functools.partial(self.model.stateless_call, training=True)
        if micro and self.moving:
            parts = images.reshape(-1, micro, *images.shape[1:])

            def one(part, index):  # with draws of its own: other seeds, which are [seed, count]
                seeds = jax.numpy.stack([index * 7919, 0 * index])
                return call(weights, [o if i in self.moving else o + seeds for i, o in enumerate(others)], part)

            logits, new = jax.vmap(one)(parts, jax.numpy.arange(len(parts), dtype="uint32"))
            logits = logits.reshape(-1, logits.shape[-1])
            (momentum,) = {layer.momentum for layer in self.model.layers if hasattr(layer, "momentum")}
            count = len(parts)  # each pass after the other moves the averages
            kept = (momentum ** jax.numpy.arange(count - 1, -1, -1)).astype("float32")
            new = [
                momentum**count * old + jax.numpy.tensordot(kept, values - momentum * old, 1)
                if i in self.moving
                else values[0]
                for i, (old, values) in enumerate(zip(others, new))
            ]
        else:
            logits, new = call(weights, others, images)
        right = (targets[..., 0] == jax.numpy.argmax(logits, -1)[:, None]) * targets[..., 1]
        return self.loss(targets, logits), (new, right.sum() / len(images))

    def update(self, state, images, labels, key, rate):
        jax = self.jax
        shifts, mixes = jax.random.split(key)
        images = augmented(jax, self.config, images, shifts)
        images, targets = mixed(jax, self.config, images, labels, mixes)
        step = jax.value_and_grad(self.of_batch, has_aux=True)
        (loss, (others, right)), gradients = step(state["weights"], state["others"], images, targets)
        slots = list(state["slots"])
        slots[self.rate] = rate
        weights, slots = self.optimizer.stateless_apply(slots, gradients, state["weights"])
        done = state["updates"]
        decay = jax.numpy.where(
            done > 0, jax.numpy.minimum(self.config["regularise.ema"], (1 + done) / (10 + done)), 0.0
        )
        now = weights + [others[i] for i in self.moving]
        average = [a + (1 - decay) * (w - a) for a, w in zip(state["average"], now)]
        state = dict(weights=weights, others=others, slots=slots, average=average, updates=done + 1)
        return state, (loss, right)

    def epoch(self, state, key, rates, images, labels):
        """One network's epoch."""
        jax = self.jax
        order, draws = jax.random.split(key)
        order = jax.random.permutation(order, len(labels))[: self.steps * self.batch].reshape(self.steps, self.batch)

        def one(state, given):
            index, key, rate = given
            return self.update(state, images[index], labels[index], key, rate)

        state, (loss, right) = jax.lax.scan(one, state, (order, jax.random.split(draws, self.steps), rates))
        return state, loss.mean(), right.mean()

    def score(self, weights, others, images, labels):
        """Right answers and summed loss of one network."""
        jax = self.jax

        def one(_, given):
            images, labels = given
            logits, _ = self.model.stateless_call(weights, others, images.astype("float32"), training=False)
            chosen = jax.numpy.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
            return None, ((jax.numpy.argmax(logits, -1) == labels).sum(), -chosen.sum())

        batch = min(EVAL_BATCH, len(labels))
        batches = images.reshape(-1, batch, *images.shape[1:]), labels.reshape(-1, batch)
        right, loss = jax.lax.scan(one, None, batches)[1]
        return right.sum(), loss.sum()

    def scores(self, state):
        """Top-1 and loss of the raw and of the averaged weights, `[2][networks]`."""
        count = len(self.data["test"][1])
        averaged, others = state["average"][: len(state["weights"])], list(state["others"])
        for i, value in zip(self.moving, state["average"][len(averaged) :]):
            others[i] = value
        found = []
        for weights, rest in ((state["weights"], state["others"]), (averaged, others)):
            right, loss = self.scoring(weights, rest, *self.data["test"])
            found.append((np.asarray(right) / count, np.asarray(loss) / count))
        return found

    def compile(self, building):
        jax = self.jax
        keys, rates = jax.random.split(jax.random.key(0), len(self.rows)), jax.numpy.zeros((len(self.rows), self.steps))
        epoch = jax.jit(jax.vmap(self.epoch, in_axes=(0, 0, 0, None, None)), donate_argnums=0)
        score = jax.jit(jax.vmap(self.score, in_axes=(0, 0, None, None)))
        with building:
            epoch = epoch.lower(self.state, keys, rates, *self.data["train"])
            score = score.lower(self.state["weights"], self.state["others"], *self.data["test"])
        self.program, self.scoring = epoch.compile(), score.compile()

    def train(self, workdir, rate, deadline, told):
        """Trains, and writes the runs' folders, unless it would take too long. `rate` takes the place of the configs'
        learning rate, or is None."""
        from g16net.optim.schedules import Cosine

        jax, steps, warmup = self.jax, self.epochs * self.steps, self.config["schedule.warmup_epochs"] * self.steps
        bases = [rate or row["config"]["optim"]["learning_rate"] for row in self.rows]
        curves = np.stack([Cosine(base, steps, warmup).curve(np.arange(steps)) for base in bases]).astype("float32")
        key = jax.random.split(jax.random.key(self.rows[0]["config"]["run"]["seed"] + 7), self.epochs)
        histories, begun, state = [[] for _ in self.rows], time.time(), self.state
        self.state = None
        every, scored = self.config["eval.every_epochs"], 0.0
        for epoch in range(self.epochs):
            start = time.time()
            rates = jax.numpy.asarray(curves[:, epoch * self.steps : (epoch + 1) * self.steps])
            state, loss, right = self.program(
                state, jax.random.split(key[epoch], len(self.rows)), rates, *self.data["train"]
            )
            loss, right = np.asarray(loss), np.asarray(right)
            seconds = time.time() - start
            last = epoch == self.epochs - 1
            if last or (epoch + 1) % every == 0:
                start = time.time()
                raw, average = self.scores(state)
                scored += time.time() - start
            for i, history in enumerate(histories):
                record = {"kind": "epoch", "epoch": epoch + 1, "step": (epoch + 1) * self.steps}
                record.update(loss=float(loss[i]), top1=float(right[i]), learning_rate=float(rates[i, -1]))
                record.update(seconds=round(seconds, 3), images_per_second=round(self.steps * self.batch / seconds, 2))
                if last or (epoch + 1) % every == 0:
                    record.update(eval_top1=float(raw[0][i]), eval_loss=float(raw[1][i]))
                    record.update(eval_top1_average=float(average[0][i]), eval_loss_average=float(average[1][i]))
                history.append(record)
            if epoch in (0, 1, 2) or (epoch + 1) % 10 == 0:
                told(f"epoch {epoch + 1}: {seconds:.1f} s, loss {loss.mean():.3f}, top1 {right.mean():.3f}")
            if epoch >= 1 and time.time() + seconds * (self.epochs - 1 - epoch) > deadline:
                return told("given up: it would not end in time")
        taken = time.time() - begun - scored
        for row, history, base in zip(self.rows, histories, bases):
            row["config"]["optim"]["learning_rate"] = base
            self.write(os.path.join(workdir, row["name"]), row, history, taken)
        told(
            f"{taken:.0f} s; top-1 " + " ".join(f"{h[-1]['eval_top1_average']:.4f}" for h in histories)
            + " raw " + " ".join(f"{h[-1]['eval_top1']:.4f}" for h in histories)
        )  # fmt: skip

    def write(self, folder, row, history, seconds):
        import platform

        import keras

        import g16net

        os.makedirs(folder, exist_ok=True)
        last, together = history[-1], len(self.rows)
        device = f"{self.jax.devices()[0].device_kind}, {together} trainings at once (tools/gpu_sweep.py)"
        figures = {
            "mode": "train",
            "command": "tools/gpu_sweep.py train",
            "versions": {
                "g16net": g16net.__version__,
                "python": platform.python_version(),
                "jax": self.jax.__version__,
                "keras": keras.__version__,
                "numpy": np.__version__,
                "machine": device,
            },
            "wall_seconds": round(seconds, 3),
            "top1": last["eval_top1_average"],
            "loss": last["eval_loss_average"],
            "images": len(self.data["test"][1]),
            "weights": "average",
            "top1_raw": last["eval_top1"],
            "images_per_second": round(self.epochs * self.steps * self.batch / seconds, 2),
            "train_seconds": round(seconds, 3),
            "eval_size": row["config"]["data"]["eval_size"],
            "train_size": row["config"]["data"]["train_size"],
            "epochs": self.epochs,
            "steps": self.epochs * self.steps,
        }
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(row["config"], file)
        with open(os.path.join(folder, "records.jsonl"), "w", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in history)
        with open(os.path.join(folder, "train.json"), "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


# The runs one after the other


def start_jax():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")  # of float32: bfloat16 products stay what they are
    jax.lax.conv_general_dilated = convolution(jax, jax.lax.conv_general_dilated)
    return jax


def tell(rows, begun, text):
    print(f"[{time.time() - begun:4.0f} s] {rows[0]['name']} and {len(rows) - 1} more: {text}", flush=True)


def network_of(row):
    model = row["config"]["model"]
    return f"g{model['group_size']}-{model['norm']}"


def chosen_rate(workdir, network):
    """The best of the rates that were tried, or 0.1 where that is level with it; None where none was."""
    found = {}
    for path in glob.glob(os.path.join(workdir, f"rate-*-{network}", "train.json")):
        with open(path, encoding="utf-8") as file:
            found[float(os.path.basename(os.path.dirname(path)).split("-")[1])] = json.load(file)["top1"]
    if not found:
        return None
    best = max(found, key=found.get)
    return 0.1 if found.get(0.1, 0.0) >= found[best] - LEVEL else best


def train(options):
    deadline = time.time() + options.seconds
    site = os.path.join(os.path.abspath(options.plan), "site")
    for wheel in glob.glob(os.path.join(options.plan, "*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    sys.path.insert(0, site)
    with open(os.path.join(options.plan, "runs.json"), encoding="utf-8") as file:
        rows = json.load(file)
    waiting = groups([row for row in rows if not os.path.exists(f"{options.workdir}/{row['name']}/train.json")])
    jax = start_jax()
    data = {split: tuple(map(jax.numpy.asarray, photographs(options.plan, split))) for split in ("train", "test")}
    building = threading.Lock()  # Keras' policy is one for the process
    with concurrent.futures.ThreadPoolExecutor(AHEAD) as pool:
        made = collections.deque()
        for place, rows in enumerate(waiting):
            while len(made) <= AHEAD and place + len(made) < len(waiting):
                made.append(pool.submit(lambda ahead: Group(jax, ahead, data, building), waiting[place + len(made)]))
            group, rate = made.popleft().result(), None
            if not rows[0]["name"].startswith("rate-"):
                rate = chosen_rate(options.workdir, network_of(rows[0]))
            told = functools.partial(tell, rows, time.time())
            if time.time() < deadline:
                group.train(options.workdir, rate, deadline, told)
            else:
                told("not begun")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    first = kinds.add_parser("plan")
    first.add_argument("--experiment", action="append", required=True, help="a sweep; may be given more than once")
    first.add_argument("--data", required=True, help="a folder with train/CLASS/*.jpg and test/CLASS/*.jpg")
    first.add_argument("--out", required=True, help="the plan's folder")
    second = kinds.add_parser("train")
    second.add_argument("--plan", required=True, help="the plan's folder")
    second.add_argument("--workdir", required=True, help="for a folder of each run")
    second.add_argument("--seconds", type=float, default=600.0, help="after which nothing is begun")
    options = parser.parse_args()
    plan(options) if options.kind == "plan" else train(options)


if __name__ == "__main__":
    main()

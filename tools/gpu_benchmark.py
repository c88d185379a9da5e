"""Speed and memory of our networks on one GPU, with Keras 3 on JAX and on PyTorch, beside timm's.

    python tools/gpu_benchmark.py [--wheels=FOLDER] [--budget=600] > rows.jsonl
    python tools/gpu_benchmark.py --device=cpu --networks=b0 --size=32 --batch=2 --rounds=2 --seconds=0.1   # a trial

Needs torch or JAX, or both; Keras, timm and what they import may lie as wheels in a folder (`--wheels`), which is
unpacked for the run: nothing is installed and no network is used. What is missing is said and left out. Without
torchvision, of which these networks of timm use nothing, timm gets an empty one.

- Groups, in this order: each of `--networks` at its native size in each of `--precisions`. In a group each contender is
  a process that makes its cells (training, inference; `--jobs` processes at a time), and then they take turns of
  `--seconds`, round after round. A figure is the median of the turns, with the least and the most.
- Checks come first: with the same weights (NumPy's draws) and without TF32, logits and gradients on the GPU against
  those on the CPU; and our networks with timm's weights against timm's. A failed check is said and ends in status 1.
- A step of training: float32 images on the device, forward with dropout and stochastic depth, cross-entropy with
  smoothed labels, backward, SGD with momentum. bfloat16: Keras' mixed policy for ours, autocast for timm's (weights
  stay float32), and at inference also timm's weights cast once (`cast`). timm's tensors are channels_last, as ours are.
- `--tf32`: whether float32 products may round to TF32 (10 bits of mantissa), the same for all; rows say so.
- Memory is what a step needs on top of weights, optimizer state and batch: by torch's allocator, or for JAX by the
  compiled program's own account; on a CPU torch's is the resident memory of the process.
- The budget, in seconds, is divided among checks and groups; what has not been made in time is skipped, and said.
  Compilations take most of it. A later call finds them again if TORCHINDUCTOR_CACHE_DIR and JAX_COMPILATION_CACHE_DIR
  are set.

A line of JSON for each contender and cell goes to stdout as soon as it is measured, with the columns of
`--mode=benchmark`; progress to stderr, and at the end the table in Markdown (`--table=FILE`: there too).
"""

import argparse
import concurrent.futures
import contextlib
import glob
import importlib.machinery
import importlib.util
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

VARIANTS = {"b0": (224, 64), "b3": (300, 32), "nano": (32, 64)}  # native size, images in a batch; nano: for a trial
OURS = {"G16-LN+PN": "g16_{}_ln_pn", "G16-BN": "g16_{}_bn", "G1-BN": "g1_{}_bn", "G1-GN": "g1_{}_gn"}
TIMM = {"efficientnet_{}": (1, "bn"), "efficientnet_{}_gn": (1, "gn"), "efficientnet_{}_g8_gn": (8, "gn")}
FORMS = (("ours", "jax", "jit"), ("ours", "torch", "compiled"), ("timm", "torch", "compiled"))
FORMS += (("ours", "torch", "eager"), ("timm", "torch", "eager"))  # the slow ones to make first
CHECKED = ("efficientnet_b0", "efficientnet_b0_gn", "efficientnet_b0_g8_gn")  # by our weights.timm, at 32 m + 1 pixels
CHECK_SIZE, CHECK_BATCH = 65, 4
TOLERANCE = {"logits": 1e-4, "gradients": 1e-3}  # over the largest, over the norm
CLASSES = 1000


# The process of a contender


def child(options):
    from g16net.benchmark import contenders

    if options["library"] == "timm" or options["task"] == "check_timm":
        stub_torchvision()
    if options["backend"] == "torch":
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options["tf32"]
        torch.backends.cudnn.benchmark = True  # tries the forms of a convolution once for each shape
        torch.manual_seed(0)
        if options["form"] == "compiled":  # all layers of Keras go through the same functions, compiled for each
            torch._dynamo.config.recompile_limit = torch._dynamo.config.cache_size_limit = 1024
            torch._dynamo.config.accumulated_recompile_limit = 1024
    else:
        import jax

        if options["device"] == "cuda":
            jax.config.update("jax_default_matmul_precision", "tensorfloat32" if options["tf32"] else "highest")
    contenders.serve(lambda task, size, batch: MAKE[task, options["backend"]](options, task, size, batch))


def stub_torchvision():
    """An empty torchvision for timm, where there is none: any name in it is an empty class."""
    if importlib.util.find_spec("torchvision"):
        return

    class Any(type):
        def __getattr__(cls, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Any(name, (), {})

    class Module(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Any(name, (), {})

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "torchvision":
                return importlib.machinery.ModuleSpec(name, self, is_package=True)

        def create_module(self, spec):
            return Module(spec.name)

        def exec_module(self, module):
            pass

    sys.meta_path.append(Finder())


def build(options, **overrides):
    """Our network under the precision's policy."""
    from g16net import compat, models

    with compat.policy("float32" if options["dtype"] == "float32" else f"mixed_{options['dtype']}"):
        return models.create(f"efficientnet_{options['network']}", num_classes=CLASSES, seed=1, **overrides)


def made_by_torch(options, task, size, batch):
    """The `Work` of a network of torch: one of timm's, or ours on Keras with torch."""
    import torch

    from g16net.benchmark.contenders import Work

    device, low, training = options["device"], options["dtype"] == "bfloat16", task == "train"
    if options["library"] == "ours":
        model = build(options)
        images = torch.rand(batch, size, size, 3, device=device) * 255
        parameters = [variable.value for variable in model.trainable_variables]

        def plain(x):
            return model(x, training=training)
    else:
        import timm

        rates = {"drop_rate": options["dropout"], "drop_path_rate": 0.2} if training else {}
        model = timm.create_model(options["network"], num_classes=CLASSES, **rates).to(device)
        plain = model.train(training).to(memory_format=torch.channels_last)
        images = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
        parameters = list(model.parameters())
        if low and not training and options["cast"]:
            plain, images = model.to(torch.bfloat16), images.to(torch.bfloat16)
    run = torch.compile(plain) if options["form"] == "compiled" else plain
    facts = {}

    def precision():
        if low and options["library"] == "timm" and not options["cast"]:
            return torch.autocast(device, torch.bfloat16)
        return contextlib.nullcontext()

    # torch.compile refuses Keras' constants in inference mode: "Guard failed on the same frame it was created"
    no_gradients = torch.no_grad if options["library"] == "ours" else torch.inference_mode

    def infer():
        with no_gradients(), precision():
            return run(images)

    labels = torch.randint(CLASSES, (batch,), device=device)
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, weight_decay=1e-5)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def train():
        with precision():
            value = loss(run(images), labels)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    def memory(step):
        for _ in range(2):
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step(), step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held

    if options["form"] == "compiled":
        import torch._dynamo.utils as books

        if not training:
            with no_gradients(), precision():
                facts["compiled_from_eager"] = difference(numbers(run(images)), numbers(plain(images)))
        else:
            train()
        facts["graph_breaks"] = sum(books.counters["graph_break"].values())
    on_gpu = {"memory": memory, "release": torch.cuda.empty_cache} if device == "cuda" else {}
    return Work(train if training else infer, batch, facts, **on_gpu)


def made_by_jax(options, task, size, batch):
    """The `Work` of our network on JAX: one compiled program a step, which gives its state to the next."""
    import jax
    import numpy as np

    from g16net.benchmark.contenders import Work
    from g16net.optim.losses import SmoothedCrossEntropy
    from g16net.optim.optimizers import SGD

    model = build(options)
    images = jax.numpy.asarray(np.random.RandomState(0).uniform(0, 255, (batch, size, size, 3)).astype("float32"))
    labels = jax.numpy.asarray(np.arange(batch, dtype="int32") % CLASSES)
    weights, others = ([v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables))
    if task == "infer":
        program = jax.jit(lambda weights, others, x: model.stateless_call(weights, others, x, training=False)[0])
        program = program.lower(weights, others, images).compile()
        return Work(lambda: program(weights, others, images), batch, {}, memory=lambda step: temporary(program))
    optimizer, loss = SGD(1e-5, 0.9, nesterov=False, weight_decay=1e-5), SmoothedCrossEntropy(CLASSES)
    optimizer.build(model.trainable_variables)

    def update(state, images, labels):
        weights, others, slots = state

        def loss_of(weights):
            logits, new = model.stateless_call(weights, others, images, training=True)
            return loss(labels, logits), new

        (value, new), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return (weights, new, slots), value

    state = [jax.tree.map(lambda x: x.copy(), (weights, others, [v.value for v in optimizer.variables]))]
    program = jax.jit(update, donate_argnums=0).lower(state[0], images, labels).compile()

    def train():
        state[0], value = program(state[0], images, labels)
        return value

    return Work(train, batch, {}, memory=lambda step: temporary(program))


def temporary(program):
    """Bytes that a compiled program of JAX takes besides its arguments."""
    books = program.memory_analysis()
    return books and books.temp_size_in_bytes + max(books.output_size_in_bytes - books.alias_size_in_bytes, 0)


def check(options, task, size, batch):
    """Facts: how far logits and gradients of our network are from those in the file `reference`, or writes it."""
    import numpy as np

    from g16net import compat
    from g16net.benchmark.contenders import Work

    model = build(dict(options, dtype="float32"), survival_prob=1.0, dropout=0.0)
    for index, weight in enumerate(model.weights):
        if "seed" not in compat.name_of(weight):
            weight.assign(draw(index, compat.name_of(weight), tuple(weight.shape)))
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (batch, size, size, 3)).astype("float32")
    towards = random.randn(batch, CLASSES).astype("float32") / CLASSES
    logits, slopes = (
        outcome_torch(model, images, towards) if options["backend"] == "torch" else outcome_jax(model, images, towards)
    )
    slopes = np.concatenate([slope.ravel() for slope in slopes])
    if not os.path.exists(options["reference"]):
        np.savez(options["reference"], logits=logits, gradients=slopes)
        return Work(lambda: None, batch, {}, memory=lambda step: None)
    expected = np.load(options["reference"])
    found = {"logits": difference(logits, expected["logits"])}
    found["gradients"] = float(np.linalg.norm(slopes - expected["gradients"]) / np.linalg.norm(expected["gradients"]))
    return Work(lambda: None, batch, found, memory=lambda step: None)


def draw(index, name, shape):
    """Values of a weight: kernels that keep the variance, scales around 1, shifts around 0."""
    import numpy as np

    random, kind = np.random.RandomState(index), name.split("/")[-1]
    if kind.endswith("kernel"):
        return (random.randn(*shape) * np.sqrt(2 / np.prod(shape[:-1]))).astype("float32")
    values = 0.1 * random.randn(*shape)
    return (1 + np.abs(values) if kind in ("gamma", "moving_variance") else values).astype("float32")


def outcome_torch(model, images, towards):
    """`(logits at inference, gradients of sum(logits in training * towards))` as arrays."""
    import keras
    import torch

    images, towards = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(towards)
    with torch.no_grad():
        logits = numbers(model(images, training=False))
    (model(images, training=True) * towards).sum().backward()
    return logits, [numbers(variable.value.grad) for variable in model.trainable_variables]


def outcome_jax(model, images, towards):
    """The same on JAX, as one program."""
    import jax

    weights, others = ([v.value for v in group] for group in (model.trainable_variables, model.non_trainable_variables))

    @jax.jit
    def both(weights, others, images):
        def total(weights):
            return (model.stateless_call(weights, others, images, training=True)[0] * towards).sum()

        return model.stateless_call(weights, others, images, training=False)[0], jax.grad(total)(weights)

    logits, slopes = both(weights, others, images)
    return numbers(logits), [numbers(slope) for slope in slopes]


def check_timm(options, task, size, batch):
    """Facts: how far our network with timm's weights is from timm's, in float32; sizes of 32 m + 1 pixels."""
    import timm
    import torch

    from g16net.benchmark.contenders import Work
    from g16net.weights import timm as weights

    theirs = timm.create_model(options["network"], num_classes=CLASSES).eval()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():  # as drawn, norms do nothing
            if value.ndim == 1 and "num_batches" not in name:
                value.add_(0.1 * torch.rand_like(value))
    values = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours = weights.load(values, options["network"])
    images = torch.randint(0, 256, (batch, size, size, 3), device=options["device"]).float()
    mean, std = (torch.tensor(v, device=options["device"]) for v in (weights.MEAN, weights.STD))
    with torch.no_grad():
        expected = theirs.to(options["device"])(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        found = {"logits": difference(numbers(ours(images, training=False)), numbers(expected))}
    return Work(lambda: None, batch, found, memory=lambda step: None)


def numbers(tensor):
    """A tensor of torch or JAX as a float32 array."""
    import numpy as np

    tensor = tensor.detach().float().cpu().numpy() if hasattr(tensor, "detach") else tensor
    return np.asarray(tensor).astype("float32")


def difference(found, expected):
    """The largest difference over the largest number."""
    return float(abs(found - expected).max() / abs(expected).max())


MAKE = {("check", backend): check for backend in ("jax", "torch")}
MAKE["check_timm", "torch"] = check_timm
MAKE.update({(task, "torch"): made_by_torch for task in ("train", "infer")})
MAKE.update({(task, "jax"): made_by_jax for task in ("train", "infer")})


# The process that asks them


class Contender:
    """A child process, which `ask` gives orders of `benchmark.contenders` and `end` ends."""

    def __init__(self, name, options, folder, path):
        self.name, self.options = name, options
        self.log = tempfile.NamedTemporaryFile("w+", dir=folder, suffix=".log", delete=False)  # noqa: SIM115
        env = dict(os.environ, KERAS_BACKEND=options["backend"], TF_USE_LEGACY_KERAS="0", PYTHONPATH=path)
        env.update(XLA_PYTHON_CLIENT_PREALLOCATE="false", KERAS_TORCH_DEVICE=options["device"])
        if options["device"] == "cpu":
            env.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
        command = [sys.executable, os.path.abspath(__file__), "--child", json.dumps(options)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.log, env=env, universal_newlines=True
        )
        self.answers = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.answers.put(json.loads(line))
        self.answers.put({"error": f"its process ended with status {self.process.wait()}: {self.last_line()}"})

    def last_line(self):
        with open(self.log.name, errors="replace") as file:
            lines = [line.strip() for line in file if line.strip()]
        return lines[-1] if lines else "it said nothing"

    def ask(self, do, task, size, batch, timeout, **more):
        """The answer, {"error": reason} where there is none in time."""
        try:
            order = {"do": do, "task": task, "size": size, "batch": batch, **more}
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            return self.answers.get(timeout=max(timeout, 0.01))
        except queue.Empty:
            return {"error": "out of time", "ended": True}
        except OSError:
            return {"error": f"its process ended: {self.last_line()}", "ended": True}

    def end(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def contenders_of(options, variant, dtype):
    """`(name, options of the child)` of a group, the most telling first."""
    from g16net.costs import counts
    from g16net.models import architecture

    size = options.size or VARIANTS[variant][0]
    common = {"dtype": dtype, "device": options.device, "tf32": options.tf32 == "on", "task": "", "cast": False}
    common["dropout"] = architecture.get_variant(variant.upper()).dropout
    for library, backend, form in FORMS:
        for title, pattern in (OURS if library == "ours" else {name: name for name in TIMM}).items():
            network = pattern.format(variant)
            if library == "ours":
                group_size, _, norm = network.split("_", 2)
                kind = int(group_size[1:]), 6 if group_size == "g1" else 4, norm
                name = f"{title} {variant.upper()}"
            elif variant == "nano":
                continue
            else:
                group_size, norm = TIMM[pattern]
                kind, name = (group_size, 6, norm), f"timm {network}"
            macs = counts.count(variant.upper(), *kind, size, CLASSES).macs
            one = dict(common, library=library, backend=backend, form=form, network=network, multiply_adds=macs)
            yield f"{name}, {backend} {form}", one
            if library == "timm" and dtype == "bfloat16":
                yield f"{name}, {backend} {form}, cast", dict(one, cast=True)


def parallel(jobs, tasks):
    """Results of functions, `jobs` at a time, in order."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def say(text):
    print(text, file=sys.stderr, flush=True)


class Benchmark:
    """A run of the tool: its options, folder, search path of the children and end of the budget."""

    def __init__(self, options, folder, path, backends, started):
        self.options, self.folder, self.path, self.backends = options, folder, path, backends
        self.started = started
        self.rows, self.checks, self.skipped = [], [], []

    def left(self):
        return self.options.budget - (time.monotonic() - self.started)

    def start(self, name, options):
        return Contender(name, options, self.folder, self.path)

    def wanted(self, name, one):
        return (
            re.search(self.options.only, name)
            and one["backend"] in self.backends
            and (one["library"] == "ours" or "timm" in self.backends)
        )

    def check(self, until):
        """Compares networks of all variants with the CPU's and with timm's, as far as there is time `until`."""
        base = {"dtype": "float32", "tf32": False, "library": "ours", "form": "eager", "task": "check", "cast": False}
        reference_backend = "torch" if "torch" in self.backends else "jax"

        def one(title, network):
            reference = os.path.join(self.folder, f"{network}.npz")
            sides = [("CPU", reference_backend, "cpu")]
            sides += [(self.options.device, b, self.options.device) for b in ("torch", "jax") if b in self.backends]
            for index, (place, backend, device) in enumerate(sides):
                options = dict(base, network=network, backend=backend, device=device, reference=reference)
                name = f"{title} on {backend}, {place}, against {reference_backend} on the CPU"
                found = self.compare(name, options, "check", CHECK_SIZE, until)
                if index == 0 and "error" in found:
                    return
                if index:
                    self.note(name, found)

        def timms(network):
            name = f"our network with the weights of timm {network}, against timm's"
            options = dict(base, network=network, backend="torch", device=self.options.device, task="check_timm")
            self.note(name, self.compare(name, options, "check_timm", 225 if self.options.size == 0 else 65, until))

        names = [
            (f"{title} {v.upper()}", pattern.format(v))
            for v in self.options.networks
            for title, pattern in OURS.items()
        ]
        tasks = [lambda pair=pair: one(*pair) for pair in names if re.search(self.options.only, pair[0])]
        if {"timm", "torch"} <= set(self.backends) and "b0" in self.options.networks:
            tasks[1:1] = [lambda network=network: timms(network) for network in CHECKED]
        parallel(self.options.jobs, tasks)

    def compare(self, name, options, task, size, until):
        if until() <= 0:
            self.skip(f"check of {name}", "out of time")
            return {"error": "out of time"}
        child = self.start(name, options)
        found = child.ask("prepare", task, size, CHECK_BATCH, until())
        child.end()
        if "error" in found:
            self.skip(f"check of {name}", found["error"])
        return found

    def note(self, name, found):
        if "error" in found:
            return
        found = {what: found[what] for what in TOLERANCE if what in found}
        good = all(value <= TOLERANCE[what] for what, value in found.items())
        self.checks.append({"check": name, **found, "good": good})
        print(json.dumps(self.checks[-1]), flush=True)
        say(f"{'equal' if good else 'NOT EQUAL'}: {name}: {found}")

    def skip(self, what, why):
        self.skipped.append((what, why))
        print(json.dumps({"skipped": what, "why": why}), flush=True)
        say(f"skipped: {what}: {why}")

    def group(self, variant, dtype, until):
        """Times the contenders of a variant in a precision; `until()`: seconds left for it."""
        options = self.options
        size, batch = options.size or VARIANTS[variant][0], options.batch or VARIANTS[variant][1]
        chosen = [(name, one) for name, one in contenders_of(options, variant, dtype) if self.wanted(name, one)]
        measuring = len(chosen) * len(options.tasks) * options.rounds * options.seconds * 1.3
        reserve = min(measuring, 0.5 * until())  # for the turns; the rest is for making

        def prepare(name, one):
            cells = {}
            if until() - reserve <= 0:
                self.skip(f"{name}, {dtype}", "out of time")
                return None, cells
            contender = self.start(name, one)
            for task in ["infer"] if one["cast"] else options.tasks:
                begun = time.monotonic()
                facts = contender.ask("prepare", task, size, batch, until() - reserve)
                if "error" in facts:
                    self.skip(f"{name}, {dtype}, {task}", facts["error"])
                    if "ended" in facts or contender.process.poll() is not None:
                        break
                else:
                    cells[task] = dict(facts, prepare_seconds=round(time.monotonic() - begun, 1))
                    say(f"made: {name}, {dtype}, {task} in {cells[task]['prepare_seconds']} s")
            if not cells:
                contender.end()
            return contender, cells

        made = parallel(options.jobs, [lambda pair=pair: prepare(*pair) for pair in chosen])
        turns = {(contender, task): [] for contender, cells in made for task in cells}
        for done in range(options.rounds):
            if done and until() <= 0:
                say(f"{variant} {dtype}: {done} rounds of {options.rounds}, out of time")
                break
            for task in options.tasks:
                for key in [key for key in turns if key[1] == task]:
                    answer = key[0].ask("time", task, size, batch, max(until(), 0) + 60, seconds=options.seconds)
                    if "error" in answer:
                        self.skip(f"{key[0].name}, {dtype}, {task}", answer["error"])
                        del turns[key]
                    else:
                        turns[key].append(answer["images"] / answer["seconds"])
        for contender, cells in made:
            for task, facts in cells.items():
                if turns.get((contender, task)):
                    self.row(contender, task, dtype, size, batch, turns[contender, task], facts)
            if contender:
                contender.end()

    def row(self, contender, task, dtype, size, batch, speeds, facts):
        one, memory = contender.options, facts.pop("peak_memory")
        macs = one["multiply_adds"] * (3 if task == "train" else 1)
        middle = statistics.median(speeds)
        row = {"name": contender.name, "library": one["library"], "backend": one["backend"], "form": one["form"]}
        row.update(task=task, dtype=dtype, tf32=one["tf32"] if dtype == "float32" else None, size=size, batch=batch)
        speed = {"median": middle, "min": min(speeds), "max": max(speeds)}
        row.update(images_per_second={name: round(value, 2) for name, value in speed.items()}, rounds=len(speeds))
        row.update(peak_memory=memory, peak_memory_per_image=memory and round(memory / batch))
        row.update(multiply_adds_per_image=macs, multiply_adds_per_second=round(middle * macs), **facts)
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def table(self):
        """All of it in Markdown."""
        lines = ["| check | logits | gradients | |", "|---|---|---|---|"] if self.checks else []
        for one in self.checks:
            values = [f"{one[what]:.1e}" if what in one else "" for what in TOLERANCE]
            lines.append(f"| {one['check']} | {' | '.join(values)} | {'equal' if one['good'] else '**NOT EQUAL**'} |")
        order = {task: index for index, task in enumerate(self.options.tasks)}
        columns = ("task", "dtype", "size", "batch")
        for key in sorted(
            {tuple(row[c] for c in columns) for row in self.rows}, key=lambda k: (k[2], k[1], order[k[0]])
        ):
            rows = [row for row in self.rows if tuple(row[c] for c in columns) == key]
            tf32 = {True: ", TF32", False: ", no TF32", None: ""}[rows[0]["tf32"]]
            lines += ["", f"**{key[0]}, {key[1]}{tf32}, {key[2]} pixels, batch {key[3]}**", ""]
            lines += [
                "| contender | images/s | from - to | MiB/image | GMAC/s |",
                "|---|---|---|---|---|",
            ]
            for row in sorted(rows, key=lambda row: -row["images_per_second"]["median"]):
                speed, memory = row["images_per_second"], row["peak_memory_per_image"]
                shown = "" if memory is None else f"{memory / 2**20:.1f}"
                lines.append(
                    f"| {row['name']} | {speed['median']:.1f} | {speed['min']:.1f} - {speed['max']:.1f} | {shown} | "
                    f"{row['multiply_adds_per_second'] / 1e9:.0f} |"
                )
        if self.skipped:
            lines += ["", "Skipped:", "", *(f"- {what}: {why}" for what, why in self.skipped)]
        return "\n".join(lines)


def unpacked(wheels, folder):
    """The folder with what the wheels in `wheels` hold: a wheel is a zip of what is to be imported."""
    found = sorted(glob.glob(os.path.join(wheels, "*.whl")))
    if not found:
        sys.exit(f"--wheels={wheels} holds no *.whl; pip download --no-deps --dest={wheels} keras timm ... makes some")
    for path in found:
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(folder)
    return folder


def available(device, path):
    """Which of torch, jax, keras and timm can be imported, with their versions and the device's name."""
    found = {}
    for name in ("torch", "jax", "keras", "timm"):
        code = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})\n"
        code += "import gpu_benchmark as tool; tool.stub_torchvision()\n" if name == "timm" else ""
        code += f"import {name}; print({name}.__version__)\n"
        if device == "cuda":
            code += {
                "torch": "print(torch.cuda.get_device_name(), torch.version.cuda)",
                "jax": "print(jax.devices('gpu')[0].device_kind)",
            }.get(name, "")
        env = dict(os.environ, PYTHONPATH=path, TF_USE_LEGACY_KERAS="0", XLA_PYTHON_CLIENT_PREALLOCATE="false")
        env["KERAS_BACKEND"] = "torch" if "torch" in found else "jax"
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            env=env,
        )
        if done.returncode:
            say(f"without {name}: {done.stderr.strip().splitlines()[-1]}")
        else:
            found[name] = " ".join(done.stdout.split("\n")).strip()
    return found


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def listed(known):
        def parse(text):
            chosen = text.split(",")
            for one in chosen:
                if one not in known:
                    raise argparse.ArgumentTypeError(f"no {one!r}; choose from {', '.join(known)}")
            return chosen

        return parse

    parser.add_argument("--wheels", help="folder of wheels, for what is not installed")
    parser.add_argument("--budget", type=float, default=600, help="seconds")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--networks", type=listed(VARIANTS), default="b0,b3")
    parser.add_argument("--precisions", type=listed(("bfloat16", "float32")), default="bfloat16,float32")
    parser.add_argument("--tasks", type=listed(("train", "infer")), default="train,infer")
    parser.add_argument("--only", default="", help="regular expression for names such as 'G1-BN B0, torch eager'")
    parser.add_argument("--size", type=int, default=0, help="pixels; 0: the variant's native size")
    parser.add_argument("--batch", type=int, default=0, help="images; 0: 64 for B0, 32 for B3")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn")
    parser.add_argument("--tf32", choices=("on", "off"), default="on")
    parser.add_argument("--jobs", type=int, default=max(1, min(6, (os.cpu_count() or 1) // 2)), help="made at a time")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--table", help="file for the table too")
    return parser.parse_args(given)


def main():
    options, started = arguments(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = [ROOT] + ([unpacked(options.wheels, os.path.join(folder, "wheels"))] if options.wheels else [])
        sys.path[1:1] = path[1:]
        path = os.pathsep.join(filter(None, [*path, os.environ.get("PYTHONPATH")]))
        found = available(options.device, path)
        say(json.dumps(found))
        if "keras" not in found:
            sys.exit(
                "Keras 3 cannot be imported on torch or JAX here (see above); give its wheels with --wheels=FOLDER"
            )
        benchmark = Benchmark(options, folder, path, found, started)
        print(json.dumps({"versions": found, "options": vars(options)}), flush=True)
        groups = [(variant, dtype) for variant in options.networks for dtype in options.precisions]
        if not options.no_checks:
            end = 0.75 * benchmark.left()
            benchmark.check(lambda: benchmark.left() - end)
        for index, (variant, dtype) in enumerate(groups):
            end = benchmark.left() * (1 - 1 / (len(groups) - index))
            benchmark.group(variant, dtype, lambda end=end: benchmark.left() - end)
        table = benchmark.table()
        say("\n" + table)
        if options.table:
            with open(options.table, "w", encoding="utf-8") as file:
                file.write(table + "\n")
    if not benchmark.rows or not all(one["good"] for one in benchmark.checks):
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
    else:
        main()

"""Breaks the product in many small ways, one at a time, and shows which test of the fast tier notices.

    python tools/mutations.py            all of them, a line each; status 1 where one survives
    python tools/mutations.py --list     their names
    python tools/mutations.py NAME ...   some

Each mutation replaces one piece of text in a copy of the checkout and runs its test file as `make test` does (`-m "not
slow"`, tf-keras, to the first failure). Run it after the suite was made faster, and give a new mechanism its row.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Mutation(NamedTuple):
    """`old` stands once in `file` and becomes `new`; `tests`, files in tests/, have to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = [
    Mutation(*row)
    for row in (
        # layers and native operations
        ("proxy's mean added", "g16net/layers/norm_activation.py", "y = y - centre", "y = y + centre", "test_layers_norms test_layers_proxy_norm"),
        ("norm's epsilon outside the root", "g16net/layers/norm_activation.py", "tf.math.rsqrt(variance + epsilon), pixels", "1 / (tf.sqrt(variance) + epsilon), pixels", "test_layers_norms"),
        ("strided groups as neighbours", "g16net/layers/norm_activation.py", "shape, axis = ([-1, width, groups], 1) if strided", "shape, axis = ([-1, width, groups], 1) if not strided", "test_layers_norms"),
        ("a gradient's group mean lost", "g16net/layers/norm_activation.py", "dx = du * a - (y * mean_dun + (mean_du - mean * mean_dun))", "dx = du * a - (y * mean_dun + mean_du)", "test_layers_norms"),
        ("proxy's epsilon outside the root", "g16net/layers/proxy_norm.py", "tf.math.rsqrt(variance + self.proxy_epsilon)", "1 / (tf.sqrt(variance) + self.proxy_epsilon)", "test_layers_proxy_norm test_native"),
        ("proxy_gamma without its one", "g16net/layers/proxy_norm.py", "(gamma * (1 + proxy_gamma))", "(gamma * proxy_gamma)", "test_layers_proxy_norm"),
        ("quantiles shifted", "g16net/layers/proxy_norm.py", "(i + 0.5) / points", "(i + 0.4) / points", "test_layers_proxy_norm"),
        ("a sign in the proxy's gradient", "g16net/native/proxy.h", "constant[i] = dmean[c] - linear[i] * mean[c];", "constant[i] = dmean[c] + linear[i] * mean[c];", "test_native"),
        ("native update: epsilon outside the root", "g16net/native/update.h", "std::sqrt(r + epsilon)", "(std::sqrt(r) + epsilon)", "test_rmsprop test_native"),
        ("native norm: scale before centre", "g16net/native/kernels.h", "(Activation::value(u) - centre[i]) * scale[i];\n        sum[i] += out;", "Activation::value(u) * scale[i] - centre[i];\n        sum[i] += out;", "test_native test_layers_proxy_norm"),
        ("gate without the delayed scale", "g16net/layers/squeeze_excite.py", "gate = gate * tf.cast(inv_std, tf.float32)", "gate = gate * tf.ones_like(tf.cast(inv_std, tf.float32))", "test_layers_squeeze_excite"),
        ("survivors not divided", "g16net/layers/stochastic_depth.py", "tf.cast(kept / self.keep, inputs.dtype)", "tf.cast(kept, inputs.dtype)", "test_layers_stochastic_depth"),
        ("batch norm's momentum inverted", "g16net/layers/norms.py", "* (1 - self.momentum))", "* self.momentum)", "test_layers_norms"),
        ("padding on the other side", "g16net/layers/group_conv.py", 'return tf.concat([tf.nn.conv2d(part, weights, strides, "SAME") for part, weights in pairs], axis=-1)', 'return tf.reverse(tf.concat([tf.nn.conv2d(tf.reverse(part, [1, 2]), tf.reverse(weights, [0, 1]), strides, "SAME") for part, weights in pairs], axis=-1), [1, 2])', "test_layers_group_conv"),
        # models
        ("squeeze-and-excite before the norm", "g16net/models/efficientnet.py", 'x = norm_act(x, prefix, delayed_scale=True)\n        x = layers.SqueezeExcite(\n            block.se_width, activation=activation, seed=layer_seed(f"{prefix}se"), name=f"{prefix}se"\n        )(x)', 'x = layers.SqueezeExcite(\n            block.se_width, activation=activation, seed=layer_seed(f"{prefix}se"), name=f"{prefix}se"\n        )(x)\n        x = norm_act(x, prefix)', "test_models"),
        ("one seed for all layers", "g16net/models/efficientnet.py", 'zlib.crc32(f"{seed}/{layer}".encode())', 'zlib.crc32(f"{seed}".encode())', "test_models"),
        ("last block survives as the first", "g16net/models/architecture.py", "(1 - survival_prob) * len(rows) / total", "(1 - survival_prob) * (total - len(rows)) / total", "test_architecture"),
        ("network cut behind its stage", "g16net/models/split.py", "return next(layer.name for layer in model.layers if layer.name.startswith(starts))", "return [layer.name for layer in model.layers if layer.name.startswith(starts)][1]", "test_split"),
        ("gate's weights not counted", "g16net/models/costs.py", "weights = 2 * self.channels * reduced", "weights = self.channels * reduced", "test_costs test_models"),
        ("a group's width from its number", "g16net/models/roofline.py", "width = row.in_channels // row.groups", "width = row.groups", "test_roofline"),
        ("recomputation moves the statistics twice", "g16net/layers/recompute.py", "before, _again = _again, True", "before, _again = _again, False", "test_recompute"),
        ("timm's kernels not transposed", "g16net/models/timm_weights.py", "return value.transpose(2, 3, 1, 0) if value.ndim == 4", "return value.transpose(3, 2, 1, 0) if value.ndim == 4", "test_weights"),
        # optimiser
        ("accumulator starts at 0", "g16net/optim/rmsprop.py", 'slots = {"rms": "ones", "momentum": "zeros"}', 'slots = {"rms": "zeros", "momentum": "zeros"}', "test_rmsprop"),
        ("decay of scales, not of kernels", "g16net/optim/rmsprop.py", "return self.l2 > 0 and not any(", "return self.l2 > 0 and any(", "test_rmsprop"),
        ("staircase a step late", "g16net/optim/schedules.py", "return step * self.drops // self.steps", "return (step - 1) * self.drops // self.steps", "test_schedules"),
        ("warm-up forgotten", "g16net/optim/schedules.py", "rate *= tf.minimum(tf.cast(step, tf.float32) / self.warmup_steps, 1.0)", "rate *= 1.0", "test_schedules"),
        ("average from zero", "g16net/optim/weight_average.py", "decay = self.decay if int(self.updates.numpy()) else 0.0", "decay = self.decay", "test_weight_average"),
        ("raw weights not put back", "g16net/optim/weight_average.py", "            for (_, weight), value in zip(self._pairs(model), raw):\n                weight.assign(value)", "            pass", "test_weight_average"),
        ("smoothing over all classes", "g16net/optim/losses.py", "label_smoothing / (num_classes - 1)", "label_smoothing / num_classes", "test_losses"),
        # data
        ("mixup's shares swapped", "g16net/data/mixing.py", "[labels, tf.roll(labels, 1, 0)], [m, 1 - m]", "[labels, tf.roll(labels, 1, 0)], [1 - m, m]", "test_mixing"),
        ("CutMix from the wrong neighbour", "g16net/data/mixing.py", "shift = tf.where(tf.shape(images)[0] == 2, 1, 2)", "shift = tf.where(tf.shape(images)[0] == 2, 1, 1)", "test_mixing"),
        ("one draw for every epoch", "g16net/data/order.py", "mixed = key(seed, purpose, epoch, position)", "mixed = key(seed, purpose, position)", "test_order test_pipeline"),
        ("another worker's slice", "g16net/data/sources/base.py", "begin = step * order.batch + order.index * order.local_batch", "begin = step * order.batch + (order.count - 1 - order.index) * order.local_batch", "test_pipeline test_sources"),
        ("test crop off the centre", "g16net/data/transforms.py", "begin = (scaled - size) // 2", "begin = (scaled - size) // 3", "test_transforms"),
        ("test crop of another share", "g16net/data/transforms.py", 'short = int(size * 256 / 224) if fit == "crop" else size', 'short = int(size * 256 / 240) if fit == "crop" else size', "test_transforms"),
        ("remainder dropped in evaluation", "g16net/data/pipeline.py", "each = -(-source.num_examples // (count * batch))", "each = source.num_examples // (count * batch)", "test_pipeline"),
        ("corrupt images weigh in evaluation", "g16net/data/pipeline.py", 'tf.cast(done["sound"], tf.float32)', 'tf.ones_like(tf.cast(done["sound"], tf.float32))', "test_pipeline"),
        ("labels shifted by one", "g16net/data/sources/tfrecord.py", 'tf.cast(fields["image/class/label"] - label_offset, tf.int32)', 'tf.cast(fields["image/class/label"], tf.int32)', "test_sources"),
        ("equalize as autocontrast", "g16net/data/augment.py", "step = (total - tf.gather(tf.transpose(counts), brightest, batch_dims=1)) // 255", "step = total // 255", "test_augment"),
        # a run
        ("a checkpoint saved one step late", "g16net/train.py", "self.saved.save(\n                self.position.step,", "self.saved.save(\n                self.position.step + 1,", "test_resume"),
        ("epoch's own seed forgotten on resume", "g16net/train.py", "assemble.train_batches(config, train_source, epoch, first,", "assemble.train_batches(config, train_source, epoch, 0,", "test_resume"),
        ("average not applied in evaluation", "g16net/train.py", 'with self.average.applied():\n                figures = self.evaluator(size)', 'figures = self.evaluator(size)', "test_train"),
        ("a dropped chief check", "g16net/train.py", "if not self.devices.chief:\n            return\n        records.append_line", "records.append_line", "test_train test_workers"),
        ("checkpoints trusted unseen", "g16net/checkpoint.py", "if _sha256(os.path.join(folder, name)) != expected:", "if False:", "test_checkpoint"),
        ("raw weights for the averaged", "g16net/assemble.py", 'if weights == "average":\n        checkpoint.read(folder, checkpoint.state(average=average))', 'if weights != "average":\n        checkpoint.read(folder, checkpoint.state(average=average))', "test_train test_export test_resume"),
        ("oldest record of an epoch", "g16net/records.py", 'newest = {record["epoch"]: record for record in records if record.get("kind") == "epoch"}', 'newest = {record["epoch"]: record for record in reversed(records) if record.get("kind") == "epoch"}', "test_train test_report"),
        ("trunk left trainable", "g16net/finetune.py", "trunk.trainable = False", "trunk.trainable = True", "test_finetune"),
        ("confusion transposed", "g16net/evaluate.py", "tf.math.confusion_matrix(labels, predicted, classes,", "tf.math.confusion_matrix(predicted, labels, classes,", "test_finetune test_train test_evaluate"),
        ("micro batch of all replicas", "g16net/batches.py", "micro_batch = max(global_batch // (accumulation * replicas), 1)", "micro_batch = max(global_batch // accumulation, 1)", "test_config test_accumulation test_ipu_settings"),
        ("rate per image halved", "g16net/recipe.py", "RATE_PER_IMAGE = 2.0**-14", "RATE_PER_IMAGE = 2.0**-15", "test_config"),
        ("the data's form free to change", "g16net/recipe.py", '    "data.eval_split",\n)', '    "data.eval_split",\n    "data.train_size",\n)', "test_config test_mistakes test_cli"),
        ("two workers at one place", "g16net/workers.py", 'index = int(task["index"]) + (len(chiefs) if task["type"] == "worker" else 0)', 'index = int(task["index"])', "test_workers"),
        ("signals end with status 1", "g16net/signals.py", "self.status = 128 + int(getattr(signal, name)) if name else 143", "self.status = 1", "test_resume"),
        # exports and predictions
        ("batch norm folded without epsilon", "g16net/export/folding.py", "_array(layer.moving_variance)) + layer.epsilon)", "_array(layer.moving_variance)))", "test_export"),
        ("ONNX pads on the other side", "g16net/export/onnx_graph.py", '"SAME_UPPER"', '"SAME_LOWER"', "test_export"),
        ("class names sorted in the file", "g16net/export/saved_model.py", "module.class_names = tf.Variable(list(class_names), trainable=False)", "module.class_names = tf.Variable(list(class_names)[::-1], trainable=False)", "test_export"),
        ("the least likely class first", "g16net/predict.py", 'best = np.argsort(-row, kind="stable")', 'best = np.argsort(row, kind="stable")', "test_predict"),
        # IPU
        ("pipeline stage one too late", "g16net/ipu/settings.py", "stages[name] = len(splits) - len(pending)", "stages[name] = min(len(splits) - len(pending) + 1, len(splits))", "test_ipu_settings"),
        ("gradients summed over replicas", "g16net/ipu/session.py", "[(gradient / replicas, variable)", "[(gradient, variable)", "test_ipu"),
        # the rest
        ("worse points on the front", "g16net/report/pareto.py", "if y > best_y or", "if y < best_y or", "test_pareto"),
        ("speed without the first batch's images", "g16net/contenders/__init__.py", '"images": steps * work.images}', '"images": steps}', "test_benchmark"),
        ("shared trainings of other data", "g16net/sweep.py", 'trained = (one["data"], recipe.training_key(_resolved(one)))', 'trained = recipe.training_key(_resolved(one))', "test_sweep"),
    )
]  # fmt: skip


def apply(mutation, root):
    """Writes the mutation into the checkout `root`. ValueError where its text does not stand there exactly once."""
    path = os.path.join(root, mutation.file)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {text.count(mutation.old)} times in {mutation.file}: {mutation.old!r}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(mutation.old, mutation.new))


def run(mutation, source):
    """`(killing test or None, seconds)`."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "checkout")
        shutil.copytree(source, root)
        apply(mutation, root)
        files = [os.path.join("tests", f"{name}.py") for name in mutation.tests.split()]
        files = [name for name in files if os.path.exists(os.path.join(root, name))]
        environment = dict(os.environ, TF_USE_LEGACY_KERAS="1", PYTHONPATH=root)
        if mutation.file.startswith("g16net/native"):  # a broken library stays nowhere
            environment["XDG_CACHE_HOME"] = folder
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *files],
            cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
        )  # fmt: skip
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
        return (found[1] if found else None if done.returncode == 0 else done.stdout[-500:]), time.monotonic() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = [one for one in MUTATIONS if not arguments.names or one.name in arguments.names]
    if arguments.list or not chosen:
        print("\n".join(one.name for one in MUTATIONS))
        return int(not arguments.list)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        source = os.path.join(folder, "source")
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True)
        for name in tracked.stdout.splitlines():
            if os.path.exists(os.path.join(ROOT, name)):
                os.makedirs(os.path.dirname(os.path.join(source, name)), exist_ok=True)
                shutil.copy(os.path.join(ROOT, name), os.path.join(source, name))
        for mutation, (test, seconds) in zip(chosen, pool.map(lambda one: run(one, source), chosen)):
            survivors += test is None
            print(f"{mutation.name:45} {mutation.file:36} {seconds:5.0f} s  {test or 'SURVIVED'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())

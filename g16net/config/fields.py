"""Every field of a run: its default, type, check and meaning.

A mistake in any of them is a `ConfigError` that names the key, the value and a valid one, before a dataset or a device
is opened.
"""

import json
import math
import os
import re
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import ml_collections
from ml_collections import ConfigDict

from g16net.config import optimizers
from g16net.config.optimizers import OPTIMIZERS
from g16net.errors import ConfigError, suggest
from g16net.models.architecture import ACTIVATIONS, VARIANTS
from g16net.models.norms import NORMS


class Field(NamedTuple):
    """One declared field. `check` returns whether a value is allowed; `rule` says the same in words."""

    default: Any
    type: type
    comment: str
    rule: str = ""
    check: Optional[Callable[[Any], bool]] = None
    optional: bool = False  # None is allowed and means what the comment says


def _one_of(default, choices, comment, optional=False):
    return Field(default, str, comment, "one of " + ", ".join(choices), lambda v: v in choices, optional)


def _at_least(default, low, comment, kind=int, optional=False):
    return Field(default, kind, comment, f"at least {low}", lambda v: v >= low, optional)


def _above_zero(default, comment, kind=float, optional=False):
    return Field(default, kind, comment, "above 0", lambda v: v > 0, optional)


def _fraction(default, comment, closed=True):
    rule = "between 0 and 1" if closed else "at least 0 and below 1"
    return Field(default, float, comment, rule, lambda v: 0 <= v <= 1 and (closed or v < 1))


def _sizes(default, comment, low=8):
    return Field(default, tuple, comment, f"whole pixels, each at least {low}", lambda v: all(s >= low for s in v))


def _choices(default, choices, comment, empty=False):
    """A text of some of `choices` with commas between them; `empty`: or of none."""
    return Field(
        default,
        str,
        comment,
        ("any of " if empty else "one or more of ") + ", ".join(choices),
        lambda v: (empty and not v) or all(part in choices for part in v.split(",")),
    )


RESIZES = ("bilinear", "tf1", "bicubic", "bilinear_antialias")

FIELDS = {
    # run
    "run.epochs": _at_least(350, 1, "passes over the training split"),
    "run.global_batch": _at_least(768, 1, "images per weight update, over all replicas and accumulation steps"),
    "run.seed": Field(
        42,
        int,
        "seed of the initial weights, the order of the data and every random draw",
        f"between 0 and {2**31 - 1}",
        lambda v: 0 <= v < 2**31,  # NumPy takes 32 bits, an IPU 31
    ),
    # data
    "data.name": Field(
        "auto",
        str,
        "auto | digits | idx | cifar | folder | tfrecord | tfds:NAME | parquet | arrow | hf:NAME | wds | synthetic; "
        "auto: prepared ImageNet or demo",
    ),
    "data.dir": Field("", str, "folder of the data (tfds: its data_dir; hf: its cache)"),
    "data.train_split": Field("", str, "name of the split to train on; empty: the source's own"),
    "data.eval_split": Field(
        "", str, "name of the split to evaluate on; empty: the source's own; all: every image of data without splits"
    ),
    "data.resolution": _one_of("native", ("native", "half"), "training size from the variant table, unless train_size"),
    "data.train_size": _at_least(None, 8, "training pixels; None: from variant and resolution", optional=True),
    "data.progressive": _sizes(
        (), "training pixels over equal parts of the epochs, the last train_size; empty: train_size throughout"
    ),
    "data.eval_size": _at_least(None, 8, "test pixels; None: the variant's native size", optional=True),
    "data.crop": _one_of(
        "box",
        ("box", "pad", "reflect"),
        "box: ImageNet's random box; pad, reflect: resize, shift by up to 1/8, and fill with zeros or the mirror image",
    ),
    "data.area_min": _fraction(0.05, "smallest area of the random box, as a share of the image"),
    "data.flip": Field(True, bool, "mirror half of the training images"),
    "data.resize": _one_of(
        "bilinear",
        RESIZES,
        "how images are resized; bicubic, bilinear_antialias: as Pillow, slower; tf1: TensorFlow 1's corners",
    ),
    "data.eval_resize": _one_of(
        None, RESIZES, "how test images are resized; None: of the weights started from, or data.resize", optional=True
    ),
    "data.eval_crop": Field(
        0.875,
        float,
        "side of the test image over the short side of the image that it is cut from",
        "above 0 and up to 1",
        lambda v: 0 < v <= 1,
    ),
    "data.jpeg": Field(False, bool, "every image is a JPEG, which saves a test; another format then counts as corrupt"),
    "data.augment": _one_of("none", ("none", "autoaugment", "randaugment"), "policy on each training image"),
    "data.randaugment_layers": _at_least(2, 1, "RandAugment: operations per image"),
    "data.randaugment_magnitude": Field(9, int, "RandAugment: strength", "0 to 10", lambda v: 0 <= v <= 10),
    "data.mixup": _at_least(0.0, 0, "mixup: alpha of the Beta distribution; 0 turns it off", kind=float),
    "data.cutmix": Field(1.0, float, "CutMix: lambda; 1 turns it off", "above 0.6 and up to 1", lambda v: 0.6 < v <= 1),
    "data.cutmix_version": Field(
        1, int, "CutMix: 1 draws the area of the patch, as the paper; 2 fixes it", "1 or 2", lambda v: v in (1, 2)
    ),
    "data.mix_on_device": Field(False, bool, "mix in the model's input instead of on the host"),
    "data.cache": _one_of(
        "none",
        ("none", "encoded", "decoded"),
        "what is kept of images: encoded bytes in memory, or decoded uint8 on disk",
    ),
    "data.cache_size": _at_least(None, 8, "pixels of the decoded cache; None: train_size x 8 / 7", optional=True),
    "data.cache_dir": Field("", str, "folder of the decoded cache"),
    "data.label_offset": Field(
        None,
        int,
        "number subtracted from stored labels (idx, tfrecord, parquet, arrow, hf, wds); None: 0, tfrecord: 1",
        optional=True,
    ),
    "data.layout": _one_of(
        "auto", ("auto", "classes"), "how a folder is read; classes: its subfolders are classes, whatever their names"
    ),
    "data.input_key": Field("", str, "column (parquet, arrow, hf) or ending (wds) of the image; empty: the only one"),
    "data.target_key": Field(
        "", str, "column of the label (parquet, arrow, hf, cifar), ending or JSON key (wds); empty: the only one"
    ),
    "data.allow_changed": Field(
        False, bool, "resume a run although its training split has changed (with the same classes)"
    ),
    "data.holdout": _fraction(
        0.2,
        "share of each class held out for evaluation where a set of files has no other split",
        closed=False,
    ),
    "data.max_corrupt": _fraction(0.01, "share of images that may be unreadable before the run stops"),
    "data.max_pixels": _at_least(
        2**28, 1, "height x width above which a sound image is left out as well, without counting as corrupt"
    ),
    "data.exif": Field(False, bool, "turn and mirror images as their EXIF orientation says"),
    "data.num_examples": _at_least(10000, 1, "images of the synthetic source"),
    "data.num_classes": _at_least(1000, 2, "classes of the synthetic source; the others know theirs"),
    "data.parallel": _at_least(None, 1, "images prepared in parallel; None: twice the cores", optional=True),
    "data.service": Field("", str, "address of a tf.data service dispatcher; empty: read here"),
    "data.download": Field(False, bool, "let TFDS, or Hugging Face, fetch what is not here"),
    # model
    "model.variant": Field("B0", str, "size of the network", "one of " + ", ".join(VARIANTS), VARIANTS.__contains__),
    "model.width": _above_zero(None, "factor of the channels; None: the variant's", optional=True),
    "model.depth": _above_zero(None, "factor of the blocks in a stage; None: the variant's", optional=True),
    "model.group_size": _at_least(16, 1, "channels in a group of the spatial convolution; 1 is depthwise"),
    "model.expand_ratio": _at_least(4, 1, "channels inside a block per channel between blocks"),
    "model.norm": _one_of("ln_pn", NORMS, "normalisation; _pn: with proxy-normalised activations"),
    "model.norm_groups": _at_least(4, 1, "groups of gn and gn_pn"),
    "model.norm_group_size": _at_least(
        None, 1, "channels in a group of gn and gn_pn, instead of norm_groups (timm's form)", optional=True
    ),
    "model.norm_epsilon": _above_zero(1e-3, "added to the variance of every norm"),
    "model.strided_groups": Field(
        False, bool, "channel c in group c modulo groups, as the published GN networks have it"
    ),
    "model.activation": _one_of(
        None, ACTIVATIONS, "activation after every norm but the projection's; None: the variant's", optional=True
    ),
    "model.proxy_epsilon": _above_zero(0.03, "added to the proxy variance"),
    "model.quadrature": _one_of("quantile", ("quantile", "gauss_hermite"), "how the proxy statistics are integrated"),
    "model.mean": Field(
        (123.68, 116.78, 103.94),
        tuple,
        "mean per channel, subtracted from images of 0..255",
        "3 numbers",
        lambda v: len(v) == 3,
    ),
    "model.std": Field(
        (1.0, 1.0, 1.0),
        tuple,
        "deviation per channel, by which images are divided",
        "3 numbers above 0",
        lambda v: len(v) == 3 and min(v) > 0,
    ),
    # optimizer
    "optim.name": Field(
        "rmsprop",
        str,
        "optimizer; rmsprop is TensorFlow 1's, as published; keras:NAME is one of Keras' own, such as keras:Adamax",
        "one of " + ", ".join(OPTIMIZERS) + ", or keras:NAME",
        optimizers.known,
    ),
    "optim.learning_rate": _above_zero(
        None, "peak learning rate; None: 2^-14 x global batch for rmsprop, for the others see docs", optional=True
    ),
    "optim.decay": Field(
        None,
        float,
        "decay of the mean square (beta_2); None: 1 - 2^-14 x global batch, adamw and lamb 0.999, lion 0.99",
        "at least 0 and below 1",
        lambda v: 0 <= v < 1,
        True,
    ),
    "optim.momentum": _fraction(0.9, "momentum of the gradient (beta_1)", closed=False),
    "optim.epsilon": _above_zero(
        None,
        "added to the mean square inside the root; None: 1e-3. adamw, lamb: to the root, 1e-7, 1e-6",
        optional=True,
    ),
    "optim.weight_decay": _at_least(
        None,
        0,
        "rmsprop, sgd and keras: L2 penalty added to the gradient; the others: decoupled; not of gamma and beta; None: "
        "1e-5, adamw 0.05, lamb 0.02, lion 0.25, keras 0",
        kind=float,
        optional=True,
    ),
    "optim.clip_norm": _at_least(
        0.0, 0, "norm of all gradients of an update above which they are scaled down to it; 0: never", kind=float
    ),
    "optim.layer_decay": Field(
        1.0,
        float,
        "factor of the learning rate from each stage to the one before it, for training from init.checkpoint; 1: none",
        "above 0 and up to 1",
        lambda v: 0 < v <= 1,
    ),
    # schedule
    "schedule.name": _one_of("exponential", ("exponential", "cosine", "constant"), "course of the learning rate"),
    "schedule.warmup_epochs": _at_least(5.0, 0, "epochs of linear warm-up", kind=float),
    "schedule.drops": _at_least(146, 1, "equal steps of the exponential schedule"),
    "schedule.drop_rate": Field(
        0.97, float, "factor of each step of the exponential schedule", "above 0 and up to 1", lambda v: 0 < v <= 1
    ),
    # regularisation
    "regularise.label_smoothing": _fraction(0.1, "probability taken from the true class", closed=False),
    "regularise.dropout": Field(
        None,
        float,
        "dropout rate before the last layer; None: the variant's",
        "at least 0 and below 1",
        lambda v: 0 <= v < 1,
        True,
    ),
    "regularise.survival_prob": Field(
        0.8,
        float,
        "survival probability of the last block in stochastic depth; 1 turns it off",
        "above 0 and up to 1",
        lambda v: 0 < v <= 1,
    ),
    "regularise.average": _fraction(
        0.97, "decay per epoch of the averaged weights; 0 turns averaging off", closed=False
    ),
    "regularise.ema": Field(
        0.0,
        float,
        "decay per weight update of the averaged weights, in place of regularise.average; begins as "
        "(1 + n) / (10 + n); 0: by epochs",
        "at least 0 and below 1",
        lambda v: 0 <= v < 1,
    ),
    # fine-tuning (mode finetune)
    "finetune.layers": Field("top", str, "trained parts from the end, such as top,block7,block6; the rest is frozen"),
    "finetune.sizes": _sizes(
        (), "pixels, one fine-tuning each; empty: the fitting size nearest to the variant's native"
    ),
    "finetune.epochs": _at_least(2, 1, "passes over the training split"),
    "finetune.global_batch": _at_least(
        None, 1, "images per weight update; None: 512, or run.global_batch if that is less", optional=True
    ),
    "finetune.learning_rate": _above_zero(
        None,
        "peak learning rate of the cosine; None: 8 times what optim.learning_rate would be for finetune.global_batch; "
        "keras:NAME: that of training, or must be given where it trained with another",
        optional=True,
    ),
    "finetune.optimizer": Field(
        None, str, "optimizer; None: optim.name", "a value of optim.name", optimizers.known, optional=True
    ),
    "finetune.clip_norm": _at_least(None, 0, "as optim.clip_norm; None: that", kind=float, optional=True),
    "finetune.layer_decay": Field(
        1.0, float, "as optim.layer_decay, among the trained parts", "above 0 and up to 1", lambda v: 0 < v <= 1
    ),
    "finetune.warmup_epochs": _at_least(
        5.0,
        0,
        "epochs of linear warm-up; the published 5 outlast the run, whose rate peaks at a tenth; 0: none",
        kind=float,
    ),
    "finetune.decay": Field(
        None,
        float,
        "decay of the mean square; None: 1 - 2^-14 x finetune.global_batch",
        "at least 0 and below 1",
        lambda v: 0 <= v < 1,
        True,
    ),
    "finetune.noise": _one_of(
        "top",
        ("top", "all"),
        "all: mixing and the frozen blocks' stochastic depth stay on, as published; no features kept",
    ),
    "finetune.cache_gb": _at_least(
        4.0, 0, "gigabytes of memory for the frozen part's features, at most; 0: compute them every epoch", kind=float
    ),
    "finetune.folder": Field(
        "finetune", str, "folder in the workdir for its results", "a name", lambda v: bool(re.fullmatch(r"[\w.=-]+", v))
    ),
    # runtime
    "runtime.strategy": _one_of(
        "default",
        ("default", "mirrored", "multiworker", "tpu", "ipu", "popdist"),
        "devices that train together: one, this machine's GPUs, several machines, a TPU, IPUs, IPUs under poprun",
    ),
    "runtime.workers": Field(
        "", str, "multiworker: HOST:PORT of each worker, the chief first; slurm; empty: from TF_CONFIG"
    ),
    "runtime.worker": _at_least(None, 0, "multiworker: which of them this is; None: by its host name", optional=True),
    "runtime.tpu": Field("local", str, "name of the TPU, or local on a TPU virtual machine"),
    "runtime.virtual_cpus": _at_least(0, 0, "mirrored: cut the CPU into so many devices, to try it without GPUs"),
    "runtime.precision": _one_of(
        "float32", ("float32", "mixed_bfloat16", "mixed_float16"), "precision of compute; weights are float32"
    ),
    "runtime.deterministic": Field(False, bool, "use deterministic operations only, at some cost in speed"),
    "runtime.steps_per_execution": _at_least(
        None, 1, "weight updates per call of the device; None: 16 on a GPU or TPU, otherwise 1", optional=True
    ),
    "runtime.jit": Field(False, bool, "compile the train step by XLA, on a GPU; a TPU and IPUs always do"),
    "runtime.recompute": Field(
        False, bool, "keep only the input of each block and compute the rest again in the backward pass: less memory"
    ),
    "runtime.micro_batch": _at_least(
        None, 1, "images per pass of a replica; None: global batch / (replicas x grad_accumulation)", optional=True
    ),
    "runtime.grad_accumulation": _at_least(
        None, 1, "micro-batches per weight update; None: what micro_batch implies, or 1", optional=True
    ),
    "runtime.loss_scale": _above_zero(128.0, "factor of the loss in mixed_float16, removed from its gradients"),
    "runtime.dynamic_loss_scale": Field(
        False, bool, "start from loss_scale, halve it after an overflow, double it after 2,000 updates without one"
    ),
    "runtime.max_skipped": _at_least(
        0, 0, "weight updates with gradients that are not finite to skip before the run stops"
    ),
    # ipu: read where runtime.strategy is ipu or popdist
    "ipu.use_published": Field(False, bool, "fill what is left open from the published 16-IPU configuration"),
    "ipu.replicas": _at_least(None, 1, "copies of the model, over all processes; None: 1 or published", optional=True),
    "ipu.ipus_per_replica": _at_least(
        None, 1, "IPUs per replica, the power of two that holds the pipeline's stages; None: that", optional=True
    ),
    "ipu.splits": Field("", str, "blocks that start a new pipeline stage, such as 2b,4a,5c; empty: no pipeline"),
    "ipu.schedule": _one_of("Grouped", ("Grouped", "Interleaved", "Sequential"), "order of the pipeline's passes"),
    "ipu.recompute": Field(True, bool, "recompute a stage's activations in its backward pass"),
    "ipu.partials": _one_of("half", ("half", "float"), "type of partial sums in float16 convolutions"),
    "ipu.available_memory_proportion": Field(
        None,
        float,
        "share of tile memory for temporaries of convolutions; None: the SDK's",
        "above 0 and up to 1",
        lambda v: 0 < v <= 1,
        True,
    ),
    "ipu.offload": Field(False, bool, "keep the optimizer's state in the host's memory (remote buffers)"),
    "ipu.stochastic_rounding": Field(False, bool, "round float16 results at random"),
    "ipu.io_tiles": _at_least(0, 0, "tiles that move data while the others compute"),
    "ipu.eval_micro_batch": _at_least(None, 1, "images per evaluation pass; None: runtime.micro_batch", optional=True),
    "ipu.connection": _one_of(
        "ALWAYS", ("ALWAYS", "ON_DEMAND", "PRE_COMPILE"), "how the device is taken; PRE_COMPILE: compile without one"
    ),
    "ipu.version": _one_of("ipu2", ("ipu2", "ipu21"), "hardware to compile for in PRE_COMPILE"),
    # where weights come from, and checkpoints
    "init.checkpoint": Field(
        "",
        str,
        "run, checkpoint, or weights of timm, keras.applications or TensorFlow 1 to start from; empty: from scratch",
    ),
    "init.weights": _one_of(
        "average", ("average", "raw"), "which weights of that run to take; average falls back to raw"
    ),
    "checkpoint.keep": _at_least(3, 1, "newest checkpoints to keep; the best one is kept as well"),
    "checkpoint.every_epochs": _at_least(1, 1, "epochs between checkpoints"),
    "checkpoint.every_steps": _at_least(None, 1, "weight updates between checkpoints within an epoch", optional=True),
    "checkpoint.background": Field(True, bool, "write checkpoints while training goes on"),
    # evaluation
    "eval.batch": _at_least(None, 1, "images per evaluation step; None: as in training, at most 256", optional=True),
    "eval.every_epochs": _at_least(1, 1, "epochs between evaluations during training"),
    "eval.weights": _one_of("average", ("average", "raw", "finetuned"), "which weights to evaluate and export"),
    "eval.finetune_size": _at_least(
        None, 8, "size of the fine-tuning whose weights are taken; None: the only one", optional=True
    ),
    "eval.per_class": Field(False, bool, "write accuracy by class, confusion matrix and worst mistakes of each size"),
    "eval.sizes": _sizes((), "test sizes in pixels; empty: data.eval_size"),
    # export
    "export.format": _one_of(
        "saved_model",
        ("saved_model", "tflite", "onnx", "openvino", "keras", "ipu_serving"),
        "what --mode=export writes",
    ),
    "export.precision": _one_of(
        "float16", ("float32", "float16", "int8"), "TFLite: precision of the weights; int8: of activations too"
    ),
    "export.calibration": _at_least(
        128, 1, "TFLite int8: training images from which the ranges of activations are taken"
    ),
    "export.check_images": _at_least(256, 1, "test images on which an export is compared with its checkpoint"),
    # benchmark
    "benchmark.tasks": _choices("train,infer", ("train", "infer"), "what to time"),
    "benchmark.precisions": _choices(
        "float32", ("float32", "mixed_bfloat16", "mixed_float16"), "precisions of compute to time"
    ),
    "benchmark.formats": _choices(
        "",
        ("saved_model", "onnx", "openvino", "tflite", "tflite:float16", "tflite:int8"),
        "exported files to time in their own runtimes; empty: none",
        empty=True,
    ),
    "benchmark.batches": Field((16,), tuple, "images per step", "whole numbers above 0", lambda v: v and min(v) >= 1),
    "benchmark.sizes": _sizes((), "image sizes in pixels; empty: data.train_size"),
    "benchmark.experiments": Field(
        "", str, "further experiments to time, separated by spaces: NAME:ARG+key=value+key=value"
    ),
    "benchmark.rounds": _at_least(5, 1, "turns per contender"),
    "benchmark.seconds": _above_zero(2.0, "seconds per turn"),
    "benchmark.layers": Field(True, bool, "profile a few steps too, for the time by kind of layer"),
    "benchmark.input": Field(False, bool, "time training from the input pipeline too, and how long it waits for data"),
    "benchmark.threads": _at_least(None, 1, "threads per contender; None: one per core", optional=True),
    "benchmark.compile": Field(False, bool, "let timm's networks try torch.compile; takes minutes"),
    # costs: the plan of a run on a cluster (--devices)
    "costs.images": _at_least(1_281_167, 1, "training images of the plan; the default is ImageNet's"),
    "costs.images_per_second": _above_zero(
        None, "training speed measured on one device at data.train_size; None: the roofline's", optional=True
    ),
    "costs.efficiency": _above_zero(
        None, "share of the roofline that a device reaches; None: fitted to what is known of the machine", optional=True
    ),
    "costs.overlap": _fraction(0.0, "share of the gradients' exchange that may run beside the backward pass"),
    "costs.network": _above_zero(
        None, "gigabytes/s of a machine's network in one direction; None: the machine's own", optional=True
    ),
    "costs.input_images_per_second_per_core": _above_zero(
        None,
        "speed of the input pipeline; None: of the workdir's benchmark_data.json, or as docs/data.md",
        optional=True,
    ),
    "costs.worker_cores": _at_least(16, 1, "cores of a worker of tf.data's service"),
    # inspect_data
    "inspect.duplicates": _at_least(50000, 0, "images per split that are compared for duplicates, at most; 0: none"),
    # sweep
    "sweep.cpus": _at_least(1, 1, "sweep on a cluster: cores of a run, which are its threads"),
    "sweep.gpus": Field(
        0.0,
        float,
        "sweep on a cluster: GPUs of a run; 0.5: two runs share one",
        "at least 0, and whole above 1",
        lambda v: v >= 0 and (v <= 1 or v == int(v)),
    ),
    # predict
    "predict.top": _at_least(5, 1, "classes shown per image"),
    "predict.output": _one_of("table", ("table", "jsonl"), "form of the output; jsonl: JSON lines and nothing else"),
    "predict.explain": Field(
        False,
        bool,
        "draw where the network sees each image's likeliest class (Grad-CAM) to WORKDIR/explain",
    ),
    "predict.grid": Field(False, bool, "draw the images with their classes to WORKDIR/predictions.png"),
}


def default() -> ConfigDict:
    """A new config with every field at its default."""
    config = ml_collections.ConfigDict()
    for key, field in FIELDS.items():
        section, name = key.split(".")
        if section not in config:
            config[section] = ml_collections.ConfigDict(type_safe=False)
        config[section][name] = field.default
    return config.lock()


def field_of(key: str) -> Field:
    """The declared field named `section.name`; ConfigError with a suggestion where there is none."""
    if key not in FIELDS:
        raise ConfigError(f"unknown config key {key!r}. {suggest(key, FIELDS)}")
    return FIELDS[key]


def parse_value(key: str, text: str) -> Any:
    """`text` as the type of the field `key`; ConfigError where it is none, or there is no such field."""
    field = field_of(key)
    if field.optional and text.lower() == "none":
        return None
    try:
        if field.type is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if field.type is tuple:
            number = float if any(isinstance(v, float) for v in field.default) else int
            return tuple(number(part) for part in text.strip("()[]").replace(" ", "").split(",") if part)
        return field.type(text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"config key {key!r} is {_describe(field)}; got {text!r}. For example: --config.{key}={example(field)}"
        ) from None


def override(config: ConfigDict, assignments: Sequence[Tuple[str, str]]) -> None:
    """Sets `[(key, text), ...]`, as they stand on the command line, in `config`.

    Another optimizer, and another batch of fine-tuning, leave open what `config` had by rule for the one before, for
    `recipe.resolve` to fill in.
    """
    given, before = {key for key, _ in assignments}, optimizers.chosen(config)
    by_batch = optimizers.finetuning(config) if config.finetune.global_batch else {}
    for key, text in assignments:
        value = parse_value(key, text)
        section, name = key.split(".")
        config[section][name] = value
    after = optimizers.chosen(config)
    for section, names in optimizers.OWN.items():
        for name in names:
            if after[section] != before[section] and f"{section}.{name}" not in given:
                config[section][name] = None
    for name, number in by_batch.items():
        by_rule = "finetune.global_batch" in given and config.finetune[name] == number
        if by_rule and f"finetune.{name}" not in given:
            config.finetune[name] = None


def parse_arg(text: Optional[str], **spec: Any) -> ConfigDict:
    """Parses what stands after an experiment's colon: `variant=B2,resolution=half,demo` by `spec` of defaults.

    A name alone is True. Returns a ConfigDict; refuses names that `spec` does not have, with a ConfigError.
    """
    values = ml_collections.ConfigDict(spec)
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, _, value = part.partition("=")
        if name not in spec:
            raise ConfigError(f"unknown experiment argument {name!r} in {text!r}. {suggest(name, spec)}")
        kind = type(spec[name])
        try:
            if kind is bool:
                values[name] = {"": True, "true": True, "1": True, "false": False, "0": False}[value.lower()]
            else:
                values[name] = kind(value)
        except (KeyError, ValueError):
            raise ConfigError(f"experiment argument {name!r} is {kind.__name__}; got {value!r}") from None
    return values


def check_fields(config: ConfigDict) -> None:
    """Raises ConfigError where a key is unknown or missing, or a value is of the wrong type or out of range."""
    seen = set()
    for section in config:
        names = config[section]
        if not isinstance(names, ml_collections.ConfigDict):
            raise ConfigError(f"unknown config key {section!r}. {suggest(section, FIELDS)}")
        for name in names:
            key = f"{section}.{name}"
            field = field_of(key)
            seen.add(key)
            config[section][name] = _checked(key, field, config[section][name])
    missing = sorted(set(FIELDS) - seen)
    if missing:
        raise ConfigError(f"config keys are missing: {', '.join(missing)}; start from g16net.config.default()")


def _checked(key, field, value):
    if value is None and field.optional:
        return None
    if field.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if field.type is tuple and isinstance(value, list):
        value = tuple(value)
    right = isinstance(value, field.type) and (field.type is bool or not isinstance(value, bool))
    if right and field.type is tuple:
        right = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    numbers = value if isinstance(value, tuple) else (value,)
    finite = all(math.isfinite(v) for v in numbers if isinstance(v, float))  # infinity is above 0, and nan passes tests
    if not right or not finite or (field.check and not field.check(value)):
        hint = (
            suggest(value, field.rule[len("one of ") :].split(", "))
            if field.rule.startswith("one of") and isinstance(value, str)
            else ""
        )
        raise ConfigError(
            f"config key {key!r} ({field.comment}) is {_describe(field)}; got {value!r}. "
            f"{'' if finite else 'Numbers must be finite. '}{hint or 'For example: ' + str(example(field))}"
        )
    return value


def _describe(field):
    kind = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", tuple: "a list of numbers"}
    text = kind[field.type] + (f", {field.rule}" if field.rule else "")
    return text + (" (or none)" if field.optional else "")


def example(field: Field) -> Any:
    """The field's default as one would type it."""
    value = field.default
    if isinstance(value, tuple):
        return ",".join(str(v) for v in value) or "128,160"
    return {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value


def save(config: ConfigDict, path: str) -> None:
    """Writes `config` as JSON."""
    partial = f"{path}.partial"  # so that a full disk or a kill leaves the file that was there
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(config.to_dict(), file, indent=2, sort_keys=True)
        file.write("\n")
    os.replace(partial, path)


def load(path: str) -> ConfigDict:
    """Reads what `save` wrote; fields added since then take their defaults."""
    with open(path, encoding="utf-8") as file:
        stored = json.load(file)
    config = default()
    for section, names in stored.items():
        for name, value in names.items():
            field_of(f"{section}.{name}")
            config[section][name] = tuple(value) if isinstance(value, list) else value
    check_fields(config)
    return config


def differences(old: ConfigDict, new: ConfigDict) -> Tuple[str, ...]:
    """Lines `key: old -> new` for every field in which two configs differ."""
    return tuple(
        f"{key}: {old[section][name]} -> {new[section][name]}"
        for key in FIELDS
        for section, name in [key.split(".")]
        if old[section][name] != new[section][name]
    )

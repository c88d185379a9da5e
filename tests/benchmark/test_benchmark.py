"""Timing of networks: turns, figures, time by kind of layer, memory, waiting for data."""

import json
import os
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers import changed, slow_with_keras3

from g16net import compat
from g16net.benchmark import contenders
from g16net.benchmark import networks as benchmark
from g16net.benchmark.contenders import ours
from g16net.config import experiments, recipe
from g16net.costs import counts
from g16net.data import waiting
from g16net.data.waiting import Waiting
from g16net.errors import ConfigError, RunError, UserError
from g16net.report import scaling


def run_of(name="g16_ln_pn:variant=TINY", **changes):
    config = experiments.load(name)
    config.data.name, config.data.num_examples, config.data.num_classes = "synthetic", 64, 10
    return changed(config, **changes)


def test_a_change_of_one_contender_is_its_own():
    config = run_of(
        "g16_ln_pn:variant=NANO", benchmark__experiments="g16_ln:variant=NANO+runtime.recompute=true +runtime.jit=true"
    )
    chosen = {name: options("float32")["config"] for _, name, options in benchmark.ours(config)}
    recomputes = {name: (run.runtime.recompute, run.runtime.jit) for name, run in chosen.items()}
    assert recomputes == {
        "NANO G16 ln_pn": (False, config.runtime.jit),
        "NANO G16 ln +runtime.recompute=true": (True, config.runtime.jit),
        "NANO G16 ln_pn +runtime.jit=true": (False, True),
    }
    assert not config.runtime.recompute and not config.runtime.jit


def test_networks_have_the_classes_of_their_data(tmp_path):
    assert benchmark.num_classes(run_of(), str(tmp_path)) == 10  # the field, which is for synthetic data
    assert benchmark.num_classes(run_of(data__num_classes=7), str(tmp_path)) == 7
    digits = experiments.load("g16_ln_pn:demo,variant=TINY")
    digits.data.name = "digits"
    assert benchmark.num_classes(recipe.resolve(digits), str(tmp_path)) == 10
    (tmp_path / "classes.json").write_text('["ant", "bee", "cat"]')
    assert benchmark.num_classes(recipe.resolve(digits), str(tmp_path)) == 3
    digits.benchmark.input = True
    assert benchmark.num_classes(recipe.resolve(digits), str(tmp_path)) == 10  # which it reads


@pytest.mark.slow
def test_benchmark_of_one_network(tmp_path):
    config = run_of(
        "g16_ln_pn:variant=NANO",
        benchmark__sizes=(32,),
        benchmark__batches=(4,),
        benchmark__rounds=2,
        benchmark__seconds=0.05,
        benchmark__input=True,
    )
    figures = benchmark.benchmark(config, str(tmp_path))
    product, *rows = figures["rows"]
    assert product["task"] == "product" and product["multiply_adds_per_second"]["median"] > 1e8
    assert [(row["task"], row["batch"], row["name"]) for row in rows] == [
        (task, 4, "NANO G16 ln_pn") for task in ("train", "infer")
    ]
    macs = counts.count("NANO", size=32, num_classes=10).macs
    assert [row["multiply_adds_per_image"] for row in rows] == [3 * macs, macs]
    for row in rows:
        speed = row["images_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        seconds = dict(row["layer_seconds"])
        assert seconds.pop("step") == pytest.approx(sum(seconds.values()), abs=1e-3)
        assert seconds["convolution"] > 0 and (seconds["optimizer"] > 0) == (row["task"] == "train")
        assert ("with_input" in row) == (row["task"] == "train")
    assert 0 <= rows[0]["with_input"]["waiting"] < 1 and "NANO G16 ln_pn" in figures["text"]
    json.dumps(figures)


@pytest.mark.slow
def test_benchmark(tmp_path):
    config = run_of(
        benchmark__sizes=(32,),
        benchmark__batches=(2, 4),
        benchmark__rounds=2,
        benchmark__seconds=0.05,
        benchmark__input=True,
        benchmark__experiments="+runtime.recompute=true",
    )
    figures = benchmark.benchmark(config, str(tmp_path))
    product, *rows = figures["rows"]
    assert product["task"] == "product" and product["multiply_adds_per_second"]["median"] > 1e8
    names = ["TINY G16 ln_pn", "TINY G16 ln_pn +runtime.recompute=true"]
    cells = [(task, batch) for task in ("train", "infer") for batch in (2, 4)]
    assert [(row["task"], row["batch"], row["name"]) for row in rows] == [(*cell, n) for cell in cells for n in names]
    macs = counts.count("TINY", size=32, num_classes=10).macs
    (plain, recomputed) = (dict(row["network"]) for row in rows[:2])
    assert plain["model.expand_ratio"] == 4 and plain.pop("runtime.recompute") is False
    assert recomputed.pop("runtime.recompute") is True and plain == recomputed
    for row in rows:
        speed = row["images_per_second"]
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        assert row["multiply_adds_per_image"] == macs * (3 if row["task"] == "train" else 1)
        assert row["peak_memory_per_image"] >= 0
        seconds = dict(row["layer_seconds"])
        assert seconds.pop("step") == pytest.approx(sum(seconds.values()), abs=1e-3)
        assert seconds["convolution"] > 0 and seconds["norm_activation"] > 0
        assert (seconds["optimizer"] > 0) == (row["task"] == "train")
        assert ("with_input" in row) == (row["task"] == "train")
    assert 0 <= rows[0]["with_input"]["waiting"] < 1
    assert [(r["name"], r["over"]) for r in figures["ratios"]] == [tuple(names)] * 4
    assert all(name in figures["text"] for name in (*names, "waiting", "matrix product"))
    assert os.path.exists(tmp_path / "benchmark.png")
    json.dumps(figures)


@pytest.mark.slow
def test_exported_files_take_their_turns_in_their_runtimes(tmp_path):
    pytest.importorskip("onnxruntime")
    config = run_of(
        "g16_ln_pn:variant=NANO",
        benchmark__tasks="infer",
        benchmark__formats="saved_model,onnx,tflite:int8",
        benchmark__experiments="g16_bn:variant=NANO",
        benchmark__sizes=(32,),
        benchmark__batches=(2,),
        benchmark__rounds=1,
        benchmark__seconds=0.05,
    )
    figures = benchmark.benchmark(config, str(tmp_path))
    rows = [row for row in figures["rows"] if row["task"] == "serve"]
    runtimes = ["SavedModel", "ONNX Runtime", "LiteRT int8"]
    assert [row["name"] for row in rows] == [f"NANO G16 {norm} in {of}" for of in runtimes for norm in ("ln_pn", "bn")]
    assert all(row["images_per_second"]["min"] > 0 and row["bytes"] > 1000 for row in rows)
    assert [row["dtype"] for row in rows] == ["float32"] * 4 + ["int8"] * 2
    serving = [(row["name"], row["over"]) for row in figures["ratios"] if row["task"] == "serve"]
    assert serving == [(f"NANO G16 ln_pn in {of}", f"NANO G16 bn in {of}") for of in runtimes]


def test_exported_files_need_their_runtimes(monkeypatch):
    monkeypatch.setattr(benchmark.extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"benchmark.formats=openvino needs .*pip install 'g16net\[openvino\]'"):
        benchmark.check(run_of(benchmark__formats="openvino"))


def test_time_is_divided_among_what_runs():
    found = [(0.0, 4.0, "convolution"), (1.0, 3.0, "proxy"), (2.0, 3.0, "other"), (5.0, 6.0, "input")]
    seconds = ours.divide(found)
    assert seconds["convolution"] == pytest.approx(1 + 1 / 2 + 1 / 3 + 1)
    assert seconds["proxy"] == pytest.approx(1 / 2 + 1 / 3)
    assert seconds["other"] == pytest.approx(1 / 3)
    assert seconds["idle"] == pytest.approx(1) and seconds["input"] == pytest.approx(1)
    assert seconds["step"] == pytest.approx(6)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("net/block2a_conv/Conv2D:_MklNativeConv2D", "convolution"),
        ("gradient_tape/net/top_conv/Conv2D/Conv2DBackpropFilter:Conv2DBackpropFilter", "convolution"),
        ("net/block2a_expand_norm/G16NormActivation:G16NormActivation", "norm_activation"),
        ("net/block1a_activation/Sigmoid:Sigmoid", "norm_activation"),
        ("net/block2a_norm/proxy/G16ProxyMoments:G16ProxyMoments", "proxy"),
        ("gradient_tape/net/block2a_se/MatMul:MatMul", "squeeze_excite"),
        ("RMSProp/RMSProp/update_3/ResourceApplyRMSProp:ResourceApplyRMSProp", "optimizer"),
        ("IteratorGetNext:IteratorGetNext", "input"),
        ("net/block2b_add/add:AddV2", "other"),
        ("cond:If", None),
        ("ExecutorState::Process", None),
        ("EagerExecute: __inference_train_function_29175", None),
    ],
)
def test_kinds_of_operations(name, kind):
    assert ours.kind(name) == kind


def test_peak_memory():
    size = 96 * 2**20
    assert 0.9 * size < contenders.peak_memory(lambda: np.ones(size, np.uint8).sum()) < 1.5 * size


def test_peak_of_tensors():
    x = tf.ones([32, 2**20])  # 128 MiB: for 96 the allocator may take 128 too, and what it has free decides that
    step = tf.function(lambda: tf.reduce_sum(tf.sin(x)) + tf.reduce_sum(tf.cos(x)))
    assert 0.9 * 128 * 2**20 < contenders.peak_tensors(step) < 2.5 * 128 * 2**20


def test_fastest_form():
    slow, fast = (contenders.Work(lambda s=s: time.sleep(s), 1, {}) for s in (0.05, 0.001))
    name, rates = contenders.fastest({"slow": slow, "fast": fast}, seconds=0.05)
    assert name == "fast" and rates["fast"] > rates["slow"]
    assert contenders.fastest({"only": slow}) == ("only", {"only": 0.0})


def test_waiting():
    waiting, pause = Waiting(), 0.02

    def slowly(x):
        return tf.numpy_function(lambda x: time.sleep(pause) or x, [x], tf.int64)

    started = time.perf_counter()
    batches = waiting.watch(tf.data.Dataset.range(5).map(slowly))
    assert [int(batch) for batch in batches] == [0, 1, 2, 3, 4]
    counts = waiting.read()
    assert counts["batches"] == 5
    assert 5 * pause <= counts["waited"] <= time.perf_counter() - started


@pytest.mark.parametrize(
    "result", [tf.ones([2, 3]), {"a": tf.ones([1]), "b": (tf.ones([]), tf.ones([2], "bfloat16"))}, None]
)
def test_a_turn_waits_for_what_its_last_step_returned(result, monkeypatch):
    read = []
    monkeypatch.setattr(contenders, "settle", lambda value: read.append(value is result))
    turn = contenders.timed(contenders.Work(lambda: result, 4, {}), 0.0)
    assert read == [True, True] and turn["images"] == 8
    monkeypatch.undo()
    contenders.settle(result)


@pytest.mark.run
@pytest.mark.once
def test_a_contender_that_ends_while_it_is_profiled_is_told(tmp_path):
    options = {"dtype": "float32", "threads": 1}
    with benchmark.Contender("product", "product", "float32", options, str(tmp_path)) as contender:
        contender.process.kill()
        contender.process.wait()
        with pytest.raises(RunError, match="layers"):
            contender.ask("layers", "product", 8, 1)


@pytest.mark.skipif(compat.TF_VERSION < (2, 8), reason="this TensorFlow cannot insist on deterministic operations")
def test_no_clock_where_operations_are_deterministic():
    assert waiting.possible()
    tf.config.experimental.enable_op_determinism()
    assert not waiting.possible()


def test_the_share_of_the_cpu_time_that_the_input_takes():
    """Work in the input counts, sleep does not, and neither does what the process does besides."""

    def work(i):
        return tf.reduce_sum(tf.linalg.matmul(tf.random.stateless_uniform([300, 300], [0, i]), tf.ones([300, 300])))

    heavy = tf.data.Dataset.range(10**6).map(lambda i: sum(work(tf.cast(i, tf.int32) + k) for k in range(8)))
    light = tf.data.Dataset.range(10**6).map(lambda i: tf.py_function(lambda: time.sleep(0.01) or 0.0, [], tf.float32))
    costs = [waiting.cpu_per_batch(data) for data in (heavy, light)]
    assert costs[0] > 3 * costs[1] > 0
    assert waiting.cpu_per_batch(tf.data.Dataset.range(2)) is None
    counter = Waiting(cpu=True)
    for data in (heavy, light):
        list(counter.watch(data.take(10)).as_numpy_iterator())
        assert counter.cpu_seconds(0, counter.read()["batches"]) is None
        counter.measure()
    assert counter.read()["batches"] == 20
    one, other = counter.cpu_seconds(0, 1), counter.cpu_seconds(10, 11)
    assert one > 3 * other > 0
    assert counter.cpu_seconds(8, 13) == pytest.approx(2 * one + 3 * other)
    assert Waiting().cpu_seconds(0, 0) is None


def test_waiting_keeps_structure_and_shapes():
    data = tf.data.Dataset.from_tensors(((tf.zeros([2, 8, 8, 3], tf.uint8), tf.ones([2])), tf.zeros([2, 4]))).repeat()
    assert Waiting().watch(data).element_spec == data.element_spec


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"runtime__strategy": "mirrored"}, "one device"),
        ({"benchmark__input": True, "runtime__deterministic": True}, "leave one of them out"),
        ({"benchmark__experiments": "g16_lm"}, "unknown experiment 'g16_lm'"),
        ({"benchmark__experiments": "g16_ln_pn:variant=TINY"}, "timed already"),
        ({"benchmark__experiments": "+model.nrm=bn"}, "model.norm"),
        ({"benchmark__precisions": "float32,float64"}, "one or more of float32"),
        ({"benchmark__batches": (0,)}, "above 0"),
        ({"benchmark__batches": ()}, "above 0"),
        ({"benchmark__batches": (3,), "run__global_batch": 4, "runtime__micro_batch": 2}, "3"),
    ],
)
def test_refuses(changes, match):
    with pytest.raises(ConfigError, match=match):
        benchmark.check(run_of(**changes))


@pytest.mark.parametrize(
    "peers, variant, match", [(["tf"], "B0", "unknown peer 'tf'"), (["keras"], "CIFAR", "no model.variant=CIFAR")]
)
def test_refuses_peers(peers, variant, match):
    with pytest.raises(UserError, match=match):
        benchmark.check(run_of(f"g16_ln_pn:variant={variant}"), peers)


def test_peers_are_those_of_the_variant():
    (peer,) = benchmark.foreign(run_of("g16_ln_pn:variant=B3"), ["keras"], 10)
    assert peer[:2] == ("keras", "keras.applications EfficientNetB3")
    assert peer[2]("float32")["multiply_adds"] == {300: counts.count("B3", 1, 6, "bn", 300, 10).macs}


@slow_with_keras3
def test_an_end_of_a_contender_is_told(tmp_path):
    options = {"config": str(tmp_path / "none.json"), "threads": 1}
    with benchmark.Contender("ours", "B0", "float32", options, str(tmp_path)) as contender:
        with pytest.raises(RunError, match="(?s)B0 .float32. failed to prepare train at 32 pixels.*none.json"):
            contender.prepare(("train", 32, 2))


def test_scaling():
    rows = [
        {
            "name": "a",
            "network": None,
            "task": task,
            "dtype": "float32",
            "size": size,
            "batch": batch,
            "images_per_second": {"median": 8},
        }
        for task, size, batch in (("train", 32, 1), ("train", 32, 16), ("train", 64, 16), ("infer", 32, 1))
    ]
    assert scaling.lines(rows, "batch") == {"a, train, float32, 32 px": [(1, 125.0), (16, 2000.0)]}
    assert scaling.lines(rows, "size") == {"a, train, float32, 16 images": [(32, 2000.0), (64, 2000.0)]}
    assert scaling.draw(rows[3:], "nowhere.png") is None


def test_scaling_with_depth(tmp_path):
    def row(variant, macs, speed, **other):
        network = {"model.variant": variant, "model.depth": None, "model.group_size": 16, "model.norm": "ln_pn"}
        network.update({"model.expand_ratio": 4, "runtime.recompute": False, **other})
        same = {"task": "train", "dtype": "float32", "size": 224, "batch": 4, "multiply_adds_per_image": macs}
        return dict(same, name=f"{variant} G16", network=network, images_per_second={"median": speed})

    rows = [row("B5", 24e9, 2), row("B0", 2e9, 8), row("B3", 6e9, 4)]
    rows += [dict(row("B0", 1e9, 1), network=None, name="timm efficientnet_b0"), {"task": "product"}]
    expected = [(2e9, 500.0), (6e9, 1000.0), (24e9, 2000.0)]
    assert scaling.lines(rows, "multiply_adds") == {"G16 LN+PN, train, float32, 224 px, 4 images": expected}
    assert scaling.draw(rows, str(tmp_path / "depth.png")) and (tmp_path / "depth.png").stat().st_size > 5000
    recomputed = {"runtime.recompute": True}
    rows += [row("B0", 2e9, 4, **recomputed), row("B3", 6e9, 2, **recomputed), dict(row("B0", 1e9, 9), size=160)]
    found = scaling.lines(rows, "multiply_adds")
    ends = [f"recompute={value}, train, float32, 224 px, 4 images" for value in (False, True)]
    assert list(found) == [f"G16 LN+PN, {end}" for end in ends]
    assert found[f"G16 LN+PN, {ends[0]}"] == expected

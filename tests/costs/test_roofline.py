"""The performance model: work counted by hand, the vector rule, limits, the fit, and the mode that shows it."""

import json
import math

import pytest
from helpers import call

from g16net.benchmark import estimates as performance
from g16net.costs import counts, roofline
from g16net.errors import UserError
from g16net.models import norms
from g16net.report import published, runs

G1, G16 = ({"group_size": 1, "expand_ratio": 6}, {"group_size": 16, "expand_ratio": 4})
PLAIN = roofline.Machine("plain", {"float32": 1e12, "bfloat16": 2e12}, 1e11, {}, "made up")
IPU = roofline.MACHINES["ipu_mk2"]


def row_of(name, **network):
    return next(row for row in counts.layers(**network) if row.name == name)


def test_work_of_a_convolution_by_hand():
    row = row_of("block2b_expand_conv", variant="B0", **G1, norm="bn")  # 24 to 144 channels at 56 x 56
    pixels = 56 * 56
    forward, backward = roofline.work(row, pixels * 24, "bn", batch=8, training=True)
    assert forward.macs == pixels * 24 * 144 and backward.macs == 2 * forward.macs
    assert forward.bytes == 4 * (pixels * (24 + 144) + 24 * 144 / 8)
    assert backward.bytes == 2 * forward.bytes
    (half,) = roofline.work(row, pixels * 24, "bn", "bfloat16", batch=8)
    assert half == (forward.macs, forward.bytes / 2)
    assert forward.intensity == 2 * forward.macs / forward.bytes


@pytest.mark.parametrize(
    "norm, fused, training, passes",
    [
        ("bn", False, False, [2]),
        ("bn", True, False, [0]),
        ("bn", False, True, [3, 5]),
        ("gn", False, True, [5, 8]),
        ("ln_pn", False, True, [9, 12]),
        ("ln_pn", True, True, [3, 5]),
        ("ln_pn", True, False, [3]),
    ],
)
def test_work_of_a_norm_by_hand(norm, fused, training, passes):
    row = row_of("stem_norm", variant="B0", **G16, norm=norm)
    found = roofline.work(row, row.elements, norm, batch=10**12, training=training, fused=fused)
    assert [one.bytes / (4 * row.elements) for one in found] == pytest.approx(passes)
    assert all(one.macs == one.intensity == 0 for one in found)


@pytest.mark.parametrize("norm", norms.NORMS)
@pytest.mark.parametrize("group", (G1, G16))
def test_forward_multiply_adds_are_those_of_the_counts(norm, group):
    found = roofline.parts(PLAIN, "infer", variant="B1", norm=norm, **group)
    assert sum(part.work[0].macs for part in found) == counts.count("B1", norm=norm, **group).macs
    trained = roofline.parts(PLAIN, "train", variant="B1", norm=norm, **group)
    assert sum(one.macs for part in trained for one in part.work) == 3 * counts.count("B1", norm=norm, **group).macs
    assert all(one.bytes > 0 for part in trained for one in part.work)


def test_an_ipu_takes_a_sixteenth_of_its_rate_for_depthwise():
    depthwise, grouped = (row_of("block3a_conv", variant="B0", **group) for group in (G1, G16))
    assert roofline.share(depthwise, IPU, "float16") == 1 / 16
    assert roofline.share(grouped, IPU, "float16") == 1
    stem = row_of("stem_conv", variant="B0")
    assert roofline.share(stem, IPU, "float16") == 3 / 16
    wide = row_of("block2a_expand_conv", variant="B3")  # 24 input channels: two vectors, the second half full
    assert wide.in_channels == 24 and roofline.share(wide, IPU, "float16") == 24 / 32


def test_measured_shares_hold_for_grouped_convolutions_and_between_widths():
    machine = PLAIN._replace(shares=((1, 0.1, 0.05), (4, 0.3, 0.2), (16, 0.9, 0.8)))
    row = row_of("block3a_conv", variant="B0", **G16)
    shares = [roofline.share(row._replace(groups=row.in_channels // width), machine, "float32") for width in (1, 4, 16)]
    assert shares == pytest.approx([0.1, 0.3, 0.9])
    assert roofline.share(row._replace(groups=row.in_channels // 16), machine, "float32", backward=True) == 0.8
    two = row._replace(groups=row.in_channels // 2)
    assert roofline.share(two, machine, "float32") == pytest.approx(0.2)  # half-way between 1 and 4 by the logarithm
    assert roofline.share(row._replace(groups=1), machine, "float32") == 0.9
    assert roofline.share(row_of("block2a_expand_conv"), machine, "float32") == 1


@pytest.mark.parametrize("norm", ("bn", "ln_pn"))
def test_measured_norms_hold_for_norms_and_activations(norm):
    machine = PLAIN._replace(fused=True)
    slow = machine._replace(norm_rates={norm: (1e10, 5e9, 2e9)})
    for task, factors in (("infer", [10]), ("train", [20, 50])):
        for plain, one in zip(*(roofline.parts(m, task, norm=norm) for m in (machine, slow))):
            if not plain.seconds[0]:  # batch norm at inference
                continue
            expected = factors if one.kind in ("norm", "activation") else [1] * len(one.seconds)
            assert [b / a for a, b in zip(plain.seconds, one.seconds)] == pytest.approx(expected)


def test_limits_of_the_roofline():
    """Without memory's limit only multiply-adds count, without that of compute only bytes."""
    network = dict(variant="B0", norm="ln", **G16)
    macs = counts.count(**network).macs
    fast_memory, fast_compute = PLAIN._replace(bandwidth=1e30), PLAIN._replace(flops={"float32": 1e30})
    assert roofline.images_per_second(fast_memory, task="train", **network) == pytest.approx(1e12 / (6 * macs))
    moved = sum(one.bytes for part in roofline.parts(PLAIN, "train", **network) for one in part.work)
    assert roofline.images_per_second(fast_compute, task="train", **network) == pytest.approx(1e11 / moved)
    both = roofline.images_per_second(PLAIN, task="train", **network)
    assert both < min(1e12 / (6 * macs), 1e11 / moved)
    assert roofline.images_per_second(PLAIN._replace(devices=4), 0.5, task="train", **network) == pytest.approx(
        2 * both
    )
    again = roofline.images_per_second(PLAIN._replace(recompute=True), task="train", **network)
    assert again == pytest.approx(1 / (1 / both + 1 / roofline.images_per_second(PLAIN, task="infer", **network)))


def test_why_g16_is_faster_though_it_has_more_multiply_adds():
    for variant in ("B0", "B3", "B5"):
        assert counts.count(variant, **G16, norm="gn").macs > 1.3 * counts.count(variant, **G1, norm="gn").macs
        speeds = [
            roofline.images_per_second(IPU, task="train", dtype="float16", variant=variant, norm="gn", **group)
            for group in (G1, G16)
        ]
        assert speeds[1] > 1.2 * speeds[0]


def test_fit_is_the_geometric_mean():
    assert roofline.fit([10, 10], [2, 8]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    "arguments, match",
    [({"task": "test"}, "'test'"), ({"dtype": "float64"}, "plain has no rate for 'float64'.*bfloat16")],
)
def test_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        roofline.parts(PLAIN, **arguments)


def test_comparison_with_the_readings():
    found = performance.compare_readings()
    seen = [row for row in published.rows() if row["finetuned"] and row["train_images_per_second"]]
    assert len(found["rows"]) == len(seen) == 28
    logs = [math.log(1 + row["error"]) for row in found["rows"]]
    assert sum(logs) == pytest.approx(0, abs=1e-9)  # fitted in the geometric mean
    by_name = {(row["ratio"], row["of"]): row for row in found["ratios"]}
    ratio = by_name["G16 over G1", "B4 gn native train"]
    assert ratio["observed"] == pytest.approx(4640 / 2740) and ratio["estimate"] > 1 > ratio["by_multiply_adds"]


def test_published_has_every_point_once():
    rows = list(published.rows())
    keys = [tuple(row[k] for k in ("variant", "group_size", "norm", "resolution", "finetuned")) for row in rows]
    assert len(set(keys)) == len(rows) == 36
    assert all(0.7 < row["top1"] < 0.9 for row in rows)


def test_mode_writes_and_shows(tmp_path, capfd):
    work = tmp_path / "costs"
    argv = ["--mode=costs", "--experiment=g16_gn:variant=TINY", f"--workdir={work}", "--machines=ipu_mk2,a100_80gb"]
    status, shown = call(capfd, *argv, "--compare=readings")
    assert status == 0
    assert "DEMO" not in shown and "group_conv" in shown and "G16 over G1" in shown
    found = json.loads((work / "costs.json").read_text())
    assert {(row["machine"], row["task"]) for row in found["rows"]} == {
        (machine, task) for machine in ("ipu_mk2", "a100_80gb") for task in ("train", "infer")
    }
    assert all(row["network"]["model.norm"] == "gn" for row in found["rows"])
    assert sum(row["ipu_mk2_share"] for row in found["kinds"]) == pytest.approx(1)
    lines = (work / "costs.csv").read_text().splitlines()
    network = dict(variant="TINY", group_size=16, expand_ratio=4, norm="gn", size=32)
    assert len(lines) == 2 + len(counts.layers(**network))
    assert sum(int(line.split(",")[2]) for line in lines[1:]) == counts.count(**network).macs
    assert not (work / "config.json").exists()


def test_mode_refuses_unknown_names():
    with pytest.raises(UserError, match="--machines: no 'ipu_mk3'.*Did you mean 'ipu_mk2'"):
        performance.costs(None, "", machines=["ipu_mk3"])
    with pytest.raises(UserError, match="--compare: no 'reading'.*'readings'"):
        performance.costs(None, "", compare=["reading"])


@pytest.mark.slow
def test_this_machine_is_measured(monkeypatch):
    from g16net.benchmark import measure

    monkeypatch.setattr(measure, "FEATURES", (2, 8, 8, 48))
    monkeypatch.setattr(measure, "NORMED", (2, 8, 8, 16))
    found = measure.machine(norms=("bn", "ln_pn"), seconds=0.01)
    assert set(found.norm_rates) == {"bn", "ln_pn"} and min(map(min, found.norm_rates.values())) > 0
    assert found.flops["float32"] > 1e8 and found.bandwidth > 1e7
    assert [width for width, *_ in found.shares] == list(measure.WIDTHS) and min(min(s[1:]) for s in found.shares) > 0


def test_what_mode_benchmark_times_is_beside_its_estimates(monkeypatch):
    from g16net.benchmark import networks as benchmark

    asked = []

    def timed(config, workdir):
        asked.extend(benchmark.ours(config))
        rows = [{"task": "product", "dtype": "bfloat16"}]
        for _, name, options in asked:
            network = runs.network(runs.flat(options("mixed_bfloat16")["config"].to_dict()))
            for task in ("train", "infer"):
                for size in config.benchmark.sizes:
                    speed = 16e9 / counts.count(**dict(performance.paper_network("B0", *of(network)), size=size)).macs
                    row = {"name": name, "network": network, "task": task, "dtype": "bfloat16", "size": size}
                    speeds = {"median": speed, "min": 0.9 * speed, "max": 1.1 * speed}
                    rows.append({**row, "batch": config.benchmark.batches[0], "images_per_second": speeds})
        return {"rows": rows}

    def of(network):
        return network["model.group_size"], network["model.norm"]

    monkeypatch.setattr(benchmark, "benchmark", timed)
    flat = roofline.Machine("cpu", {"bfloat16": 1e12}, 1e30, {"bfloat16": 1}, "made up")  # multiply-adds alone count
    found = performance.compare_measured(flat)
    assert len(asked) == 3 and len(found["rows"]) == 3 * 2 * 2
    assert {(row["group_size"], row["norm"]) for row in found["rows"]} == set(performance.MEASURED)
    assert {(row["size"], row["resolution"]) for row in found["rows"]} == {(160, "half"), (224, "native")}
    for row in found["rows"]:
        assert row["min"] < row["observed"] < row["max"]
    for row in found["ratios"]:
        if row["of"].endswith("infer"):
            assert row["observed"] == pytest.approx(row["by_multiply_adds"])

"""Plans of runs on clusters: rings, memory, hours and limits by hand, errors beside published speeds, and the mode."""

import json

import pytest
from helpers import call, changed

from g16net.benchmark import estimates, planning
from g16net.config import experiments
from g16net.costs import counts, plan, roofline
from g16net.errors import UserError
from g16net.report import figures, published

B0 = {"variant": "B0", "group_size": 16, "expand_ratio": 4, "norm": "ln_pn", "size": 224}
LINKS = roofline.Links(within=1e9, between=1e8, per_machine=4, cores=10, source="made up")
PLAIN = roofline.Machine("plain", {"float32": 1e12}, 1e11, {}, "made up", memory=16e9, links=LINKS)
A100 = roofline.MACHINES["a100_80gb"]


def config_of(experiment="g16_ln_pn", **changes):
    return changed(experiments.load(experiment), **changes)


# The exchange of gradients


@pytest.mark.parametrize(
    "devices, within, between",
    [
        (1, 0, 0),
        (2, 2 * 1 / 2 * 8e6 / 1e9, 0),
        (4, 2 * 3 / 4 * 8e6 / 1e9, 0),
        (8, 2 * 3 / 4 * 8e6 / 1e9, 2 * 1 / 2 * 8e6 / 1e8),
        (12, 2 * 3 / 4 * 8e6 / 1e9, 2 * 2 / 3 * 8e6 / 1e8),
    ],
)
def test_a_ring_by_hand(devices, within, between):
    assert plan.all_reduce(PLAIN, devices, 8e6) == pytest.approx((within, between))


def test_the_stages_of_pipelines_exchange_their_parts_at_a_time():
    within, between = plan.all_reduce(PLAIN, 8, 8e6, stages=2)  # four replicas, two in a machine
    assert (within, between) == pytest.approx((2 * 1 / 2 * 4e6 / 1e9, 2 * 1 / 2 * 8e6 / 1e8))


def test_no_byte_is_sent_less_with_more_devices():
    times = [sum(plan.all_reduce(PLAIN, devices, 1e6)) for devices in range(1, 65)]
    assert times == sorted(times) and times[-1] < 2 * 1e6 * (1 / 1e9 + 1 / 1e8)


# Memory


def test_memory_is_that_of_the_counts_and_the_average():
    counted = counts.count(batch=32, **B0)
    found = plan.memory(**B0)
    logits = 4 * 1000  # whose gradient the loss needs
    assert found.total(32) == pytest.approx(counted.memory + 4 * counted.params + 32 * logits, abs=32 * logits)
    assert found.optimizer == 8 * counted.params == 2 * found.gradients == 2 * found.average == 2 * found.weights
    half = plan.memory("bfloat16", **B0)
    assert half.weights == 6 * counted.params and half.image == found.image / 2


def test_the_micro_batch_that_fits():
    found = plan.Memory(weights=10, gradients=10, optimizer=20, average=10, image=7)
    assert [found.largest_micro_batch(capacity) for capacity in (0, 50, 56, 57, 71)] == [0, 0, 0, 1, 3]
    assert found.total(3) == 71
    spread = plan.memory(stages=2, **B0)
    assert spread.image == plan.memory(**B0).image / 2


def test_recomputation_keeps_the_inputs_of_blocks():
    rows = counts.layers(**B0)
    lasts = {row.name.split("_")[0]: row.elements for row in rows}  # the last layer of each block stays
    inputs = sum(list(lasts.values())[:-2]) + 224 * 224 * 3 + lasts["top"]
    image = plan.memory(recompute=True, **B0).image / 4
    assert inputs < image < 0.35 * plan.memory(**B0).image / 4


# A step


def test_a_step_by_hand():
    """Of a machine whose only limit is that of its multiply-adds."""
    machine = PLAIN._replace(bandwidth=1e30)
    macs, params = counts.count(**B0).macs, counts.count(**B0).params
    found = plan.step(machine, 8, 64, efficiency=0.5, **B0)
    compute = 8 * 6 * macs / 1e12 / 0.5
    exchange = 2 * 3 / 4 * 4 * params / 1e9 + 2 * 1 / 2 * 4 * params / 1e8
    assert (found.replicas, found.machines, found.micro_batch, found.accumulation) == (8, 2, 8, 1)
    assert (found.compute, found.exchange, found.hidden) == pytest.approx((compute, exchange, 0))
    assert found.images_per_second == pytest.approx(64 / (compute + exchange))
    assert found.efficiency == pytest.approx(compute / (compute + exchange))
    first, second = found.limits
    assert first == f"exchange of gradients above compute: {1e3 * exchange:.3g} ms against {1e3 * compute:.3g} ms"
    assert second == f"efficiency {found.efficiency:.2f}, below 0.5"
    half = plan.step(machine, 8, 64, efficiency=0.5, overlap=0.1, **B0)
    assert half.hidden == pytest.approx(0.1 * exchange)
    backward = 8 * 4 * macs / 1e12 / 0.5
    assert plan.step(machine, 8, 64, efficiency=0.5, overlap=1.0, **B0).hidden == pytest.approx(backward)


def test_what_does_not_fit_is_accumulated():
    kept = plan.memory(**B0)
    machine = PLAIN._replace(memory=kept.total(20.5))
    found = plan.step(machine, 2, 96, **B0)
    assert (found.largest_micro_batch, found.micro_batch, found.accumulation) == (20, 16, 3)
    assert found.memory == kept.total(16) < machine.memory
    assert plan.step(machine, 2, 96, micro_batch=8, **B0).accumulation == 6
    none = plan.step(PLAIN._replace(memory=kept.total(0.5)), 2, 96, **B0)
    assert none.micro_batch == 0 == none.images_per_second and "not one image fits" in none.limits[0]
    assert plan.scales_to(PLAIN._replace(memory=1.0), 96, **B0)[0] == 0


def test_more_devices_are_faster_and_less_efficient():
    found = [plan.step(A100, devices, 768, dtype="bfloat16", **B0) for devices in (1, 2, 8, 64, 256, 768)]
    speeds, shares = [step.images_per_second for step in found], [step.efficiency for step in found]
    assert speeds == sorted(speeds) and shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1)
    assert all(step.micro_batch * step.accumulation * step.replicas == 768 for step in found)


def test_where_it_stops_scaling():
    arguments = dict(dtype="bfloat16", **B0)
    most, because = plan.scales_to(A100, 768, **arguments)
    assert not plan.step(A100, most, 768, **arguments).limits
    after = min(number for number in range(most + 1, 769) if 768 % number == 0)
    assert plan.step(A100, after, 768, **arguments).limits and because.startswith(f"{after} devices: efficiency")
    endless = A100._replace(links=A100.links._replace(within=1e30, between=1e30))
    slow = endless._replace(bandwidth=1e6)  # so that the update, which is not shared out, takes no time beside images
    assert plan.scales_to(slow, 4, **arguments)[0] in (1, 2, 4)
    assert "fewer than one image" in plan.step(A100, 1536, 768, **arguments).limits[0]


# A whole run


def test_hours_and_multiply_adds_by_hand():
    recipe = plan.Recipe(images=1_281_167, epochs=350, global_batch=768)
    assert recipe.steps == 350 * 1668
    found = plan.step(PLAIN, 4, 768, **B0)
    hours, work = plan.run(recipe, found, macs=10)
    assert hours == pytest.approx(recipe.steps * 768 / found.images_per_second / 3600)
    assert work == 3 * 10 * recipe.steps * 768 == 0.75 * plan.run(recipe, found, 10, recompute=True)[1]
    assert plan.run(recipe, plan.step(PLAIN, 1536, 768, **B0), 10)[0] is None


def test_cores_and_workers_of_the_input():
    assert plan.input_cores(10_000, 1000) == 10 and plan.input_cores(10_001, 1000) == 11
    assert [plan.service_workers(cores, 8, 4) for cores in (0, 8, 9, 12, 13)] == [0, 0, 1, 1, 2]


# Mistakes


@pytest.mark.parametrize(
    "run, match",
    [
        (lambda: plan.step(PLAIN, 0, 768, **B0), "devices=0 must be a whole number above 0"),
        (lambda: plan.step(PLAIN, 10, 768, **B0), "768 images is not divisible by 10 replicas; take 8 devices.*=770"),
        (lambda: plan.step(PLAIN, 6, 768, stages=4, **B0), "devices=6: a replica .* takes 4 devices.* 4 or 8"),
        (lambda: plan.all_reduce(PLAIN._replace(links=None), 2, 1e6), "plain has no links"),
        (lambda: plan.input_cores(1, 0), "more than 0 images/s"),
        (lambda: plan.service_workers(1, 0, 0), "at least one core"),
    ],
)
def test_errors(run, match):
    with pytest.raises(ValueError, match=match):
        run()


@pytest.mark.parametrize(
    "machines, devices, changes, match",
    [
        (["a100_80gb"], ["0"], {}, "--devices: '0' is no whole number above 0"),
        (["a100_80gb"], ["many"], {}, "--devices: 'many' is no whole number above 0.*--devices=1,8,64"),
        (["a100_81gb"], ["1"], {}, "--machines: no 'a100_81gb'.*Did you mean 'a100_80gb'"),
        (["a100_80gb"], ["1", "5"], {}, "--devices=5: a global batch of 768 .* take 4 devices, or --config.run.global"),
        (
            ["ipu_mk2"],
            ["1"],
            {},
            "--devices=1: a replica of this network takes 2 devices of ipu_mk2; .* such as 2, or plan",
        ),
        (["cpu", "a100_80gb"], ["1"], {"costs__images_per_second": 3.0}, "is of one machine.*name that one alone"),
        (["cpu"], ["1"], {"costs__images_per_second": 3.0, "costs__efficiency": 0.5}, "give one of them"),
        (["cpu"], ["1"], {"costs__images": 700}, "costs.images=700 fill no batch of .*=768; .*global_batch=700"),
    ],
)
def test_mistakes_in_a_command(machines, devices, changes, match):
    with pytest.raises(UserError, match=match):
        estimates.check(config_of(**changes), machines, (), devices)


# Machines, and errors against what was published


@pytest.mark.parametrize("machine", roofline.MACHINES.values(), ids=lambda machine: machine.name)
def test_every_machine_says_where_its_links_are_from(machine):
    links = machine.links
    assert links.source and links.within >= links.between / links.per_machine > 0 and machine.memory > 1e8


def test_plans_beside_the_readings_of_16_ipus():
    found = planning.readings()
    assert len(found["rows"]) == 28 and found["machine"] == "ipu_mk2"
    assert 0.05 < found["efficiency"] < 0.06 and found["typical_error"] < 0.16 and abs(found["worst_error"]) < 0.4
    without = estimates.compare_readings()  # the exchange of gradients explains little at 16 IPUs
    assert found["efficiency"] == pytest.approx(without["efficiency"], rel=0.05)


def test_plans_beside_published_speeds_of_gpus():
    found, (source, rows) = planning.gpu_speeds(), published.gpus()
    assert "DeepLearningExamples" in source and len(rows) == len(found["rows"]) == 16
    assert {row["devices"] for row in rows} == {1, 8, 16, 32, 64}
    assert found["typical_error"] < 0.1 and abs(found["worst_error"]) < 0.3
    alone = [1 + row["error"] for row in found["rows"] if row["devices"] == 1]
    assert alone[0] * alone[1] * alone[2] * alone[3] == pytest.approx(1)  # fitted in the geometric mean


def test_speeds_that_the_plan_takes_from_elsewhere(tmp_path):
    config = config_of(costs__images_per_second=100.0)
    share, why = planning.efficiency(config, A100, "float32", _network(), {}, None, tmp_path)
    limit = roofline.images_per_second(A100, task="train", dtype="float32", batch=768, **B0)
    assert share * limit == pytest.approx(100) and "images_per_second" in why
    config, cpu = config_of(), PLAIN._replace(name="cpu")
    assert planning.efficiency(config, cpu, "float32", _network(), {}, None, tmp_path)[0] == 1
    measured = {"name": "measured", "efficiency": 0.8}
    assert planning.efficiency(config, cpu, "float32", _network(), {}, measured, tmp_path)[0] == 0.8
    (tmp_path / "costs.json").write_text(json.dumps({"comparisons": [dict(measured, efficiency=0.7)]}))
    assert planning.efficiency(config, cpu, "float32", _network(), {}, None, tmp_path)[0] == 0.7
    assert planning.input_speed(config, tmp_path)[0] == planning.INPUT_PER_CORE
    rows = [{"name": "read", "images_per_second_per_core": 9}, {"name": "batch", "images_per_second_per_core": 7}]
    (tmp_path / "benchmark_data.json").write_text(json.dumps({"rows": rows}))
    assert planning.input_speed(config, tmp_path) == (7, "benchmark_data.json")
    given = config_of(costs__input_images_per_second_per_core=5.0)
    assert planning.input_speed(given, tmp_path) == (5.0, "given")
    (tmp_path / "benchmark_data.json").write_text("{")
    with pytest.raises(UserError, match="benchmark_data.json is not as g16net writes it"):
        planning.input_speed(config, tmp_path)


def _network():
    return {key: value for key, value in B0.items() if key != "size"}


# The mode


def test_mode_plans(tmp_path, capfd):
    work = tmp_path / "costs"
    status, shown = call(
        capfd, "--mode=costs", "--experiment=g16_gn", f"--workdir={work}", "--machines=ipu_mk2,a100_80gb,h100_80gb",
        "--devices=64,2,8,1536", "--config.runtime.precision=mixed_float16", "--config.run.epochs=100",
        "--config.costs.input_images_per_second_per_core=100", "--config.costs.network=1",
    )  # fmt: skip
    assert status == 0
    for part in (
        "1,281,167 images, 100 epochs, 166,800 updates of 768",
        "Where it stops scaling",
        "28 readings",
        "16 published speeds",
        "fewer than one image per replica",
        "fitted to published speeds of a100_80gb",
    ):
        assert part in shown, part
    found = json.loads((work / "costs.json").read_text())
    rows = {(row["machine"], row["resolution"], row["devices"]): row for row in found["plan"]}
    assert len(rows) == 3 * 2 * 4 and len(found["plan_scales_to"]) == 3 * 2
    native, half = (rows["a100_80gb", name, 8] for name in ("native", "half"))
    assert (native["size"], half["size"]) == (224, 160) and half["hours"] < native["hours"]
    assert native["steps"] == 166_800 and native["device_hours"] == 8 * native["hours"]
    assert native["hours"] == pytest.approx(166_800 * native["step_seconds"] / 3600)
    macs = counts.count(**{**B0, "norm": "gn"}).macs
    assert native["multiply_adds"] == 3 * macs * 166_800 * 768
    assert native["input_cores"] * 100 >= native["images_per_second"] > (native["input_cores"] - 1) * 100
    assert native["service_workers"] == -(-(native["input_cores"] - 128) // 16)
    assert rows["a100_80gb", "native", 64]["exchange_seconds"] > 0.03  # 1 GB/s between machines
    assert rows["a100_80gb", "native", 1536]["hours"] is None
    assert (work / "plan.png").stat().st_size > 10_000
    panels = figures.plan([found, {"rows": []}]).panels
    assert len(panels) == 3 and {len(panel.series) for panel in panels} == {6}
    # A plan of ipu_mk2 counts single IPUs, two of a pipeline each
    assert rows["ipu_mk2", "native", 8]["replicas"] == 4 and rows["ipu_mk2", "native", 8]["micro_batch"] == 12


def test_mode_without_devices_plans_nothing(tmp_path, capfd):
    call(capfd, "--mode=costs", "--experiment=g16_gn:variant=TINY", f"--workdir={tmp_path}", "--machines=a100_80gb")
    assert "plan" not in json.loads((tmp_path / "costs.json").read_text())


@pytest.mark.slow
def test_the_loopback_of_this_machine():
    from g16net.benchmark import measure

    assert 1e7 < measure.loopback(0.05) < 1e12

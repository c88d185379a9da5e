"""What the ablation's runs say to the paper's claims: pairs, verdicts, and the pages they are written to."""

import json
import os
import sys

import made_runs
import pages
import pytest

sys.path.insert(0, os.path.join(pages.ROOT, "docs"))
import claims  # noqa: E402
import headline  # noqa: E402

pytestmark = pytest.mark.once

SIZES = {"s": (0.25, 0.3), "m": (0.25, 0.5), "l": (0.35, 0.6)}
NAMES = ["TINY w0.25 d0.3", "TINY w0.25 d0.5", "TINY w0.35 d0.6"]
CLAIMS = {claim.text: claim for claim in claims.claims()}


def write(folder, accuracies, seeds=3, **other):
    """Runs of {(group size, norm, training size): top-1 at 48 pixels}, a tenth of a point more with each seed."""
    for (group_size, norm, train_size), top1 in accuracies.items():
        for size, (width, depth) in SIZES.items():
            for seed in range(seeds):
                made_runs.write(
                    folder / f"{size}-{group_size}-{norm}-{train_size}-{seed}", width, depth, group_size, norm, seed,
                    train_size, top1 + seed / 1000 + abs(48 - 1.2 * train_size) / 400,
                    finetuned=(48,) * (train_size < 48), **other,
                )  # fmt: skip
    return [str(folder)]


@pytest.mark.parametrize(
    "differences, level, said",
    [
        ([[1, 1, 1], [2, 1, 1], [1, 1, -0.1]], 0, claims.SHOW),  # 8 of 9
        ([[1, 1, 1], [2, 1, -0.1], [1, 1, -0.1]], 0, claims.CANNOT),
        ([[1, 1, 1], [1, 1, 1], [0.1, 0.1, -9]], 0, claims.CANNOT),  # 8 of 9, but one size's mean is against it
        ([[-1, -1, -1], [-2, -1, -1], [-1, -1, 0.1]], 0, claims.CONTRADICT),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], 0, claims.CANNOT),
        ([[0, 0, 0], [-0.3, 0, 0], [0, -0.2, 0]], 0.3, claims.SHOW),
        ([[-0.4, -0.4, -0.5]] * 3, 0.3, claims.CONTRADICT),
        ([[1, 1]] * 3, 0, claims.SHOW),
        ([[1, 1]] * 2 + [[1, -0.1]], 0, claims.CANNOT),
        ([[1, 1], [1], [1, 1]], 0, claims.FEW),
        ([[1] * 9], 0, claims.FEW),
    ],
)
def test_the_rule(differences, level, said):
    assert claims.verdict(dict(enumerate(differences)), level) == said


def test_runs_are_compared_by_size_and_seed(tmp_path):
    runs = write(tmp_path, {(16, "ln_pn", 48): 0.85, (16, "ln", 48): 0.83, (1, "bn", 48): 0.88, (16, "bn", 48): 0.88})
    for name in ("l-16-ln-48-2", "s-16-ln_pn-48-0"):
        (tmp_path / name / "config.json").unlink()
    found, *_ = claims.load(runs)
    assert len(found) == 4 * 9 - 2
    compared = claims.pairs(CLAIMS["LN+PN is more accurate than LN, G16"], found)
    assert [len(compared[name]) for name in NAMES] == [2, 3, 2]
    assert [value for same in compared.values() for value in same] == pytest.approx([2.0] * 7)
    assert claims.pairs(CLAIMS["LN+PN is more accurate than GN, G16"], found) == {}
    table = claims.claims_table(found, NAMES)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.split("\n")}
    assert rows["LN+PN is more accurate than LN, G16"][1:] == [
        "+2.00 (+2.00 to +2.00)", "+2.00", "+2.00", "+2.00", "7", "show it |",
    ]  # fmt: skip
    assert rows["LN+PN is at least level with BN, G16"][-1] == "contradict it |"
    assert rows["G16 is more accurate than G1, BN"][-1] == "cannot tell |"  # no difference
    assert rows["natively trained networks are more accurate at the next larger test size"][-2:] == ["34", "show it |"]


def test_a_run_without_figures_of_its_own_weights_is_left_out(tmp_path):
    runs = write(tmp_path, {(16, "bn", 48): 0.88}, seeds=1)
    for name in ("train.json", "evaluate.json"):
        (tmp_path / "s-16-bn-48-0" / name).unlink()
    raw = {"kind": "evaluation", "weights": "raw", "size": 48, "top1": 0.5}
    (tmp_path / "s-16-bn-48-0" / "evaluations.jsonl").write_text(json.dumps(raw) + "\n")
    assert len(claims.load(runs)[0]) == 2


def test_equal_cost_is_the_nearest_network_at_most_so_far_apart(tmp_path):
    found, everything, _ = claims.load(write(tmp_path, {(16, "bn", 48): 0.88, (1, "bn", 48): 0.87}, seeds=1))
    costs = {(run.network, run.size): run.costs["multiply-adds"] for run in found}
    assert costs["G1 BN", NAMES[0]] == 3 * 3 * 1e6 and costs["G16 BN", NAMES[0]] == 3 * 3 * 1.4e6
    compared = claims.pairs(CLAIMS["G16 is more accurate than G1 at equal multiply-adds, BN"], found)
    # made_runs: G16 has 1.4 times the multiply-adds: s 1.4 m 2.33 l 3.92 million beside 1, 1.67 and 2.8
    assert list(compared) == NAMES[:2] and all(same == pytest.approx([1.0]) for same in compared.values())
    assert "| G16 BN | w0.25 d0.3 | 1.4M |  |  |" in claims.costs_table(everything, {}, NAMES)


def test_half_resolution_costs_less_and_is_compared_after_fine_tuning(tmp_path):
    found, *_ = claims.load(write(tmp_path, {(16, "bn", 48): 0.88, (16, "bn", 32): 0.85}, seeds=2))
    native, half = (next(run for run in found if run.kind == kind) for kind in (claims.NATIVE, claims.HALF))
    # two thirds of the side: 4/9 of the pixels in training; one pass forward at the native size, and the top's training
    top = claims.tuned_share(claims.runs.read(str(tmp_path / "s-16-bn-32-0")).config, "top")
    share = 4 / 9 + (1 + 2 * top) / 9
    assert half.costs["multiply-adds"] == pytest.approx(native.costs["multiply-adds"] * share, rel=1e-5)
    assert 0.01 < top < 0.5
    compared = claims.pairs(CLAIMS["native training is more accurate than half and fine-tuning, G16 BN"], found)
    assert all(same == pytest.approx([3.0 - 1.5] * 2) for same in compared.values())  # made_runs: fine-tuned 1.5 more
    equal = claims.pairs(
        CLAIMS["half and fine-tuning is more accurate than native at equal training multiply-adds, G16 BN"], found
    )
    assert list(equal) == NAMES[1:]
    assert "half, fine-tuned | 86.55, 86.50–86.60, 2 seeds" in claims.accuracy_table(found, NAMES)


def test_fine_tuning_of_stages_is_a_kind_of_its_own(tmp_path):
    write(tmp_path / "top", {(16, "bn", 48): 0.88, (16, "bn", 32): 0.85}, seeds=2)
    write(tmp_path / "stages", {(16, "bn", 32): 0.85}, seeds=2, layers="top,block7,block6", gain=0.04)
    found, *_ = claims.load([str(tmp_path / "top"), str(tmp_path / "stages")])
    assert {kind: sum(run.kind == kind for run in found) for kind in claims.TRAINED} == dict.fromkeys(claims.TRAINED, 6)
    half, deep = (next(run for run in found if run.kind == kind) for kind in (claims.HALF, claims.DEEP))
    assert deep.costs["multiply-adds"] > half.costs["multiply-adds"] and deep.costs["time"] is None
    text = "half and fine-tuning of the last stages is more accurate than native, G16 BN"
    compared = claims.pairs(CLAIMS[text], found)
    assert all(same == pytest.approx([4.0 - 3.0] * 2) for same in compared.values()) and len(compared) == 3
    assert claims.verdict(compared) == claims.SHOW
    assert "half, last stages fine-tuned | 89.05, 89.00–89.10, 2 seeds" in claims.accuracy_table(found, NAMES)
    # the tops' tuning is as it was
    compared = claims.pairs(CLAIMS["native training is more accurate than half and fine-tuning, G16 BN"], found)
    assert all(same == pytest.approx([3.0 - 1.5] * 2) for same in compared.values())


def test_training_time_is_that_of_a_benchmark_alone(tmp_path):
    runs = write(tmp_path / "runs", {(16, "bn", 48): 0.88, (16, "bn", 32): 0.85}, seeds=2)
    assert all(run.costs["time"] is None for run in claims.load(runs)[0])
    rows = []
    for width, depth, speed in ((0.25, 0.3, 100.0), (0.25, 0.5, 60.0), (0.35, 0.6, 40.0)):
        name = {v: k for k, v in SIZES.items()}[width, depth]
        network = made_runs.network(tmp_path / "runs" / f"{name}-16-bn-48-0")
        for task, size, times in (("train", 48, 1), ("train", 32, 2), *(("infer", size, 4) for size in (32, 48, 64))):
            speeds = {"median": times * speed, "min": 0, "max": 0}
            row = {"network": network, "task": task, "dtype": "float32", "size": size, "batch": 64}
            rows.append(dict(row, images_per_second=speeds))
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "benchmark.json").write_text(json.dumps({"rows": rows}))
    found, everything, speeds = claims.load([*runs, str(tmp_path / "bench")])
    times = {(run.kind, run.size): run.costs["time"] for run in found}
    # three passes at 100 images per second; at 200, and one forward at 400
    assert times[claims.NATIVE, NAMES[0]] == pytest.approx(0.03)
    assert times[claims.HALF, NAMES[0]] == pytest.approx(0.0175)
    text = "half and fine-tuning is more accurate than native at equal training time, G16 BN"
    # 17.5, 29.2 and 43.8 ms beside 30, 50 and 75
    assert {size: len(same) for size, same in claims.pairs(CLAIMS[text], found).items()} == {NAMES[1]: 2, NAMES[2]: 2}
    assert "| G16 BN | w0.25 d0.3 | 1.4M | 100 | 200 | 400 |" in claims.costs_table(everything, speeds, NAMES)


def test_parts_of_pages_are_written_anew_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- ablation claims -->\nold\n<!-- end -->\n\n<!-- other -->\nkept\n")
    for text in ("| a |\n| b |", "| c |"):
        assert claims.fill(page, {"claims": text}) == ["claims"]
        assert page.read_text() == (
            f"before\n\n<!-- ablation claims -->\n\n{text}\n\n<!-- end -->\n\n<!-- other -->\nkept\n"
        )


def test_all_parts_are_made_of_what_is_finished(tmp_path):
    texts = claims.parts(write(tmp_path, {(1, "bn", 48): 0.88, (16, "bn", 48): 0.88}, seeds=1))
    assert set(texts) == {"accuracy", "claims", "costs", "sizes"}
    assert all(text.startswith("| ") for text in texts.values())
    assert "G16 is more accurate than G1, BN" in texts["claims"] and claims.FEW in texts["claims"]
    assert "LN" not in texts["claims"]  # there are no pairs


def test_sizes_of_two_variants_are_told_apart(tmp_path):
    sizes = ["TINY w0.25 d0.3", "CIFAR w0.25 d0.3"]
    assert claims.accuracy_table([], sizes).startswith("| network | trained | TINY w0.25 d0.3 | CIFAR w0.25 d0.3 |")
    assert claims.accuracy_table([], sizes[:1]).startswith("| network | trained | w0.25 d0.3 |")


# --- the headline


@pytest.mark.parametrize(
    "target, epochs",
    [
        (70.0, 5.0),
        (80.0, 5.0),
        (82.0, pytest.approx((5 * 8) ** 0.5)),
        (84.0, pytest.approx(8)),
        (84.5, pytest.approx(8 * 1.5**0.25)),
    ],
)
def test_epochs_to_an_accuracy_lie_between_those_trained(target, epochs):
    assert headline.epochs_to(target, {12: [85.5, 86.5], 5: [80.0], 8: [84.0]}) == epochs
    assert headline.epochs_to(86.5, {12: [85.5, 86.5], 5: [80.0], 8: [84.0]}) is None


def test_the_headline_adds_up_epochs_and_fine_tuning(tmp_path):
    shared = {"model__variant": "CIFAR", "run__global_batch": 100, "run__epochs": 12, "epochs": 12, "gain": 0.0}
    for name, group_size, norm, size, top1, crop in (
        ("a", 1, "gn", 48, 0.80, "reflect"), ("b", 16, "gn", 48, 0.79, "reflect"), ("c", 16, "ln_pn", 24, 0.85, "box"),
        ("no step", 1, "gn", 48, 0.90, "box"),
    ):  # fmt: skip
        tuned = (48,) * (size < 48)
        made = {"group_size": group_size, "norm": norm, "train_size": size, "top1": top1, "finetuned": tuned}
        made["layers"] = headline.LAYERS
        made_runs.write(tmp_path / "runs" / name, **made, data__crop=crop, **shared)
    stages = json.loads((tmp_path / "runs" / "c" / "finetune" / "48" / "finetune.json").read_text())
    for place, other in (
        ("finetune/32", {"size": 32}),
        ("slower/48", {}),
        ("finetune/top", {"layers": "top"}),
        ("finetune/float16", {"changed": {"runtime.precision": "mixed_float16"}}),
    ):  # none is the step's
        (tmp_path / "runs" / "c" / place).mkdir(parents=True)
        row = json.dumps({**stages, "top1": 0.1, "seconds": 1e4, **other})
        (tmp_path / "runs" / "c" / place / "finetune.json").write_text(row)
    loaded = headline.runs.load([str(tmp_path / "runs")])
    assert [[row["seconds"] for row in headline.tunings(run)] for run in loaded.runs] == [[], [], [9.0], []]
    for run, speed in zip(loaded.runs, (500.0, 1000.0, 2000.0)):
        timed = {"task": "train", "network": run.config, "size": run.config["data.train_size"]}
        with_input = {"images_per_second": {"median": speed}}
        loaded.benchmarks.append({**timed, "images_per_second": {"median": 9e9}, "with_input": with_input})
    lines = [line.strip(" |").split(" | ") for line in headline.table(loaded, 10.0).splitlines()[2:]]
    assert [line[0] for line in lines] == [headline.STEPS[i].adds for i in (0, 2, 4)]
    assert [line[2:] for line in lines] == [
        ["100", "12.0 epochs, 1200 s, 1.00 times"],
        ["50", "not in 12 epochs"],
        ["25", "12.0 epochs, 310 s, 3.87 times"],
    ]
    headline.draw(str(tmp_path / "steps.svg"), loaded, 10.0)
    drawn = (tmp_path / "steps.svg").read_text()
    assert all(headline.STEPS[i].adds in drawn for i in (0, 2, 4)) and headline.STEPS[3].adds not in drawn
    made_runs.write(
        tmp_path / "runs" / "d", group_size=16, norm="gn", optim__learning_rate=9.0, data__crop="reflect", **shared
    )
    with pytest.raises(SystemExit, match="two kinds of runs of 12 epochs"):  # not one with another seed
        headline.table(headline.runs.load([str(tmp_path / "runs")]), 10.0)

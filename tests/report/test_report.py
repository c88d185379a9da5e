"""The report: what is read of run folders, how runs are joined, the points of figures and fronts, the page."""

import json
import os
import re

import made_runs
import pytest
from helpers import call

from g16net.errors import UserError
from g16net.report import figures, look, page, points, runs
from g16net.run import records

pytestmark = pytest.mark.once

REFERENCES = re.compile(r"""(?:src|href)=(?!"data:|"#)|url\((?!#)|@import|<script|<link""")


@pytest.fixture
def drawn():
    """For tests that look at pictures."""


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Drawing takes most of a report's time: the other tests get empty pictures."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(look, "save", lambda panels, paths: [open(path, "wb").close() for path in paths])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return made_runs.grid(tmp_path_factory.mktemp("made") / "sweep", seeds=2)


@pytest.fixture(scope="module")
def groups(sweep):
    return runs.group(runs.load([str(sweep)]).runs)


def one_group(tmp_path, **arguments):
    made_runs.write(tmp_path / "run", **arguments)
    return runs.group(runs.load([str(tmp_path / "run")]).runs)


# Reading


def test_a_sweeps_folder_is_all_its_runs_once(sweep):
    loaded = runs.load([str(sweep), str(sweep / "*"), str(sweep / "0-g1-bn-native-0")])
    assert len(loaded.runs) == len({run.folder for run in loaded.runs}) == 3 * 11 * 2
    # of the glob, sweep.json is no folder and says nothing
    assert loaded.problems == []


def test_broken_and_foreign_folders_leave_the_others(tmp_path):
    made_runs.write(tmp_path / "good")
    (tmp_path / "foreign" / "inside").mkdir(parents=True)
    for name, text in (
        ("half", '{"data": '),
        ("other", '{"a": 1}'),
        ("list", "[]"),
        ("partial", '{"model": {"norm": 1}}'),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    broken = made_runs.write(tmp_path / "broken")
    (broken / "train.json").write_text('{"command": "x"}')
    loaded = runs.load(
        [str(tmp_path / name) for name in ("good", "foreign", "half", "other", "list", "partial", "broken")]
    )
    loaded.problems.extend(runs.load([str(tmp_path / "missing")]).problems)
    assert [run.folder for run in loaded.runs] == [str(tmp_path / "good")]
    assert len(loaded.problems) == 7
    for name in ("foreign", "half", "other", "list", "partial", "broken", "missing"):
        assert sum(str(tmp_path / name) in line for line in loaded.problems) == 1, loaded.problems
    made = page.write([str(tmp_path / "*")], str(tmp_path / "out"), quoted=False)
    assert made["runs"] == 1 and len(made["left_out"]) == 6
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Left out" in text and "foreign" in text


def test_a_report_holds_its_runs_for_others(sweep, tmp_path):
    """A report made of another's `report.json`, and of that and further runs, is as one made of the folders."""
    some = [str(folder) for folder in sorted(sweep.glob("0-g16-*-0"))]
    rest = [str(folder) for folder in sorted(sweep.glob("0-g16-*-1"))]
    made = page.write(some, str(tmp_path / "some"), quoted=False)
    page.write([str(tmp_path / "some" / "report.json")], str(tmp_path / "again"), quoted=False)
    stored = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("some", "again")]
    for one in stored:
        del one["command"]
    assert stored[0] == stored[1] and len(stored[0]["runs"]) == made["runs"] == len(some)

    page.write(some + rest, str(tmp_path / "whole"), quoted=False)
    both = page.write([str(tmp_path / "some" / "report.json"), *rest], str(tmp_path / "both"), quoted=False)
    assert both["left_out"] == [] and both["runs"] == len(some) + len(rest)
    stored = [json.loads((tmp_path / name / "report.json").read_text())["points"] for name in ("whole", "both")]
    assert stored[0] == stored[1]

    file = str(tmp_path / "whole" / "report.json")
    loaded = runs.load([os.path.join(file, "0-g16-*-1"), os.path.join(file, "nobody")])
    assert [run.folder for run in loaded.runs] == [
        run.folder for run in runs.load([file]).runs if run.folder[-1] == "1"
    ]
    assert len(loaded.runs) == len(rest) and loaded.problems == [f"{file}: holds no run named nobody"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("[", "cannot be read"),
        ('{"points": []}', "KeyError 'config'"),
        ('{"config": {}, "runs": [{"folder": "a"}], "benchmarks": [], "costs": []}', "KeyError 'config'"),
        ('{"config": {}, "runs": [], "benchmarks": [{"size": 1}], "costs": []}', "KeyError 'task'"),
    ],
)
def test_a_report_without_its_runs_is_named(text, said, tmp_path):
    made_runs.write(tmp_path / "run")
    (tmp_path / "report.json").write_text(text)
    loaded = runs.load([str(tmp_path / "report.json"), str(tmp_path / "run")])
    assert len(loaded.runs) == 1 and len(loaded.problems) == 1
    assert said in loaded.problems[0] and str(tmp_path / "report.json") in loaded.problems[0]


def test_a_report_broken_at_its_end_gives_nothing(tmp_path):
    page.write([str(made_runs.write(tmp_path / "run"))], str(tmp_path / "out"), quoted=False)
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(dict(stored, benchmarks=[{"size": 1}])))
    loaded = runs.load([str(tmp_path / "report.json")])
    assert loaded.runs == [] and loaded.benchmarks == [] and len(loaded.problems) == 1


def test_nothing_left_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run to report:\n.*empty: no run here"):
        page.write([str(tmp_path / "empty")], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def plan_of(machine, speeds, resolution="native"):
    """A `costs.json` with a plan alone."""
    same = {"machine": machine, "resolution": resolution, "size": 224}
    rows = [
        {**same, "devices": n, "images_per_second": speed, "hours": speed and 1e4 / speed, "efficiency": speed and 1.0}
        for n, speed in speeds.items()
    ]
    return {"name": "B0 G16", "network": {"group_size": 16}, "rows": [], "comparisons": [], "plan": rows}


def test_a_plan_needs_no_runs(tmp_path, drawn):
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "costs.json").write_text(json.dumps(plan_of("a100_80gb", {1: 10.0, 8: 70.0, 999: None})))
    made = page.write([str(tmp_path / "costs")], str(tmp_path / "out"))
    assert made["figures"] == ["plan"] and made["left_out"] == []
    text = (tmp_path / "out" / "report.html").read_text()
    assert "plans alone, no runs" in text and "nothing measured" in text and "a100_80gb, 224 px: 10.0 to 70.0" in text
    again = page.write([str(tmp_path / "out" / "report.json")], str(tmp_path / "again"))
    assert again["figures"] == ["plan"]


def test_a_plan_beside_runs(tmp_path):
    made_runs.write(tmp_path / "run")
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / "costs.json").write_text(json.dumps(plan_of("a100_80gb", {1: 10.0, 8: 70.0})))
    made = page.write([str(tmp_path / "costs"), str(tmp_path / "run")], str(tmp_path / "out"))
    assert made["figures"][-1] == "plan" and len(made["figures"]) > 1


def test_machines_of_plans_have_colours_of_their_own():
    costs = [plan_of("a100_80gb", {1: 10.0}), plan_of("ipu_mk2", {2: 10.0}, "half"), {"rows": []}]
    panels = figures.plan(costs).panels
    assert len(panels) == 6 and len({series.colour for panel in panels for series in panel.series}) == 2
    assert [panel.series[0].dashed for panel in panels] == [False] * 3 + [True] * 3
    assert figures.plan([{"rows": []}]).panels == []


# Joining


def test_runs_are_joined_by_fields_and_not_by_names(groups):
    assert len(groups) == 3 * 11 and {len(group.runs) for group in groups} == {2}
    assert [run.config["run.seed"] for run in groups[0].runs] == [0, 1]
    assert len({group.name for group in groups}) == len(groups)


def test_other_fields_make_another_setting_and_its_name(tmp_path):
    for name, smoothing in (("a", 0.1), ("b", 0.0), ("c", 0.0)):
        made_runs.write(tmp_path / name, seed=len(name) + (name == "c"), regularise__label_smoothing=smoothing)
    found = runs.group(runs.load([str(tmp_path / "*")]).runs)
    assert sorted(len(group.runs) for group in found) == [1, 2]
    assert sorted(group.setting for group in found) == [f"regularise.label_smoothing={v}" for v in (0.0, 0.1)]
    (panel,) = [p for p in figures.norms(points.measured(found)).panels]
    assert len(panel.series) == 2 and all("label_smoothing" in series.label for series in panel.series)


def test_a_run_of_an_older_version_had_todays_defaults(tmp_path):
    for seed, name in enumerate(("old", "new")):
        made_runs.write(tmp_path / name, seed=seed)
    stored = json.loads((tmp_path / "old" / "config.json").read_text())
    del stored["model"]["norm_group_size"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(stored))
    (group,) = runs.group(runs.load([str(tmp_path / "*")]).runs)
    assert len(group.runs) == 2


def test_data_in_another_place_is_the_same_data(tmp_path):
    made_runs.write(tmp_path / "a", data="/here/fashion", seed=0)
    made_runs.write(tmp_path / "b", data="/there/fashion", seed=1)
    (group,) = runs.group(runs.load([str(tmp_path / "*")]).runs)
    assert len(group.runs) == 2 and runs.data_name(group.config) == "fashion"
    made_runs.write(tmp_path / "c", data="/there/digits", seed=1)
    assert len(runs.group(runs.load([str(tmp_path / "*")]).runs)) == 2


def test_a_seed_counts_once_where_runs_share_a_training(tmp_path):
    made_runs.write(tmp_path / "a", train_size=32, finetuned=(48,))
    made_runs.write(tmp_path / "b", train_size=32, finetuned=(64,))
    (group,) = runs.group(runs.load([str(tmp_path / "*")]).runs)
    assert len(group.runs) == 1
    tuned = [point for point in points.measured([group]) if point["finetuned"]]
    assert [point["test_size"] for point in tuned] == [48, 64] and all(p["top1"]["runs"] == 1 for p in tuned)


def test_fine_tunings_of_other_layers_are_points_of_their_own(tmp_path):
    made_runs.write(tmp_path / "a", train_size=32, finetuned=(48,))
    made_runs.write(tmp_path / "b", train_size=32, finetuned=(48,), layers="top,block7,block6", gain=0.05)
    groups = runs.group(runs.load([str(tmp_path / "*")]).runs)
    found = points.measured(groups)
    tuned = {point["layers"]: point for point in found if point["finetuned"]}
    assert list(tuned) == ["top", "top,block7,block6"] and all(p["top1"]["runs"] == 1 for p in tuned.values())
    assert tuned["top,block7,block6"]["top1"]["mean"] == pytest.approx(tuned["top"]["top1"]["mean"] + 0.035)
    assert points.at_native(found) == list(tuned.values())
    assert [points.named(point).split(", ")[-1] for point in tuned.values()] == ["fine-tuned", "tuned from block6"]
    assert {points.finetune_seconds(groups[0], layers) for layers in tuned} == {9.0}
    rows = page._results(groups, found).split("<tr>")
    assert [sum(f", {how}" in row for row in rows) for how in ("fine-tuned", "tuned from block6")] == [1, 1]


# Points


def timed(network, task, size, speed):
    """A row of a benchmark."""
    row = {"network": network, "task": task, "dtype": "float32", "size": size, "batch": 8}
    return dict(row, images_per_second={"median": speed, "min": speed, "max": speed})


def benchmark(folder, rows):
    (folder / "bench").mkdir()
    (folder / "bench" / "benchmark.json").write_text(json.dumps({"rows": rows}))
    return str(folder / "bench")


def test_accuracy_is_that_of_the_runs_own_weights(tmp_path):
    folder = made_runs.write(tmp_path / "run")
    native = next(p for p in points.measured(one_again(folder)) if p["test_size"] == 48)
    raw = {"kind": "evaluation", "weights": "raw", "top1": 0.1, "multiply_adds": 1, "images_per_second": 1.0}
    for size in (48, 96):
        records.append_line(folder / "evaluations.jsonl", dict(raw, size=size))
    # a later evaluation of other weights has also left its settings and figures
    (folder / "evaluate.json").write_text(json.dumps(dict(raw, mode="evaluate", size=48, sizes=[dict(raw, size=48)])))
    loaded = runs.load([str(folder)])
    found = {point["test_size"]: point for point in points.measured(runs.group(loaded.runs))}
    assert sorted(found) == [32, 48, 64] and found[48]["top1"] == native["top1"]
    (problem,) = loaded.problems
    assert str(folder) in problem and "raw weights at 48, 96 px" in problem


def test_accuracy_is_that_of_the_runs_own_images(tmp_path):
    folder = made_runs.write(tmp_path / "run")
    native = next(p for p in points.measured(one_again(folder)) if p["test_size"] == 48)
    row = {"weights": "average", "top1": 0.99, "multiply_adds": 1, "images_per_second": 1.0, "size": 48}
    row["changed"] = {"data.eval_split": "train"}
    records.append_line(folder / "evaluations.jsonl", {"kind": "evaluation", **row})
    (folder / "evaluate.json").write_text(json.dumps(dict(row, mode="evaluate", sizes=[dict(row)])))
    loaded = runs.load([str(folder)])
    found = {point["test_size"]: point for point in points.measured(runs.group(loaded.runs))}
    assert found[48]["top1"] == native["top1"]
    (problem,) = loaded.problems
    assert "evaluations with data.eval_split=train at 48 px; the run is without" in problem
    row.update(size=96, changed={"data.eval_resize": "bicubic"}, images_per_second=1e6)
    records.append_line(folder / "evaluations.jsonl", {"kind": "evaluation", **row})
    records.append_line(folder / "evaluations.jsonl", {"kind": "evaluation", **row, "size": 48})
    before = {point["test_size"]: point for point in points.measured(one_again(folder))}
    assert sorted(before) == [32, 48, 64] and all(p["infer_images_per_second"] < 1e4 for p in before.values())


def test_a_run_with_figures_of_others_alone_is_not_finished(tmp_path):
    """A fine-tuning on other images of what was stopped, and no accuracy of its own."""
    folder = made_runs.write(tmp_path / "run", train_size=32, finetuned=(48,), sizes=(48,))
    for name in ("train.json", "evaluate.json", "evaluations.jsonl"):
        (folder / name).unlink()
    place = folder / "finetune" / "48" / "finetune.json"
    row = json.loads(place.read_text())
    assert len(runs.load([str(folder)]).runs) == 1
    place.write_text(json.dumps(dict(row, changed={"data.eval_resize": "bicubic"})))
    loaded = runs.load([str(folder)])
    assert not loaded.runs and "not finished" in loaded.problems[0]


def test_a_fine_tuning_in_another_precision_counts_where_there_is_nothing_else(tmp_path):
    folder = made_runs.write(tmp_path / "run", train_size=32, finetuned=(48,))
    own = json.loads((folder / "finetune" / "48" / "finetune.json").read_text())
    other = made_runs.write(tmp_path / "other", train_size=32, finetuned=(48, 64))  # shares the training
    for size in (48, 64):
        place = other / "finetune" / str(size) / "finetune.json"
        row = json.loads(place.read_text())
        row.update(top1=0.99, top1_before=0.98, changed={"runtime.precision": "mixed_bfloat16"})
        place.write_text(json.dumps(row))
    for names in (("run", "other"), ("other", "run")):
        (group,) = runs.group([runs.read(str(tmp_path / name)) for name in names])
        found = {p["test_size"]: p["top1"]["mean"] for p in points.measured([group]) if p["finetuned"]}
        assert found == {48: own["top1"], 64: 0.99}
        plain = {p["test_size"]: p["top1"]["mean"] for p in points.measured([group]) if not p["finetuned"]}
        assert plain[48] == own["top1_before"]


def test_accuracy_and_speed_are_those_of_the_runs_own_precision_where_there_are_some(tmp_path):
    folder = made_runs.write(tmp_path / "run")
    native = next(p for p in points.measured(one_again(folder)) if p["test_size"] == 48)
    row = {"weights": "average", "top1": 0.99, "multiply_adds": 1, "images_per_second": 1e6}
    row["changed"] = {"runtime.precision": "mixed_bfloat16"}
    for size in (48, 96):
        records.append_line(folder / "evaluations.jsonl", {"kind": "evaluation", "size": size, **row})
    found = {point["test_size"]: point for point in points.measured(one_again(folder))}
    assert (found[48]["top1"], found[96]["top1"]["mean"]) == (native["top1"], 0.99)
    assert found[48]["infer_images_per_second"] == native["infer_images_per_second"]
    assert (found[96]["infer_images_per_second"], found[96]["multiply_adds"]) == (None, 1)


def test_accuracy_is_that_of_the_end_of_training(tmp_path):
    folder = made_runs.write(tmp_path / "run")
    native = next(p for p in points.measured(one_again(folder)) if p["test_size"] == 48)
    trained = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(dict(trained, steps=30)))
    row = {"kind": "evaluation", "weights": "average", "multiply_adds": 1, "images_per_second": 1.0}
    for size, step, top1 in ((48, 10, 0.3), (96, 10, 0.3), (112, 30, 0.7)):
        records.append_line(folder / "evaluations.jsonl", dict(row, size=size, step=step, top1=top1))
    loaded = runs.load([str(folder)])
    found = {point["test_size"]: point["top1"]["mean"] for point in points.measured(runs.group(loaded.runs))}
    assert sorted(found) == [32, 48, 64, 112] and (found[48], found[112]) == (native["top1"]["mean"], 0.7)
    (problem,) = loaded.problems
    assert "evaluations of update 10 at 48, 96 px; the run ended with 30" in problem
    (folder / "train.json").unlink()  # not finished: looked at in between, and no more
    (folder / "evaluate.json").unlink()
    (folder / "evaluations.jsonl").write_text(json.dumps(dict(row, size=48, step=10, top1=0.3)) + "\n")
    loaded = runs.load([str(folder)])
    assert not loaded.runs and "not finished" in loaded.problems[0]


def test_an_evaluation_that_shares_its_training_counts(tmp_path):
    """As a sweep links it: the records of the training, without its figures."""
    folder = made_runs.write(tmp_path / "run")
    (folder / "train.json").unlink()
    row = {"weights": "average", "multiply_adds": 1, "images_per_second": 1.0, "size": 96}
    for step, top1 in ((30, 0.7), (20, 0.2)):
        records.append_line(folder / "evaluations.jsonl", dict(row, kind="evaluation", step=step, top1=top1))
        loaded = runs.load([str(folder)])
        found = {point["test_size"]: point["top1"]["mean"] for point in points.measured(runs.group(loaded.runs))}
        assert found.get(96) == (0.7 if step == 30 else None)


def test_data_of_one_name_that_are_not_the_same_are_told_apart(tmp_path):
    for name, place, seed, digest in (
        ("a", "/2023/photos", 0, "aaaa1111"),
        ("b", "/2024/photos", 0, "bbbb2222"),
        ("c", "/moved/2024/photos", 1, "bbbb2222"),
    ):
        made_runs.write(tmp_path / name, data=place, seed=seed, top1=0.7 if name == "a" else 0.9)
        (tmp_path / name / "data.json").write_text(json.dumps({"classes": [], "digest": digest}))
    loaded = runs.load([str(tmp_path / "*")])
    groups = {runs.data_name(group.config): group for group in runs.group(loaded.runs)}
    assert {name: len(group.runs) for name, group in groups.items()} == {"2023/photos": 1, "2024/photos": 2}
    (tmp_path / "report.json").write_text(json.dumps(runs.packed(loaded)))
    again = runs.group(runs.load([str(tmp_path / "report.json")]).runs)
    assert sorted(runs.data_name(group.config) for group in again) == sorted(groups)
    (alone,) = runs.group(runs.load([str(tmp_path / "[bc]")]).runs)
    assert runs.data_name(alone.config) == "photos"
    for name, place in (("d", "/job1"), ("e", "/job2")):  # copied for each job of a cluster
        made_runs.write(tmp_path / name, data=place, seed=ord(name), data__name="parquet")
        (tmp_path / name / "data.json").write_text(json.dumps({"classes": [], "digest": "cccc3333"}))
    (group,) = runs.group(runs.load([str(tmp_path / "[de]")]).runs)
    assert len(group.runs) == 2 and runs.data_name(group.config) == "job1"


def test_data_whose_test_images_changed_are_told_apart(tmp_path):
    """Seeds 0 and 1 before the test split was extended, seed 2 after it; seed 3 by a version that kept no digest."""
    for seed, tested in enumerate(("1111aaaa", "1111aaaa", "2222bbbb", None)):
        made_runs.write(tmp_path / str(seed), data="/data/photos", seed=seed)
        data = {"classes": [], "digest": "dddd0000", **({"tested": {"images": 9, "digest": tested}} if tested else {})}
        (tmp_path / str(seed) / "data.json").write_text(json.dumps(data))
    loaded = runs.load([str(tmp_path / "*")])
    groups = {runs.data_name(group.config): len(group.runs) for group in runs.group(loaded.runs)}
    assert groups == {"photos dddd00 tested on 1111aa": 3, "photos dddd00 tested on 2222bb": 1}
    stored = runs.packed(loaded)
    (tmp_path / "report.json").write_text(json.dumps(stored))
    again = runs.group(runs.load([str(tmp_path / "report.json")]).runs)
    assert {runs.data_name(group.config): len(group.runs) for group in again} == groups
    for run in stored["runs"]:  # as reports were before
        del run["tested"]
        run["config"].pop("data")
    (tmp_path / "report.json").write_text(json.dumps(stored))
    (alone,) = runs.group(runs.load([str(tmp_path / "report.json")]).runs)
    assert len(alone.runs) == 4 and runs.data_name(alone.config) == "photos"


def test_fine_tunings_in_two_folders_are_two(tmp_path):
    folder = made_runs.write(tmp_path / "run", train_size=32, finetuned=(48,))
    usual = json.loads((folder / "finetune" / "48" / "finetune.json").read_text())
    (folder / "slower" / "48").mkdir(parents=True)
    (folder / "slower" / "48" / "finetune.json").write_text(json.dumps(dict(usual, top1=0.99, seconds=20.0)))
    groups = one_again(folder)
    tuned = {p["folder"]: p for p in points.measured(groups) if p["finetuned"]}
    assert {name: point["top1"]["mean"] for name, point in tuned.items()} == {"": usual["top1"], "slower": 0.99}
    assert points.named(tuned["slower"]).endswith("fine-tuned, in slower")
    assert [points.finetune_seconds(groups[0], "top", name) for name in tuned] == [9.0, 20.0]


def one_again(folder):
    return runs.group([runs.read(str(folder))])


@pytest.mark.parametrize(
    "field, other",
    [
        ("model.expand_ratio", 6),
        ("model.activation", "relu"),
        ("model.quadrature", "gauss_hermite"),
        ("model.norm_group_size", 8),
        ("runtime.recompute", True),
        ("runtime.strategy", "mirrored"),
    ],
)
def test_speeds_are_of_the_same_network_in_every_field(tmp_path, field, other):
    run = made_runs.write(tmp_path / "run", speed=100.0)
    network = made_runs.network(run)
    rows = [timed(dict(network, **{field: other}), "train", 48, 999.0)]
    loaded = runs.load([str(run), benchmark(tmp_path, rows)])
    found = points.measured(runs.group(loaded.runs), loaded.benchmarks)
    assert {point["train_images_per_second"] for point in found} == {100.0}
    row = {"machine": "cpu", "task": "train", "size": 48, "images_per_second": 9.0}
    row["network"] = rows[0]["network"]
    assert points.estimated([{"rows": [row], "comparisons": []}], found) == []


def test_rows_that_do_not_say_their_network_are_left_out(tmp_path):
    run = made_runs.write(tmp_path / "run")
    row = timed(None, "train", 48, 999.0)
    del row["network"]
    loaded = runs.load([str(run), benchmark(tmp_path, [row])])
    assert loaded.benchmarks == [] and "make it again with --mode=benchmark" in loaded.problems[0]


def test_points_have_mean_and_range_over_seeds(tmp_path):
    for seed, top1 in enumerate((0.80, 0.84, 0.85)):
        made_runs.write(tmp_path / str(seed), seed=seed, top1=top1, speed=100.0 + seed)
    found = points.measured(runs.group(runs.load([str(tmp_path)]).runs))
    assert [point["test_size"] for point in found] == [32, 48, 64]
    (native,) = points.at_native(found)
    off = 9.6 / 400  # made_runs: best at 1.2 times the training size
    assert native["top1"] == pytest.approx({"mean": 0.83 - off, "min": 0.80 - off, "max": 0.85 - off, "runs": 3})
    assert native["train_images_per_second"] == 101
    assert points.at_best(found)[0]["test_size"] == 64


def test_fine_tuned_goes_before_plain_at_native_size(tmp_path):
    (group,) = one_group(tmp_path, train_size=32, finetuned=(48,))
    found = points.measured([group])
    (native,) = points.at_native(found)
    assert native["finetuned"] and native["resolution"] == "reduced"
    plain = next(p for p in found if p["test_size"] == 48 and not p["finetuned"])
    assert native["top1"]["mean"] == pytest.approx(plain["top1"]["mean"] + 0.015)
    assert points.finetune_seconds(group, "top") == points.finetune_seconds(group) == 9.0


def test_benchmarks_go_before_the_runs_own_speed(tmp_path):
    made_runs.write(tmp_path / "run", speed=100.0)
    network = made_runs.network(tmp_path / "run")
    slower = dict(network, **{"runtime.precision": "mixed_bfloat16"})
    rows = [timed(network, "train", 48, 562.0), timed(network, "infer", 64, 562.0), timed(slower, "train", 48, 999.0)]
    rows += [timed(None, "train", 48, 999.0), {"task": "product", "dtype": "float32", "size": 2048}]
    loaded = runs.load([str(tmp_path / "run"), benchmark(tmp_path, rows)])
    assert loaded.problems == []
    found = points.measured(runs.group(loaded.runs), loaded.benchmarks)
    assert {point["train_images_per_second"] for point in found} == {562.0}
    assert {point["train_speed_source"] for point in found} == {"benchmark"}
    # one of three test sizes is timed: benchmark's figure and the runs' own are never on one axis
    assert [p["infer_images_per_second"] for p in found] == pytest.approx([675.0, 300.0, 168.75])
    assert {point["infer_speed_source"] for point in found} == {"run"}
    (panel,) = figures.inference(found).panels
    assert "input included" in panel.x and all(", by mode benchmark" in p.x for p in figures.training(found).panels)


def test_one_network_without_a_benchmark_leaves_all_speeds_to_the_runs(tmp_path):
    for name, group_size in (("a", 16), ("b", 1)):
        made_runs.write(tmp_path / "runs" / name, group_size=group_size, speed=100.0 * group_size)
    rows = [timed(made_runs.network(tmp_path / "runs" / "a"), "train", 48, 5.0)]
    loaded = runs.load([str(tmp_path / "runs"), benchmark(tmp_path, rows)])
    found = points.measured(runs.group(loaded.runs), loaded.benchmarks)
    assert {point["train_images_per_second"] for point in found} == {100.0, 1600.0}
    assert all("input included" in panel.x for panel in figures.training(found).panels)


def test_plain_accuracies_in_figures_of_cost_and_norms_and_fine_tuned_ones_named(tmp_path):
    for name, tuned in (("a", (48,)), ("b", ())):
        made_runs.write(tmp_path / name, group_size=16 if tuned else 1, finetuned=tuned)
    found = points.measured(runs.group(runs.load([str(tmp_path)]).runs))
    plain = sorted(100 * p["top1"]["mean"] for p in found if p["test_size"] == 48 and not p["finetuned"])
    for figure in (figures.cost(found), figures.norms(found)):
        assert not any(point["finetuned"] for point in figure.points)
        for panel in figure.panels:
            assert all(y in plain and "fine-tuned" not in s.label for s in panel.series for _, y, *_ in s.points)
    labels = [(s.label, s.tuned) for s in figures.training(found).panels[0].series]
    assert sorted(labels) == [("G1 LN+PN, measured", ""), ("G16 LN+PN, fine-tuned, measured", "top")]
    assert len(figures.inference(found).panels[0].series) == 3


def test_a_growing_size_is_not_the_native_one(tmp_path):
    made_runs.write(tmp_path / "plain", speed=100.0)
    run = made_runs.write(tmp_path / "growing", speed=150.0, data__progressive=(16, 48))
    network = made_runs.network(run)
    loaded = runs.load([str(tmp_path / "plain"), str(run), benchmark(tmp_path, [timed(network, "train", 48, 999.0)])])
    found = points.measured(runs.group(loaded.runs), loaded.benchmarks)
    assert {p["resolution"]: p["train_images_per_second"] for p in found} == {"native": 100.0, "progressive": 150.0}
    assert all(point["resolution"] == "native" for f in figures.all_of(found)[:2] for point in f.points)
    labels = [s.label for s in figures.training(found).panels[0].series]
    assert sorted(labels) == ["G16 LN+PN, growing from 11 % of the pixels, measured", "G16 LN+PN, measured"]
    row = {"network": network, "machine": "cpu", "task": "train", "size": 48, "images_per_second": 9.0}
    estimated = points.estimated([{"rows": [row], "comparisons": []}], found)
    assert {point["resolution"] for point in estimated} == {"native"}
    (curves, sizes) = figures.curves(runs.group(loaded.runs)), figures.resolutions(found)
    assert sorted(s.native for s in curves.panels[0].series) == [False, True]
    assert any("trained at 16-48 px" in s.label for s in sizes.panels[0].series)


def test_different_reduced_sizes_are_different_lines(tmp_path):
    for size in (24, 32):
        for depth in (0.3, 0.5):
            made_runs.write(tmp_path / f"{size}-{depth}", depth=depth, train_size=size)
    found = points.measured(runs.group(runs.load([str(tmp_path)]).runs))
    series = figures.training(found).panels[0].series
    assert sorted(s.label for s in series) == [f"G16 LN+PN, {share} % of the pixels, measured" for share in (25, 44)]
    assert [len(s.points) for s in series] == [2, 2]
    share = points.resolution
    half = {"data.progressive": [], "data.train_size": 212, "data.eval_size": 300, "data.resolution": "half"}
    assert (
        share(half)["pixels"] == share(dict(half, **{"data.train_size": 196, "data.eval_size": 260}))["pixels"] == 0.5
    )


def test_multiply_adds_of_what_was_only_trained(tmp_path):
    run = made_runs.write(tmp_path / "run", finetuned=(64,))
    for name in ("evaluations.jsonl", "evaluate.json"):
        (run / name).unlink()
    for name, cost in (("train.json", 11), ("finetune/64/finetune.json", 22)):
        stored = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(dict(stored, multiply_adds=cost)))
    found = points.measured(one_again(run))
    assert [(p["test_size"], p["multiply_adds"]) for p in found] == [(48, 11), (64, 22), (64, 22)]
    assert any("multiply-adds" in panel.x for panel in figures.cost(found).panels)


def test_estimates_are_points_of_their_own(tmp_path):
    found = points.measured(one_group(tmp_path))
    row = {"network": made_runs.network(tmp_path / "run"), "machine": "cpu", "task": "train", "size": 48}
    costs = {
        "rows": [dict(row, images_per_second=1000.0), dict(row, machine="a100_40gb", images_per_second=9e9)],
        "comparisons": [{"name": "measured", "machine": "cpu", "efficiency": 0.5, "rows": []}],
    }
    estimated = points.estimated([costs], found)
    assert {point["kind"] for point in estimated} == {"estimated"}
    assert {point["train_images_per_second"] for point in estimated} == {500.0}
    assert points.estimated([], found) == []


def test_fronts_hold_points_of_one_kind_and_one_data_set(groups):
    found = points.measured(groups)
    fast = [dict(p, kind="estimated", train_images_per_second=1e9, infer_images_per_second=1e9) for p in found]
    everything = found + fast + points.of_paper()
    for figure in figures.all_of(everything):
        for panel in figure.panels:
            assert len({p["data"] for p in figure.points if panel.title.startswith(f"{p['data']}:")}) == 1
            for x, y, _ in panel.front:
                kinds = {s.kind for s in panel.series for mark in s.points if (x, y) == mark[:2]}
                assert kinds == {"published" if panel.title.startswith("ImageNet") else "measured"}
    for figure in figures.all_of(everything)[2:]:
        assert all(panel.front for panel in figure.panels)


def test_training_is_relative_to_the_smallest_depthwise_network(groups):
    found = points.measured(groups)
    base = points.baseline(points.at_native(found))
    assert (base["group_size"], base["norm"], base["variant"]) == (1, "bn", "TINY w0.25 d0.3")
    panel = figures.training(found).panels[0]
    (series,) = [s for s in panel.series if (s.group_size, s.norm) == (1, "bn")]
    assert max(x for x, *_ in series.points) == 1.0


def test_at_equal_accuracy_by_hand():
    def point(group, group_size, top1, speed):
        same = {"norm": "bn", "resolution": "native", "multiply_adds": 1, "kind": "measured"}
        same.update({"finetuned": False, "layers": "", "folder": ""})
        return {**same, "group": group, "group_size": group_size, "top1": {"mean": top1}, "speed": speed,
                "train_images_per_second": speed}  # fmt: skip

    rows = points.at_equal_accuracy(
        [point("a", 1, 0.7, 10), point("b", 1, 0.8, 5), point("c", 16, 0.8, 30), point("d", 16, 0.7, 40)], "speed"
    )
    assert [(row["baseline"], row["fastest"], row["factor"]) for row in rows] == [("a", "d", 4), ("b", "c", 6)]


# The page


def test_page_is_self_contained_and_says_everything(sweep, tmp_path, drawn):
    made = page.write([str(sweep)], str(tmp_path))
    assert made["figures"] == ["cost", "norms", "training", "inference", "curves", "resolutions"]
    for name in made["figures"]:
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    text = (tmp_path / "report.html").read_text()
    assert not REFERENCES.search(text)
    images = re.findall(r"<img ([^>]*)>", text)
    assert len(images) >= 12 and all(re.match(r'alt="[^"]{30,}"', image) for image in images)
    assert 'name="viewport"' in text and "read by eye" in text
    assert text.count("launch.py --workdir=") == 3 * 11 * 2  # the command of each run, once
    assert json.loads((tmp_path / "report.json").read_text())["points"]


def test_without_the_papers_points(tmp_path):
    made_runs.write(tmp_path / "run", epochs=1, sizes=(48,))
    made = page.write([str(tmp_path / "run")], str(tmp_path / "out"), quoted=False)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "ImageNet" not in text and "paper, read by eye" not in text
    assert "curves" not in made["figures"] and "--mode=train --config.run.epochs=2" in text  # what would make them
    assert "resolutions" not in made["figures"] and "--config.eval.sizes=" in text


def test_paths_of_this_machine_are_cut(tmp_path):
    for name in ("a", "b"):
        run = made_runs.write(tmp_path / "sweep" / name, seed=len(name), data="/data/sets/fashion-mnist")
        train = json.loads((run / "train.json").read_text())
        train["command"] += f" --data=/data/sets/fashion-mnist --runs={run},/other/place --config.x=a/b"
        (run / "train.json").write_text(json.dumps(train))
    made = page.write([str(tmp_path / "sweep"), str(tmp_path / "none")], str(tmp_path / "out"), quoted=False)
    assert made["left_out"] == [f"{tmp_path / 'none'}: no such folder or file"]  # in full for the one who asked
    for name in ("report.html", "report.json"):
        text = (tmp_path / "out" / name).read_text()
        assert str(tmp_path) not in text and "/data/sets" not in text and ".../none: no such folder" in text
    text = (tmp_path / "out" / "report.html").read_text()
    assert "--workdir=.../b --data=.../fashion-mnist --runs=.../b,.../place --config.x=a/b" in text


def test_runs_that_are_not_finished_are_named(tmp_path):
    for name in ("done", "begun"):
        made_runs.write(tmp_path / name, seed=len(name))
    for name in ("train.json", "evaluate.json", "evaluations.jsonl"):
        (tmp_path / "begun" / name).unlink()
    loaded = runs.load([str(tmp_path)])
    assert [run.folder for run in loaded.runs] == [str(tmp_path / "done")]
    assert loaded.problems == [f"{tmp_path / 'begun'}: not finished: it has no accuracy yet"]


@pytest.mark.parametrize("slow, said", [(90.0, False), (40.0, True)])
def test_speeds_with_other_work_beside_are_called_so(tmp_path, slow, said):
    run = made_runs.write(tmp_path / "run")
    for epoch, speed in ((4, slow), (5, 100.0)):
        line = {"kind": "epoch", "epoch": epoch, "step": epoch, "images_per_second": speed}
        records.append_line(run / "records.jsonl", line)
    page.write([str(run)], str(tmp_path / "out"), quoted=False)
    assert ("differ up to 2.5 times" in (tmp_path / "out" / "report.html").read_text()) is said
    found = points.measured(one_again(run))
    assert {point["train_speed_source"] for point in found} == {"busy run" if said else "run"}
    for panel in [*figures.training(found).panels, *figures.inference(found).panels]:
        assert bool(panel.front) is not said and ("other work included" in panel.x) is said
    network = made_runs.network(run)
    rows = [timed(network, "train", 48, 5.0)] + [timed(network, "infer", size, 9.0) for size in (32, 48, 64)]
    page.write([str(run), benchmark(tmp_path, rows)], str(tmp_path / "out"), quoted=False)
    assert "Speeds are not" not in (tmp_path / "out" / "report.html").read_text()


def test_labels_do_not_cover_each_other():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = FigureCanvasAgg(Figure()).figure.subplots()
    marks = [(x, 0.0, "w0.25 d0.3") for x in (0.0, 0.01, 0.05, 0.5, 1.0)]
    axes.plot([x for x, *_ in marks], [0] * 5)
    look._label(axes, marks)
    renderer = axes.figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) >= 4 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


def test_names_from_files_are_escaped(tmp_path):
    made_runs.write(tmp_path / "run", data="/data/<script>alert(1)</script>")
    page.write([str(tmp_path / "run")], str(tmp_path / "out"), quoted=False)
    assert "<script" not in (tmp_path / "out" / "report.html").read_text()


def test_command_line(tmp_path, capsys):
    made_runs.write(tmp_path / "run")
    report = ("--mode=report", "--noquoted", f"--workdir={tmp_path / 'out'}")
    status, shown = call(capsys, *report, f"--runs={tmp_path / 'run'},{tmp_path / 'no'}")
    assert status == 0
    assert "1 runs" in shown and "report.html" in shown and "no: no such folder" in shown
    for argument, match in ((f"--runs={tmp_path / 'no'}", "no run to report"), ("--workdir=x", "name the runs")):
        status, shown = call(capsys, *report, argument)
        assert status == 2 and match in shown


@pytest.mark.slow
def test_of_real_runs(tmp_path, capsys, monkeypatch, drawn):
    """Files as training, fine-tuning and evaluation write them today."""
    work = tmp_path / "run"
    arguments = [
        "--experiment=g16_bn:demo,variant=NANO", f"--workdir={work}", "--data=synthetic",
        "--mode=train,finetune,evaluate", "--config.data.num_examples=64", "--config.data.num_classes=5",
        "--config.run.epochs=2", "--config.run.global_batch=16", "--config.eval.sizes=32,48",
        "--config.finetune.sizes=48", "--config.finetune.epochs=1", "--config.finetune.global_batch=16",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["launch.py", *arguments])
    status, shown = call(capsys, *arguments)
    assert status == 0, shown
    made = page.write([str(work)], str(tmp_path / "out"))
    assert made["left_out"] == [] and made["figures"][-2:] == ["curves", "resolutions"]
    found = json.loads((tmp_path / "out" / "report.json").read_text())["points"]
    own = [point for point in found if point["kind"] == "measured"]
    assert [(p["test_size"], p["finetuned"]) for p in own] == [(32, False), (48, False), (48, True)]
    assert all(p["train_images_per_second"] > 0 and p["multiply_adds"] > 0 for p in own)
    for name in ("train.json", "finetune/48/finetune.json"):
        stored = json.loads((work / name).read_text())
        size = stored.get("eval_size", stored.get("size"))
        assert {p["multiply_adds"] for p in own if p["test_size"] == size} == {stored["multiply_adds"]}
    assert "--mode=train,finetune,evaluate" in (tmp_path / "out" / "report.html").read_text()


def test_short_numbers():
    assert [look.short(v) for v in (0.5, 999, 26500, 3.86e8, 1.35e10)] == ["0.5", "999", "26.5k", "386M", "13.5G"]

"""Predictions for files, folders and globs; broken images are reported and stop nothing."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from helpers import call, tiny, untrained_run

from g16net.errors import UserError
from g16net.models import efficientnet
from g16net.training import predict

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def predictor():
    model = efficientnet.build("NANO", num_classes=3, seed=1)
    return predict.Predictor(model, NAMES, {"size": 32, "fit": "crop", "resize": "bilinear"}, top=5)


def write(folder, names):
    """PNG and JPEG files of noise by those names, and broken ones where a name says so."""
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        data = (tf.io.encode_png if name.endswith("png") else tf.io.encode_jpeg)(pixels).numpy()
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes({"text": b"no image", "empty": b"", "cut": data[: len(data) // 2]}.get(path.stem, data))


def test_files_folders_and_globs_are_found_once(tmp_path):
    write(tmp_path, ["a.jpg", "b.PNG".lower(), "below/c.jpeg"])
    (tmp_path / "notes.txt").write_text("")
    everything = [str(tmp_path / name) for name in ("a.jpg", "b.png", "below/c.jpeg")]
    assert predict.find([str(tmp_path)]) == everything
    assert predict.find([everything[1], str(tmp_path / "*.jpg"), str(tmp_path)]) == [
        everything[1],
        everything[0],
        everything[2],
    ]
    assert predict.find([str(tmp_path / "**" / "*.jp*g")]) == [everything[0], everything[2]]


def test_names_with_commas_and_several_in_a_flag(tmp_path, monkeypatch):
    write(tmp_path, ["a,b.jpg", "a", "b.jpg", "c,d/e.jpg", "x1,y.png"])
    (tmp_path / "a").rename(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert predict.find(["a,b.jpg"]) == ["a,b.jpg"]
    assert predict.find(["a.jpg,b.jpg"]) == predict.find(["a.jpg", "b.jpg"]) == predict.find(["a.jpg, b.jpg"])
    assert predict.find(["b.jpg,c,d,a,b.jpg,x?,y.png"]) == ["b.jpg", "c,d/e.jpg", "a,b.jpg", "x1,y.png"]
    with pytest.raises(UserError, match="--images=z.jpg: no such file"):
        predict.find(["a.jpg,z.jpg"])


def test_a_folder_and_a_glob_hold_images_by_the_one_rule(tmp_path, caplog):
    junk = [".hidden.jpg", "._a.jpg", ".ipynb_checkpoints/a.jpg", "@eaDir/a.jpg", "predictions.png"]
    write(tmp_path, ["a.jpg", "below/b.PNG", *junk])
    for name in ("notes.txt", "predictions.jsonl"):
        (tmp_path / name).write_text("")
    os.symlink(tmp_path, tmp_path / "below" / "round")
    os.symlink("nowhere", tmp_path / "gone.jpg")
    expected = [str(tmp_path / name) for name in ("a.jpg", "below/b.PNG")]
    assert predict.find([str(tmp_path)]) == expected
    assert predict.find([str(tmp_path / "**" / "*.*")]) == expected[:1] + [expected[1], str(tmp_path / "gone.jpg")]
    assert predict.find([str(tmp_path / "*")]) == [expected[0], str(tmp_path / "gone.jpg")]
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 3 and "3 hidden" in told[0] and "1 of the system (@eaDir)" in told[0], told
    assert predict.find([str(tmp_path / ".hidden.jpg")]) == [str(tmp_path / ".hidden.jpg")]  # named itself
    with pytest.raises(UserError, match=r"no file matches .*2 no image by name"):
        predict.find([str(tmp_path / "*s.*")])


def test_names_that_are_no_utf8_are_predicted(predictor, tmp_path):
    write(tmp_path, ["a.jpg"])
    os.rename(tmp_path / "a.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    (record,), _ = predictor(predict.find([str(tmp_path)]))
    assert record["image"].endswith("caf\\xe9.jpg") and record["predictions"]


@pytest.mark.parametrize(
    "name, message", [("none.jpg", "no such file"), ("*.gif", "no file matches"), ("", "no image in the folder")]
)
def test_what_names_no_image_is_an_error(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        predict.find([os.path.join(str(tmp_path), name)])
    with pytest.raises(UserError, match="needs images"):
        predict.find([])


def test_broken_images_are_reported_and_the_others_predicted(predictor, tmp_path, monkeypatch):
    write(tmp_path, ["a.jpg", "cut.png", "empty.jpg", "text.png", "z.png"])
    (tmp_path / "folder.png").mkdir()
    os.symlink("nowhere", tmp_path / "link.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "huge.jpg").write_bytes(b"x" * 3000)
    monkeypatch.setattr(predict, "MAX_BYTES", 2**20)
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    records, images = predictor(paths)
    assert [record["image"] for record in records] == paths
    sound = {os.path.basename(record["image"]) for record in records if "predictions" in record}
    assert sound == {"a.jpg", "z.png"} and len(images) == 2
    for record in records:
        if "predictions" in record:
            assert [set(p) for p in record["predictions"]] == [{"class", "probability"}] * 3
            assert sum(p["probability"] for p in record["predictions"]) == pytest.approx(1, abs=1e-4)
        else:
            assert not any(mark in record["error"] for mark in ("{{", "}}", "[Op:", "function_node")), record
            assert record["error"] and "\n" not in record["error"] and "Traceback" not in record["error"], record
    errors = {os.path.basename(r["image"]): r["error"] for r in records if "error" in r}
    assert errors["text.png"] == "Not a JPEG, PNG, GIF or BMP image"
    assert errors["cut.png"] == "damaged or cut off" and "an empty file" in errors["empty.jpg"]
    assert "not a regular file" in errors["pipe.jpg"] and "not a regular file" in errors["link.jpg"]
    text = predict.table(records)
    assert "ERROR: " in text and "ant" in text and len(text.splitlines()) == len(records) + 1


def test_limits_hold_before_an_image_is_decoded(predictor, tmp_path, monkeypatch):
    write(tmp_path, ["a.png"])
    bomb = bytearray((tmp_path / "a.png").read_bytes())
    bomb[16:24] = (2**30).to_bytes(4, "big") * 2  # the header's width and height
    (tmp_path / "bomb.png").write_bytes(bomb)
    records, _ = predictor([str(tmp_path / "bomb.png")])
    assert records[0]["error"] == f"{2**30} x {2**30} pixels, more than data.max_pixels={2**28}"
    monkeypatch.setattr(predict, "MAX_BYTES", 100)
    records, _ = predictor([str(tmp_path / "a.png")])
    assert "more than the 100" in records[0]["error"]


def test_predictions_are_those_of_the_model_on_prepared_images(predictor, tmp_path):
    from g16net.data import transforms

    write(tmp_path, ["a.jpg"])
    model = efficientnet.build("NANO", num_classes=3, seed=1)
    image = transforms.eval_image(tf.constant((tmp_path / "a.jpg").read_bytes()), 32)
    expected = tf.nn.softmax(model(tf.cast(image, tf.float32)[tf.newaxis]))[0].numpy()
    (record,), _ = predictor([str(tmp_path / "a.jpg")])
    for prediction in record["predictions"]:
        assert prediction["probability"] == pytest.approx(expected[NAMES.index(prediction["class"])], abs=1e-5)
    assert [prediction["class"] for prediction in record["predictions"]] == [NAMES[i] for i in np.argsort(-expected)]


@pytest.mark.run
def test_command_and_its_exit_status(tmp_path, capfd, monkeypatch):
    settings = tiny()
    workdir = untrained_run(tmp_path / "run", settings)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, ["pictures/a.jpg", "pictures/b.png", "pictures/text.jpg"])

    command = (f"--workdir={workdir}", "--mode=predict")

    status, shown = call(
        capfd, *command, "--images=pictures", "--config.predict.output=jsonl", "--config.predict.grid=true"
    )
    assert status == 1, shown
    lines = [json.loads(line) for line in shown.splitlines() if line.startswith('{"image"')]
    assert [os.path.basename(line["image"]) for line in lines] == ["a.jpg", "b.png", "text.jpg"]
    assert [len(line.get("predictions", [])) for line in lines] == [5, 5, 0]
    stored = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in stored] == lines
    assert (tmp_path / "run" / "predictions.png").read_bytes().startswith(b"\x89PNG")
    figures = json.loads((tmp_path / "run" / "predict.json").read_text())
    assert (figures["images"], figures["broken"]) == (3, 1) and "1 of 3" in figures["failed"]

    status, shown = call(capfd, *command, "--images=pictures/*.png")
    assert status == 0 and "b.png" in shown
    assert call(capfd, *command, "--images=none")[0] == 2

    write(tmp_path, ["more/a.jpg"])
    images = "--images=pictures,more"
    status, shown = call(capfd, *command, images, "--config.predict.explain=true", "--config.predict.output=jsonl")
    assert status == 1 and "explanations" in shown
    explained = [json.loads(line) for line in shown.splitlines() if line.startswith('{"image"')]
    pictures = [line.pop("explanation", None) for line in explained]
    assert explained[:3] == lines  # the predictions are those without it
    folder = os.path.join(workdir, "explain")
    assert pictures == [os.path.join(folder, name) for name in ("a.png", "b.png")] + [None, f"{folder}/a-2.png"]
    page = (tmp_path / "run" / "explain" / "index.html").read_text()
    assert [name in page for name in ('src="a.png"', 'src="b.png"', 'src="a-2.png"')] == [True] * 3
    for path in (pictures[0], pictures[3]):
        width, height = tf.io.decode_png(tf.io.read_file(path)).shape[:2][::-1]
        assert (width, height) == (448, 224)
    assert not any("explain" in path for path in predict.find([str(tmp_path)]))

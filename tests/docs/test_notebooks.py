"""The notebooks run from their first cell to their last, as a user runs them, and are stored without results."""

import glob
import os

import pages
import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted(glob.glob(os.path.join(pages.ROOT, "docs", "notebooks", "*.ipynb")))
PHOTOGRAPHS = os.path.join(pages.ROOT, "docs", "notebooks", "own_photographs.ipynb")


def executed(path, folder, **settings):
    """The notebook after all its cells ran in `folder`; `settings` replace the values that it gives these names."""
    notebook = nbformat.read(path, as_version=4)
    for name, value in settings.items():
        (cell,) = [cell for cell in notebook.cells if f"\n{name} = " in f"\n{cell.source}"]
        lines = cell.source.split("\n")
        cell.source = "\n".join(f"{name} = {value!r}" if line.startswith(f"{name} = ") else line for line in lines)
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


def printed(notebook):
    return "".join(
        out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stdout"
    )


@pytest.mark.once
@pytest.mark.parametrize("path", NOTEBOOKS, ids=os.path.basename)
def test_notebooks_are_valid_and_hold_no_results(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]
    with open(path, encoding="utf-8") as file:
        assert not any(word in file.read() for word in ("/home/", "/work/", "/tmp/"))


@pytest.mark.slow
def test_own_photographs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", pages.ROOT)
    text = printed(executed(PHOTOGRAPHS, tmp_path, OUT=str(tmp_path)))
    right = float(text.partition(" photographs right")[0].rpartition("\n")[2].partition("%")[0])
    assert right > 50, text  # of four classes
    assert text.count("largest difference of a logit") == 3
    names = set(os.listdir(str(tmp_path)))
    assert {"photographs.keras", "photographs.onnx", "saved_model"} <= names

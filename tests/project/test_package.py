"""What is built for users: the wheel's and the sdist's files, one version, one changelog."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pages
import pytest

import g16net


def setup():
    parser = configparser.ConfigParser()
    parser.read(os.path.join(pages.ROOT, "setup.cfg"))
    return parser


def test_one_source_of_the_version():
    assert setup()["metadata"]["version"] == "attr: g16net.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", g16net.__version__)
    with open(os.path.join(pages.ROOT, "CHANGELOG.md"), encoding="utf-8") as file:
        assert f"\n## {g16net.__version__}\n" in file.read()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """`(wheel, sdist)`: the names in them. Built from a copy, so that nothing is left in the checkout."""
    pytest.importorskip("build")
    source = tmp_path_factory.mktemp("source")
    for name in ("g16net", "experiments", "setup.cfg", "pyproject.toml", "README.md", "MANIFEST.in", "CHANGELOG.md"):
        path = os.path.join(pages.ROOT, name)
        if os.path.isdir(path):
            shutil.copytree(path, str(source / name), ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(path, str(source / name))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if "not satisfied" in done.stdout or "Missing dependencies" in done.stdout:
        pytest.skip("building needs setuptools in this environment")
    assert done.returncode == 0, done.stdout
    wheel, sdist = (next((source / "dist").glob(ending)) for ending in ("*.whl", "*.tar.gz"))
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as other:
        return set(archive.namelist()), {name.partition("/")[2] for name in other.getnames()}


@pytest.mark.slow
def test_the_wheel_holds_every_module_source_and_experiment(built):
    wheel, sdist = built
    expected = set()
    for folder, _, names in os.walk(os.path.join(pages.ROOT, "g16net")):
        for name in names:
            if name.endswith((".py", ".cc", ".h", ".json")):
                expected.add(os.path.relpath(os.path.join(folder, name), pages.ROOT))
    assert expected <= wheel and expected <= sdist
    for folder, _, names in os.walk(os.path.join(pages.ROOT, "experiments")):
        for name in names:
            if name.endswith(".py"):
                path = os.path.relpath(os.path.join(folder, name), pages.ROOT)
                assert path.replace("experiments", "g16net/experiment_files", 1) in wheel
                assert path in sdist
    assert {"CHANGELOG.md", "README.md"} <= sdist
    stray = [n for n in wheel | sdist if re.search(r"__pycache__|\.so$|\.npz$|^tests/|^tools/|^runs/", n)]
    assert not stray


@pytest.mark.slow
def test_the_wheel_has_the_command(built):
    wheel, _ = built
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)

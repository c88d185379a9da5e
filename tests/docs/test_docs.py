"""The pages hold what they say: commands resolve, links and fields exist, code compiles and its names are there."""

import ast
import glob
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pages
import pytest

from g16net import compat, sweep
from g16net import config as config_lib
from g16net.cli import main as cli
from g16net.cli.modes import MODES
from g16net.config import experiments, recipe
from g16net.data import detect
from g16net.run import resolve
from g16net.weights import detect as foreign_weights

PAGES = pages.paths()
TOOLS = (  # what begins a line of a shell block
    "launch.py g16net python python3 make pip pytest docker poprun srun mkdir cp curl printf git source sbatch "
    "saved_model_cli kubectl FROM RUN COPY ENTRYPOINT exec"
).split()
PLAIN = ("pip install .",)  # what need not be marked


def shell_blocks(page):
    """The blocks with commands, as `(block, commands)`; a YAML file counts where it starts a command of ours."""
    for block in pages.blocks(page):
        if block.language in ("", "bash", "yaml"):
            commands = pages.commands(block)
            if any(line.split()[0].lstrip("-") in TOOLS or "launch.py" in line for line in commands):
                yield block, commands


def ours(command):
    """The arguments of the command of ours inside `command`, up to a pipe or a redirection; None where none is."""
    words = pages.arguments(command) or pages.arguments(
        re.sub(r"^.*?\b(poprun\b.*?|exec python )(?=g16net|launch)", "", command)
    )
    if words is None:
        return None
    for number, word in enumerate(words):
        if word in (">", "|", "&&", ";", "<") or word.startswith("#"):
            return words[:number]
    return words


def test_the_pages_are_found():
    assert len(PAGES) >= 13 and sum(1 for page in PAGES for _ in shell_blocks(page)) >= 30


@pytest.mark.parametrize("page", PAGES)
def test_commands_resolve_or_are_marked(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    real = detect.detect
    monkeypatch.setattr(
        resolve, "detect", lambda text: real(text) if ":" in text or text in detect.NAMES else ("folder", text)
    )
    monkeypatch.setattr(resolve, "prepared_imagenet", lambda folder="": ("tfds:imagenet2012", folder))
    monkeypatch.setattr(foreign_weights, "inspect", lambda path: None)
    monkeypatch.setattr(resolve, "start_tensorflow", lambda *args, **kwargs: None)
    for block, commands in shell_blocks(page):
        for command in commands:
            words = ours(command)
            first = command.split()[0].lstrip("-")
            if words == ["..."]:
                continue
            if words is not None:
                resolves(words, tmp_path)
            elif first == "make":
                with open(os.path.join(pages.ROOT, "Makefile"), encoding="utf-8") as file:
                    assert f"\n{command.split()[1]}:" in file.read(), command
            elif first == "python" and command.split()[1] == "-m":
                module = command.split()[2]
                assert importlib.util.find_spec(module), command
            elif first == "python" and command.split()[1].endswith(".py"):
                assert os.path.exists(os.path.join(pages.ROOT, command.split()[1])), command
            elif first == "pytest":
                named = [word for word in command.split() if word.startswith("tests/")]
                assert named and all(os.path.exists(os.path.join(pages.ROOT, name)) for name in named), command
            elif command not in PLAIN:
                assert block.mark.startswith("not run here") or block.mark.startswith("tested"), (
                    f"{page}: {command!r} is neither ours nor marked with <!-- not run here: why -->"
                )


def resolves(words, folder):
    """Parses a command of ours and resolves its run, as far as no data and no device is needed."""
    arguments, assignments = cli.split_assignments(["g16net", *words])
    cli.FLAGS.unparse_flags()
    rest = [word for word in cli.FLAGS(arguments)[1:] if word != "..."]
    assert not rest, rest
    flags = cli.FLAGS
    if flags.list or flags.version or flags.mode in (["data_service"], ["report"]):
        return
    if flags.mode == ["sweep"]:
        sweep.plan(flags.experiment, flags.workdir or str(folder / "sweep"), assignments, flags.data or "")
        return
    assert set(flags.mode) <= set(MODES), flags.mode
    if flags.format:
        assignments = assignments + [("export.format", flags.format)]
    if not flags.experiment:
        stored = folder / flags.workdir / "config.json"
        if not stored.exists():
            arg = "demo" if "b0" not in flags.workdir else ""
            stored.parent.mkdir(parents=True, exist_ok=True)
            run = recipe.get_config(arg)
            run.data.name = "digits" if arg else "folder"
            config_lib.save(run, stored)
    run, _, _ = resolve.resolve(assignments, flags.experiment, flags.data, flags.workdir)
    if flags.experiment and flags.workdir and not os.path.isabs(flags.workdir):
        os.makedirs(folder / flags.workdir, exist_ok=True)
        config_lib.save(run, folder / flags.workdir / "config.json")


@pytest.mark.parametrize("page", PAGES)
def test_fields_and_links_exist(page):
    with open(os.path.join(pages.ROOT, page), encoding="utf-8") as file:
        text = file.read()
    sections = {key.split(".")[0] for key in config_lib.FIELDS}
    named = re.findall(r"--config\.([a-z_]+\.[a-z_0-9]+)", text)
    named += [key for key in re.findall(r"`([a-z]+\.[a-z_]+)(?:=[^`]*)?`", text) if key.split(".")[0] in sections]
    unknown = {key for key in named if key not in config_lib.FIELDS and not known_otherwise(key)}
    assert not unknown, unknown
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert os.path.exists(os.path.join(pages.ROOT, os.path.dirname(page), target)), target


def known_otherwise(key):
    """Whether `section.name` is a file, a module's name, or a mistake that a page shows."""
    section, name = key.split(".")
    if name in ("json", "jsonl", "csv", "py", "npy", "log", "keras", "fit") or key in ("run.epoch", "section.field"):
        return True
    try:
        return hasattr(importlib.import_module(f"g16net.{section}"), name)
    except ImportError:
        return False


def python_blocks():
    return [(b.page, n, b) for page in PAGES for n, b in enumerate(pages.blocks(page)) if b.language == "python"]


@pytest.mark.parametrize("page, number, block", python_blocks())
def test_code_compiles_and_its_names_exist(page, number, block):
    tree = ast.parse(block.text)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "g16net":
                    modules[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "g16net":
            parent = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(parent, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                modules[alias.asname or alias.name] = getattr(parent, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}"
    for node in ast.walk(tree):  # keyword arguments of what is called by a module's name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = getattr(node.func.value, "id", None)
            function = getattr(modules.get(owner), node.func.attr, None) if owner in modules else None
            if inspect.isfunction(function):
                inspect.signature(function).bind(
                    *[None for _ in node.args], **{keyword.arg: None for keyword in node.keywords if keyword.arg}
                )


@pytest.mark.slow
@pytest.mark.skipif(compat.TF_VERSION < (2, 12), reason="this Keras has no .keras files")
def test_scripts_run(tmp_path, monkeypatch):
    """Under the Keras of this process; `make test-all` takes both."""
    from g16net.data import make_set

    make_set.make_set(make_set.sample_photos(), str(tmp_path / "made"), images=60, classes=3)
    monkeypatch.chdir(tmp_path)
    scripts = [block.text for block in pages.blocks("docs/scripts.md") if block.mark == "tested"]
    assert len(scripts) == 7
    for script in scripts:
        exec(script, {"__name__": "__main__"})


def test_the_figure_measures_what_it_says():
    sys.path.insert(0, os.path.join(pages.ROOT, "docs", "figures"))
    import proxy_norm

    from g16net.layers.proxy_norm import proxy_moments, quadrature_points

    x = np.random.default_rng(0).normal(size=(4, 8, 8, 6))
    assert proxy_norm.drift(x + 9 * np.arange(6), "bn") < 1e-6
    assert proxy_norm.drift(x, "ln") < 0.05
    assert proxy_norm.drift(0.01 * x + np.arange(6), "ln") > 0.99
    rule = quadrature_points("gauss_hermite", 32)
    mean, variance = proxy_moments(*np.array([[1.5], [0.5], [0.0], [0.0]], "float32"), "swish", *rule)
    expected = proxy_norm.exact(1.5, 0.5)
    np.testing.assert_allclose([mean[0], variance[0] ** 0.5], expected, rtol=1e-3)


# The reference


def modules():
    """The modules of the API reference, imported; a directive with a wrong name fails here."""
    return [importlib.import_module(name) for names in pages.reference().values() for name in names]


def documented():
    """`(module, name, value)` of the public functions and classes that these modules define."""
    return [
        (module, name, value)
        for module in modules()
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def test_the_reference_names_modules_once():
    names = [name for names in pages.reference().values() for name in names]
    assert len(names) >= 50 and len(set(names)) == len(names)
    assert [module.__name__ for module in modules()] == names  # none by the name that it had before it moved
    for page, named in pages.reference().items():
        assert named or page.endswith("README.md"), page


def test_public_names_have_docstrings():
    missing = [f"{module.__name__}.{name}" for module, name, value in documented() if not value.__doc__]
    assert not missing
    assert not [module.__name__ for module in modules() if not module.__doc__ and "sources" not in module.__name__]


def test_what_raises_says_so():
    silent = []
    for module, name, value in documented():
        try:
            source = inspect.getsource(value)
        except OSError:
            continue
        if re.search(r"^\s+raise (?!AssertionError|NotImplementedError)", source, re.MULTILINE):
            docs = (
                value.__doc__ + "".join(m.__doc__ or "" for m in vars(value).values() if inspect.isfunction(m))
                if (inspect.isclass(value))
                else value.__doc__
            )
            if not re.search(r"Raises|Error|NotFinite|Stopped", docs):
                silent.append(f"{module.__name__}.{name}")
    assert not silent


def test_layers_tell_their_shapes():
    from tensorflow import keras

    def is_layer(value):
        return issubclass(value, keras.layers.Layer) and not issubclass(value, keras.metrics.Metric)

    layers = [value for _, _, value in documented() if inspect.isclass(value) and is_layer(value)]
    assert len(layers) >= 8
    assert not [layer.__name__ for layer in layers if "[" not in layer.__doc__]


# The README and the site


def read(*parts):
    with open(os.path.join(pages.ROOT, *parts), encoding="utf-8") as file:
        return file.read()


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 150


def test_the_pages_name_every_mode_and_experiment():
    text = read("docs", "experiments.md")
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", text, re.MULTILINE))))
    assert not set(MODES) - listed
    assert not [name for name in experiments.names() if f"`{name}`" not in text]


def test_no_page_is_missing_from_the_index():
    index = read("docs", "README.md")
    names = [os.path.basename(path) for path in glob.glob(os.path.join(pages.ROOT, "docs", "*.md"))]
    assert not [name for name in names if name != "README.md" and f"]({name})" not in index]


def test_no_page_is_missing_from_the_navigation():
    """Without mkdocs, which says the same of a page that is not there."""
    navigation = read("mkdocs.yml").partition("\nnav:\n")[2]
    named = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", navigation, re.MULTILINE)
    folder = os.path.join(pages.ROOT, "docs")
    found = glob.glob(os.path.join(folder, "**", "*.md"), recursive=True)
    assert sorted(named) == sorted([os.path.relpath(path, folder) for path in found] + ["CHANGELOG.md"])


@pytest.mark.slow
@pytest.mark.run
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=pages.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    assert done.returncode == 0, done.stdout
    with open(tmp_path / "site" / "reference" / "layers.html", encoding="utf-8") as file:
        assert "g16net.layers.group_conv.GroupConv2D" in file.read()

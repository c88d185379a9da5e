"""Every name of the SDK that the source uses is in the table of its public names, and the documentation counts them."""

import ast
import json
import os
import re

import pytest
from helpers import ROOT

from g16net import compat
from g16net.config import ipu as settings
from g16net.errors import UserError
from g16net.ipu import session

pytestmark = pytest.mark.once

SOURCE = os.path.join(ROOT, "g16net", "ipu", "session.py")
SDK = "tensorflow.python.ipu"

with open(os.path.join(ROOT, "tests", "ipu_double", "api.json"), encoding="utf-8") as _file:
    API = json.load(_file)
CONFIG = API["symbols"][f"{SDK}.config.IPUConfig"]
MODEL = API["symbols"]["keras.Functional"]["methods"]  # what the SDK adds to a model; fit and the others are Keras'


def chain(node):
    """`["ipu", "config", "IPUConfig"]` of an attribute expression; `self.ipu` counts as `ipu`."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    parts.reverse()
    return parts[1:] if parts[0] == "self" and parts[1:2] in (["ipu"], ["popdist"]) else parts


def used_names():
    """Dotted names of the SDK in the source, as written in full."""
    with open(SOURCE, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(SDK):
            found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name != "distributed"}
        elif isinstance(node, ast.Attribute) and id(node) not in inner:
            parts = chain(node)
            if parts[0] == "ipu":
                found.add(".".join([SDK] + parts[1:]))
            elif parts[0] == "distributed":
                found.add(".".join([SDK] + parts))
            elif parts[0] == "popdist":
                found.add(".".join(parts))
            elif parts[0] == "cfg":
                found.add(".".join([f"{SDK}.config.IPUConfig"] + parts[1:]))
            elif parts[-1] in MODEL:
                found.add(f"keras.Functional.{parts[-1]}")
    return found - {SDK}


def is_in_table(name):
    if name.startswith("keras.Functional."):
        return name.rsplit(".", 1)[1] in MODEL
    if name.startswith("popdist."):
        package, short = name.rsplit(".", 1)
        return short in API["external"][package]["functions"]
    if name.startswith(f"{SDK}.config.IPUConfig."):
        key = name[len(f"{SDK}.config.IPUConfig.") :]
        return key in CONFIG["attributes"] or key in CONFIG["methods"]
    aliases = {alias.replace("ipu", SDK, 1): target for alias, target in API["import_aliases"].items()}
    for alias in sorted(aliases, key=len, reverse=True):
        if name == alias or name.startswith(alias + "."):
            name = aliases[alias] + name[len(alias) :]
            break
    parent, _, short = name.rpartition(".")
    return name in API["symbols"] or short in API["symbols"].get(parent, {}).get("methods", {})


def test_every_name_is_in_the_table():
    names = used_names()
    assert [name for name in sorted(names) if not is_in_table(name)] == []
    assert f"{SDK}.config.IPUConfig.floating_point_behaviour.esr" in names
    assert f"{SDK}.pipelining_ops.PipelineSchedule" in names
    assert not is_in_table(f"{SDK}.config.IPUOptions") and not is_in_table("keras.Functional.set_pipeline")


def documentation():
    with open(os.path.join(ROOT, "docs", "ipu.md"), encoding="utf-8") as file:
        return file.read()


def test_the_documentation_counts_the_names():
    assert f"uses {len(used_names())} names of the SDK" in documentation()


def test_the_documented_table_is_the_data():
    rows = re.findall(r"^\| (B\d) \| G(\d+) \| (\S+) \| (\S+) \|(.*)\|$", documentation(), re.MULTILINE)
    documented = {}
    for variant, group_size, norms, resolution, rest in rows:
        cells = [cell.strip() for cell in rest.split("|")]
        for norm in norms.split(","):
            documented[variant, int(group_size), norm, resolution] = settings.Published(
                *[int(cell) for cell in cells[:4]],
                tuple(cells[4].split(",")),
                None if cells[5] == "-" else float(cells[5]),
                cells[6] == "yes",
            )
    expected = {(variant, *key): row for key, table in settings.PUBLISHED.items() for variant, row in table.items()}
    assert documented == expected


def test_keras_3_is_refused(monkeypatch):
    monkeypatch.setattr(compat, "KERAS3", True)
    with pytest.raises(UserError, match="IPUs need the SDK's Keras 2.6"):
        session.sdk()

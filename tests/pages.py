"""Reads the pages of the documentation: their blocks, marks and commands."""

import glob
import os
import re
import shlex
from typing import NamedTuple

from helpers import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced or indented block: its language ("" where none is named), its text, and the comment right before it."""

    page: str
    language: str
    text: str
    mark: str


def paths():
    """Every page for readers, relative to the root, without the API reference, which is made of docstrings."""
    found = [os.path.join(ROOT, "README.md")] + sorted(glob.glob(os.path.join(ROOT, "docs", "*.md")))
    return [os.path.relpath(path, ROOT) for path in found]


def reference():
    """`{page: names}` of the modules that each page of the API reference shows, by its `:::` directives."""
    found = {}
    for path in sorted(glob.glob(os.path.join(ROOT, "docs", "reference", "*.md"))):
        with open(path, encoding="utf-8") as file:
            found[os.path.relpath(path, ROOT)] = re.findall(r"^::: (\S+)$", file.read(), re.MULTILINE)
    return found


def blocks(page):
    """The blocks of a page, in order."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        text = file.read()
    found = [(m.start(), m[1], m[2]) for m in FENCE.finditer(text)]
    outside = FENCE.sub(lambda m: "\n" + "~" * (len(m[0]) - 1), text)  # offsets stay
    for m in re.finditer(r"(?:^|(?<=\n\n))(?: {4}.*\n(?:\n(?= {4}))?)+", outside):
        found.append((m.start(), "", re.sub(r"^ {4}", "", m[0], flags=re.MULTILINE)))
    for start, language, body in sorted(found):
        mark = re.search(r"<!-- ((?:(?!-->).)*) -->\s*\Z", text[:start], re.DOTALL)
        yield Block(page, language, body, mark[1] if mark else "")


def commands(block):
    """The shell commands of a block, continued lines joined, comments left out; quotes may hold line ends."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    lines = [line for line in (line.strip() for line in joined.split("\n")) if line and not line.startswith("#")]
    given = {match[1]: match[2] for match in (re.fullmatch(r'(\w+)="(.*)"', line) for line in lines) if match}
    lines = [re.sub(r"\$(\w+)", lambda m: given.get(m[1], m[0]), line) for line in lines]
    return [re.sub(r"^(\w+=\S+ )+", "", line) for line in lines if not re.fullmatch(r'\w+=".*"', line)]


def arguments(command):
    """The arguments of a command of ours (`launch.py`, `g16net`), else None."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return None
    for number, word in enumerate(words):
        if word in ("launch.py", "g16net") and all(w in ("exec", "python", "python3", "srun") for w in words[:number]):
            return words[number + 1 :]
    return None

"""Breaks the product in many small ways, one at a time, and shows which test of the fast tier notices.

    python tools/mutations.py            all of them, a line each; status 1 where one survives
    python tools/mutations.py --list     their names
    python tools/mutations.py NAME ...   some

Each mutation replaces one piece of text in a copy of the checkout and runs its test file as `make test` does (`-m "not
slow"`, tf-keras, to the first failure). Run it after the suite was made faster, and give a new mechanism its row.
"""

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TABLE = os.path.join(ROOT, "tools", "mutations.txt")


class Mutation(NamedTuple):
    """`old` stands once in `file` and becomes `new`; `tests`, names of test files, have to fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


def read():
    """The mutations of the table, as a list."""
    with open(TABLE, encoding="utf-8") as file:
        blocks = [block for block in re.split(r"\n\n+", file.read()) if block.strip() and not block.startswith("#")]
    found = []
    for block in blocks:
        title, *lines = block.strip("\n").split("\n")
        old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        name, file, tests = (part.strip() for part in title.split("|"))
        found.append(Mutation(name, file, old, new, tests))
    return found


def apply(mutation, root):
    """Writes the mutation into the checkout `root`. ValueError where its text does not stand there exactly once."""
    path = os.path.join(root, mutation.file)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {text.count(mutation.old)} times in {mutation.file}: {mutation.old!r}")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(mutation.old, mutation.new))


def path_of(name):
    """Where the test file `name` lies, in the checkout."""
    (path,) = glob.glob(os.path.join(ROOT, "tests", "*", f"{name}.py"))
    return os.path.relpath(path, ROOT)


def tested(root, what, **environment):
    """The first test that fails when pytest runs `what` in the checkout `root`; None: all pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *what],
        cwd=root, env=dict(os.environ, TF_USE_LEGACY_KERAS="1", PYTHONPATH=root, **environment),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
    )  # fmt: skip
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return found[1] if found else None if done.returncode == 0 else done.stdout[-500:]


def run(mutation, source):
    """`(what the mutation met, whether it was noticed, seconds)`. A test that fails without it too notices nothing."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, "checkout")
        shutil.copytree(source, root)
        apply(mutation, root)
        files = [path_of(name) for name in mutation.tests.split()]
        # a broken library stays nowhere
        cache = {"XDG_CACHE_HOME": folder} if mutation.file.startswith("g16net/native") else {}
        started = time.monotonic()
        test = tested(root, files, **cache)
        seconds = time.monotonic() - started
    if test is None:
        return "SURVIVED", False, seconds
    if tested(source, [test]):
        return f"{test} FAILS WITHOUT IT TOO", False, seconds
    return test, True, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    known = read()
    chosen = [one for one in known if not arguments.names or one.name in arguments.names]
    if arguments.list or not chosen:
        print("\n".join(one.name for one in known))
        return int(not arguments.list)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        source = os.path.join(folder, "source")
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, stdout=subprocess.PIPE, universal_newlines=True)
        for name in tracked.stdout.splitlines():
            if os.path.exists(os.path.join(ROOT, name)):
                os.makedirs(os.path.dirname(os.path.join(source, name)), exist_ok=True)
                shutil.copy(os.path.join(ROOT, name), os.path.join(source, name))
        for mutation, (test, noticed, seconds) in zip(chosen, pool.map(lambda one: run(one, source), chosen)):
            survivors += not noticed
            print(f"{mutation.name:45} {mutation.file:36} {seconds:5.0f} s  {test}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} noticed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())

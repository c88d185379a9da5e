"""The one walk over folders of images, with one rule for every command that lists some.

What counts is an image by its name that no program hid there: no hidden file or folder (`.ipynb_checkpoints`,
`._a.jpg`), no folder of an operating system or a disk station (`@eaDir`, `__MACOSX`), no picture that g16net itself
drew. Links to files and folders are followed, each folder is read once in a walk, and what is passed over is counted by
its reason (`passed`: {reason: paths}) and told in one line (`tell`).

Names that are no UTF-8 are Python's str with surrogates; `os.fsencode` gives their bytes, `shown` a printable form.
"""

import glob
import os
from typing import Any, List, Optional, Sequence, Set

from absl import logging

from g16net.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")  # what TensorFlow decodes on every version
FOREIGN = frozenset(
    (
        "__macosx __pycache__ @eadir @recycle @recently-snapshot @tmp #recycle #snapshot lost+found $recycle.bin "
        "thumbs.db desktop.ini"
    ).split()
    + ["system volume information", "icon\r"]
)
MARKS = ("versions.json", "predictions.jsonl", "inspect_data.json", "benchmark_data.json", "report.html", "sweep.json")
DRAWN = ("predictions.png", "contact_sheet.png", "curves.png")  # by g16net, beside one of the marks
DRAWN_IN = {"figures": "report.html", "explain": "predictions.jsonl"}  # folders of such, and what lies beside each

HIDDEN, SYSTEM, OURS = "hidden", "of the system", "written by g16net"
FOLDER = "a folder, which a pattern does not search"
NO_IMAGE, NOWHERE, SPECIAL = "no image by name", "a link to nowhere", "no regular file"
AGAIN = "a link to a folder that is read already"
STRAY = "an image outside the class folders"


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return name.lower().endswith(EXTENSIONS)


def junk(name: str) -> Optional[str]:
    """Why a file or folder of this name never counts (HIDDEN, SYSTEM), or None."""
    return HIDDEN if name.startswith(".") else SYSTEM if name.lower() in FOREIGN else None


def entries(folder: str, passed: Any = None, within: str = "") -> Any:
    """`(folders, files)` of `folder` that count: `os.DirEntry`s in order of their names, links last.

    Args:
        passed: gets what does not count, as paths below the walk's root.
        within: path of `folder` below that root.

    Raises:
        UserError: a folder that cannot be read.
    """
    try:
        with os.scandir(folder) as scanned:
            found = sorted(scanned, key=lambda entry: (entry.is_symlink(), entry.name))
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read ({error.strerror}); check its permissions") from error
    names = {entry.name for entry in found}
    marked = bool(names.intersection(MARKS))
    folders: List[os.DirEntry] = []
    files: List[os.DirEntry] = []
    for entry in found:
        kind, reason = _kind(entry), junk(entry.name)
        if reason is None and marked:
            reason = OURS if entry.name in DRAWN or DRAWN_IN.get(entry.name) in names else None
        if reason is None and kind == "file" and not is_image(entry.name):
            reason = NO_IMAGE
        if reason is None and kind in (NOWHERE, SPECIAL):
            reason = kind
        if reason:
            _pass(passed, reason, os.path.join(within, entry.name))
        else:
            (folders if kind == "folder" else files).append(entry)
    return folders, files


def images(folder: str, passed: Any = None, within: str = "") -> Any:
    """[(path below `folder`, bytes)] of the images in `folder` and in the folders in it, sorted by path."""
    found, seen, linked = [], set(), []  # type: ignore[var-annotated]
    real = [""]  # linked folders come last, so that a link to what lies here anyway adds nothing
    while real or linked:
        below = real.pop() if real else linked.pop(0)
        place = os.path.join(folder, below) if below else folder
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            _pass(passed, AGAIN, os.path.join(within, below))
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, files = entries(place, passed, os.path.join(within, below))
        for entry in files:
            try:
                found.append((os.path.join(below, entry.name), entry.stat().st_size))
            except FileNotFoundError:  # removed since the folder was read
                _pass(passed, NOWHERE, os.path.join(within, below, entry.name))
        for entry in folders:
            (linked if entry.is_symlink() else real).append(os.path.join(below, entry.name))
    return sorted(found)


def has_image(folder: str) -> bool:
    """Whether an image lies directly in `folder`."""
    try:
        with os.scandir(folder) as found:
            some = any(_counts(entry) for entry in found)
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read ({error.strerror}); check its permissions") from error
    return some and bool(entries(folder)[1] if _drew(folder) else True)


def holds_images(folder: str) -> bool:
    """Whether an image lies in `folder` or in a folder in it."""
    seen, places = set(), [folder]
    while places:
        place = places.pop()
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if has_image(place):
            return True
        places += [entry.path for entry in entries(place)[0]]
    return False


def wrote(folder: str, depth: int = 2) -> Any:
    """Whether `folder` is a workdir of g16net, or holds nothing but such: `runs/`."""
    if _drew(folder):
        return True
    folders, _ = entries(folder)
    return depth > 0 and bool(folders) and all(wrote(entry.path, depth - 1) for entry in folders)


def matches(pattern: str, passed: Any) -> Any:
    """The files that the glob `pattern` matches and that count, sorted; of a file that links reach twice, the first."""
    found, seen = [], set()
    for path in sorted(glob.glob(pattern, recursive=True), key=lambda path: (path.count(os.sep), path)):
        folder, name = os.path.split(path)
        fixed = os.path.dirname(pattern[: min(pattern.find(c) for c in "*?[" if c in pattern)] + "x")
        below = os.path.relpath(folder or ".", fixed or ".").split(os.sep)
        place = (os.path.realpath(folder), name)
        reason = next(filter(None, map(junk, [part for part in below if part != "."] + [name])), None)
        if place in seen or not name:
            continue
        seen.add(place)
        if reason is None and os.path.isdir(path):
            reason = None if "**" in pattern else FOLDER
        elif reason is None and name in DRAWN and _drew(folder or "."):
            reason = OURS
        elif reason is None and not is_image(name):
            reason = NO_IMAGE
        elif reason is None:
            found.append(path)
        if reason:
            _pass(passed, reason, path)
    return sorted(found)


def named(values: Sequence[str]) -> List[str]:
    """The names in `values`, each one name or several with commas between; one with commas that is there is one."""
    names = []
    for value in values:
        parts = value.split(",")
        while parts:
            # As many parts as together name a file, a folder or a glob that matches; else the next one alone.
            for count in range(len(parts), 0, -1):
                name = ",".join(parts[:count])
                if os.path.lexists(name) or (count > 1 and glob.has_magic(name) and any(glob.iglob(name))):
                    break
            else:
                count, name = 1, parts[0].strip()
            names += [name] if name else []
            parts = parts[count:]
    return names


def tell(root: str, passed: Any) -> None:
    """Logs in one line what a walk over `root` passed over; the same line once a process."""
    if any(passed.values()):
        once(logging.WARNING, f"{shown(root)}: left out: {summary(passed)}")


def summary(passed: Any) -> str:
    """What was passed over, in words: the number of each reason and the first paths."""
    parts = []
    for reason, paths in passed.items():
        if paths:
            names = ", ".join(shown(path) for path in paths[:3])
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            parts.append(f"{len(paths)} {reason} ({names}{more})")
    rest = f". Images are {' '.join(EXTENSIONS)}" if passed.get(NO_IMAGE) else ""
    return "; ".join(parts) + rest


_told: Set[str] = set()


def once(level: int, message: str) -> None:
    """Logs `message` unless this process did already: several splits of one folder say the same."""
    if message not in _told:
        _told.add(message)
        logging.log(level, "%s", message)


def listed(names: Any, most: int = 5) -> str:
    """The first few of `names` in words."""
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def shown(path: str) -> str:
    """`path` as text that any terminal takes; bytes that are no UTF-8 as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_utf8(name: str) -> bool:
    """Whether the name's bytes are UTF-8."""
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _kind(entry):
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # a link to itself, or through a folder that may not be entered
        return NOWHERE
    return NOWHERE if entry.is_symlink() else SPECIAL


def _counts(entry):
    return is_image(entry.name) and not junk(entry.name) and _kind(entry) == "file"


def _drew(folder):
    return any(os.path.exists(os.path.join(folder, mark)) for mark in MARKS)


def _pass(passed, reason, path):
    if passed is not None:
        passed.setdefault(reason, []).append(path)

"""What a split holds, as a few facts that JSON can keep: its classes and a fingerprint of its examples.

A run keeps the facts of its training split and compares them before it goes on. They are about names, labels and sizes,
never about where the data lies or when it was copied, and cost no more than what was listed to open it: a moved or
copied folder has the same facts, and no image is read for them. Classes are compared by name.

    {"classes": [name, ...], "images": int, "class_images": [int, ...] or None, "class_digests": [text, ...] or None,
     "digest": text, "class_samples": [text or None, ...]}

Where classes agree in the names and sizes of their files, as bitmaps that are numbered in each class do, these could
change places unnoticed: `class_samples`, which is there in this case alone, tells them by the bytes of a few files.
`class_images` and `class_digests` are None where labels are not known without reading the records.
"""

import collections
import hashlib
import unicodedata
from typing import Any, Dict, List, Sequence

import numpy as np

MOST = 5  # classes that a message names
SAMPLES = 3  # files of a class whose bytes are looked at where names and sizes do not tell it from another


def of_files(
    class_names: Sequence[str], names: Sequence[str], labels: Any, sizes: Any, read: Any = None
) -> Dict[str, Any]:
    """The facts of image files.

    Args:
        class_names: one a class.
        names: of the files, relative to the split's folder, in any order; a leading class folder is no part of the
            fingerprint.
        labels, sizes: int [files]: class and bytes of each.
        read: `(place in names) -> bytes` that tell a file from others, for `class_samples`; None: without them.
    """
    lines: List[Any] = [[] for _ in class_names]
    folders = [f"{name}/" for name in class_names]
    for place, (name, label, size) in enumerate(zip(names, np.asarray(labels).tolist(), np.asarray(sizes).tolist())):
        name = name.replace("\\", "/")
        if name.startswith(folders[label]):
            name = name[len(folders[label]) :]
        lines[label].append((f"{plain(name)}\0{size}", place))
    lines = [sorted(some) for some in lines]
    digests = [_digest("\n".join(line for line, _ in some)) for some in lines]
    facts = _by_class(class_names, [len(some) for some in lines], digests)
    like = collections.Counter(digests)
    if read and any(like[digest] > 1 and some for digest, some in zip(digests, lines)):
        facts["class_samples"] = [
            _digest(b"".join(map(bytes.fromhex, (_digest(read(place)) for _, place in some[:SAMPLES]))))
            if like[digest] > 1 and some
            else None
            for digest, some in zip(digests, lines)
        ]
    return facts


def of_arrays(class_names: Sequence[str], images: Any, labels: Any) -> Dict[str, Any]:
    """The facts of images in memory, [examples, ...], by their bytes, with int labels [examples]."""
    images, labels = np.asarray(images), np.asarray(labels)
    rows = [np.flatnonzero(labels == label) for label in range(len(class_names))]
    digests = [_digest(f"{images.shape[1:]} {images.dtype}".encode() + images[some].tobytes()) for some in rows]
    return _by_class(class_names, [len(some) for some in rows], digests)


def of_labels(class_names: Sequence[str], labels: Any, made_from: Any) -> Dict[str, Any]:
    """The facts of images that are made from their labels, int [examples], and from what `made_from` says."""
    counts = np.bincount(labels, minlength=len(class_names)).tolist()
    return _by_class(class_names, counts, [_digest(f"{made_from} {count}") for count in counts])


def of_records(class_names: Sequence[str], names: Any, counts: Any, sizes: Any, skips: Any = None) -> Dict[str, Any]:
    """The facts of record files: name without folder, used records, bytes and passed-over records of each."""
    names = list(names)
    skips = [0] * len(names) if skips is None else skips
    files = sorted(f"{plain(n)}\0{int(c)}\0{int(s)}\0{int(k)}" for n, c, s, k in zip(names, counts, sizes, skips))
    return {
        "classes": list(class_names),
        "images": int(sum(counts)),
        "class_images": None,
        "class_digests": None,
        "digest": _digest("\n".join(files)),
    }


def _by_class(class_names, counts, digests):
    lines = sorted(f"{plain(name)}\0{count}\0{digest}" for name, count, digest in zip(class_names, counts, digests))
    return {
        "classes": list(class_names),
        "images": sum(counts),
        "class_images": counts,
        "class_digests": digests,
        "digest": _digest("\n".join(lines)),
    }


def reordered(facts: Dict[str, Any], class_names: Sequence[str]) -> Dict[str, Any]:
    """`facts` with the classes in the order of `class_names`, which are the same ones."""
    place = {plain(name): i for i, name in enumerate(facts["classes"])}
    order = [place[plain(name)] for name in class_names]
    columns: Dict[str, Any] = {
        key: facts[key] and [facts[key][i] for i in order]
        for key in ("class_images", "class_digests", "class_samples")
        if key in facts
    }
    return {**facts, "classes": list(class_names), **columns}


def plain(name: str) -> str:
    """A name as it is compared: file systems write the same accent in two ways."""
    return unicodedata.normalize("NFC", name)


def class_differences(old: Sequence[str], new: Sequence[str]) -> List[str]:
    """What makes the class names `new` others than `old`, in any order: `["'ant' is gone", "'zebra' is new"]`."""
    before, now = (collections.Counter(map(plain, names)) for names in (old, new))
    found = [(list((before - now).elements()), "gone"), (list((now - before).elements()), "new")]
    return [f"{quoted(names)} {'is' if len(names) == 1 else 'are'} {what}" for names, what in found if names]


def order_differences(old: Sequence[str], new: Sequence[str]) -> List[str]:
    """The places at which the same class names stand in another order, in words; empty where they do not."""
    moved = [i for i, (a, b) in enumerate(zip(old, new)) if plain(a) != plain(b)]
    if not moved:
        return []
    shown = ", ".join(f"class {i} was {old[i]!r} and is {new[i]!r}" for i in moved[:2])
    return [f"the order of the classes changed: {shown}{' ...' if len(moved) > 2 else ''}"]


def differences(old: Dict[str, Any], new: Dict[str, Any]) -> List[str]:
    """What makes the split of the facts `new` another one than that of `old`, class by class; empty: nothing."""
    classes = class_differences(old["classes"], new["classes"])
    if classes:
        return classes + _renamed(old, new)
    found = order_differences(old["classes"], new["classes"])
    if old.get("digest") in (None, new["digest"]):
        return found + _other_bytes(old, reordered(new, old["classes"]))
    new = reordered(new, old["classes"])
    if not old["class_digests"] or not new["class_digests"]:
        if old["images"] != new["images"]:
            return found + [f"{old['images']:,} -> {new['images']:,} images"]
        return found + ["other record files (by names, sizes and counts)"]
    rows = zip(*(facts[key] for facts in (old, new) for key in ("class_images", "class_digests")))
    lines, places = [], changed_places(old, new)
    for name, (before, digest, now, other) in zip(old["classes"], rows):
        if name in places:
            lines.append(f"{name!r} holds the images of {places[name]!r}")
        elif before != now:
            lines.append(f"{name!r}: {before:,} -> {now:,} images")
        elif digest != other:
            lines.append(f"{name!r}: {now:,} images as before, but not the same ones")
    more = [f"{len(lines) - MOST} more classes"] if len(lines) > MOST else []
    return found + lines[:MOST] + more


def changed_places(old: Dict[str, Any], new: Dict[str, Any]) -> Any:
    """`{class: the other class whose images it holds now}` of the same classes in the facts `old` and `new`."""
    new = reordered(new, old["classes"])
    found: Dict[str, Any] = {}
    for key in ("class_digests", "class_samples"):
        before, now = old.get(key), new.get(key)
        if before and now:
            count = collections.Counter(before)
            owner = {digest: name for name, digest in zip(old["classes"], before) if digest and count[digest] == 1}
            found.update((n, owner[b]) for n, a, b in zip(old["classes"], before, now) if a and a != b and b in owner)
    return found


def _other_bytes(old, new):
    """What differs between classes of equal names and sizes, in words."""
    before, now = old.get("class_samples"), new.get("class_samples")
    if not before or not now:
        return []
    places = changed_places(old, new)
    changed = [name for name, a, b in zip(old["classes"], before, now) if a and b and a != b]
    lines = [
        f"{name!r} holds the images of {places[name]!r}" if name in places else f"{name!r}: not the same images"
        for name in changed[:MOST]
    ]
    return lines + ([f"{len(changed) - MOST} more classes"] if len(changed) > MOST else [])


def _renamed(old, new):
    """`["'zebra' holds the images of 'ant'"]` for classes that have only another name."""
    if not old.get("class_digests") or not new.get("class_digests"):
        return []
    before = {d: n for n, d in zip(old["classes"], old["class_digests"]) if n not in new["classes"]}
    pairs = [(n, before[d]) for n, d in zip(new["classes"], new["class_digests"])
             if d in before and n not in old["classes"]]  # fmt: skip
    return [f"{now!r} holds the images of {then!r}" for now, then in pairs[:MOST]]


def quoted(names: Sequence[str]) -> str:
    """The first few of `names` in words: `'ant', 'bee' and 3 more`."""
    names = [repr(name) for name in names]
    return ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")


def _digest(data):
    data = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    return hashlib.sha256(data).hexdigest()[:16]

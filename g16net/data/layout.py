"""Understands a folder of images: which folders in it are splits and which are classes.

    DIR/train/CLASS/IMAGE, DIR/val/CLASS/IMAGE     splits, by their names (`splits.role`) and because they hold folders
    DIR/CLASS/IMAGE                                classes; a part of each is held out (`folder.held_out_by_name`)
    DIR/photos/CLASS/IMAGE, DIR/DIR/train/...      the same in a single folder around it all

A name alone decides nothing: bus, car and train with images in each are three classes. What would be read in two ways
is refused with both; `data.layout=classes` then says that every folder is a class, whatever its name and content.
"""

import collections
import functools
import os
import re
import unicodedata
from typing import Any, Dict, List, NamedTuple, Sequence

from absl import logging

from g16net.data import splits, walk
from g16net.data.splits import TRAIN
from g16net.data.walk import listed
from g16net.errors import UserError

# Names of folders in a class folder that say nothing of the images in them: CLASS/images/IMAGE.
GENERIC = frozenset("images image imgs img photos photo pictures pics jpg jpeg jpegs png jpegimages data raw".split())
# Names, before a number, of folders over which one set was spread: HAM10000_images_part_1, batch_0, fold2.
PARTS = GENERIC | frozenset("part parts batch chunk shard fold kfold subset split archive zip folder dir".split())
# Names of folders with a drawing for each image of the folder beside them.
TARGETS = frozenset(
    "mask masks label labels annotation annotations annot annots segmentation segmentations gt groundtruth "
    "ground_truth ground-truth labelmasks".split()
)
PICTURES = (
    ".webp .tif .tiff .heic .heif .avif .jp2 .jpe .jfif .ppm .pgm .pbm .pnm .dcm .dng .cr2 .nef .svg .npy"
).split()
TABLES = (".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".parquet")


class Layout(NamedTuple):
    """What a folder holds.

    Attributes:
        root: folder of the splits, or of the class folders.
        splits: {name: folder of its class folders}; empty: the class folders lie in `root`.
        unlabelled: names of splits whose images lie in no class folders.
    """

    root: str
    splits: Dict[str, str]
    unlabelled: Sequence[str]


class Look:
    """A folder as the rules see it; each question is answered once, and no more is read for it than must be."""

    def __init__(self, path: str) -> None:
        self.path, self.name = path, os.path.basename(os.path.abspath(path))

    @functools.cached_property
    def folders(self) -> Any:
        """[Look] of the folders that count."""
        return [Look(entry.path) for entry in walk.entries(self.path)[0]]

    @functools.cached_property
    def direct(self) -> Any:
        """Whether an image lies directly in it."""
        return walk.has_image(self.path)

    @functools.cached_property
    def inner(self) -> Any:
        """[Look] of the folders in it that hold images, themselves or below."""
        return [look for look in self.folders if walk.holds_images(look.path)]

    @property
    def nested(self) -> Any:
        """Whether its images all lie in folders below."""
        return not self.direct and bool(self.inner)


def understand(folder: str, split: str = "", train_split: str = "", layout: str = "auto") -> Any:
    """The `Layout` of `folder`.

    Args:
        split, train_split: names that the user gave; folders of these names are splits, the second the training's.
        layout: "classes": every folder is a class.

    Raises:
        UserError: no images, images without class folders, or a layout that can be read in several ways.
    """
    look = Look(folder)
    if layout == "classes":
        return Layout(folder, {}, ())
    trained = {train_split.lower()} - {""}
    wanted = {split.lower()} - {""} | trained
    look = around(look, wanted - {splits.ALL})  # which is no folder's name, but may be one in which they are packed
    if look.path != folder:
        walk.once(logging.INFO, f"{walk.shown(folder)}: the data lies in {walk.shown(look.path)}")
    root, inner = walk.shown(look.path), look.inner
    if not look.folders:
        raise UserError(f"{root}: no class folders; images must lie as {root}/CLASS/IMAGE.jpg{tables(look)}")
    if not inner:
        raise UserError(f"{root}: no images; {_contents(look.folders)}")

    by_name = {one.name: one for one in look.folders if splits.role(one.name) or one.name.lower() in wanted}
    shaped = {name: one for name, one in by_name.items() if one.nested or (one.direct and len(one.inner) > 1)}
    training = [name for name in shaped if splits.role(name) == TRAIN or name.lower() in trained]
    others = [one for one in inner if one.name not in by_name]
    if not training:
        _refuse_without_training(look, by_name, shaped, others)
        _refuse_equal(look, inner)
        _refuse_no_classes(look, inner)
        return Layout(look.path, {}, ())

    settled = {name: around(shaped[name]) for name in training}
    classes = set().union(*map(_names, settled.values()))
    settled.update((name, around(one, (), classes)) for name, one in by_name.items() if name not in training)
    flat = [name for name, one in settled.items() if name in shaped and _unlabelled(one, classes)]
    flat += [name for name, one in by_name.items() if one.direct and name not in shaped]
    found = {name: one.path for name, one in settled.items() if name not in flat}
    for name, path in found.items():
        if path != by_name[name].path:
            walk.once(logging.INFO, f"{walk.shown(by_name[name].path)}: the classes lie in {walk.shown(path)}")
        _refuse_equal(settled[name], settled[name].inner)
        _refuse_no_classes(settled[name], settled[name].inner)
    beside = sorted(one.name for one in look.folders if one.name not in found and not walk.wrote(one.path))
    if beside:
        walk.once(logging.INFO, f"{root}: beside the splits, these are no part of the data: {_listed(beside)}")
    return Layout(look.path, found, tuple(sorted(flat)))


def around(look: Any, wanted: Any = (), classes: Any = ()) -> Any:
    """The folder that holds the data: `look`, or what lies in a single folder in it, however deep.

    Only folders that say nothing are passed through: no splits, and no class of `classes`. Beside them there may be
    folders of other things, such as annotations, but none that could be a class without readable images.
    """
    seen = set()
    while not look.direct and len(look.inner) == 1 and os.path.realpath(look.path) not in seen:
        seen.add(os.path.realpath(look.path))
        (single,) = look.inner
        rest = [one for one in look.folders if one is not single and not walk.wrote(one.path)]
        if not all(something_else(one) for one in rest):
            break
        named = single.name.lower() in wanted or single.name in classes
        # A split in a split's name, seg_train/seg_train, is one that was packed in a folder of its own name.
        packed = single.name.lower() == look.name.lower()
        if named or not single.nested or (splits.role(single.name) and not packed):
            break
        look = single
    return look


def class_folders(folder: str, passed: Any = None) -> Any:
    """{class name: name of its folder} in `folder`, sorted by class name; what else lies there goes to `passed`.

    A class name is the folder's, in Unicode's composed form: macOS stores names decomposed.

    Raises:
        UserError: a class folder that is a link to nowhere, whose name is no UTF-8, or two of one name.
    """
    beside: Dict[str, Any] = {}
    folders, files = walk.entries(folder, beside)
    broken = [name for name in beside.get(walk.NOWHERE, ()) if not walk.is_image(name)]
    if broken:
        raise UserError(
            f"{walk.shown(folder)}: {_listed(broken)}: a link to nowhere ({walk.shown(_target(folder, broken[0]))} is "
            "not there) where a class folder would be; fix or remove it"
        )
    if files:
        beside[walk.STRAY] = [entry.name for entry in files]
    found = {}
    for entry in folders:
        if not walk.is_utf8(entry.name):
            raise UserError(
                f"{walk.shown(entry.path)}: the name of this class folder is no UTF-8, so that the class would have no "
                "readable name; rename it"
            )
        name = unicodedata.normalize("NFC", entry.name)
        if name in found:
            raise UserError(
                f"{walk.shown(folder)}: two class folders are called {name!r} (in two forms of Unicode); join them"
            )
        found[name] = entry.name
    empty = [name for name, own in found.items() if not walk.holds_images(os.path.join(folder, own))]
    for name in empty:
        if walk.wrote(os.path.join(folder, found[name])):
            beside.setdefault(walk.OURS, []).append(found.pop(name))
    if passed is not None:
        for reason, names in beside.items():
            passed.setdefault(reason, []).extend(names)
    return dict(sorted(found.items()))


def tables(look: Any) -> Any:
    """A hint where a table beside the images may hold their labels."""
    names = [name for name in sorted(os.listdir(look.path)) if name.lower().endswith(TABLES) and not walk.junk(name)]
    if not names:
        return ""
    return (
        f". The labels in {_listed(names)} are not read: g16net takes them from folders' names; sort the images into a "
        "folder for each class, as docs/data.md shows"
    )


def one_class(folder: str, name: str, count: int, above: Any) -> UserError:
    """The UserError of a folder with a single class; `above`: the folder that the user named."""
    places = [os.path.join(folder, name), folder, above]
    return UserError(
        f"{walk.shown(folder)}: one class only, {name!r} with {count} images; a classifier needs two. Images must lie "
        f"as {walk.shown(folder)}/CLASS/IMAGE.jpg: name the folder above where "
        f"{os.path.basename(os.path.abspath(folder))!r} "
        f"is a class, a folder below where {name!r} is none" + next(filter(None, (tables(Look(p)) for p in places)), "")
    )


def _refuse_without_training(look, by_name, shaped, others):
    """UserError where folders have the names of splits and there is no training split among them."""
    root = walk.shown(look.path)
    if shaped:
        around_it = {one.name for one in others}
        if not others:
            raise UserError(
                f"{root}: {_listed(sorted(by_name))} but no train; name the training split's folder 'train', or give "
                "its name: --config.data.train_split=NAME"
            )
        for name, one in shaped.items():
            same = _names(one) & around_it
            if len(same) * 2 >= len(one.inner):
                raise UserError(
                    f"{root}: {name!r} looks like a split with the classes {_listed(sorted(same))}, which lie beside "
                    f"it too; move the training images' class folders into {root}/train"
                )
            similar = [other.name for other in others if other.nested and _names(other) & _names(one)]
            if similar:
                raise UserError(
                    f"{root}: {name!r} looks like a split, but none is called train. If {similar[0]!r} is it: "
                    f"--config.data.train_split={similar[0]} --config.data.eval_split={name}"
                )
    flat = [name for name, one in by_name.items() if name not in shaped and one.direct]
    if flat and not others:
        hint = tables(look) or next(filter(None, (tables(by_name[name]) for name in flat)), "")
        raise UserError(
            f"{root}: the images of {_listed(sorted(flat))} lie in no class folders, so that their classes are not "
            f"known; they must lie as {root}/{flat[0]}/CLASS/IMAGE.jpg{hint}. If {_listed(sorted(flat))} are the "
            "classes: --config.data.layout=classes"
        )
    for name, one in by_name.items():
        if splits.is_plain(name) and splits.role(name) != TRAIN and one in look.inner:
            raise UserError(
                f"{root}: {name!r} lies beside the class folders {_listed(sorted(other.name for other in others))}: a "
                "split or a class? If it is a class: --config.data.layout=classes; if its images have no classes, "
                f"move it out; if it is a split, the other class folders belong into {root}/train"
            )


def _refuse_equal(look, inner):
    """UserError where "classes" are splits of unknown names, or hold one another's names."""
    root = walk.shown(look.path)
    nested = [one for one in inner if one.nested]
    held = {one.name: around(one) for one in nested}  # SET/images/CLASS is compared by its classes
    sets = {name: {inside.lower() for inside in _names(one)} - GENERIC for name, one in held.items()}
    beside = {one.name.lower() for one in inner}
    for one in nested:
        same = sets[one.name] & (beside - {one.name.lower()})
        if len(same) * 2 > len(held[one.name].inner):
            raise UserError(
                f"{root}: the folder {one.name!r} holds folders of the names beside it ({_listed(sorted(same))}): a "
                f"copy of the set, or another split? Move it out, or name one: --data={walk.shown(one.path)}"
            )
    counts = collections.Counter(name for names in sets.values() for name in names)
    equal, shared = [], set()
    for name, names in sets.items():
        same = {one for one in names if counts[one] > 1}
        if same and len(same) * 2 >= len(names):
            equal.append(name)
            shared |= same
    if len(equal) > 1 and len(equal) * 2 >= len(inner):
        a, b = equal[:2]
        if all(splits.role(name) for name in shared):
            raise UserError(
                f"{root}: the classes {_listed(equal)} hold the splits ({_listed(sorted(shared))}); a split holds the "
                f"classes: they must lie as {root}/{min(shared)}/{a}/IMAGE.jpg"
            )
        raise UserError(
            f"{root}: {_listed(equal)} hold folders of the same names ({_listed(sorted(shared))}), so that these look "
            f"like the classes and the others like splits. If so: --config.data.train_split={a} "
            f"--config.data.eval_split={b}, or --data={root}/{a} alone; if {_listed(equal)} are the classes: "
            "--config.data.layout=classes"
        )
    if nested and len(nested) == len(inner) and any(sets.values()):
        example = os.path.join(nested[0].name, nested[0].inner[0].name)
        walk.once(
            logging.INFO,
            f"{root}: the images lie in folders below the class folders; what lies in {walk.shown(example)} counts as "
            f"{walk.shown(nested[0].name)}",
        )


def _refuse_no_classes(look, inner):
    """UserError where the names of all "classes" say that they are none: the parts over which a set was spread, images
    beside their masks, or a folder of class folders beside something else."""
    root, names = walk.shown(look.path), sorted(one.name for one in inner)
    remedy = f"If {_listed(names)} are the classes: --config.data.layout=classes"
    parts = [re.match(r"(.*?)[\W_]*\d+\W*$", name.lower(), re.DOTALL) for name in names]
    stems = {part and part.group(1) for part in parts}
    (stem, *more) = stems
    if len(names) > 1 and not more and stem and re.split(r"[\W_]+", stem)[-1] in PARTS:
        raise UserError(
            f"{root}: {_listed(names)} look like parts of one set, not like classes; images must lie as "
            f"{root}/CLASS/IMAGE.jpg{tables(look)}. {remedy}"
        )
    lower = {name.lower() for name in names}
    if lower <= GENERIC | TARGETS and lower & GENERIC and lower & TARGETS:
        raise UserError(
            f"{root}: {_listed(names)} look like images and their masks or labels, not like classes; images must lie "
            f"as {root}/CLASS/IMAGE.jpg{tables(look)}. {remedy}"
        )
    for one in inner:
        if len(names) > 1 and one.name.lower() in GENERIC and one.nested and len(one.inner) > 1:
            raise UserError(
                f"{root}: {one.name!r} holds the folders {_listed(sorted(_names(one)))}, and beside it lie "
                f"{_listed([name for name in names if name != one.name])}: which are the classes? If those in it: "
                f"--data={walk.shown(one.path)}. {remedy}"
            )


def warn_of_alike(class_names: Sequence[str], root: str) -> None:
    """Says in the log which classes have the same name but for case, blanks and what copying appends."""
    plain: Dict[str, List[str]] = {}
    alike: List[Any] = []
    for name in class_names:
        plain.setdefault(_bare(name), []).append(name)
    for name, same in plain.items():
        copied = re.sub(r"(?<=.)( copy)?( ?\(\d+\))?$", "", name, count=1)
        others = same[1:] or (plain.get(copied, []) if copied != name else [])
        alike += [(same[0], others[0])] if others and len(name) > 1 else []
    if alike:
        walk.once(
            logging.WARNING,
            f"{walk.shown(root)}: classes of nearly the same name are trained as different ones: "
            f"{_listed([f'{a!r} and {b!r}' for a, b in alike])}; where they are one class, join their folders",
        )


def _bare(name):
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _unlabelled(look, classes):
    """Whether a split's images lie in no class folders: directly, or in one folder that is no class."""
    if look.direct:
        return len(look.inner) < 2
    return len(look.inner) == 1 and look.inner[0].direct and look.inner[0].name not in classes


def something_else(look: Any) -> Any:
    """Whether a folder without images holds files, and none of a kind of picture that is not read."""
    names = [name for _, _, files in os.walk(look.path) for name in files if not walk.junk(name)]
    return bool(names) and not any(name.lower().endswith(tuple(PICTURES)) for name in names)


def _contents(looks):
    """What folders without images hold, in words."""
    kinds = {}
    for look in looks:
        for _, _, files in os.walk(look.path):
            for name in files:
                kind = os.path.splitext(name)[1].lower()
                kinds[kind] = kinds.get(kind, 0) + 1
    held = ", ".join(f"{count} {kind or 'without an ending'}" for kind, count in sorted(kinds.items())[:5])
    return f"its folders hold {held or 'nothing'}; {' '.join(walk.EXTENSIONS)} are read"


def _names(look):
    return {one.name for one in look.inner}


def _target(folder, name):
    return os.path.realpath(os.path.join(folder, name))


def _listed(names):
    return listed(walk.shown(name) for name in names)

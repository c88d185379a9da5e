"""Tables as Hugging Face's library writes them: the columns of the image and the label, and the names of the classes.

A row has an image, {bytes, path}, and a label. The schema's metadata, under the key "huggingface", name the classes.
"""

import json
import re
from typing import Any, NamedTuple, Optional, Sequence

from g16net import extras
from g16net.data.sources.base import listed
from g16net.errors import UserError

LABELS = ("label", "labels", "target", "class", "fine_label")  # where no column is declared to be one


class Columns(NamedTuple):
    """The columns that are read.

    Attributes:
        image, label: their names.
        class_names: of the label's numbers, or None where the table does not say.
        inner: whether the image's bytes are in a field "bytes" of it.
    """

    image: str
    label: str
    class_names: Optional[Sequence[str]]
    inner: bool


def pyarrow(module: str = "") -> Any:
    """The package, or a module of it; UserError where it is not installed."""
    return extras.need(f"pyarrow.{module}" if module else "pyarrow", "hf", "reading Hugging Face tables")


def columns_of(paths: Sequence[str], schemas: Any, input_key: str = "", target_key: str = "") -> Columns:
    """The `Columns` of files whose schemas must agree in them."""
    some = [_of_schema(path, schema, input_key, target_key) for path, schema in zip(paths, schemas)]
    for path, one in zip(paths, some):
        if one != some[0]:
            raise UserError(f"{path}: other columns or class names than {paths[0]}: {one}, {some[0]}; write them alike")
    return some[0]


def _of_schema(path, schema, input_key, target_key):
    stored = (schema.metadata or {}).get(b"huggingface", b"{}")
    features = json.loads(stored.decode("utf-8")).get("info", {}).get("features") or {}
    kinds = {name: one.get("_type") if isinstance(one, dict) else None for name, one in features.items()}
    types = {name: schema.field(name).type for name in schema.names}
    images = [name for name in types if kinds.get(name) == "Image"] or [
        name for name, kind in types.items() if _has_bytes(kind) or str(kind) in ("binary", "large_binary")
    ]
    labels = [name for name in types if kinds.get(name) == "ClassLabel"] or [
        name for name, kind in types.items() if name in LABELS and (_whole(kind) or _text(kind))
    ]
    image = _the(path, images, input_key, list(types), "image", "input_key")
    label = _the(path, labels, target_key, list(types), "label", "target_key")
    if not (_whole(types[label]) or _text(types[label])):
        raise UserError(
            f"{path}: the column {label!r} holds {types[label]}; a label is one whole number or one word each; name "
            "another column: --config.data.target_key=NAME"
        )
    if not (_has_bytes(types[image]) or str(types[image]) in ("binary", "large_binary")):
        raise UserError(f"{path}: the column {image!r} holds {types[image]}, no images; --config.data.input_key=NAME")
    names = features.get(label, {}).get("names") if kinds.get(label) == "ClassLabel" else None
    return Columns(image, label, names and tuple(names), _has_bytes(types[image]))


def _the(path, candidates, named, columns, what, field):
    if named:
        if named not in columns:
            raise UserError(f"{path}: no column {named!r} (data.{field}); there are {listed(map(repr, columns), 20)}")
        return named
    if len(candidates) != 1:
        why = f"{' and '.join(map(repr, candidates))} may each be" if candidates else "no column that is known to be"
        raise UserError(
            f"{path}: {why} the {what}; the columns are {listed(map(repr, columns), 20)}. Name it: "
            f"--config.data.{field}={candidates[0] if candidates else 'NAME'}"
        )
    return candidates[0]


def _has_bytes(kind):
    return str(kind).startswith("struct<") and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))


def _whole(kind):
    return re.fullmatch(r"u?int(8|16|32|64)|bool", str(kind)) is not None


def _text(kind):
    return re.fullmatch(r"(large_)?string|dictionary<values=(large_)?string,.*", str(kind)) is not None


def image_bytes(chunk: Any, inner: bool) -> Any:
    """The binary array of a chunk of the image's column."""
    return chunk.field(chunk.type.get_field_index("bytes")) if inner else chunk


def check_bytes(images: Any, path: str) -> None:
    """UserError where none of the first images of a file has bytes."""
    if len(images) and not any(images):
        raise UserError(
            f"{path}: its rows hold no image bytes, only the paths of files at most. Embed them before saving: "
            "dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True)"
        )

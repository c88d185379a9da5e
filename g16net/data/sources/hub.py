"""Sets of the Hugging Face hub by name, from the local caches of `datasets` (Arrow) and of the hub (Parquet)."""

import os
import re
from typing import Any, Dict, List, Optional

from g16net import extras
from g16net.data.shards import arrow_files
from g16net.data.sources.arrow import open_arrow
from g16net.data.sources.base import Source, listed
from g16net.data.sources.parquet import open_parquet
from g16net.data.sources.tables import pyarrow
from g16net.errors import UserError


def open_hf(
    split: str,
    data_dir: Optional[str] = None,
    name: str = "",
    download: bool = False,
    **options: Any,
) -> Source:
    """A set of the Hugging Face hub that lies in the local cache. Looks at no network unless `download`.

    Args:
        data_dir: the cache's folder; None: HF_DATASETS_CACHE and HF_HUB_CACHE, or those in HF_HOME.
        name: OWNER/NAME, or OWNER/NAME:CONFIGURATION.
        download: let `datasets` fetch what is not there.
        **options: of `open_parquet`.
    """
    pyarrow()
    if os.path.isdir(name):
        raise UserError(f"hf:{name} is a folder here: --data={name}")
    place = cached(name, data_dir)
    if place is None and download:
        datasets = extras.need("datasets", "hf", f"fetching hf:{name}")
        owner, _, config = name.partition(":")
        try:
            datasets.load_dataset(owner, config or None, cache_dir=data_dir)
        except Exception as error:  # of many packages: no network, no such set, a licence to accept
            raise UserError(f"hf:{name} cannot be fetched: {type(error).__name__}: {error}") from error
        place = cached(name, data_dir)
    if place is None:
        owner, _, config = name.partition(":")
        arguments = ", ".join(map(repr, filter(None, (owner, config))))
        raise UserError(
            f"hf:{name} is not in the cache of 'datasets' (looked in {' and '.join(_caches(data_dir))}). Fetch it with "
            f"--config.data.download=true, or in Python: datasets.load_dataset({arguments}); a folder of its files "
            "does as well: --data=FOLDER"
        )
    source = (open_arrow if arrow_files(place) else open_parquet)(split, place, **options)
    return source._replace(name=f"hf:{name}")


def cached(name: str, data_dir: Optional[str] = None) -> Optional[str]:
    """The folder of the set `name` in the caches of `datasets` and of the hub; None where it is in neither.

    UserError where it has several configurations and `name` does not say which.
    """
    prepared, hub = _caches(data_dir)
    owner, _, config = name.partition(":")
    found: Dict[str, List[str]] = {}
    for parent in _alike(prepared, owner.replace("/", "___")):
        for folder in _prepared(parent):
            found.setdefault(os.path.relpath(folder, parent).split(os.sep)[0], []).append(folder)
    chosen = _one_config(found, config, name)
    if chosen:
        return max(chosen, key=lambda folder: os.path.getmtime(os.path.join(folder, "dataset_info.json")))
    for parent in _alike(hub, f"datasets--{owner.replace('/', '--')}"):
        snapshots = os.path.join(parent, "snapshots")
        folders = [os.path.join(snapshots, one) for one in os.listdir(snapshots)] if os.path.isdir(snapshots) else []
        folders = [folder for folder in folders if any(_holds_parquet(folder))]
        if folders:
            newest = max(folders, key=os.path.getmtime)
            return os.path.join(newest, config) if config else newest
    return None


def _caches(data_dir):
    """The folders of the prepared sets and of the hub's files."""
    if data_dir:
        return data_dir, data_dir
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets"), hub


def _alike(folder, name):
    """Folders in `folder` of this name, however the library changes capitals in it."""

    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [os.path.join(folder, one) for one in sorted(names) if plain(one) == plain(name)]


def _prepared(parent):
    """The folders CONFIGURATION/VERSION/DIGEST below `parent` that are prepared."""
    for folder, folders, files in os.walk(parent):
        folders[:] = [one for one in folders if not one.endswith(".incomplete")]
        if "dataset_info.json" in files:
            yield folder


def _holds_parquet(folder):
    return (name for _, _, names in os.walk(folder) for name in names if name.endswith(".parquet"))


def _one_config(found, config, name):
    if config:
        same = [one for one in found if one == config or re.fullmatch(re.escape(config) + "-[0-9a-f]{16}", one)]
        return [folder for one in same for folder in found[one]]
    if len(found) > 1:
        raise UserError(
            f"hf:{name}: the cache holds its configurations {listed(sorted(found))}; name one: "
            f"--data=hf:{name}:{sorted(found)[0]}"
        )
    return next(iter(found.values()), [])

"""Data sets with official folders: found by a root, prepared on first use, read from what was prepared ever after.

What was prepared is found again by the folder's place and its lists' contents: a subset and the full set live side by side.
Files that are changed in place afterwards are not noticed; delete the prepared directory then.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from nest_jax.datasets import Dataset, _prepared
from nest_jax.datasets._check import Pair, ReadMask
from nest_jax.errors import InputError
from nest_jax.plugins import Settings, unknown

SPLITS = ("train", "val")


class Found(NamedTuple):
    """What lies in a root: the pairs by split, and how their masks are read (None: as index pictures)."""

    pairs: dict[str, list[Pair]]
    read_mask: ReadMask | None = None


class Official(NamedTuple):
    """What one such data set is."""

    name: str
    classes: tuple[str, ...]
    root_variable: str
    """The environment variable that may name the root."""
    folder: str
    """What to call the root in messages."""
    find: Callable[[Path], Found]
    """Raises InputError where the root does not hold the official folders."""


def defaults() -> dict[str, Any]:
    """The keys of every such data set."""
    return {"root": "", "data_dir": "", "skip_bad": False}


def load(official: Official, settings: Settings, split: str) -> Dataset:
    """A split, rows in the order of the official list.

    With a root (`settings["root"]`, else the environment variable) the data are prepared on first use. Without, the one prepared
    set below the data directory is read; `settings["data_dir"]` may also name a prepared directory itself.

    Raises:
        InputError: no data, several prepared sets, or a folder that does not hold what its lists say.
    """
    if split not in SPLITS:
        raise InputError(unknown(f"split of {official.name}", split, SPLITS))
    return _prepared.dataset(_directory(official, settings), split, official.classes)


def prepare(official: Official, settings: Settings) -> Path:
    """Checks and packs `settings["root"]`, unless that was done before; returns the prepared directory.

    Raises:
        InputError: all that is wrong with the folder; nothing is written then.
    """
    root, data_dir = Path(os.path.abspath(Path(str(settings["root"])).expanduser())), _data_dir(settings)
    if _prepared.is_complete(data_dir):
        raise InputError(
            f"{official.name}: {data_dir} is itself a prepared set, so {root} cannot be prepared into it; "
            "leave out dataset.root to read the former, or give the latter another dataset.data_dir"
        )
    if not root.is_dir():
        raise InputError(
            f"{official.name}: {root}: no such directory (from --config.dataset.root, --source or {official.root_variable})"
        )
    splits, read_mask = official.find(root)
    # Absolute paths: they tell a subset from the full set, and are the same from whichever level `root` starts.
    paths = {split: [(pair.name, str(pair.image), str(pair.mask)) for pair in splits[split]] for split in SPLITS}
    fingerprint = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:12]
    return _prepared.prepare(
        official.name,
        f"{len(splits['train'])}_{len(splits['val'])}_{fingerprint}",
        splits,
        classes=official.classes,
        source=root,
        data_dir=data_dir,
        read_mask=read_mask,
        skip_bad=bool(settings.get("skip_bad")),
    )


def _data_dir(settings: Settings) -> Path:
    chosen = settings.get("data_dir") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(str(chosen)).expanduser()


def _directory(official: Official, settings: Settings) -> Path:
    """The prepared directory to read; prepares it if there is a root."""
    data_dir = _data_dir(settings)
    if settings.get("root"):
        return prepare(official, settings)
    if os.environ.get(official.root_variable) and not _prepared.is_complete(data_dir):
        return prepare(official, {**settings, "root": os.environ[official.root_variable]})
    found = _prepared.find(official.name, data_dir)
    if len(found) == 1:
        return found[0]
    ways = f"give {official.folder} by --config.dataset.root=DIR or the environment variable {official.root_variable}"
    if found:
        places = "".join(f"\n  {path}" for path in found)
        raise InputError(
            f"{official.name}: {len(found)} prepared sets in {data_dir}:{places}\n"
            f"choose one by --config.dataset.data_dir, or {ways}"
        )
    raise InputError(
        f"{official.name}: no data: {ways}; or prepare once with `python -m nest_jax.prepare {official.name} --source DIR "
        f"[--data_dir DIR]` (nothing prepared in {data_dir})"
    )


# ------------------------------------------------------------------------------------------------------------------ layouts


def only_folder(name: str, candidates: Iterable[Path], wanted: str) -> Path:
    """The first of `candidates` that holds the folder `wanted`.

    Raises:
        InputError: none does.
    """
    tried = list(candidates)
    for folder in tried:
        if (folder / wanted).is_dir():
            return Path(os.path.abspath(folder))  # its parents may be looked at, and "." has none
    raise InputError(f"{name}: no folder {wanted} in {', '.join(map(str, tried))}")


def read_list(name: str, file: Path) -> list[tuple[str, str]]:
    """(where it stands, the line) for every line that is not blank.

    Raises:
        InputError: no text, or not a line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: {file} cannot be read as a list of images: {error}") from error
    found = [(f"{file}, line {n}", line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise InputError(f"{name}: {file} names no image")
    return found

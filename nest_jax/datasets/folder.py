"""Anybody's images and masks, described by a YAML file (`_folder_file.py`); docs/your_own_data.md explains it.

There is no preparation step. At the first start every pair is checked, and its mask is turned into label numbers and kept in
a cache, with the class presence; later starts find it there. The cache's key is made of the paths, sizes and times of all
files and of what the YAML file says about masks, so that whatever changes is looked at again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer, UInt8
from PIL import Image

from nest_jax.datasets import Dataset, _check, _folder_pairs
from nest_jax.datasets._folder_file import Description, read, report
from nest_jax.datasets._folder_pairs import ONE_FILE, Mask
from nest_jax.errors import InputError
from nest_jax.plugins import Settings, unknown
from nest_jax.tasks import VOID

SPLITS = ("train", "val")
FORMAT_VERSION = 1  # of the cache; part of its key
INDEX, SKIPPED, WITHOUT_BAD = "index.npz", "skipped.json", "_without_bad"
MODES = ("1", "L", "P", "RGB", "RGBA")  # of masks; others hold more than 8 bits

_log = logging.getLogger(__name__)


def defaults(name: str) -> dict[str, Any]:
    """`file`: the YAML file. `data_dir`: where the cache lies (default: nest_jax in XDG_CACHE_HOME or ~/.cache). `skip_bad`: go
    on without the images that have a problem."""
    return {"file": "", "data_dir": "", "skip_bad": False}


def classes(settings: Settings) -> tuple[str, ...]:
    """ "background", the classes to learn, then the known ones, as the YAML file lists them."""
    return _described(settings).classes


def own_tasks(settings: Settings) -> tuple[tuple[int, ...], ...]:
    """The tasks of the YAML file: labels by task.

    Raises:
        InputError: it has none.
    """
    description = _described(settings)
    if not description.tasks:
        raise InputError(
            f"{description.file}: tasks is missing: a list of lists of classes (or give --config.tasks.name=BASE-INCREMENT)"
        )
    return description.tasks


def known(settings: Settings) -> tuple[str, ...]:
    """Names of the classes in the masks that a model to extend must know already, and that are not learnt."""
    return _described(settings).known


def load(settings: Settings, split: str) -> Dataset:
    """The split "train" or "val". The first call with new files looks at all of both splits and fills the cache.

    Raises:
        InputError: what is wrong with the YAML file, or all that is wrong with the files (the first 20 and their number).
    """
    if split not in SPLITS:
        raise InputError(unknown("split of folder", split, SPLITS))
    description = _described(settings)
    pairs = _folder_pairs.find(description)
    directory = _cached(description, pairs, _cache(settings), skip_bad=bool(settings.get("skip_bad", False)))
    with np.load(directory / INDEX) as index:
        rows, presence = index[f"{split}/rows"], index[f"{split}/presence"]
    if left_out := len(pairs[split]) - len(rows):
        _log.warning("%d bad %s images were left out; %s names them", left_out, split, directory / SKIPPED)
    chosen = [pairs[split][row] for row in rows]
    images = [str(pair.image) for pair in chosen]
    reader = functools.partial(_read, images, str(directory), split, rows)
    return Dataset(description.classes, tuple(pair.name for pair in chosen), presence, reader)


def _described(settings: Settings) -> Description:
    if not settings.get("file"):
        raise InputError(
            "dataset.file: give the YAML file that describes your data, --config.dataset.file=FILE; configs/folder.yaml is a template"
        )
    return read(Path(str(settings["file"])))


def _read(
    images: Sequence[str], directory: str, split: str, rows: Int[np.ndarray, " images"], index: int
) -> tuple[Image.Image, Image.Image]:
    mask = _check.read_index_mask(_kept(Path(directory), split, int(rows[index])))
    return _check.read_image(Path(images[index])), mask


# ------------------------------------------------------------------------------------------------------------------------ cache


def _cache(settings: Settings) -> Path:
    if settings.get("data_dir"):
        return Path(str(settings["data_dir"])).expanduser() / "folder"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nest_jax" / "folder"


def _kept(directory: Path, split: str, number: int) -> Path:
    """The label numbers of a mask."""
    return directory / split / f"{number:06d}.png"


def _cached(
    description: Description, pairs: Mapping[str, Sequence[_check.Pair]], cache: Path, *, skip_bad: bool
) -> Path:
    """The cache's directory of these files: made beside its place and renamed, so it is whole or absent."""
    key = _key(description, pairs)
    for name in (key, key + WITHOUT_BAD) if skip_bad else (key,):
        if (cache / name / INDEX).is_file():
            return cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
    except OSError as error:
        raise _unwritable(cache, error) from error
    try:
        skipped = _look(description, pairs, making, skip_bad=skip_bad)
        place = cache / (key + WITHOUT_BAD if skipped else key)
        with contextlib.suppress(OSError):  # it is there: another process was faster
            making.rename(place)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return place


def _look(
    description: Description, pairs: Mapping[str, Sequence[_check.Pair]], directory: Path, *, skip_bad: bool
) -> dict[str, dict[str, list[str]]]:
    """Checks all pairs, fills `directory`, and returns what is left out, as `_check.Checked.skipped`."""
    failed: list[OSError] = []
    strange: list[tuple[int, str]] = []  # values that no class has, with the mask

    def keep(mask: Mask) -> Image.Image:
        numbers, unlisted = labels(description, mask.files, mask.shown)
        if unlisted and skip_bad:
            raise ValueError(f"{_values(unlisted, description)}: no class has it")
        strange.extend((number, mask.shown) for number in unlisted)
        found = Image.fromarray(numbers)
        try:
            found.save(_kept(directory, *mask.place), "PNG")
        except OSError as error:  # the disk's fault, not the mask's
            failed.append(error)
        return found

    for split in pairs:
        (directory / split).mkdir()
    try:
        checked = _check.check_all(
            "folder", pairs, description.classes, source=description.file, read_mask=keep, skip_bad=skip_bad
        )
    except InputError as error:
        raise InputError(f"{_unlisted(strange, description)}\n{error}" if strange else str(error)) from None
    if failed:
        raise _unwritable(directory.parent, failed[0])
    if strange:
        raise InputError(_unlisted(strange, description))
    to_learn = range(1, len(description.classes) - len(description.known))
    never = [description.classes[label] for label in to_learn if not checked.presence["train"][:, label].any()]
    if never:
        problems = [f"classes: {name!r} has no pixel in any of the training masks" for name in never]
        raise InputError(report(str(description.file), problems))
    index = {f"{split}/rows": np.array([pair.mask.place[1] for pair in good]) for split, good in checked.pairs.items()}
    index |= {f"{split}/presence": rows for split, rows in checked.presence.items()}
    try:
        if checked.skipped:
            (directory / SKIPPED).write_text(json.dumps(checked.skipped, indent=1, ensure_ascii=False))
        np.savez_compressed(directory / INDEX, **index)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise _unwritable(directory.parent, error) from error
    return checked.skipped


def _key(description: Description, pairs: Mapping[str, Sequence[_check.Pair]]) -> str:
    def state(path: Path) -> tuple[str, int, int]:
        try:
            found = path.stat()
        except OSError:
            return str(path), 0, 0
        return str(path), found.st_size, found.st_mtime_ns

    content = [FORMAT_VERSION, description.encoding, sorted(description.values.items()), description.unlisted]
    content += [description.classes, description.known]
    for split in SPLITS:
        for pair in pairs[split]:
            masks = [(label, state(path)) for label, path in sorted(pair.mask.files.items())]
            content.append([split, pair.name, pair.origin, state(Path(str(pair.image))), masks])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _unwritable(cache: Path, error: OSError) -> InputError:
    return InputError(
        f"folder: cannot write the cache of masks below {cache} ({error.strerror or error}); choose another place with --config.dataset.data_dir=DIR"
    )


# ------------------------------------------------------------------------------------------------------------------------ masks


def labels(
    description: Description, files: Mapping[int, Path], shown: str
) -> tuple[UInt8[np.ndarray, "h w"], list[int]]:
    """The label numbers of a mask, whatever its encoding; and the values that no class has, where `unlisted` is "error".

    Args:
        files: by label, or one file under `ONE_FILE`. shown: what to call the mask.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: a file of another kind than the encoding says.
    """
    if not files:
        raise FileNotFoundError(errno.ENOENT, "missing", shown)
    if description.encoding == "files":
        return _of_files(files), []
    if description.encoding == "index":
        numbers = np.asarray(_check.read_index_mask(files[ONE_FILE])).astype(np.int32)
    else:
        numbers = _colour_numbers(files[ONE_FILE])
    values = {label: np.atleast_1d(value).tolist() for label, value in description.values.items()}
    return _looked_up(numbers, {_number(value): label for label, value in values.items()}, description.unlisted)


def _number(value: Sequence[int]) -> int:
    """A grey value as it is, a colour as 0xRRGGBB."""
    return functools.reduce(lambda high, low: high << 8 | low, value)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        if picture.mode not in MODES:
            raise ValueError(f"it is in mode {picture.mode!r}; masks have 8 bits: {', '.join(MODES)}")
        picture.load()
        return picture


def _colour_numbers(path: Path) -> Int[np.ndarray, "h w"]:
    colours = np.asarray(_opened(path).convert("RGB")).astype(np.int32)
    return colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]


def _looked_up(
    numbers: Integer[np.ndarray, "h w"], labels_by_number: Mapping[int, int], unlisted: str
) -> tuple[UInt8[np.ndarray, "h w"], list[int]]:
    known_numbers = np.array(sorted(labels_by_number))
    known_labels = np.array([labels_by_number[number] for number in known_numbers], np.uint8)
    place = np.minimum(np.searchsorted(known_numbers, numbers), len(known_numbers) - 1)
    other = known_numbers[place] != numbers
    found = np.where(other, np.uint8(VOID if unlisted == "void" else 0), known_labels[place])
    return found, np.unique(numbers[other]).tolist() if unlisted == "error" else []


def _values(numbers: Sequence[int], description: Description) -> str:
    """Grey values or colours, for messages."""
    if description.encoding == "index":
        return "value " + ", ".join(map(str, numbers))
    return "colour " + ", ".join(str([number >> 16, number >> 8 & 255, number & 255]) for number in numbers[:5])


def _unlisted(strange: Sequence[tuple[int, str]], description: Description) -> str:
    """One line for every value that no class has, the most frequent first."""
    masks: dict[int, list[str]] = {}
    for number, shown in strange:
        masks.setdefault(number, []).append(shown)
    ranked = sorted(masks.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [
        f"{_values([number], description)} in {len(found)} mask{'s' if len(found) > 1 else ''}, such as {min(found)}: no class has it"
        for number, found in ranked
    ]
    more = [f"... and {len(lines) - _check.SHOWN_PROBLEMS} more"] if len(lines) > _check.SHOWN_PROBLEMS else []
    if description.encoding == "colours" and more:
        more.append(
            "so many colours are in pictures that were stored as JPEG or resized smoothly; masks must be neither"
        )
    remedy = "list them in classes, or say what they are: unlisted: background, or unlisted: void"
    return "\n".join(
        [report(str(description.file), lines[: _check.SHOWN_PROBLEMS]), *(f"    {line}" for line in [*more, remedy])]
    )


def _of_files(files: Mapping[int, Path]) -> UInt8[np.ndarray, "h w"]:
    """Classes are drawn in the order of `classes`, void last: a later one covers an earlier one."""
    mask = None
    for label, path in sorted(files.items()):
        picture = _opened(path)
        if picture.mode in ("RGB", "RGBA"):
            pixels = _colour_numbers(path)
        else:
            pixels = np.asarray(picture).astype(np.int32)
        values = np.unique(pixels)
        if len(values[values != 0]) > 1:
            raise ValueError(f"{path.name} holds {len(values)} values; a mask of one class holds 0 and one other")
        mask = np.zeros(pixels.shape, np.uint8) if mask is None else mask
        if mask.shape != pixels.shape:
            raise ValueError(f"{path.name} has {_size(pixels)} pixels, another class's file {_size(mask)}")
        mask[pixels != 0] = label
    assert mask is not None
    return mask


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"

"""Which image belongs to which mask: the globs and lists of a `Description` -> pairs, without opening an image."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from nest_jax.datasets._check import Pair
from nest_jax.datasets._folder_file import CLASS, Description, Files, report
from nest_jax.errors import InputError

ONE_FILE = -1  # in the place of a label, where one file is the whole mask


@dataclasses.dataclass(frozen=True)
class Mask:
    """One image's mask; `str` names it in messages.

    Attributes:
        files: by label; empty where there is none.
        place: its split and its number there, which stay the same as long as the files do.
    """

    shown: str
    files: Mapping[int, Path]
    place: tuple[str, int]

    def __str__(self) -> str:
        return self.shown


class Matches(NamedTuple):
    """What the globs of a split match, and the keys of the images that belong to it."""

    images: dict[str, list[str]]
    masks: dict[str, dict[int, list[str]]]
    keys: set[str]
    all_masks: bool  # whether every mask should have an image: not where a list chooses


def find(description: Description) -> dict[str, list[Pair]]:
    """The pairs of "train" and "val", in the order of their names.

    A pair has the name that it shares: what the last `*` of its globs stands for (stars in the suffix aside). Beside the pairs stand those that have no
    image or no mask, and a second pair of the same name for every file too many: `check_all` reports them with all the rest.

    Raises:
        InputError: globs without files, lists that cannot be read or that name what is not there, a split without images.
    """
    problems: list[str] = []
    found = {"train": _matches(description, "train", description.train, problems)}
    if not description.fraction:
        found["val"] = _matches(description, "val", description.val, problems)
    if not problems:
        found = _divided(description, found)
        problems += [f"{split}: no image is left for it" for split, matches in found.items() if not matches.keys]
    if problems:
        raise InputError(report(str(description.file), problems))
    train, val = (found[split].images for split in ("train", "val"))
    clash = any(train[key] != val[key] for key in found["train"].keys & found["val"].keys)
    return {split: list(_pairs(description, split, matches, clash)) for split, matches in found.items()}


def _divided(description: Description, found: dict[str, Matches]) -> dict[str, Matches]:
    """Train without what val takes from it."""
    train = found["train"]
    if description.fraction:
        # By a digest of the name: the same images whatever their order, and few changes when some are added.
        ranked = sorted(train.keys, key=lambda key: hashlib.sha256(key.encode()).digest())
        held = set(ranked[: max(1, round(description.fraction * len(ranked)))])
        return {"train": train._replace(keys=train.keys - held), "val": train._replace(keys=held, all_masks=False)}
    if found["val"].images == train.images and not description.train.listed:
        return {"train": train._replace(keys=train.keys - found["val"].keys, all_masks=False), "val": found["val"]}
    return found


def _pairs(description: Description, split: str, matches: Matches, clash: bool) -> Iterator[Pair]:
    files: Files = getattr(description, split)
    lonely = matches.masks.keys() - matches.images.keys() if matches.all_masks else set()
    number = 0
    for key in sorted(matches.keys | lonely):
        images = matches.images.get(key) or [_expected(files.images[0], key)]
        masks = matches.masks.get(key, {})
        mask_files = {label: description.folder / paths[0] for label, paths in masks.items()}
        shown = str(next(iter(mask_files.values()), description.folder / _expected(files.masks[0], key)))
        too_many = images[1:] + [path for paths in masks.values() for path in paths[1:]]
        listed = f"{split}.images"
        if key in lonely:
            listed = f"{split}.masks ({next(iter(masks.values()))[0]})"
        for origin in [f"{listed} ({images[0]})" if too_many else listed, *too_many]:
            name = images[0] if clash else key
            yield Pair(name, description.folder / images[0], Mask(shown, mask_files, (split, number)), origin)
            number += 1


# ------------------------------------------------------------------------------------------------------------------------ globs


def _matches(description: Description, split: str, files: Files, problems: list[str]) -> Matches:
    images: dict[str, list[str]] = {}
    masks: dict[str, dict[int, list[str]]] = {}
    for key, path in _found(description.folder, f"{split}.images", files.images, problems):
        images.setdefault(key, []).append(path)
    if description.encoding == "files":
        patterns = [
            (label, tuple(pattern.replace(CLASS, glob.escape(str(word))) for pattern in files.masks))
            for label, word in description.values.items()
        ]
    else:
        patterns = [(ONE_FILE, files.masks)]
    unmatched: list[str] = []
    for label, of_class in patterns:
        for key, path in _found(description.folder, f"{split}.masks", of_class, unmatched):
            masks.setdefault(key, {}).setdefault(label, []).append(path)
    if not masks:  # some class may have no file in a split
        problems.extend(unmatched[:1])
    keys = set(images)
    if files.listed:
        keys = _listed(description.folder / files.listed, split, images, problems)
    return Matches(images, masks, keys, all_masks=not files.listed)


def _found(folder: Path, key: str, patterns: tuple[str, ...], problems: list[str]) -> list[tuple[str, str]]:
    """(shared name, path) of every file that matches, sorted; a file that two patterns match counts once."""
    found: dict[str, str] = {}
    for pattern in patterns:
        pattern = str(Path(pattern).expanduser())
        paths = [path for path in glob.glob(pattern, root_dir=folder, recursive=True) if (folder / path).is_file()]
        if not paths:
            problems.append(f"{key}: no file matches {pattern!r} in {folder}{_neighbours(folder / pattern)}")
        expression = _expression(pattern)
        for path in paths:
            match = expression.fullmatch(path)
            found.setdefault(path, match["key"] if match and "key" in match.groupdict() else Path(path).stem)
    return sorted((key, path) for path, key in found.items())


def _neighbours(pattern: Path) -> str:
    """What there is in the place of what is not: for messages."""
    parent = pattern.parent
    if glob.has_magic(str(parent)):
        return ""
    if not parent.is_dir():
        return f": there is no folder {parent}"
    names = sorted(path.name for path in parent.iterdir())
    return f": {parent} holds " + (f"{len(names)} files such as {names[0]!r}" if names else "nothing")


def _expression(pattern: str) -> re.Pattern[str]:
    """The glob as a regular expression whose group "key" is its last `*`, those in the suffix aside."""
    stem = _stem(pattern)
    last = stem.rfind("*")
    parts = []
    for token in re.finditer(r"\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\]|.", pattern):
        text = token.group()
        if token.start() == last and text == "*":
            parts.append("(?P<key>[^/]*)")
        elif text in ("**/", "**"):
            parts.append("(?:.*/)?" if text == "**/" else ".*")
        elif text in "*?":
            parts.append("[^/]*" if text == "*" else "[^/]")
        elif text.startswith("[") and len(text) > 1:
            parts.append("[^" + text[2:] if text[1] == "!" else text)
        else:
            parts.append(re.escape(text))
    expression = "".join(parts)
    if stem == pattern and pattern.endswith("*"):  # then that `*` takes the suffix in
        expression = expression.removesuffix("(?P<key>[^/]*)") + r"(?P<key>[^/]*?)(?:\.[^./]*)?"
    return re.compile(expression, re.DOTALL)


def _stem(pattern: str) -> str:
    """A glob without its suffix."""
    return pattern[: pattern.rfind(".")] if "." in pattern.rpartition("/")[2] else pattern


def _expected(pattern: str, key: str) -> str:
    """Where a file of this name should be."""
    last = _stem(pattern).rfind("*")
    return pattern if last < 0 else f"{pattern[:last]}{key}{pattern[last + 1 :]}"


def _listed(file: Path, split: str, images: Mapping[str, list[str]], problems: list[str]) -> set[str]:
    """The keys of the images that a text file lists, one a line, by name or path, with or without suffix."""
    try:
        lines = [line.strip() for line in file.expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{split}.list: {file} cannot be read: {getattr(error, 'strerror', None) or error}")
        return set()
    known = {alias: key for key, (path, *_) in images.items() for alias in (Path(path).name, Path(path).stem, key)}
    found, missing = set(), []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        key = known.get(Path(line).name) or known.get(line)
        if key is None:
            missing.append(f"line {number}: {line!r}")
        else:
            found.add(key)
    if missing and images:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        problems.append(f"{split}.list: {file}: {split}.images has no such image: {'; '.join(missing[:5])}{more}")
    return found

"""Looks at every image and mask of a data set once: which classes each shows, and all that is wrong, reported together.

    found = check_all("mine", {"train": pairs, "val": more_pairs}, classes, source=folder, skip_bad=False)

For the data sets that lie on disk as files. Nothing here writes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from nest_jax.errors import InputError

VOID = 255
SHOWN_PROBLEMS = 20
SKIP_HINT = "mend them, or go on without them: --skip_bad, in training --config.dataset.skip_bad=True"


@runtime_checkable
class Encoded(Protocol):
    """A file, or what stands for one (a record of a larger file): its bytes, and in `str` its name for messages."""

    def read_bytes(self) -> bytes: ...


class Pair(NamedTuple):
    """An image, its mask, and what names them ("train.txt, line 3"), for messages."""

    name: str
    image: Encoded
    mask: Any
    """What `read_mask` takes; an `Encoded` for the usual ones. Its `str` stands in messages."""
    origin: str


ReadMask = Callable[[Any], Image.Image]
"""`Pair.mask` -> mode "L", raw labels. Raises FileNotFoundError, or any other exception with a message for the user."""


class Checked(NamedTuple):
    """The good pairs by split, their class presence, and what was left out."""

    pairs: dict[str, list[Pair]]
    presence: dict[str, Bool[np.ndarray, "images classes"]]
    skipped: dict[str, dict[str, list[str]]]
    """split -> name -> what is wrong with it; empty where nothing is."""


def check_all(
    name: str,
    splits: Mapping[str, Sequence[Pair]],
    classes: Sequence[str],
    *,
    source: Path,
    read_mask: ReadMask | None = None,
    skip_bad: bool = False,
) -> Checked:
    """Decodes every image and mask, with a progress bar and on all cores, and collects all problems.

    Args:
        name: of the data set, for messages and the bar.
        classes: index = raw label; a mask may hold 0 to len(classes) - 1 and 255.
        source: what to call the place of the files.
        read_mask: default `read_index_mask`.
        skip_bad: go on without the pairs that have a problem (of names that occur twice, the first stays).

    Raises:
        InputError: pairs that are missing, unreadable, wrong or named twice: the first 20 problems, then their number; under
            `skip_bad` only if a split has no good pair left.
    """
    problems = _named_twice(splits)
    presence = {}
    pool = ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1)))  # Pillow decodes outside of Python's lock
    try:
        for split, pairs in splits.items():
            rows = pool.map(lambda pair: check(pair, classes, read_mask), pairs)
            rows = list(tqdm(rows, f"{name}: checking {split}", len(pairs), unit=" images", disable=None))
            presence[split] = np.array([row for row, _ in rows], bool).reshape(len(pairs), len(classes))
            for found, (_, lines) in zip(problems[split], rows, strict=True):
                found += lines
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C should not wait for the thousands that are queued
    lines = [line for split in splits for found in problems[split] for line in found]
    if lines and not skip_bad:
        raise InputError(report(f"{name}: {_count(lines)} in {source}; nothing was written ({SKIP_HINT})", lines))
    return _without_bad(name, splits, presence, problems, source)


def check(
    pair: Pair, classes: Sequence[str], read_mask: ReadMask | None = None
) -> tuple[Bool[np.ndarray, " classes"], list[str]]:
    """Which classes the mask shows, and all that is wrong with the pair."""
    problems, decoded = [], []
    for what, place, decode in (("image", pair.image, read_image), ("mask", pair.mask, read_mask or read_index_mask)):
        try:
            decoded.append(decode(place))
        except FileNotFoundError as error:
            problems.append(f"{error.filename or place}: missing {what}, listed in {pair.origin}")
        except UnidentifiedImageError:  # its own message names the bytes' address in memory
            problems.append(f"{place}: unreadable {what}, listed in {pair.origin}: not a picture that Pillow knows")
        # Pillow answers a broken file with OSError, SyntaxError, ValueError, struct.error and others.
        except Exception as error:
            problems.append(f"{place}: unreadable {what}, listed in {pair.origin}: {error}")
    if problems:
        return np.zeros(len(classes), bool), problems
    image, mask = decoded
    if image.size != mask.size:
        problems.append(f"{pair.mask}: {mask.width} x {mask.height} pixels, its image {image.width} x {image.height}")
    counts = np.array(mask.histogram())
    wrong = [value for value in np.flatnonzero(counts).tolist() if len(classes) <= value != VOID]
    if wrong:
        problems.append(
            f"{pair.mask}: label {', '.join(map(str, wrong))}; allowed are 0 to {len(classes) - 1} and {VOID}"
        )
    return counts[: len(classes)] > 0, problems


def report(headline: str, problems: Sequence[str]) -> str:
    """The headline, the first 20 problems, and how many there are more; one a line."""
    more = len(problems) - SHOWN_PROBLEMS
    return "\n  ".join([headline, *problems[:SHOWN_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])])


def _count(problems: Sequence[str]) -> str:
    return f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"


def _named_twice(splits: Mapping[str, Sequence[Pair]]) -> dict[str, list[list[str]]]:
    """By split and row: a list that says so where the name occurred before."""
    seen: dict[str, str] = {}
    problems: dict[str, list[list[str]]] = {}
    for split, pairs in splits.items():
        problems[split] = []
        for pair in pairs:
            first = seen.get(pair.name)
            problems[split].append([f"{pair.name}: listed in {first} and again in {pair.origin}"] if first else [])
            seen.setdefault(pair.name, pair.origin)
    return problems


def _without_bad(
    name: str,
    splits: Mapping[str, Sequence[Pair]],
    presence: Mapping[str, Bool[np.ndarray, "images classes"]],
    problems: Mapping[str, list[list[str]]],
    source: Path,
) -> Checked:
    found = Checked({}, {}, {})
    for split, pairs in splits.items():
        good = np.array([not lines for lines in problems[split]], bool)
        found.pairs[split] = [pair for pair, kept in zip(pairs, good, strict=True) if kept]
        found.presence[split] = presence[split][good]
        for pair, lines in zip(pairs, problems[split], strict=True):
            if lines:
                found.skipped.setdefault(split, {}).setdefault(pair.name, []).extend(lines)
        if not good.any():
            lines = [line for lines in problems[split] for line in lines]
            raise InputError(report(f"{name}: no usable image for {split} in {source}", lines))
    return found


# ------------------------------------------------------------------------------------------------------------------ decoding


def decode_image(encoded: bytes) -> Image.Image:
    """RGB image of an encoded file."""
    with Image.open(io.BytesIO(encoded)) as image:
        return image.convert("RGB")


def decode_index_mask(encoded: bytes) -> Image.Image:
    """Mask in mode "L" holding raw labels: the indices of a palette image, the values of a grey one.

    Raises:
        ValueError: a mask that holds colours or more than 8 bits.
    """
    with Image.open(io.BytesIO(encoded)) as mask:
        if mask.mode not in ("P", "L"):
            raise ValueError(
                f"the mask is in mode {mask.mode!r}; it must hold class numbers (8-bit grey or palette), not colours"
            )
        return Image.fromarray(np.asarray(mask))


def read_image(place: Encoded) -> Image.Image:
    """`decode_image` of a file."""
    return decode_image(place.read_bytes())


def read_index_mask(place: Encoded) -> Image.Image:
    """`decode_index_mask` of a file."""
    return decode_index_mask(place.read_bytes())

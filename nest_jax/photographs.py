"""Pictures of any kind, as users have them: found, named, and read as upright RGB."""

from __future__ import annotations

import collections
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from nest_jax.errors import InputError

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
)  # looked for in a directory
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def find(arguments: Sequence[str]) -> list[Path]:
    """The files that are meant: files whatever their name, directories (their pictures, not those of folders inside), globs; each once.

    Raises:
        InputError: an argument that is nothing of this; all of them at once.
    """
    found: list[Path] = []
    missing = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            files = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and one.is_file())
        elif path.exists():
            files = [path]
        else:
            files = [Path(one) for one in sorted(glob.glob(os.fspath(path), recursive=True)) if Path(one).is_file()]
        if not files:
            missing.append(f"{argument}: {'no picture in it' if path.is_dir() else 'no such file'}")
        found += files
    if missing:
        kinds = ", ".join(SUFFIXES)
        raise InputError(
            "\n".join([*missing, f"give files, directories (of {kinds}) or globs such as 'photos/**/*.jpg'"])
        )
    return list({path.resolve(): path for path in reversed(found)}.values())[::-1]


def names(paths: Sequence[Path]) -> list[str]:
    """A name for every file, all different also where letter case does not count: its stem; where two have one, the file's name; then
    with the folders above it; at last with its place in the list.
    """

    def name(index: int, level: int) -> str:
        parts = [part for part in paths[index].resolve().parts if part != os.sep]
        if level == 0:
            return paths[index].stem
        return "_".join(parts[-level:]) if level <= len(parts) else f"{parts[-1]}_{index}"

    levels = [0] * len(paths)
    while True:
        chosen = [name(index, level) for index, level in enumerate(levels)]
        counts = collections.Counter(one.casefold() for one in chosen)
        again = [index for index, one in enumerate(chosen) if counts[one.casefold()] > 1]
        if not again:
            return chosen
        for index in again:
            levels[index] += 1


def read(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as a viewer shows it: turned as its EXIF data say, transparency on white, 16 bits as 8, the first of several frames."""
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in WIDE_MODES:  # Pillow would cut off what is above 255
            values = np.asarray(picture).astype(np.int64)
            picture = Image.fromarray((np.clip(values, 0, 65535) / 257 + 0.5).astype(np.uint8))
        if picture.mode == "F":
            raise ValueError("floating-point pixels, whose range is not known; store it with 8 or 16 bits")
        if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
            colours = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", colours.size, (255, 255, 255, 255)), colours)
        return np.asarray(picture.convert("RGB"))


def ahead(function: Callable[[Any], Any], items: Iterable[Any], depth: int) -> Iterator[Any]:
    """`map(function, items)`, up to `depth` results computed ahead by threads."""
    with ThreadPoolExecutor(max_workers=min(8, depth)) as pool:
        waiting: collections.deque = collections.deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

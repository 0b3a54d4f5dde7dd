"""Segments pictures of any size with a run's model: `python -m nest_jax.predict --workdir RUN IMAGES... --out DIR`.

The network learnt from squares of `train.crop_size` pixels, and is evaluated on the central square of an image whose shorter side was
resized to that. So, by default, a picture is resized in the same way and cut into overlapping squares, whose logits are averaged: the network
sees nothing but what it was trained on, and one shape is compiled for all pictures. On a square picture this is the evaluation itself.

With the mode "whole" the resized picture goes through the network at once. It is padded on the right and below to multiples of 64, or pictures of
every size would have to be compiled for. DeepLab's image pooling, a mean over up to 32 x 32 positions, sees the padding; it mirrors the picture,
whose statistics it then has, and not a constant, which would pull the mean towards it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float, UInt8
from PIL import Image

from nest_jax import (
    compilation,
    evaluate,
    memory,
    photographs,
    pictures,
    plugins,
    restored,
    segmenter,
    storage,
    upsample,
    writers,
)
from nest_jax.command import DONE, Parser, exit_code
from nest_jax.errors import InputError
from nest_jax.restored import Restored

UNREADABLE = 4  # exit code
MODES = ("sliding", "whole")
STEP = 2 / 3  # of a window, from one to the next at most
LONGEST = 8  # times the shorter side: a longer picture is resized to this length
MULTIPLE = 64  # pixels
BATCH_SIZE = 8
ROWS = 64  # rows of a picture that are resampled at once

EXAMPLES = f"""\
examples:
  python -m nest_jax.predict --workdir runs/voc_15_1 photo.jpg --out predictions
  python -m nest_jax.predict --workdir runs/voc_15_1 photos/ 'more/**/*.png' --out predictions --probabilities
  python -m nest_jax.predict --workdir runs/voc_15_1 --task 2 photos/ --out predictions --mode whole --short_side 0

DIR gets masks/NAME.png (a palette picture of the input's size; pixel values are labels), overlays/NAME.jpg (for looking at, at most
{pictures.OVERLAY} pixels), probabilities/NAME.npz ("probabilities": float16 [height, width, classes]), and classes.json (label -> name).
NAME is the file's stem; where two have one, the whole file name, or folders too. Files of an earlier call are replaced.

By default pictures are resized so that their shorter side is that of the training crops, as in evaluation, and cut into overlapping squares of
that size: what the network was trained on. Objects that are small in a large picture are found better with a larger --short_side.
The first device computes; JAX_PLATFORMS=cpu chooses the CPU. Exit codes: 0 done, 2 something in the input is wrong,
{UNREADABLE} done, but for pictures that could not be read (listed at the end), 130 interrupted.
"""


class Picture(NamedTuple):
    """Something to know it by, and its pixels."""

    key: Hashable
    image: UInt8[np.ndarray, "h w 3"]


@dataclass(eq=False)
class _Sum:
    """Logits of a picture's tiles, added up at the size that the network sees it in."""

    picture: Picture
    total: np.ndarray  # [h, w, classes]
    count: np.ndarray  # [h, w, 1]
    waiting: int  # tiles

    def add(self, tile: _Tile, logits: np.ndarray) -> None:
        height, width = (min(a, b - c) for a, b, c in zip(logits.shape, self.total.shape, tile.corner, strict=False))
        place = tuple(slice(start, start + size) for start, size in zip(tile.corner, (height, width), strict=True))
        self.total[place] += logits[:height, :width]
        self.count[place] += 1
        self.waiting -= 1


class _Tile(NamedTuple):
    """Part of a picture; what is padding lies beyond the edge of the sum."""

    pixels: np.ndarray
    corner: tuple[int, int]
    sum: _Sum


def segment(
    found: Restored,
    images: Iterable[Picture],
    *,
    mode: str = "sliding",
    short_side: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[Picture, Float[np.ndarray, "h w classes"]]]:
    """Pictures in their order with their logits, at the size that the network sees them in; see `labels` and `probabilities`.

    Args:
        mode: "sliding" or "whole", see the module's docstring.
        short_side: what the shorter side is resized to; None: the training crop's; 0: pictures stay as they are.
        batch_size: tiles that go through the network at once.
    """
    crop = int(found.config.train.crop_size)
    stride = plugins.load("backbones", found.config.backbone.name).output_stride(found.config.backbone)
    classes = len(found.class_names)
    cut = partial(sliding, size=crop) if mode == "sliding" else partial(whole, multiple=math.lcm(MULTIPLE, stride))
    model = jax.device_put(found.model)

    def tiles() -> Iterator[_Tile]:
        for picture in images:
            pixels = resized(picture.image, crop if short_side is None else short_side)
            shape, parts = pixels.shape[:2], cut(pixels)
            total = np.zeros((*shape, classes), np.float32)
            into = _Sum(picture, total, np.zeros((*shape, 1), np.float32), len(parts))
            yield from (_Tile(part, corner, into) for part, corner in parts)

    for group in batches(tiles(), batch_size):
        # Batches that are not full get the next power of two: few shapes are compiled, and little is computed for nothing.
        rows = min(batch_size, 2 ** math.ceil(math.log2(len(group))))
        batch = np.zeros((rows, *group[0].pixels.shape), np.uint8)
        batch[: len(group)] = [tile.pixels for tile in group]
        with restored.precision(found.config):
            logits = np.asarray(network_logits(found.segmenter, model, batch))
        for tile, part in zip(group, logits, strict=False):
            tile.sum.add(tile, part)
            if not tile.sum.waiting:
                yield tile.sum.picture, tile.sum.total / tile.sum.count


@partial(jax.jit, static_argnums=0)
def network_logits(network: segmenter.Segmenter, model: Any, images: Array) -> Array:
    """Logits float32 [b, h, w, classes] of images uint8 [b, h, w, 3]; compiled once per network and shape."""
    size = (images.shape[1], images.shape[2])
    return upsample.bilinear(evaluate.view_logits(network, model, images, (1.0, False)), size)


def batches(tiles: Iterable[_Tile], size: int) -> Iterator[list[_Tile]]:
    """Up to `size` neighbours of one shape."""
    group: list[_Tile] = []
    for tile in tiles:
        if group and (len(group) == size or tile.pixels.shape != group[0].pixels.shape):
            yield group
            group = []
        group.append(tile)
    if group:
        yield group


def resized(image: UInt8[np.ndarray, "h w 3"], short_side: int) -> UInt8[np.ndarray, "hh ww 3"]:
    """The shorter side `short_side` long, and the other as the evaluation has it (`transforms.eval_transform`); 0: as it is."""
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    if not short_side or short == short_side:
        return image
    other = int(short_side * long / short)
    if other > LONGEST * short_side:  # a strip: enlarged in full it would be thousands of windows
        short_side, other = max(1, round(LONGEST * short_side * short / long)), LONGEST * short_side
    size = (short_side, other) if width <= height else (other, short_side)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def sliding(image: UInt8[np.ndarray, "h w 3"], size: int) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Squares of side `size` that cover the image, evenly spread, with their upper left corners; mirrored where it is smaller."""
    image = padded(image, max(size, image.shape[0]), max(size, image.shape[1]))
    tops, lefts = (starts(side, size) for side in image.shape[:2])
    return [(image[top : top + size, left : left + size], (top, left)) for top in tops for left in lefts]


def starts(side: int, size: int) -> list[int]:
    """Where windows of `size` begin on an axis of `side` pixels: the first at its start, the last at its end."""
    count = 1 + math.ceil((side - size) / (size * STEP))
    return np.linspace(0, side - size, count).round().astype(int).tolist()


def whole(image: UInt8[np.ndarray, "h w 3"], multiple: int) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """The image itself, mirrored on the right and below up to multiples of so many pixels."""
    height, width = (-(-side // multiple) * multiple for side in image.shape[:2])
    return [(padded(image, height, width), (0, 0))]


def padded(image: UInt8[np.ndarray, "h w 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Mirrored on the right and below up to this size."""
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="symmetric")


def labels(logits: Float[np.ndarray, "h w classes"], size: tuple[int, int]) -> UInt8[np.ndarray, "hh ww"]:
    """The largest logit at every pixel of an image of `size` (height, width)."""
    return np.concatenate([np.argmax(rows, axis=-1).astype(np.uint8) for rows in upsampled(logits, size)])


def probabilities(
    logits: Float[np.ndarray, "h w classes"], size: tuple[int, int]
) -> Float[np.ndarray, "hh ww classes"]:
    """Softmax at every pixel of an image of `size` (height, width), float16."""

    def softmax(rows: np.ndarray) -> np.ndarray:
        powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
        return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float16)

    return np.concatenate([softmax(rows) for rows in upsampled(logits, size)])


def upsampled(logits: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """`upsample.bilinear` of one image, a few rows at a time; on the host, where no size needs to be compiled for."""
    rows, columns = (taps(out, side) for out, side in zip(size, logits.shape, strict=False))
    for start in range(0, size[0], ROWS):
        low, high, fraction = (part[start : start + ROWS] for part in rows)
        block = _mixed(logits[low], logits[high], fraction[:, None, None])
        low, high, fraction = columns
        yield _mixed(block[:, low], block[:, high], fraction[:, None])


def taps(out_size: int, in_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two pixels that each output is mixed of, and how much of the second: the rows of `upsample.matrix`."""
    position = np.clip((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0, in_size - 1)
    low = np.floor(position).astype(int)
    return low, np.minimum(low + 1, in_size - 1), (position - low).astype(np.float32)


def _mixed(low: np.ndarray, high: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    return low + (high - low) * fraction if fraction.any() else low


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The flags.

    Raises:
        InputError: an unknown or incomplete flag.
    """
    parser = Parser(
        prog="python -m nest_jax.predict",
        description="Segments pictures with a run's model; the data set is not needed.",
        epilog=EXAMPLES,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, directories, or globs in quotes")
    restored.add_flags(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for what is written")
    parser.add_argument(
        "--mode", choices=MODES, default=MODES[0], help=f"overlapping squares, or at once (default: {MODES[0]})"
    )
    parser.add_argument(
        "--short_side",
        type=int,
        metavar="N",
        help="resize the shorter side to N pixels (default: the training crop's; 0: do not)",
    )
    parser.add_argument("--batch_size", type=int, default=BATCH_SIZE, metavar="N", help=f"default: {BATCH_SIZE}")
    parser.add_argument("--probabilities", action="store_true", help="write them too; they are large")
    options = parser.parse_intermixed_args(arguments)
    if options.batch_size < 1:
        raise InputError(f"--batch_size={options.batch_size}: at least 1")
    if options.short_side is not None and options.short_side < 0:
        raise InputError(f"--short_side={options.short_side}: at least 1, or 0 for pictures as they are")
    return options


def run(arguments: Sequence[str]) -> list[str]:
    """What `main` does, with errors as exceptions; a line for every picture that could not be read."""
    options = parse(arguments)
    paths = photographs.find(options.images)
    names, out = photographs.names(paths), epath.Path(options.out).expanduser()
    files = [outputs(out, name, options.probabilities) for name in names]
    own = {path.resolve() for path in paths}
    if lost := [path for found in files for path in found.values() if Path(path).resolve() in own]:
        raise InputError(f"--out={options.out}: {lost[0]} is one of the pictures and would be overwritten")
    memory.keep_freed()
    compilation.keep()
    found = restored.load(options.workdir, options.task, dtype=options.dtype or "")
    storage.write_text(out / "classes.json", storage.json_text(dict(enumerate(found.class_names)), indent=1))
    print(f"{found.workdir}, task {found.task}: {len(found.class_names)} classes; {len(paths)} pictures")

    unreadable: list[str] = []
    with writers.progress(len(paths), 0, "predict") as bar:

        def readable() -> Iterator[Picture]:
            for index, image in enumerate(photographs.ahead(_attempt, paths, 2 * options.batch_size)):
                if isinstance(image, np.ndarray):
                    yield Picture(index, image)
                else:
                    unreadable.append(f"{paths[index]}: {image}")
                    bar.update(1)

        settings = {"mode": options.mode, "short_side": options.short_side, "batch_size": options.batch_size}
        for picture, logits in segment(found, readable(), **settings):
            write(files[int(str(picture.key))], picture.image, logits, found.class_names)
            bar.update(1, images=1)
    print(f"{len(paths) - len(unreadable)} pictures segmented: {out}")
    return unreadable


def _attempt(path: Path) -> np.ndarray | str:
    try:
        return photographs.read(path)
    except Exception as error:  # whatever a file that is no picture makes its decoder do
        return str(error) or type(error).__name__


def outputs(out: epath.Path, name: str, probabilities: bool) -> dict[str, epath.Path]:
    """The files of one picture."""
    files = {"mask": out / "masks" / f"{name}.png", "overlay": out / "overlays" / f"{name}.jpg"}
    return {**files, "probabilities": out / "probabilities" / f"{name}.npz"} if probabilities else files


def write(files: dict[str, epath.Path], image: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> None:
    """Mask, overlay and, where asked for, probabilities of one picture.

    Raises:
        InputError: a file cannot be written.
    """
    size = (image.shape[0], image.shape[1])
    predicted = labels(logits, size)
    pictures.save(pictures.paint(predicted), files["mask"])
    pictures.save(pictures.overlay(image, predicted, class_names), files["overlay"])
    if path := files.get("probabilities"):
        with storage.plain_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                np.savez_compressed(file, probabilities=probabilities(logits, size))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    told = "interrupted; what is written is whole, but for the last picture"
    return exit_code(reported, arguments, interrupted=told)


def reported(arguments: Sequence[str]) -> int:
    """`run`, and what could not be read at the end."""
    unreadable = run(arguments)
    if not unreadable:
        return DONE
    print("\n".join([f"not read: {len(unreadable)}", *(f"  {line}" for line in unreadable)]), file=sys.stderr)
    return UNREADABLE


if __name__ == "__main__":
    sys.exit(main())

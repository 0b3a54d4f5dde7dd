"""A small synthetic data set, drawn by a formula: for tests, first steps and continuous integration. No files.

Each image shows one to three objects on a smooth, noisy background. A class is a shape (circle, square, triangle)
together with a texture (plain, dark stripes, white dots); colour, size, place and tilt are drawn at random and tell
nothing. The classes are ordered so that with the tasks "3-2" the base task knows every shape and texture, and each
later class is a new combination of two of them: how a new class resembles the old ones is known. Objects have a border
of one void pixel.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageFilter

from nest_jax.datasets import Dataset
from nest_jax.errors import InputError
from nest_jax.plugins import Settings

KINDS = (
    ("circle", "plain"),
    ("square", "striped"),
    ("triangle", "dotted"),
    ("circle", "striped"),
    ("square", "plain"),
    ("triangle", "plain"),
    ("circle", "dotted"),
)
"""(shape, texture) of the classes 1..7."""
SPLITS = ("train", "val")
VOID = 255
MIN_SIZE = 32
MAX_OBJECTS = 3
_PLACES_TRIED = 12


def defaults(name: str) -> dict[str, Any]:
    """Numbers of images, their side in pixels, and the seed everything is drawn from."""
    del name
    return {"train_images": 480, "val_images": 120, "size": 64, "seed": 0}


def classes(settings: Settings) -> tuple[str, ...]:
    """ "background" and seven names such as "circle" and "striped square"."""
    del settings
    return ("background", *(shape if texture == "plain" else f"{texture} {shape}" for shape, texture in KINDS))


def load(settings: Settings, split: str) -> Dataset:
    """The split "train" or "val". All images are drawn at the first call of a process (about a second for a thousand).

    Image i of a split depends on (seed, split, i, size) only, so a larger data set begins with the smaller one.

    Raises:
        InputError: an unknown split, or a setting that makes no data set.
    """
    if split not in SPLITS:
        raise InputError(f"split: unknown value {split!r}; choices: {', '.join(SPLITS)}")
    settings = {**defaults("shapes"), **settings}
    for key, least in ((f"{split}_images", len(KINDS)), ("size", MIN_SIZE), ("seed", 0)):
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"dataset.{key}: must be an integer of at least {least}, got {value!r}")
    key = (int(settings["seed"]), split, int(settings[f"{split}_images"]), int(settings["size"]))
    _, masks = _drawn(key)
    names = classes(settings)
    presence = np.stack([(masks == label).any((1, 2)) for label in range(len(names))], axis=1)
    return Dataset(
        classes=names,
        names=tuple(f"shapes_{split}_{i:06d}" for i in range(len(masks))),
        presence=presence,
        read=functools.partial(_read, key),
    )


def draw(
    seed: int, split: str, index: int, size: int
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """Image `index` of a split and its mask."""
    rng = np.random.default_rng((seed, SPLITS.index(split), index, size))
    image = _background(rng, size)
    mask = np.zeros((size, size), np.uint8)
    # The first class goes round, so that every class has at least a seventh of the images.
    first = index % len(KINDS)
    others = rng.permutation([kind for kind in range(len(KINDS)) if kind != first])
    taken: list[tuple[float, float, float]] = []
    for kind in (first, *others[: rng.integers(0, MAX_OBJECTS)]):
        place = _place(rng, size, taken)
        if place is None:
            continue
        taken.append(place)
        inside, pixels = _object(rng, size, place, *KINDS[kind])
        rim = np.asarray(Image.fromarray(inside.view(np.uint8)).filter(ImageFilter.MaxFilter(3))).astype(bool)
        mask[rim] = VOID
        mask[inside] = kind + 1
        image[inside] = pixels[inside]
    image += rng.normal(0, 9, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), mask


@functools.lru_cache(maxsize=8)
def _drawn(key: tuple[int, str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, split, count, size = key
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.uint8)
    for i in range(count):
        images[i], masks[i] = draw(seed, split, i, size)
    return images, masks


def _read(key: tuple[int, str, int, int], index: int) -> tuple[Image.Image, Image.Image]:
    # By key, not by arrays: pickled to another process it stays small, and that process draws for itself once.
    images, masks = _drawn(key)
    return Image.fromarray(images[index]), Image.fromarray(masks[index])


def _background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """Smooth blotches around one dull colour."""
    coarse = rng.uniform(60, 140, 3) + rng.normal(0, 18, (6, 6, 3))
    blotches = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return np.asarray(blotches.resize((size, size), Image.Resampling.BICUBIC), np.float32).copy()


def _place(
    rng: np.random.Generator, size: int, taken: list[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    """Centre x, y and radius of an object that hides little of the others, or None if there seems to be no room."""
    for _ in range(_PLACES_TRIED):
        radius = rng.uniform(0.16, 0.23) * size
        x, y = rng.uniform(0.75 * radius, size - 0.75 * radius, 2)
        if all((x - a) ** 2 + (y - b) ** 2 > (0.95 * (radius + r)) ** 2 for a, b, r in taken):
            return x, y, radius
    return None


def _object(
    rng: np.random.Generator, size: int, place: tuple[float, float, float], shape: str, texture: str
) -> tuple[Bool[np.ndarray, "size size"], Float[np.ndarray, "size size 3"]]:
    """Where an object is, and the colours it has there."""
    x, y, radius = place
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    u, v = _turned(columns - x, rows - y, rng.uniform(-0.35, 0.35))
    if shape == "circle":
        inside = u * u + v * v <= radius**2
    elif shape == "square":
        inside = np.maximum(abs(u), abs(v)) <= 0.88 * radius
    else:
        inside = np.maximum(abs(u) * np.sqrt(np.float32(3)) - v, 2 * v) <= 1.3 * radius
    colour = rng.uniform(150, 230, 3)
    colour[rng.integers(3)] = rng.uniform(10, 90)
    pixels = np.broadcast_to(colour.astype(np.float32), (size, size, 3))
    if texture != "plain":
        a, b = _turned(columns, rows, rng.uniform(0, 2 * np.pi))
        period = rng.uniform(0.09, 0.12) * size
        shift = rng.uniform(0, period, 2)
        a, b = (a + shift[0]) % period / period, (b + shift[1]) % period / period
        if texture == "striped":
            pixels = np.where((a < 0.5)[..., None], 0.2 * pixels, pixels)
        else:
            pixels = np.where(((a - 0.5) ** 2 + (b - 0.5) ** 2 < 0.36**2)[..., None], np.float32(250), pixels)
    return inside, pixels


def _turned(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x

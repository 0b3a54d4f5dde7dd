"""From a decoded image and its mask to the uint8 arrays that the network is fed: augmentation and evaluation views.

All resizing is Pillow's, as torchvision's is on Pillow images: bilinear for images (sampled at pixel centres,
antialiased when it shrinks), nearest for masks. The crop is taken first and resized afterwards: Pillow's `box` argument
would let pixels outside the crop into its border.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SCALE = (0.5, 2.0)
"""Area of a random crop as a fraction of the image's area: lower and upper end."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop: lower and upper end."""
TRIES = 10
FLIP_PROBABILITY = 0.5

Pair = tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]


def random_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """The box (left, top, width, height) in pixels that torchvision's `RandomResizedCrop` would cut.

    Up to 10 times an area ~ U(scale) * width * height and an aspect exp(U(log ratio)) are drawn; the first box that
    fits into the image is put at a uniformly drawn place. Where none fits, the whole image is taken, or, if its own
    aspect ratio is outside `ratio`, the largest centred box that is inside. There is no padding, so boxes of more than
    the image's area never fit.

    Differs from the published code in the source of randomness only (NumPy's generator, not Python's `random`).
    """
    area = width * height
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        target = area * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(log_low, log_high))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, w, h
    return fallback_box(width, height, ratio)


def fallback_box(width: int, height: int, ratio: tuple[float, float] = RATIO) -> tuple[int, int, int, int]:
    """The whole image as (left, top, width, height), or the centred box whose aspect ratio is clamped to `ratio`."""
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def train_transform(image: Image.Image, mask: Image.Image, rng: np.random.Generator, size: int) -> Pair:
    """A random crop resized to a square (its aspect ratio is not kept), mirrored with probability 1/2.

    Args:
        image: mode "RGB".
        mask: mode "L", raw labels, of the image's size.
        rng: where all randomness comes from.
        size: side of the result in pixels.

    Returns:
        Image uint8 [size, size, 3] and labels uint8 [size, size]; possibly read-only views.
    """
    left, top, w, h = random_crop_box(*image.size, rng)
    box = (left, top, left + w, top + h)
    image = _resized(_crop(image, box), (size, size), Image.Resampling.BILINEAR)
    mask = _resized(_crop(mask, box), (size, size), Image.Resampling.NEAREST)
    if rng.random() < FLIP_PROBABILITY:  # by Pillow: copying a mirrored view of an array takes five times as long
        image, mask = (picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in (image, mask))
    return np.asarray(image), np.asarray(mask)


def eval_transform(image: Image.Image, mask: Image.Image, size: int) -> Pair:
    """The shorter side resized to `size`, then the central square.

    The longer side becomes int(size * long / short); the square starts at round((side - size) / 2), halves to even.

    Returns:
        Image uint8 [size, size, 3] and labels uint8 [size, size]; possibly read-only views.
    """
    width, height = image.size
    short, long = sorted((width, height))
    other = int(size * long / short)
    resized = (size, other) if width <= height else (other, size)
    left, top = (round((side - size) / 2) for side in resized)
    square = (slice(top, top + size), slice(left, left + size))
    pixels = np.asarray(_resized(image, resized, Image.Resampling.BILINEAR))[square]
    return pixels, np.asarray(_resized(mask, resized, Image.Resampling.NEAREST))[square]


def full_image(image: Image.Image, mask: Image.Image) -> Pair:
    """Image uint8 [height, width, 3] and labels uint8 [height, width] as they are."""
    return np.asarray(image), np.asarray(mask)


def _crop(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    return image if box == (0, 0, *image.size) else image.crop(box)


def _resized(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, resampling)

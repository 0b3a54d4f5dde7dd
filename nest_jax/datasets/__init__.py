"""What a dataset is; every other module of this package is one data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a segmentation data set: names, class presence, and a function that reads image `i`."""

    classes: tuple[str, ...]
    """Index = raw label value in the masks; `classes[0] == "background"`."""
    names: tuple[str, ...]
    """One per image, unique."""
    presence: np.ndarray
    """bool [images, classes]: the class has at least one pixel in the mask (column 0 too)."""
    read: Callable[[int], tuple[Image.Image, Image.Image]]
    """RGB image and its mask (mode "L", raw labels, 255 = void). Picklable and safe to call from several threads."""

    def __len__(self) -> int:
        return len(self.names)

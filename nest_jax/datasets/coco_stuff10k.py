"""COCO-Stuff 10K v1.1: 9,000 training and 1,000 test images, 80 thing and 91 stuff classes.

The annotations number 182 ids, 11 of which never occur; here things are 1 to 80 and stuff 81 to 171, in the order of their ids.
Id 0, "unlabeled", is background, trained and scored as ADE20K's "other" is: the paper speaks of 172 outputs with background the
first, and its code for this data set is not published. The masks have no void.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nest_jax.datasets import Dataset, _official
from nest_jax.datasets._check import Encoded, Pair
from nest_jax.plugins import Settings

# The official names of the ids 1..182: 1..91 are things, the others stuff.
_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign, stop
sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat, backpack,
umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed,
mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, hair brush,
banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile,
cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other,
floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other,
hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
"""
NEVER_ANNOTATED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
IDS = tuple(id for id in range(183) if id not in NEVER_ANNOTATED)
"""Official id by our label: 0, then the 80 things, then the 91 stuff classes."""
CLASSES = tuple((["background"] + [name.strip() for name in _NAMES.replace("\n", " ").split(",")])[id] for id in IDS)
ROOT_VARIABLE = "NEST_JAX_COCO_ROOT"
SPLITS = _official.SPLITS

IMAGES = {"train": 9000, "val": 1000}
"""Of the full set, as published. How many images each task has was not."""
TASK_IMAGES: dict[tuple[str, str], tuple[int, ...]] = {}

_LISTS = {"train": "train.txt", "val": "test.txt"}


def defaults(name: str) -> dict[str, Any]:
    """`root`: the official folders (default: environment variable NEST_JAX_COCO_ROOT). `data_dir`: where prepared data lie
    (default: TFDS_DATA_DIR, then ~/tensorflow_datasets). `skip_bad`: prepare without the images that have a problem."""
    return _official.defaults()


def classes(settings: Settings) -> tuple[str, ...]:
    """The 172 names by label; 0 is "background"."""
    return CLASSES


def class_orders() -> dict[str, tuple[int, ...]]:
    """No named orders beside the natural one."""
    return {}


def load(settings: Settings, split: str) -> Dataset:
    """Split "train" or "val" (the official test list), in the order of the list; see `_official.load`."""
    return _official.load(_COCO, settings, split)


def prepare(settings: Settings) -> Path:
    """Checks and packs `settings["root"]`; see `_official.prepare`."""
    return _official.prepare(_COCO, settings)


# ------------------------------------------------------------------------------------------------------------------ layout


def find(root: Path) -> _official.Found:
    """imageLists/train.txt and test.txt, images/*.jpg and annotations/*.mat in `root`, or in dataset/ or cocostuff-10k-v1.1/ there.

    Raises:
        InputError: no such folder or list.
    """
    folder = _official.only_folder("coco_stuff10k", (root, root / "dataset", root / "cocostuff-10k-v1.1"), "imageLists")
    found: dict[str, list[Pair]] = {}
    for split, file in _LISTS.items():
        found[split] = []
        for origin, name in _official.read_list("coco_stuff10k", folder / "imageLists" / file):
            name = name.removesuffix(".jpg")
            image, mask = folder / "images" / f"{name}.jpg", folder / "annotations" / f"{name}.mat"
            found[split].append(Pair(name, image, mask, origin))
    return _official.Found(found, read_mask)


_TABLE = np.full(256, 255, np.uint8)
_TABLE[list(IDS)] = range(len(IDS))


def read_mask(place: Encoded) -> Image.Image:
    """The label map `S` of a MATLAB file (up to version 7), ids turned into our labels.

    Raises:
        ValueError: no such map, or ids in it that are never annotated.
    """
    from scipy.io import loadmat

    content = loadmat(io.BytesIO(place.read_bytes()), variable_names=["S"])
    if "S" not in content:
        raise ValueError("it has no label map S")
    ids = np.asarray(content["S"])
    if ids.ndim != 2 or ids.dtype.kind not in "uif":
        raise ValueError(f"its S is of type {ids.dtype} and shape {ids.shape}, no map of numbers")
    found = np.unique(ids)
    if wrong := [f"{id:g}" for id in found.tolist() if id not in IDS]:
        raise ValueError(f"id {', '.join(wrong)}; allowed are 0 to 182 without {', '.join(map(str, NEVER_ANNOTATED))}")
    return Image.fromarray(_TABLE[ids.astype(np.uint8)])


_COCO = _official.Official(
    "coco_stuff10k", CLASSES, ROOT_VARIABLE, "the folder that holds images, annotations and imageLists", find
)

"""ADE20K (SceneParsing 150): 20,210 training and 2,000 validation images, 150 classes.

Label 0 of the official masks is "other"; the published protocols treat it as the background class, train on it and score it.
The masks have no void.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nest_jax.datasets import Dataset, _official, _scene_parse150
from nest_jax.datasets._check import Pair
from nest_jax.errors import InputError
from nest_jax.plugins import Settings

# The first synonym of each official name, in the order of the labels 1..150 (131 is "screen" there; 59 is the screen door).
_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
light, truck, tower, chandelier, awning, streetlight, booth, television, airplane, dirt track, apparel, pole, land,
bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer,
plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step,
tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, projection screen, blanket, sculpture, hood,
sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
glass, clock, flag
"""
CLASSES = ("background", *(name.strip() for name in _NAMES.replace("\n", " ").split(",")))


ROOT_VARIABLE = "NEST_JAX_ADE_ROOT"
SPLITS = _official.SPLITS

IMAGES = {"train": 20210, "val": 2000}
"""Of the full set, as published."""
TASK_IMAGES = {
    ("100-50", "overlapped"): (20192, 9390),
    ("100-10", "overlapped"): (20192, 1710, 2294, 2747, 4279, 2844),
    ("100-5", "overlapped"): (20192, 1142, 600, 1234, 1204, 1151, 1874, 1807, 2943, 1238, 1898),
    ("50-50", "overlapped"): (20177, 13186, 9390),
}
"""Training images by protocol and task, as published. (The last list of 50-50 was not; its classes are those of 100-50's.)"""

_FOLDERS = {"train": "training", "val": "validation"}


def defaults(name: str) -> dict[str, Any]:
    """`root`: the official folders, or a `scene_parse150` that TFDS prepared (default: environment variable NEST_JAX_ADE_ROOT).
    `data_dir`: where prepared data lie (default: TFDS_DATA_DIR, then ~/tensorflow_datasets). `skip_bad`: prepare without the images
    that have a problem."""
    return _official.defaults()


def classes(settings: Settings) -> tuple[str, ...]:
    """The 151 names by raw label; 0 is "background"."""
    return CLASSES


def class_orders() -> dict[str, tuple[int, ...]]:
    """No named orders beside the natural one."""
    return {}


def load(settings: Settings, split: str) -> Dataset:
    """Split "train" or "val", in the order of the file numbers; see `_official.load`."""
    return _official.load(_ADE, settings, split)


def prepare(settings: Settings) -> Path:
    """Checks and packs `settings["root"]`; see `_official.prepare`."""
    return _official.prepare(_ADE, settings)


# ------------------------------------------------------------------------------------------------------------------ layouts


def find(root: Path) -> _official.Found:
    """ADEChallengeData2016 with images/ and annotations/, each with training/ and validation/; or what TFDS made of scene_parse150.

    `root` is that folder or the one around it. There are no lists: every image and every annotation takes part, and one without
    the other is a problem.

    Raises:
        InputError: neither layout.
    """
    prepared = _scene_parse150.directory(root)
    if prepared is not None:
        return _official.Found(_scene_parse150.pairs(prepared), _scene_parse150.read_mask)
    folder = _official.only_folder("ade20k", (root, root / "ADEChallengeData2016"), "annotations")
    return _official.Found({split: _pairs(folder, name) for split, name in _FOLDERS.items()})


def _pairs(folder: Path, split: str) -> list[Pair]:
    images, masks = folder / "images" / split, folder / "annotations" / split
    # Names that begin with a dot are what macOS leaves beside files.
    shown, labelled = (
        {path.stem for path in place if path.name[0] != "."} for place in (images.glob("*.jpg"), masks.glob("*.png"))
    )
    if not shown | labelled:
        raise InputError(f"ade20k: neither {images} holds .jpg files nor {masks} .png files")
    return [
        Pair(name, images / f"{name}.jpg", masks / f"{name}.png", str(images if name in shown else masks))
        for name in sorted(shown | labelled)
    ]


_ADE = _official.Official("ade20k", CLASSES, ROOT_VARIABLE, "the folder ADEChallengeData2016", find)

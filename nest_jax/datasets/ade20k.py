"""ADE20K (SceneParsing 150): the class list. The loader is not in this version.

Classes only, so that configs can be validated and shape-checked. Label 0 of the official masks is "other"; the published
protocols treat it as the background class, train on it and score it.
"""

from typing import Any

from nest_jax.datasets import Dataset
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


def defaults(name: str) -> dict[str, Any]:
    """`root`: the official folder; `data_dir`: where prepared data lie. Neither is read yet."""
    return {"root": "", "data_dir": ""}


def classes(settings: Settings) -> tuple[str, ...]:
    """The 151 names by raw label; 0 is "background"."""
    return CLASSES


def class_orders() -> dict[str, tuple[int, ...]]:
    """No named orders beside the natural one."""
    return {}


def load(settings: Settings, split: str) -> Dataset:
    """Always raises.

    Raises:
        InputError: this version cannot read ADE20K.
    """
    raise InputError(
        f"dataset ade20k, split {split!r}: this version of nest_jax has no loader for ADE20K. Its configs can be checked with "
        "--validate_only; to train, choose a config of another data set (configs/voc_15_1.py, configs/shapes.py)."
    )

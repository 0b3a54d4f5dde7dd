"""Pascal VOC 2012 with the SBD masks ("train_aug": 10,582 training and 1,449 validation images), or any subset laid out like it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nest_jax import tasks
from nest_jax.datasets import Dataset, _check, _official
from nest_jax.datasets._check import Pair
from nest_jax.errors import InputError
from nest_jax.plugins import Settings

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
ROOT_VARIABLE = "NEST_JAX_VOC_ROOT"
SPLITS = _official.SPLITS

IMAGES = {"train": 10582, "val": 1449}
"""Of the full set, as published."""
TASK_IMAGES = {
    ("15-5", "overlapped"): (9568, 2145),
    ("15-1", "overlapped"): (9568, 487, 299, 491, 500, 548),
    ("10-1", "overlapped"): (6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548),
    ("19-1", "overlapped"): (10410, 548),
    ("5-3", "overlapped"): (2836, 2331, 1542, 2095, 4484, 1468),
    ("15-5", "disjoint"): (8437, 2145),
    ("15-1", "disjoint"): (8437, 378, 299, 420, 500, 548),
    ("10-1", "disjoint"): (3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548),
    ("19-1", "disjoint"): (10034, 548),
}
"""Training images by protocol and task, as published (lengths of the lists that came with the MiB, PLOP and RCIL code)."""

_AUGMENTED = ("trainaug.txt", "train_aug.txt")  # both names are in use
_LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets/SegmentationAug", "ImageSets", "list", "splits")
_log = logging.getLogger(__name__)


def defaults(name: str) -> dict[str, Any]:
    """`root`: the official folders (default: environment variable NEST_JAX_VOC_ROOT). `data_dir`: where prepared data lie
    (default: TFDS_DATA_DIR, then ~/tensorflow_datasets). `skip_bad`: prepare without the images that have a problem."""
    return _official.defaults()


def classes(settings: Settings) -> tuple[str, ...]:
    """The 21 names by raw label, background first."""
    return CLASSES


def class_orders() -> dict[str, tuple[int, ...]]:
    """Orders A to E of the paper's table 7 (made for 15-1): all 20 classes, the five new ones last."""
    return dict(tasks.VOC_ORDERS)


def load(settings: Settings, split: str) -> Dataset:
    """Split "train" (the train_aug list) or "val"; see `_official.load`."""
    return _official.load(_VOC, settings, split)


def prepare(settings: Settings) -> Path:
    """Checks and packs `settings["root"]`; see `_official.prepare`."""
    return _official.prepare(_VOC, settings)


# ------------------------------------------------------------------------------------------------------------------ layouts


def pairs(root: Path) -> dict[str, list[Pair]]:
    """The images and masks of both splits, found by their lists in any of the usual layouts.

    `root` is VOC2012, VOCdevkit, or the folder around either. Lists: trainaug.txt or train_aug.txt, else train.txt, and
    val.txt, in ImageSets/Segmentation or list/; a line is a name or two paths. Masks: SegmentationClassAug in VOC2012, beside
    it, or beside VOCdevkit. SegmentationClass serves for train.txt where there is no SegmentationClassAug, and for val.

    Raises:
        InputError: no such folder, list or mask folder; lines of another form.
    """
    voc = _official.only_folder("voc2012", (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"), "JPEGImages")
    around = (voc, voc.parent, voc.parent.parent)
    train = _find_list(around, *_AUGMENTED) or _find_list(around, "train.txt")
    val = _find_list(around, "val.txt")
    if train is None or val is None:
        wanted = "trainaug.txt, train_aug.txt or train.txt" if train is None else "val.txt"
        raise InputError(
            f"voc2012: no {wanted} below {voc}; looked in {', '.join(_LIST_FOLDERS)} there and up to {around[-1]}"
        )
    if train.name == "train.txt":
        _log.warning(
            "voc2012: no trainaug.txt or train_aug.txt in %s: training on %s, not the published list", root, train
        )

    augmented = next((f for f in (base / "SegmentationClassAug" for base in around) if f.is_dir()), None)
    plain = voc / "SegmentationClass"
    if augmented is None and (train.name in _AUGMENTED or not plain.is_dir()):
        raise InputError(
            f"voc2012: no folder SegmentationClassAug in {', '.join(map(str, around))}; {train} needs it"
            + (f" ({plain} holds the masks of train.txt only)" if plain.is_dir() else "")
        )
    masks = augmented or plain
    return {"train": _read_list(train, around, masks, None), "val": _read_list(val, around, masks, plain)}


def _find_list(around: tuple[Path, ...], *names: str) -> Path | None:
    for base in around:
        for folder in _LIST_FOLDERS:
            for name in names:
                if (base / folder / name).is_file():
                    return base / folder / name
    return None


def _read_list(file: Path, around: tuple[Path, ...], masks: Path, other_masks: Path | None) -> list[Pair]:
    """The pairs that a list names; whether they exist is found out later, all at once."""
    found, wrong = [], []
    for origin, line in _official.read_list("voc2012", file):
        words = line.split()
        if len(words) == 1:
            name = Path(words[0]).name.removesuffix(".jpg")
            image, mask = around[0] / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png"
        elif len(words) == 2 and "/" in words[0] and "/" in words[1]:
            image, mask = (_resolve(word, around) for word in words)
            name = image.stem
        else:
            wrong.append(f"{origin}: {line!r} is neither a name nor two paths (image and mask)")
            continue
        if other_masks is not None and not mask.exists() and (other_masks / f"{name}.png").exists():
            mask = other_masks / f"{name}.png"
        found.append(Pair(name, image, mask, origin))
    if wrong:
        raise InputError(_check.report("voc2012: lines that name no image", wrong))
    return found


def _resolve(path: str, around: tuple[Path, ...]) -> Path:
    """A list's path: relative to VOC2012 or to a folder above it, although it starts with a slash."""
    places = [base / path.lstrip("/") for base in around]
    return next((place for place in places if place.exists()), places[0])


_VOC = _official.Official(
    "voc2012",
    CLASSES,
    ROOT_VARIABLE,
    "the folder that holds VOCdevkit or VOC2012",
    lambda root: _official.Found(pairs(root)),
)

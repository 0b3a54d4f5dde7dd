"""Pascal VOC 2012 with the SBD masks ("train_aug": 10,582 training and 1,449 validation images), or any subset laid out like it.

The official folders are prepared once (checked, and packed into a TFDS directory) and read from there ever after. What was
prepared is found again by the folder's place and its lists' contents: a subset and the full set live side by side. Files that
are changed in place afterwards are not noticed; delete the prepared directory then.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from nest_jax import tasks
from nest_jax.datasets import Dataset, _prepared
from nest_jax.errors import InputError
from nest_jax.plugins import Settings, unknown

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
SPLITS = ("train", "val")

_NAME = "voc2012"
_AUGMENTED = ("trainaug.txt", "train_aug.txt")  # both names are in use
_LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets/SegmentationAug", "ImageSets", "list", "splits")
_log = logging.getLogger(__name__)


def defaults(name: str) -> dict[str, Any]:
    """`root`: the official folders (default: environment variable NEST_JAX_VOC_ROOT). `data_dir`: where prepared data lie
    (default: TFDS_DATA_DIR, then ~/tensorflow_datasets)."""
    return {"root": "", "data_dir": ""}


def classes(settings: Settings) -> tuple[str, ...]:
    """The 21 names by raw label, background first."""
    return CLASSES


def class_orders() -> dict[str, tuple[int, ...]]:
    """Orders A to E of the paper's table 7 (made for 15-1): all 20 classes, the five new ones last."""
    return dict(tasks.VOC_ORDERS)


def load(settings: Settings, split: str) -> Dataset:
    """Split "train" (the train_aug list) or "val", rows in the order of the official list.

    With a root (`settings["root"]`, else NEST_JAX_VOC_ROOT) the data are prepared on first use. Without, the one prepared set
    below the data directory is read; `settings["data_dir"]` may also name a prepared directory itself.

    Raises:
        InputError: no data, several prepared sets, or a folder that does not hold what its lists say.
    """
    if split not in SPLITS:
        raise InputError(unknown("split of voc2012", split, SPLITS))
    return _prepared.dataset(_directory(settings), split, CLASSES)


def prepare(settings: Settings) -> Path:
    """Checks and packs `settings["root"]`, unless that was done before; returns the prepared directory.

    Raises:
        InputError: all that is wrong with the folder; nothing is written then.
    """
    root, data_dir = Path(os.path.abspath(Path(str(settings["root"])).expanduser())), _data_dir(settings)
    if _prepared.is_complete(data_dir):
        raise InputError(
            f"voc2012: {data_dir} is itself a prepared set, so {root} cannot be prepared into it; "
            "leave out dataset.root to read the former, or give the latter another dataset.data_dir"
        )
    splits = pairs(root)
    # Absolute paths: they tell a subset from the full set, and are the same from whichever level `root` starts.
    paths = {split: [(pair.name, str(pair.image), str(pair.mask)) for pair in splits[split]] for split in SPLITS}
    fingerprint = hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:12]
    config = f"{len(splits['train'])}_{len(splits['val'])}_{fingerprint}"
    return _prepared.prepare(_NAME, config, splits, classes=CLASSES, source=root, data_dir=data_dir)


def _data_dir(settings: Settings) -> Path:
    chosen = settings.get("data_dir") or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(str(chosen)).expanduser()


def _directory(settings: Settings) -> Path:
    """The prepared directory to read; prepares it if there is a root."""
    data_dir = _data_dir(settings)
    if settings.get("root"):
        return prepare(settings)
    if os.environ.get(ROOT_VARIABLE) and not _prepared.is_complete(data_dir):
        return prepare({**settings, "root": os.environ[ROOT_VARIABLE]})
    found = _prepared.find(_NAME, data_dir)
    if len(found) == 1:
        return found[0]
    ways = f"give the folder that holds VOCdevkit or VOC2012 by --config.dataset.root=DIR or the environment variable {ROOT_VARIABLE}"
    if found:
        listed = "".join(f"\n  {path}" for path in found)
        raise InputError(
            f"voc2012: {len(found)} prepared sets in {data_dir}:{listed}\nchoose one by --config.dataset.data_dir, or {ways}"
        )
    raise InputError(
        f"voc2012: no data: {ways}; or prepare once with `python -m nest_jax.prepare voc2012 --source DIR "
        f"[--data_dir DIR]` (nothing prepared in {data_dir})"
    )


# ------------------------------------------------------------------------------------------------------------------ layouts


def pairs(root: Path) -> dict[str, list[_prepared.Pair]]:
    """The images and masks of both splits, found by their lists in any of the usual layouts.

    `root` is VOC2012, VOCdevkit, or the folder around either. Lists: trainaug.txt or train_aug.txt, else train.txt, and
    val.txt, in ImageSets/Segmentation or list/; a line is a name or two paths. Masks: SegmentationClassAug in VOC2012, beside
    it, or beside VOCdevkit. SegmentationClass serves for train.txt where there is no SegmentationClassAug, and for val.

    Raises:
        InputError: no such folder, list or mask folder; a line of another form.
    """
    voc = _voc_folder(root)
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


def _voc_folder(root: Path) -> Path:
    """The folder that holds JPEGImages."""
    if not root.is_dir():
        raise InputError(
            f"voc2012: {root}: no such directory (from --config.dataset.root, --source or {ROOT_VARIABLE})"
        )
    tried = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    for folder in tried:
        if (folder / "JPEGImages").is_dir():
            return Path(os.path.abspath(folder))  # its parents are looked at, and "." has none
    raise InputError(f"voc2012: no folder JPEGImages in {', '.join(map(str, tried))}")


def _find_list(around: tuple[Path, ...], *names: str) -> Path | None:
    for base in around:
        for folder in _LIST_FOLDERS:
            for name in names:
                if (base / folder / name).is_file():
                    return base / folder / name
    return None


def _read_list(file: Path, around: tuple[Path, ...], masks: Path, other_masks: Path | None) -> list[_prepared.Pair]:
    """The pairs that a list names; whether they exist is found out later, all at once."""
    found = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        words, origin = line.split(), f"{file}, line {number}"
        if not words:
            continue
        if len(words) == 1:
            name = Path(words[0]).name.removesuffix(".jpg")
            image, mask = around[0] / "JPEGImages" / f"{name}.jpg", masks / f"{name}.png"
        elif len(words) == 2 and "/" in words[0] and "/" in words[1]:
            image, mask = (_resolve(word, around) for word in words)
            name = image.stem
        else:
            raise InputError(f"voc2012: {origin}: {line!r} is neither a name nor two paths (image and mask)")
        if other_masks is not None and not mask.exists() and (other_masks / f"{name}.png").exists():
            mask = other_masks / f"{name}.png"
        found.append(_prepared.Pair(name, image, mask, origin))
    if not found:
        raise InputError(f"voc2012: {file} names no image")
    return found


def _resolve(path: str, around: tuple[Path, ...]) -> Path:
    """A list's path: relative to VOC2012 or to a folder above it, although it starts with a slash."""
    places = [base / path.lstrip("/") for base in around]
    return next((place for place in places if place.exists()), places[0])

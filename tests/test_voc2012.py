"""VOC 2012 from every usual folder layout; what is wrong with a folder (`BAD`; test_bad_data.py tries it); real masks."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import pathlib
import pickle
import shutil
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nest_jax.datasets import _check, _prepared, voc2012
from nest_jax.errors import InputError

TRAIN = ("2007_000032", "2008_000007", "2008_000008")
VAL = ("2007_000033", "2007_000042")
LABELS = {
    "2007_000032": (0, 1, 255),
    "2008_000007": (4,),
    "2008_000008": (0, 15, 13),
    "2007_000033": (0, 20, 255),
    "2007_000042": (0,),
}
SIZE = (24, 16)  # width, height
GOLDEN = pathlib.Path(__file__).parent / "golden" / "protocol.npz"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Nothing of the machine's own is found or written."""
    for data_set in ("VOC", "ADE", "COCO"):
        monkeypatch.delenv(f"NEST_JAX_{data_set}_ROOT", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "default_data_dir"))


def picture(name: str) -> Image.Image:
    rng = np.random.default_rng(int(name.replace("_", "")))
    return Image.fromarray(rng.integers(0, 255, (*SIZE[::-1], 3), np.uint8))


def labels(name: str) -> np.ndarray:
    mask = np.zeros(SIZE[::-1], np.uint8)
    for row, label in enumerate(LABELS[name]):
        mask[5 * row :] = label
    return mask


def palette(mask: np.ndarray) -> Image.Image:
    """As VOC's own masks: numbers with a palette in which number 1 is (128, 0, 0)."""
    image = Image.fromarray(mask).copy()
    image.putpalette([value for i in range(256) for value in ((i & 1) * 128, (i & 2) * 64, (i & 4) * 32)])
    assert image.mode == "P"
    return image


def tree(
    base: pathlib.Path,
    *,
    masks: str = "SegmentationClassAug",
    val_masks: str = "",
    train_list: str = "ImageSets/Segmentation/train_aug.txt",
    val_list: str = "ImageSets/Segmentation/val.txt",
    line: str = "{name}",
) -> pathlib.Path:
    """A VOC tree; all folders and lists relative to base/VOCdevkit/VOC2012."""
    voc = base / "VOCdevkit" / "VOC2012"
    (voc / "JPEGImages").mkdir(parents=True)
    for names, file, folder in ((TRAIN, train_list, masks), (VAL, val_list, val_masks or masks)):
        path = pathlib.Path(os.path.normpath(voc / file))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line.format(name=name) + "\n" for name in names))
        target = pathlib.Path(os.path.normpath(voc / folder))
        target.mkdir(exist_ok=True)
        for name in names:
            picture(name).save(voc / "JPEGImages" / f"{name}.jpg")
            palette(labels(name)).save(target / f"{name}.png")
    return voc


def assert_is_the_tree(settings: Mapping[str, Any], voc: pathlib.Path) -> None:
    for split, names in (("train", TRAIN), ("val", VAL)):
        dataset = voc2012.load(settings, split)
        assert dataset.names == names
        assert len(dataset) == len(names)
        assert dataset.classes == voc2012.CLASSES
        expected = [[c in LABELS[name] for c in range(21)] for name in names]
        np.testing.assert_array_equal(dataset.presence, expected)
        for i, name in enumerate(names):
            image, mask = dataset.read(i)
            assert (image.mode, mask.mode) == ("RGB", "L")
            np.testing.assert_array_equal(image, Image.open(voc / "JPEGImages" / f"{name}.jpg"))
            np.testing.assert_array_equal(mask, labels(name))


TWO_PATHS = "/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png"
LAYOUTS = {
    "subset": {},
    "trainaug": {"train_list": "ImageSets/Segmentation/trainaug.txt"},
    "masks one level up": {"masks": "../SegmentationClassAug"},
    "masks beside VOCdevkit": {"masks": "../../SegmentationClassAug"},
    "list of paths": {"train_list": "list/train_aug.txt", "val_list": "list/val.txt", "line": TWO_PATHS},
    "list of paths, all beside VOCdevkit": {
        "train_list": "../../list/train_aug.txt",
        "val_list": "../../list/val.txt",
        "line": TWO_PATHS,
        "masks": "../../SegmentationClassAug",
    },
    "paths from VOCdevkit": {"line": "VOC2012/JPEGImages/{name}.jpg VOC2012/SegmentationClassAug/{name}.png"},
    "names with .jpg, blank lines": {"line": "{name}.jpg\n"},
    "val masks of the tarball": {"val_masks": "SegmentationClass"},
    "tarball alone": {"masks": "SegmentationClass", "train_list": "ImageSets/Segmentation/train.txt"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: pathlib.Path, layout: str) -> None:
    voc = tree(tmp_path / "data", **LAYOUTS[layout])
    assert_is_the_tree({"root": str(tmp_path / "data"), "data_dir": str(tmp_path / "prepared")}, voc)


def test_root_at_any_level_is_the_same_set(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc = tree(tmp_path)
    monkeypatch.chdir(voc)
    places = {voc2012.prepare({"root": root}) for root in (str(tmp_path), str(voc.parent), str(voc), ".", "..")}
    assert len(places) == 1
    assert places.pop().parts[-4:-2] == ("default_data_dir", "voc2012")


def test_the_published_list_and_masks_come_first(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    voc = tree(tmp_path)
    (voc / "ImageSets/Segmentation/train.txt").write_text(TRAIN[0] + "\n")
    (voc / "SegmentationClass").mkdir()
    palette(np.full(SIZE[::-1], 7, np.uint8)).save(voc / "SegmentationClass" / f"{VAL[0]}.png")
    with caplog.at_level(logging.WARNING):
        assert_is_the_tree({"root": str(tmp_path)}, voc)
    assert not caplog.records


def test_the_short_list_is_said(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, masks="SegmentationClass", train_list="ImageSets/Segmentation/train.txt")
    with caplog.at_level(logging.WARNING):
        voc2012.load({"root": str(tmp_path)}, "train")
    assert "not the published list" in caplog.text


def test_files_are_stored_as_they_are(tmp_path: pathlib.Path) -> None:
    voc = tree(tmp_path)
    record = _prepared._source(str(voc2012.prepare({"root": str(voc)})), "train")[1]
    assert record["image"] == (voc / "JPEGImages" / f"{TRAIN[1]}.jpg").read_bytes()
    assert record["mask"] == (voc / "SegmentationClassAug" / f"{TRAIN[1]}.png").read_bytes()
    assert record["name"].decode() == TRAIN[1]
    np.testing.assert_array_equal(np.flatnonzero(record["presence"]), [4])


def test_grey_images_and_grey_masks(tmp_path: pathlib.Path) -> None:
    voc = tree(tmp_path)
    picture(TRAIN[0]).convert("L").save(voc / "JPEGImages" / f"{TRAIN[0]}.jpg")
    Image.fromarray(labels(TRAIN[0])).save(voc / "SegmentationClassAug" / f"{TRAIN[0]}.png")
    image, mask = voc2012.load({"root": str(voc)}, "train").read(0)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 0], Image.open(voc / "JPEGImages" / f"{TRAIN[0]}.jpg"))
    np.testing.assert_array_equal(mask, labels(TRAIN[0]))


def test_threads_and_processes_read_the_same(tmp_path: pathlib.Path) -> None:
    dataset = voc2012.load({"root": str(tree(tmp_path))}, "train")
    assert len(pickle.dumps(dataset.read)) < 1000
    rows = [0, 1, 2] * 20
    with ThreadPoolExecutor(8) as pool:
        for row, (image, mask) in zip(rows, pool.map(dataset.read, rows), strict=True):
            np.testing.assert_array_equal(mask, labels(TRAIN[row]))
            assert image.size == SIZE
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        image, mask = processes.submit(dataset.read, 2).result()
    np.testing.assert_array_equal(image, dataset.read(2)[0])
    np.testing.assert_array_equal(mask, labels(TRAIN[2]))


# ------------------------------------------------------------------------------------------------------------------ where from


def test_root_from_the_environment_and_reuse(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc = tree(tmp_path)
    monkeypatch.setenv(voc2012.ROOT_VARIABLE, str(tmp_path))
    assert_is_the_tree({}, voc)
    shutil.rmtree(voc / "JPEGImages")
    (voc / "JPEGImages").mkdir()
    assert voc2012.load({}, "train").read(0)[0].size == SIZE  # read from what was prepared
    monkeypatch.delenv(voc2012.ROOT_VARIABLE)
    assert voc2012.load({"root": "", "data_dir": ""}, "val").names == VAL


def test_a_subset_and_the_full_set_live_side_by_side(tmp_path: pathlib.Path) -> None:
    tree(tmp_path / "full")
    subset = tree(tmp_path / "subset")
    (subset / "ImageSets/Segmentation/train_aug.txt").write_text(TRAIN[2] + "\n")
    full, part = {"root": str(tmp_path / "full")}, {"root": str(tmp_path / "subset")}
    assert [len(voc2012.load(s, "train")) for s in (full, part, full)] == [3, 1, 3]
    (subset / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(TRAIN[1:]))
    assert voc2012.load(part, "train").names == TRAIN[1:]  # another list is another set
    with pytest.raises(InputError, match="3 prepared sets in .*default_data_dir:\n") as error:
        voc2012.load({}, "train")
    chosen = next(line.strip() for line in str(error.value).splitlines() if "/1_2_" in line)
    assert voc2012.load({"data_dir": chosen}, "train").names == TRAIN[2:]
    with pytest.raises(InputError, match="is itself a prepared set"):
        voc2012.load({"data_dir": chosen, **full}, "train")


def test_no_data_says_all_ways(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InputError) as error:
        voc2012.load({"data_dir": str(tmp_path / "none")}, "train")
    for part in (
        "NEST_JAX_VOC_ROOT",
        "--config.dataset.root",
        "python -m nest_jax.prepare voc2012 --source",
        str(tmp_path / "none"),
    ):
        assert part in str(error.value)
    assert voc2012.classes({})[15] == "person"


def test_a_split_that_does_not_exist() -> None:
    with pytest.raises(InputError, match="split of voc2012: unknown value 'test'"):
        voc2012.load({}, "test")


# ------------------------------------------------------------------------------------------------------------------ bad input


def cut(path: pathlib.Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def bomb(path: pathlib.Path) -> None:
    """A small PNG file that claims 60,000 x 60,000 pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0), b"IDAT" + zlib.compress(b""))
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def folder_for_file(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def first(voc: pathlib.Path, folder: str) -> pathlib.Path:
    return voc / folder / f"{TRAIN[0]}{'.jpg' if folder == 'JPEGImages' else '.png'}"


MASKS = "SegmentationClassAug"
BAD = {
    "missing image": (
        lambda voc: first(voc, "JPEGImages").unlink(),
        "JPEGImages/2007_000032.jpg: missing image, listed in .*train_aug.txt, line 1",
    ),
    "missing mask": (
        lambda voc: first(voc, MASKS).unlink(),
        "2007_000032.png: missing mask, listed in .*train_aug.txt, line 1",
    ),
    "truncated JPEG": (lambda voc: cut(first(voc, "JPEGImages"), 0.9), "2007_000032.jpg: unreadable image.*truncated"),
    "truncated PNG": (lambda voc: cut(first(voc, MASKS), 0.9), "2007_000032.png: unreadable mask, listed in"),
    "empty JPEG": (lambda voc: cut(first(voc, "JPEGImages"), 0), "2007_000032.jpg: unreadable image"),
    "text for PNG": (
        lambda voc: first(voc, MASKS).write_text("no"),
        "2007_000032.png: unreadable mask.*: not a picture that Pillow knows",
    ),
    "size": (
        lambda voc: palette(np.zeros((5, 9), np.uint8)).save(first(voc, MASKS)),
        "2007_000032.png: 9 x 5 pixels, its image 24 x 16",
    ),
    "labels": (
        lambda voc: Image.fromarray(np.where(labels(TRAIN[0]) == 1, 21, 254).astype(np.uint8)).save(first(voc, MASKS)),
        "2007_000032.png: label 21, 254; allowed are 0 to 20 and 255",
    ),
    "colours": (
        lambda voc: palette(labels(TRAIN[0])).convert("RGB").save(first(voc, MASKS)),
        "2007_000032.png: unreadable mask.*mode 'RGB'.*not colours",
    ),
    "16 bits": (
        lambda voc: Image.fromarray(labels(TRAIN[0]).astype(np.uint16)).save(first(voc, MASKS)),
        "2007_000032.png: unreadable mask.*mode 'I;16'",
    ),
    "1 bit": (
        lambda voc: Image.fromarray(labels(TRAIN[0])).convert("1").save(first(voc, MASKS)),
        "2007_000032.png: unreadable mask.*mode '1'",
    ),
    "too many pixels": (
        lambda voc: bomb(first(voc, MASKS)),
        "2007_000032.png: unreadable mask.*3600000000 pixels.*decompression bomb",
    ),
    "folder for JPEG": (
        lambda voc: folder_for_file(first(voc, "JPEGImages")),
        "2007_000032.jpg: unreadable image.*Is a directory",
    ),
    "twice in a list": (
        lambda voc: (voc / "ImageSets/Segmentation/val.txt").write_text(f"{VAL[0]}\n{VAL[1]}\n{VAL[0]}\n"),
        "2007_000033: listed in .*val.txt, line 1 and again in .*val.txt, line 3",
    ),
    "in both lists": (
        lambda voc: (voc / "ImageSets/Segmentation/val.txt").write_text(TRAIN[0]),
        "2007_000032: listed in .*train_aug.txt, line 1 and again in .*val.txt, line 1",
    ),
    "no list": (lambda voc: shutil.rmtree(voc / "ImageSets"), "no trainaug.txt, train_aug.txt or train.txt below"),
    "no val list": (lambda voc: (voc / "ImageSets/Segmentation/val.txt").unlink(), "no val.txt below"),
    "empty list": (lambda voc: (voc / "ImageSets/Segmentation/val.txt").write_text("\n"), "val.txt names no image"),
    "list of other things": (
        lambda voc: (voc / "ImageSets/Segmentation/val.txt").write_text("2007_000033  1\n"),
        "val.txt, line 1: '2007_000033  1' is neither a name nor two paths",
    ),
    "list of bytes": (
        lambda voc: (voc / "ImageSets/Segmentation/val.txt").write_bytes(b"\x80\x81\x82"),
        "val.txt cannot be read as a list of images: .*utf-8",
    ),
    "no masks of the list": (
        lambda voc: (voc / MASKS).rename(voc / "SegmentationClass"),
        "no folder SegmentationClassAug in .*train_aug.txt needs it .*SegmentationClass holds the masks of train.txt only",
    ),
    "no images": (lambda voc: shutil.rmtree(voc / "JPEGImages"), "no folder JPEGImages in "),
}


# ------------------------------------------------------------------------------------------------------------------ real data


ROOT = os.environ.get(voc2012.ROOT_VARIABLE, "")


def test_presence_of_the_real_masks_is_the_published_one() -> None:
    if not ROOT:
        pytest.skip(f"{voc2012.ROOT_VARIABLE} is not set")
    pairs = voc2012.pairs(pathlib.Path(ROOT))
    with np.load(GOLDEN) as golden:
        for split in voc2012.SPLITS:
            images, _ = golden[f"voc/{split}/shape"]
            published = np.unpackbits(golden[f"voc/{split}/presence"], axis=1, count=images).astype(bool).T
            row_of = {
                f"{n // 10**6}_{n % 10**6:06d}": row for row, n in enumerate(golden[f"voc/{split}/names"].tolist())
            }
            chosen = pairs[split][:: 1 + len(pairs[split]) // 2000]  # the subset entirely, of the full set a part
            with ThreadPoolExecutor(4) as pool:
                checked = list(pool.map(lambda pair: _check.check(pair, voc2012.CLASSES), chosen))
            assert [problem for _, problems in checked for problem in problems] == []
            np.testing.assert_array_equal(
                np.stack([presence[1:] for presence, _ in checked]), published[[row_of[pair.name] for pair in chosen]]
            )


def test_real_images_survive_preparation(tmp_path: pathlib.Path) -> None:
    if not ROOT:
        pytest.skip(f"{voc2012.ROOT_VARIABLE} is not set")
    pairs = voc2012.pairs(pathlib.Path(ROOT))
    few = {split: pairs[split][:20] for split in voc2012.SPLITS}
    directory = _prepared.prepare(
        "voc2012", "few", few, classes=voc2012.CLASSES, source=pathlib.Path(ROOT), data_dir=tmp_path
    )
    for split in voc2012.SPLITS:
        dataset = _prepared.dataset(directory, split, voc2012.CLASSES)
        for i, pair in enumerate(few[split]):
            image, mask = dataset.read(i)
            np.testing.assert_array_equal(image, Image.open(io.BytesIO(pair.image.read_bytes())).convert("RGB"))
            np.testing.assert_array_equal(mask, np.asarray(Image.open(pair.mask)))

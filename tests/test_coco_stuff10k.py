"""COCO-Stuff 10K from its official folders; its ids and names; what is wrong with a folder (`BAD`; test_bad_data.py tries it)."""

from __future__ import annotations

import csv
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from nest_jax import tasks
from nest_jax.datasets import coco_stuff10k
from nest_jax.datasets.coco_stuff10k import CLASSES, IDS, NEVER_ANNOTATED
from tests import test_voc2012
from tests.test_voc2012 import cut

no_settings_from_outside = test_voc2012.no_settings_from_outside

GOLDEN = pathlib.Path(__file__).parent / "golden" / "cocostuff_classes.csv"
TRAIN = ("COCO_train2014_000000000077", "COCO_train2014_000000000110")
TEST = ("COCO_train2014_000000000064",)
# Official ids and ours: things 1, 13 (street sign, 12, is never annotated), 90, stuff 92, 182.
MAPS = {TRAIN[0]: {0: 0, 1: 1, 13: 12, 90: 80}, TRAIN[1]: {92: 81, 182: 171}, TEST[0]: {92: 81, 0: 0}}


def ids(name: str) -> np.ndarray:
    found = np.zeros((16, 24), np.uint16)
    for row, id in enumerate(MAPS[name]):
        found[4 * row :] = id
    return found


def save(path: pathlib.Path, values: np.ndarray, *, name: str = "S", compress: bool = True) -> None:
    savemat(
        path, {name: values, "names": np.array(["unlabeled"], object), "captions": "a dog"}, do_compression=compress
    )


def tree(
    base: pathlib.Path, folder: str = "cocostuff-10k-v1.1", kind: type = np.uint16, compress: bool = True
) -> pathlib.Path:
    root = base / folder
    for name in ("images", "annotations", "imageLists"):
        (root / name).mkdir(parents=True)
    for file, names in (("train.txt", TRAIN), ("test.txt", TEST), ("all.txt", TRAIN + TEST)):
        (root / "imageLists" / file).write_text("".join(f"{name}\n" for name in names))
    for name in TRAIN + TEST:
        pixels = np.random.default_rng(int(name[-5:])).integers(0, 255, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        save(root / "annotations" / f"{name}.mat", ids(name).astype(kind), compress=compress)
    return root


@pytest.mark.parametrize(
    ("folder", "kind", "compress"),
    [("cocostuff-10k-v1.1", np.uint16, True), ("dataset", np.uint8, False), (".", np.float64, True)],
)
def test_official_folders(tmp_path: pathlib.Path, folder: str, kind: type, compress: bool) -> None:
    root = tree(tmp_path, folder, kind, compress)
    for split, names in (("train", TRAIN), ("val", TEST)):
        dataset = coco_stuff10k.load({"root": str(tmp_path)}, split)
        assert (dataset.names, dataset.classes) == (names, CLASSES)
        for i, name in enumerate(names):
            image, labels = dataset.read(i)
            assert (image.mode, labels.mode) == ("RGB", "L")
            np.testing.assert_array_equal(image, Image.open(root / "images" / f"{name}.jpg"))
            np.testing.assert_array_equal(labels, np.vectorize(MAPS[name].get)(ids(name)))
            np.testing.assert_array_equal(np.flatnonzero(dataset.presence[i]), sorted(MAPS[name].values()))


def test_ids_and_names_are_the_official_ones() -> None:
    with GOLDEN.open() as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == 183 and names[0] == "unlabeled"
    assert len(set(CLASSES)) == len(CLASSES) == 172 == 1 + 80 + 91
    assert CLASSES[0] == "background" and [names[id] for id in IDS[1:]] == list(CLASSES[1:])
    assert sorted(IDS + NEVER_ANNOTATED) == list(range(183))
    assert sum(1 <= id <= 91 for id in IDS) == 80  # things come first
    assert (CLASSES[1], CLASSES[80], CLASSES[81], CLASSES[171]) == ("person", "toothbrush", "banner", "wood")


def test_the_protocol_of_the_paper() -> None:
    protocol = tasks.parse("80-91", class_names=CLASSES)
    assert protocol.tasks == (tuple(range(1, 81)), tuple(range(81, 172)))
    assert tasks.train_table(protocol, 1)[[0, 80, 81, 171, 172]].tolist() == [0, 0, 81, 171, 255]


# ------------------------------------------------------------------------------------------------------------------ bad input


def first(root: pathlib.Path) -> pathlib.Path:
    return root / "annotations" / f"{TRAIN[0]}.mat"


def hdf5(path: pathlib.Path) -> None:
    """The head of a MATLAB 7.3 file."""
    path.write_bytes(
        b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\x02IM" + b"\x89HDF\r\n\x1a\n".ljust(512)
    )


BAD = {
    "missing map": (lambda root: first(root).unlink(), "000077.mat: missing mask, listed in .*train.txt, line 1"),
    "no label map": (
        lambda root: save(first(root), ids(TRAIN[0]), name="T"),
        "000077.mat: unreadable mask.*: it has no label map S",
    ),
    "an id that is never annotated": (
        lambda root: save(first(root), np.full((16, 24), 12)),
        "000077.mat: unreadable mask.*: id 12; allowed are 0 to 182 without 12, 26, 29",
    ),
    "an id above 182": (lambda root: save(first(root), np.full((16, 24), 300)), "000077.mat.*: id 300; allowed"),
    "fractions": (
        lambda root: save(first(root), ids(TRAIN[0]) + 0.5),
        r"000077.mat.*: id 0\.5, 1\.5, 13\.5, 90\.5; allowed",
    ),
    "text for a map": (
        lambda root: save(first(root), np.array(["dog"], object)),
        r"000077.mat.*: its S is of type object and shape",
    ),
    "three dimensions": (lambda root: save(first(root), np.zeros((16, 24, 3))), r"000077.mat.*shape \(16, 24, 3\)"),
    "truncated MATLAB file": (lambda root: cut(first(root), 0.6), "000077.mat: unreadable mask"),
    "MATLAB 7.3": (lambda root: hdf5(first(root)), "000077.mat: unreadable mask.*v7.3"),
    "a JPEG for a map": (
        lambda root: shutil.copy(root / "images" / f"{TRAIN[0]}.jpg", first(root)),
        "000077.mat: unreadable mask",
    ),
    "size": (
        lambda root: save(first(root), ids(TRAIN[0])[:, :20]),
        "000077.mat: 20 x 16 pixels, its image 24 x 16",
    ),
    "no lists": (lambda root: shutil.rmtree(root / "imageLists"), "no folder imageLists in "),
    "no test list": (lambda root: (root / "imageLists" / "test.txt").unlink(), "test.txt cannot be read as a list"),
}

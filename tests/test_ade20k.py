"""ADE20K from its official folders and from TFDS's scene_parse150; what is wrong with either (`BAD`; test_bad_data.py tries it)."""

from __future__ import annotations

import csv
import io
import os
import pathlib
import shutil
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from nest_jax.datasets import Dataset, ade20k
from tests import test_voc2012
from tests.test_voc2012 import cut

no_settings_from_outside = test_voc2012.no_settings_from_outside

GOLDEN = pathlib.Path(__file__).parent / "golden" / "ade20k_classes.csv"
NAMES = {
    "training": ("ADE_train_00000001", "ADE_train_00000002", "ADE_train_00000010"),
    "validation": ("ADE_val_00000001", "ADE_val_00000002"),
}
LABELS = {
    "ADE_train_00000001": (0, 1, 150),
    "ADE_train_00000002": (4,),
    "ADE_train_00000010": (0, 13, 101),
    "ADE_val_00000001": (0, 150),
    "ADE_val_00000002": (0,),
}


def picture(name: str) -> Image.Image:
    pixels = np.random.default_rng(int(name[-8:])).integers(0, 255, (16, 24, 3), np.uint8)
    return Image.fromarray(pixels).convert(
        "L" if name == "ADE_train_00000002" else "RGB"
    )  # a few official ones are grey


def mask(name: str) -> np.ndarray:
    labels = np.zeros((16, 24), np.uint8)
    for row, label in enumerate(LABELS[name]):
        labels[5 * row :] = label
    return labels


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tree(base: pathlib.Path) -> pathlib.Path:
    root = base / "ADEChallengeData2016"
    for split, names in NAMES.items():
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for name in names:
            (root / "images" / split / f"{name}.jpg").write_bytes(encoded(picture(name), "JPEG"))
            (root / "annotations" / split / f"{name}.png").write_bytes(encoded(Image.fromarray(mask(name)), "PNG"))
    (root / "objectInfo150.txt").write_text("Idx\tRatio")
    (root / "images" / "training" / "._ADE_train_00000001.jpg").write_bytes(b"macOS")
    return root


def assert_shows(dataset: Dataset, names: tuple[str, ...]) -> None:
    np.testing.assert_array_equal(dataset.presence, [[c in LABELS[name] for c in range(151)] for name in names])
    for i, name in enumerate(names):
        image, labels = dataset.read(i)
        assert (image.mode, labels.mode) == ("RGB", "L")
        expected = Image.open(io.BytesIO(encoded(picture(name), "JPEG"))).convert("RGB")
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(labels, mask(name))


def test_official_folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path)
    for split, names in (("train", NAMES["training"]), ("val", NAMES["validation"])):
        dataset = ade20k.load({"root": str(tmp_path)}, split)
        assert dataset.names == names
        assert dataset.classes == ade20k.CLASSES
        assert_shows(dataset, names)
    monkeypatch.setenv(ade20k.ROOT_VARIABLE, str(root))  # another level, the same set
    assert ade20k.prepare({"root": str(tmp_path)}) == ade20k.prepare({"root": str(root)})
    assert ade20k.load({}, "val").names == NAMES["validation"]


def test_class_names_are_the_official_ones() -> None:
    with GOLDEN.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["Idx"]) for row in rows] == list(range(1, 151))
    assert len(set(ade20k.CLASSES)) == len(ade20k.CLASSES) == 151
    for row, name in zip(rows, ade20k.CLASSES[1:], strict=True):
        words = row["Name"].split(";")  # the official table separates the words of a name like its synonyms
        assert words[0] == name or set(name.split()) <= set(words), (row, name)


# ------------------------------------------------------------------------------------------------------------------ scene_parse150


def scene_parse150(data_dir: pathlib.Path, annotation=lambda name: Image.fromarray(mask(name))) -> pathlib.Path:
    """What TFDS makes: both images encoded, splits train and test, no names. As ArrayRecord, which TFDS writes without TensorFlow."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image, labels = (tfds.features.Image(encoding_format=kind) for kind in ("jpeg", "png"))
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"image": image, "annotation": labels}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("training"), "test": self._generate_examples("validation")}

        def _generate_examples(self, split):
            for i, name in enumerate(NAMES[split]):
                yield (
                    i,
                    {"image": encoded(picture(name), "JPEG"), "annotation": encoded(annotation(name), "PNG")},
                )

    Builder.name = "scene_parse150"
    builder = Builder(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare(download_dir=data_dir / "downloads")
    return data_dir / "scene_parse150" / "1.0.0"


def as_tfrecord(directory: pathlib.Path) -> None:
    """The same records in TFDS's usual format, in two files a split."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for file in list(directory.glob("*.array_record-*")):
        source = ArrayRecordDataSource(os.fspath(file))
        records = [source[i] for i in range(len(source))]
        stem = file.name.partition(".")[0]
        for part, rows in enumerate((records[:1], records[1:])):
            content = b"".join(struct.pack("<QI", len(row), 7) + row + b"\0\0\0\0" for row in rows)
            (directory / f"{stem}.tfrecord-0000{part}-of-00002").write_bytes(content)
        file.unlink()


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize("channels", [1, 3])
def test_scene_parse150(tmp_path: pathlib.Path, kind: str, channels: int) -> None:
    def annotation(name: str) -> Image.Image:
        return Image.fromarray(mask(name)).convert("RGB" if channels == 3 else "L")

    directory = scene_parse150(tmp_path / "tfds", annotation)
    if kind == "tfrecord":
        as_tfrecord(directory)
    for split, names in (("train", NAMES["training"]), ("val", NAMES["validation"])):
        dataset = ade20k.load({"root": str(tmp_path / "tfds")}, split)
        official = {"train": "train", "val": "test"}[split]
        assert dataset.names == tuple(f"scene_parse150_{official}_{i:05d}" for i in range(len(names)))
        assert_shows(dataset, names)
    assert ade20k.prepare({"root": str(directory)}) == ade20k.prepare({"root": str(tmp_path / "tfds")})


# ------------------------------------------------------------------------------------------------------------------ bad input


def instances(name: str) -> Image.Image:
    """As the instance challenge of 2017: class in red, instance in green."""
    labels = mask(name)
    return Image.fromarray(np.stack([labels, labels // 2, 0 * labels], axis=-1))


def first(root: pathlib.Path, folder: str) -> pathlib.Path:
    return root / folder / "training" / f"{NAMES['training'][0]}{'.jpg' if folder == 'images' else '.png'}"


BAD = {
    "annotation without image": (
        lambda root: first(root, "images").unlink(),
        "ADE_train_00000001.jpg: missing image, listed in .*annotations/training",
    ),
    "image without annotation": (
        lambda root: first(root, "annotations").unlink(),
        "ADE_train_00000001.png: missing mask, listed in .*images/training",
    ),
    "void": (
        lambda root: Image.fromarray(mask(NAMES["training"][0]) + np.uint8(151)).save(first(root, "annotations")),
        "ADE_train_00000001.png: label 151, 152; allowed are 0 to 150 and 255",  # 150 + 151 wraps round to 45
    ),
    "colours of the full data set": (
        lambda root: instances(NAMES["training"][0]).save(first(root, "annotations")),
        "ADE_train_00000001.png: unreadable mask.*mode 'RGB'",
    ),
    "rotated": (
        lambda root: Image.fromarray(mask(NAMES["training"][0]).T.copy()).save(first(root, "annotations")),
        "ADE_train_00000001.png: 16 x 24 pixels, its image 24 x 16",
    ),
    "no validation": (
        lambda root: [shutil.rmtree(root / folder / "validation") for folder in ("images", "annotations")],
        "neither .*images/validation holds .jpg files nor .*annotations/validation .png files",
    ),
    "annotations still packed": (
        lambda root: shutil.rmtree(root / "annotations"),
        "no folder annotations in .*, .*ADEChallengeData2016",
    ),
}


def spoiled(directory: pathlib.Path, *, drop: str = "", keep: float = 1) -> None:
    as_tfrecord(directory)
    file = directory / "scene_parse150-train.tfrecord-00001-of-00002"
    cut(file, keep)
    if drop:
        (directory / drop).unlink()


BAD_RECORDS = {
    "instances": (instances, lambda directory: None, "record 0.*three channels.*differ.*take ADEChallengeData2016"),
    "no test file": (
        lambda name: Image.fromarray(mask(name)),
        lambda directory: next(directory.glob("*-test*")).unlink(),
        "0 scene_parse150-test files, there should be 1",
    ),
    "one file of two": (
        lambda name: Image.fromarray(mask(name)),
        lambda directory: spoiled(directory, drop="scene_parse150-test.tfrecord-00000-of-00002"),
        "1 scene_parse150-test files, there should be 2",
    ),
    "cut off": (
        lambda name: Image.fromarray(mask(name)),
        lambda directory: spoiled(directory, keep=0.7),
        "scene_parse150-train.tfrecord-00001-of-00002 is cut off or damaged after 1 records",
    ),
    "labels": (
        lambda name: Image.fromarray(np.where(mask(name) == 13, 200, mask(name)).astype(np.uint8)),
        lambda directory: None,
        r"record 2 \(annotation\): label 200; allowed are 0 to 150 and 255",
    ),
    "a later record of instances": (
        lambda name: instances(name) if "train" not in name else Image.fromarray(mask(name)),
        lambda directory: None,
        r"test.*record 0 \(annotation\): unreadable mask.*three channels",
    ),
}

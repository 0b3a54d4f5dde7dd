"""Everything that can be wrong with official folders: one message with file names, nothing written.

The kinds stand beside the tests of each data set; what is wrong with a YAML file and a user's folder is in test_folder.py.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from nest_jax import config, data
from nest_jax.datasets import _check, ade20k, coco_stuff10k, voc2012
from nest_jax.errors import InputError
from tests import test_ade20k, test_coco_stuff10k, test_voc2012
from tests.test_voc2012 import MASKS, TRAIN, VAL, first, tree

no_settings_from_outside = test_voc2012.no_settings_from_outside

OFFICIAL = {
    "voc2012": (voc2012, test_voc2012),
    "ade20k": (ade20k, test_ade20k),
    "coco_stuff10k": (coco_stuff10k, test_coco_stuff10k),
}
CASES = [(name, case) for name, (_, tests) in OFFICIAL.items() for case in tests.BAD]


def test_there_are_many_kinds() -> None:
    assert len(CASES) + len(test_ade20k.BAD_RECORDS) >= 40


@pytest.mark.parametrize(("name", "case"), CASES)
def test_bad_folders(tmp_path: pathlib.Path, name: str, case: str) -> None:
    dataset, tests = OFFICIAL[name]
    spoil, message = tests.BAD[case]
    spoil(tests.tree(tmp_path / "data"))
    with pytest.raises(InputError, match=message) as error:
        dataset.load({"root": str(tmp_path / "data"), "data_dir": str(tmp_path / "prepared")}, "train")
    assert str(error.value).startswith(f"{name}: ") and " object at 0x" not in str(error.value)
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("case", test_ade20k.BAD_RECORDS)
def test_bad_records_of_scene_parse150(tmp_path: pathlib.Path, case: str) -> None:
    annotation, spoil, message = test_ade20k.BAD_RECORDS[case]
    spoil(test_ade20k.scene_parse150(tmp_path / "tfds", annotation))
    with pytest.raises(InputError, match=message):
        ade20k.load({"root": str(tmp_path / "tfds"), "data_dir": str(tmp_path / "prepared")}, "train")
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_root_that_is_no_folder(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    for root in ("nowhere", "file"):
        with pytest.raises(InputError, match=f"{root}: no such directory .*{OFFICIAL[name][0].ROOT_VARIABLE}"):
            OFFICIAL[name][0].prepare({"root": str(tmp_path / root)})


def test_all_problems_at_once(tmp_path: pathlib.Path) -> None:
    voc = tree(tmp_path)
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text("".join(f"{TRAIN[0]}_{i}\n" for i in range(12)))
    first(voc, MASKS).unlink()
    (voc / MASKS / f"{VAL[1]}.png").unlink()
    with pytest.raises(InputError) as error:
        voc2012.load({"root": str(tmp_path)}, "val")
    message = str(error.value)
    assert f"voc2012: 25 problems in {tmp_path}; nothing was written" in message
    assert "--skip_bad" in message.splitlines()[0]
    assert message.count(": missing") == 20
    assert message.endswith("... and 5 more")


def test_all_bad_lines_at_once(tmp_path: pathlib.Path) -> None:
    voc = tree(tmp_path)
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text("a b\n" * 21 + f"{TRAIN[0]}\n")
    with pytest.raises(InputError, match="line 20: 'a b' is neither(.|\n)*and 1 more$"):
        voc2012.load({"root": str(tmp_path)}, "train")


def test_without_the_bad_ones(tmp_path: pathlib.Path) -> None:
    voc = tree(tmp_path)
    pairs = voc2012.pairs(tmp_path)
    pairs["val"].append(pairs["train"][0]._replace(origin="elsewhere"))
    (voc / "JPEGImages" / f"{TRAIN[1]}.jpg").write_bytes(b"")
    found = _check.check_all("mine", pairs, voc2012.CLASSES, source=tmp_path, skip_bad=True)
    assert {split: [pair.name for pair in kept] for split, kept in found.pairs.items()} == {
        "train": [TRAIN[0], TRAIN[2]],
        "val": list(VAL),
    }
    assert {split: list(images) for split, images in found.skipped.items()} == {"train": [TRAIN[1]], "val": [TRAIN[0]]}
    assert (
        "not a picture" in found.skipped["train"][TRAIN[1]][0]
        and "again in elsewhere" in found.skipped["val"][TRAIN[0]][0]
    )
    np.testing.assert_array_equal(found.presence["train"][:, [0, 1, 4, 15]], [[1, 1, 0, 0], [1, 0, 0, 1]])


def test_nothing_good_is_left(tmp_path: pathlib.Path) -> None:
    voc = tree(tmp_path)
    for name in VAL:
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="voc2012: no usable image for val in "):
        voc2012.load({"root": str(voc), "skip_bad": True}, "train")
    assert not (tmp_path / "default_data_dir").exists()


def test_classes_without_an_image_are_named(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path)
    loaded = config.load("configs/voc_15_1.py:backbone=tiny,decoder=plain")
    values = {
        "dataset.root": str(tmp_path),
        "tasks.name": "offline",
        "tasks.classes": "1,4,2,20,15",
        "train.batch_size": "1",
    }
    config.override(loaded, list(values.items()))
    protocol = config.protocol(loaded)
    data.load(loaded, protocol, protocol)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith("task 0: no training image shows bicycle, tvmonitor: ")

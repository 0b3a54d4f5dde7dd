"""Preparation as a whole: the command, what it says of the published set, bad images left out, interruptions, damage."""

from __future__ import annotations

import json
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from nest_jax import prepare
from nest_jax.datasets import Dataset, _prepared, ade20k, coco_stuff10k, voc2012
from nest_jax.errors import InputError
from tests import test_ade20k, test_coco_stuff10k, test_voc2012
from tests.test_tasks import GOLDEN, presence_of
from tests.test_voc2012 import TRAIN, VAL, assert_is_the_tree, first, tree

no_settings_from_outside = test_voc2012.no_settings_from_outside


def places(base: pathlib.Path) -> dict[str, str]:
    return {"root": str(base / "data"), "data_dir": str(base / "out")}


# ------------------------------------------------------------------------------------------------------------------ the command


def test_command_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path)
    arguments = ["voc2012", "--source", str(tmp_path), "--data_dir", str(tmp_path / "out")]
    for _ in range(2):  # the second time there is nothing to do
        assert prepare.main(arguments) == 0
        printed = capsys.readouterr().out
        assert "voc2012: 3 train, 2 val images in " + str(tmp_path / "out") in printed
        assert "not the published set, which has 10582 train, 1449 val images" in printed
        assert "no train image shows: bicycle, bird, bottle, " in printed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["voc2012"]
    assert prepare.main(["voc2012", "--source", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such directory" in capsys.readouterr().err
    assert prepare.main(["voc2021", "--source", str(tmp_path)]) == 2
    assert "did you mean 'voc2012'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "module", "counts"),
    [("ade20k", test_ade20k, (3, 2, 20210, 2000)), ("coco_stuff10k", test_coco_stuff10k, (2, 1, 9000, 1000))],
)
def test_the_other_data_sets(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], name: str, module: ModuleType, counts: tuple[int, ...]
) -> None:
    module.tree(tmp_path / "data")
    assert prepare.main([name, "--source", str(tmp_path / "data"), "--data_dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{name}: {counts[0]} train, {counts[1]} val images in {tmp_path / 'out'}" in printed
    assert f"not the published set, which has {counts[2]} train, {counts[3]} val images" in printed


# ------------------------------------------------------------------------------------------------------------------ as published


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, Dataset]]:
    """VOC and ADE20K by the class presence of the published masks, without images."""

    def dataset(golden: dict[str, np.ndarray], name: str, plugin: ModuleType, split: str) -> Dataset:
        presence = presence_of(golden, name, split)
        return Dataset(plugin.CLASSES, tuple(map(str, range(len(presence)))), presence, read=lambda i: pytest.fail())

    with np.load(GOLDEN) as file:
        golden = dict(file)
    plugins = {"voc": voc2012, "ade": ade20k}
    return {k: {split: dataset(golden, k, p, split) for split in ("train", "val")} for k, p in plugins.items()}


def test_the_published_sets_are_recognised(published: dict[str, dict[str, Dataset]]) -> None:
    assert prepare.comparison(voc2012, published["voc"]) == [
        "published: 10582 train, 1449 val images, as here",
        "training images by task as published: 15-5 overlapped, 15-1 overlapped, 10-1 overlapped, 19-1 overlapped, "
        "5-3 overlapped, 15-5 disjoint, 15-1 disjoint, 10-1 disjoint, 19-1 disjoint",
    ]
    assert prepare.comparison(ade20k, published["ade"]) == [
        "published: 20210 train, 2000 val images, as here",
        "training images by task as published: 100-50 overlapped, 100-10 overlapped, 100-5 overlapped, 50-50 overlapped",
    ]


def test_what_differs_is_said(published: dict[str, dict[str, Dataset]]) -> None:
    train = published["voc"]["train"]
    presence = train.presence.copy()
    presence[:, 20] = False
    splits = published["voc"] | {"train": Dataset(train.classes, train.names, presence, train.read)}
    text = "\n".join(prepare.comparison(voc2012, splits))
    assert "no train image shows: tvmonitor" in text
    assert "training images by task of 19-1 overlapped: 10410 0; published: 10410 548" in text
    assert "of 15-1 overlapped: 9568 487 299 491 500 0; published: 9568 487 299 491 500 548" in text
    assert "as published" not in text


def test_counts_of_coco() -> None:
    presence = np.ones((9000, 172), bool)
    splits = {
        split: Dataset(coco_stuff10k.CLASSES, tuple(map(str, range(n))), presence[:n], read=lambda i: pytest.fail())
        for split, n in (("train", 9000), ("val", 1000))
    }
    assert prepare.comparison(coco_stuff10k, splits) == ["published: 9000 train, 1000 val images, as here"]


# ------------------------------------------------------------------------------------------------------------------ bad images


def test_skip_bad(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    voc, settings = tree(tmp_path / "data"), places(tmp_path)
    good = first(voc, "JPEGImages").read_bytes()
    first(voc, "JPEGImages").write_bytes(good[:200])
    arguments = ["voc2012", "--source", settings["root"], "--data_dir", settings["data_dir"]]
    assert prepare.main(arguments) == 2
    assert "1 problem in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    assert prepare.main([*arguments, "--skip_bad"]) == 0
    printed = capsys.readouterr().out
    assert "voc2012: 2 train, 2 val images" in printed
    assert "bad and left out: 1 train; " in printed and f"{TRAIN[0]}.jpg: unreadable image" in printed
    (directory,) = _prepared.find("voc2012", tmp_path / "out")
    skipped = json.loads((directory / "skipped.json").read_text())
    assert list(skipped) == ["train"] and list(skipped["train"]) == [TRAIN[0]]

    caplog.clear()
    dataset = voc2012.load({**settings, "skip_bad": True}, "train")
    assert dataset.names == TRAIN[1:]
    np.testing.assert_array_equal(dataset.read(0)[1], test_voc2012.labels(TRAIN[1]))
    assert "1 bad train images were left out; skipped.json names them" in caplog.text
    caplog.clear()
    assert voc2012.load({"data_dir": str(directory)}, "val").names == VAL
    assert not caplog.records

    first(voc, "JPEGImages").write_bytes(good)  # mended: prepared anew, and preferred from then on
    assert_is_the_tree(settings, voc)
    assert voc2012.load({**settings, "skip_bad": True}, "train").names == TRAIN


def test_skip_bad_where_nothing_is_bad(tmp_path: pathlib.Path) -> None:
    voc, settings = tree(tmp_path / "data"), places(tmp_path)
    assert_is_the_tree({**settings, "skip_bad": True}, voc)
    assert voc2012.prepare(settings) == voc2012.prepare({**settings, "skip_bad": True})
    assert not list((tmp_path / "out").rglob("skipped.json"))


# ------------------------------------------------------------------------------------------------------------------ places


def test_a_data_dir_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    tree(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the prepared data set below .*file.*TFDS_DATA_DIR"):
        voc2012.load({"root": str(tmp_path), "data_dir": str(tmp_path / "file")}, "train")


def test_a_full_disk(tmp_path: pathlib.Path) -> None:
    voc, settings = tree(tmp_path / "data"), places(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (8000, limits[1])
    )  # no file may be larger: the index fits, the records do not
    try:
        with pytest.raises(InputError, match="cannot write the prepared data set.*File too large"):
            voc2012.load(settings, "train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert_is_the_tree(settings, voc)


def test_a_prepared_set_of_another_kind(tmp_path: pathlib.Path) -> None:
    test_ade20k.tree(tmp_path)
    directory = ade20k.prepare({"root": str(tmp_path)})
    with pytest.raises(InputError, match="a prepared set of 151 classes, background included; wanted is one of 21"):
        voc2012.load({"data_dir": str(directory)}, "train")


@pytest.mark.parametrize("damage", ["no records", "cut records", "index", "description", "skipped"])
def test_a_damaged_prepared_set(tmp_path: pathlib.Path, damage: str) -> None:
    tree(tmp_path / "data")
    directory = voc2012.prepare(places(tmp_path))
    records = directory / "voc2012-train.array_record-00000-of-00001"
    if damage == "no records":
        records.unlink()
    if damage == "cut records":
        test_voc2012.cut(records, 0.5)
    if damage == "index":
        test_voc2012.cut(directory / "index.npz", 0.5)
    if damage == "description":
        (directory / "features.json").write_text("{")
    if damage == "skipped":
        (directory / "skipped.json").write_text("{")
    with pytest.raises(InputError, match="damaged; delete it and prepare it again") as error:
        voc2012.load(places(tmp_path), "train").read(0)
    assert str(directory) in str(error.value)


# ------------------------------------------------------------------------------------------------------------------ interruptions


def test_killed_preparation_is_not_taken_for_a_finished_one(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    voc, settings = tree(tmp_path / "data"), places(tmp_path)
    program = f"""
import os
from nest_jax.datasets import _prepared, voc2012
def bar(items, text, *rest, **more):
    for i, item in enumerate(items):
        if "writing val" in text and i == 1:
            os._exit(9)
        yield item
_prepared.tqdm = bar
voc2012.load({settings!r}, "train")
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=pathlib.Path(__file__).parents[1], check=False)
    assert killed.returncode == 9
    assert list((tmp_path / "out").rglob("*.array_record*"))  # it had begun to write
    assert _prepared.find("voc2012", tmp_path / "out") == []
    with pytest.raises(InputError, match="no data"):
        voc2012.load({**settings, "root": ""}, "train")
    assert_is_the_tree(settings, voc)  # the same call again is all it takes
    assert "left behind by a preparation that was killed" in caplog.text
    (leftover,) = (path for path in (tmp_path / "out").rglob("incomplete.*") if path.is_dir())
    assert str(leftover) in caplog.text


def test_ctrl_c_leaves_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    voc, settings = tree(tmp_path / "data"), places(tmp_path)

    def bar(items: object, text: str, *rest: object, **more: object) -> Iterator[object]:
        if "writing val" in text:
            raise KeyboardInterrupt
        yield from items  # pyright: ignore[reportGeneralTypeIssues]

    with monkeypatch.context() as patch:
        patch.setattr(_prepared, "tqdm", bar)
        assert prepare.main(["voc2012", "--source", settings["root"], "--data_dir", settings["data_dir"]]) == 130
    assert capsys.readouterr().err == "interrupted: nothing is left behind; the same command begins again\n"
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert_is_the_tree(settings, voc)


def test_two_at_the_same_time(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voc, settings = tree(tmp_path / "data"), places(tmp_path)
    other = voc2012.prepare({**settings, "data_dir": str(tmp_path / "other")})
    final = tmp_path / "out" / other.relative_to(tmp_path / "other")

    def bar(items: object, text: str, *rest: object, **more: object) -> object:
        if "writing val" in text:
            shutil.copytree(other, final)  # the other process comes first
        return items

    monkeypatch.setattr(_prepared, "tqdm", bar)
    assert_is_the_tree(settings, voc)
    assert [path.name for path in final.parent.iterdir()] == [_prepared.VERSION]  # what lost is gone

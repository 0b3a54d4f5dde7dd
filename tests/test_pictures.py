import json

import numpy as np
import pytest
from PIL import Image

from nest_jax import pictures
from nest_jax.errors import InputError

NAMES = ("background", "aeroplane", "bicycle", "bird")


def example(seed=0, height=40, width=60):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    truth = np.zeros((height, width), np.int32)
    truth[5:20, 10:40] = 2
    truth[0] = 255
    return image, truth


def save(workdir, task, names=("a", "b"), label=2, size=(40, 60)):
    images, truths = zip(*(example(index, *size) for index in range(len(names))), strict=True)
    predictions = [np.full(size, label) for _ in names]
    pictures.save_predictions(workdir, task, names, images, truths, predictions, NAMES)


def test_palette_is_the_development_kits():
    colours = pictures.palette()
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 64: (32, 0, 0), 255: (255, 255, 255)}
    for label, colour in known.items():
        assert tuple(colours[label]) == colour
    assert len({tuple(colour) for colour in colours[:255].tolist()}) == 255


def test_stored_pictures_hold_the_labels(tmp_path):
    image, truth = example()
    prediction = np.arange(2400).reshape(40, 60) % 4
    pictures.save_predictions(tmp_path, 1, ["2007_000032"], [image], [truth], [prediction], NAMES)
    root = tmp_path / "pictures"
    np.testing.assert_array_equal(Image.open(root / "image" / "2007_000032.png"), image)
    for kind, labels in (("truth", truth), ("prediction", prediction)):
        with Image.open(root / "task-01" / f"2007_000032.{kind}.png") as stored:
            assert stored.mode == "P"
            np.testing.assert_array_equal(np.asarray(stored), labels)
            np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), pictures.palette()[labels])
    assert json.loads((root / "classes.json").read_text())["3"] == "bird"


def test_names_that_are_no_file_names_stay_apart(tmp_path):
    save(tmp_path, 0, names=("val/a b", "val/a_b", "val_a_b"))
    assert len(list((tmp_path / "pictures" / "image").iterdir())) == 3


def test_sizes_must_agree(tmp_path):
    image, truth = example()
    with pytest.raises(ValueError, match="differ in size"):
        pictures.save_predictions(tmp_path, 0, ["a"], [image], [truth], [truth[:-1]], NAMES)


def test_sheet_shows_every_task_in_its_colour(tmp_path):
    assert pictures.sheet(tmp_path) is None
    save(tmp_path, 0, names=("a",), label=1)
    save(tmp_path, 2, names=("a", "b"), label=3)
    path = pictures.sheet(tmp_path)
    assert path is not None and path == tmp_path / "pictures" / "sheet.png"
    with Image.open(path) as file:
        pixels = np.asarray(file.convert("RGB"))
    cell, gap = pictures.CELL, pictures.GAP
    assert pixels.shape[1] == gap + 4 * (cell + gap)  # image, truth, task 0, task 2

    def share(column, colour):
        start = gap + column * (cell + gap)
        return (pixels[:, start : start + cell] == colour).all(-1).sum() / (cell * round(cell * 40 / 60))

    colours = pictures.palette()
    assert share(1, colours[2]) == pytest.approx(
        2 * 450 / 2400, abs=0.06
    )  # two images, less their outlines and numbers
    assert share(2, colours[1]) == pytest.approx(1, abs=0.1)  # task 0 saw one of the images
    assert share(2, pictures.EMPTY) == pytest.approx(1, abs=0.1)
    assert share(3, colours[3]) == pytest.approx(2, abs=0.1)
    assert share(3, colours[1]) == 0


def test_sheet_takes_the_truth_of_the_last_task(tmp_path):
    image, truth = example()
    for task, labels in ((1, truth), (0, np.zeros_like(truth))):  # the order of saving does not matter
        pictures.save_predictions(tmp_path, task, ["a"], [image], [labels], [labels], NAMES)
    pixels = np.asarray(pictures.draw_sheet([("", tmp_path)]))
    column = pixels[:, pictures.GAP + pictures.CELL + pictures.GAP :][:, : pictures.CELL]
    assert (column == pictures.palette()[2]).all(-1).sum() > 1000


def test_sheets_of_several_runs_are_taller_by_a_row_an_image(tmp_path):
    for run in ("one", "two"):
        save(tmp_path / run, 0, names=("a", "b") if run == "one" else ("b", "c"), size=(50, 50))
    one = pictures.draw_sheet([("one", tmp_path / "one")])
    both = pictures.draw_sheet([("one", tmp_path / "one"), ("two", tmp_path / "two")])
    assert one.height > 2 * pictures.CELL
    # Only "b" is in both runs: one image, two rows.
    assert 2 * pictures.CELL < both.height < 3 * pictures.CELL
    with pytest.raises(InputError, match="no predictions are stored"):
        pictures.draw_sheet([("one", tmp_path / "one"), ("three", tmp_path / "three")])


def test_numbers_stand_inside_their_region():
    inside = np.zeros((30, 30), bool)
    inside[2:28, 2:5] = inside[2:12, 2:28] = True  # an L: its centre of mass is outside
    x, y = pictures._middle(inside)
    assert inside[y - 3 : y + 4, x - 3 : x + 4].all()
    single = np.zeros((5, 5), bool)
    single[4, 0] = True
    assert pictures._middle(single) == (0, 4)
    assert pictures._middle(np.ones((7, 7), bool)) == (3, 3)

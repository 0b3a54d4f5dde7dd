"""The synthetic data set: deterministic, consistent, balanced, and a later class is made of parts seen before."""

import pickle

import numpy as np
import pytest

from nest_jax import plugins
from nest_jax.datasets import shapes
from nest_jax.errors import InputError

SMALL = {"train_images": 70, "val_images": 14}


@pytest.fixture(scope="module")
def train():
    return shapes.load(SMALL, "train")


def test_is_a_plugin_with_defaults():
    module = plugins.load("datasets", "shapes")
    assert module is shapes
    assert module.defaults("shapes") == {"train_images": 480, "val_images": 120, "size": 64, "seed": 0}


def test_sizes_modes_and_names(train):
    assert len(train) == 70 and len(shapes.load(SMALL, "val")) == 14
    assert len(set(train.names)) == 70
    image, mask = train.read(0)
    assert image.mode == "RGB" and mask.mode == "L" and image.size == mask.size == (64, 64)
    assert shapes.load({**SMALL, "size": 96}, "val").read(3)[0].size == (96, 96)


def test_presence_is_what_the_masks_hold(train):
    assert train.presence.shape == (70, 8) and train.presence.dtype == bool
    for i in range(len(train)):
        labels = set(np.unique(np.asarray(train.read(i)[1]))) - {255}
        assert labels == set(np.flatnonzero(train.presence[i])), i


def test_every_class_has_images_and_images_have_several_classes(train):
    assert (train.presence[:, 1:].sum(0) >= 10).all()
    objects = train.presence[:, 1:].sum(1)
    assert objects.min() >= 1 and objects.max() == 3 and (objects > 1).mean() > 0.5


def test_drawing_depends_on_seed_split_and_index_only(train):
    longer = shapes.load({**SMALL, "train_images": 75}, "train")
    other = shapes.load({**SMALL, "seed": 1}, "train")
    val = shapes.load(SMALL, "val")
    for i in (0, 13):
        np.testing.assert_array_equal(np.asarray(train.read(i)[0]), np.asarray(longer.read(i)[0]))
        np.testing.assert_array_equal(np.asarray(train.read(i)[1]), np.asarray(longer.read(i)[1]))
        assert (np.asarray(train.read(i)[0]) != np.asarray(other.read(i)[0])).any()
        assert (np.asarray(train.read(i)[0]) != np.asarray(val.read(i)[0])).any()


def test_objects_have_a_void_border_of_one_pixel(train):
    for i in range(14):
        mask = np.asarray(train.read(i)[1])
        for label in np.unique(mask[(mask > 0) & (mask < 255)]):
            ys, xs = np.nonzero(mask == label)
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    y, x = np.clip(ys + dy, 0, 63), np.clip(xs + dx, 0, 63)
                    assert np.isin(mask[y, x], (label, 255)).all()  # no object touches anything but void
        ys, xs = np.nonzero(mask == 255)
        near = np.zeros(len(ys), bool)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                value = mask[np.clip(ys + dy, 0, 63), np.clip(xs + dx, 0, 63)]
                near |= (value > 0) & (value < 255)
        assert len(ys) and near.all()  # and void is nowhere else


def test_later_classes_combine_parts_of_the_base_task():
    base, later = shapes.KINDS[:3], shapes.KINDS[3:]
    assert len(set(shapes.KINDS)) == 7
    for shape, texture in later:
        assert shape in {s for s, _ in base} and texture in {t for _, t in base} and (shape, texture) not in base


def test_class_names_need_no_data():
    assert shapes.classes({}) == (
        "background",
        "circle",
        "striped square",
        "dotted triangle",
        "striped circle",
        "square",
        "triangle",
        "dotted circle",
    )


def test_texture_tells_striped_from_plain_and_colour_does_not_tell_the_class(train):
    # Inside an object a texture spreads the brightness; the mean colours of a class cover a wide range.
    spread, colours = {label: [] for label in range(1, 8)}, {label: [] for label in range(1, 8)}
    for i in range(len(train)):
        image, mask = (np.asarray(part) for part in train.read(i))
        for label in np.flatnonzero(train.presence[i])[1:]:
            pixels = image[mask == label].astype(float)
            if len(pixels) > 50:
                spread[label].append(pixels.sum(1).std())
                colours[label].append(pixels.mean(0))
    plain = [kind for kind in range(1, 8) if shapes.KINDS[kind - 1][1] == "plain"]
    assert max(max(spread[k]) for k in plain) < min(min(spread[k]) for k in range(1, 8) if k not in plain)
    assert all(np.std(colours[k], axis=0).min() > 15 for k in colours)


def test_read_is_picklable_and_small(train):
    data = pickle.dumps(train.read)
    assert len(data) < 500
    np.testing.assert_array_equal(np.asarray(pickle.loads(data)(5)[0]), np.asarray(train.read(5)[0]))


@pytest.mark.parametrize(
    ("settings", "split", "words"),
    [
        ({}, "test", ("split", "'test'", "train, val")),
        ({"train_images": 3}, "train", ("train_images", "at least 7", "3")),
        ({"size": 8}, "train", ("size", "at least 32", "8")),
        ({"seed": -1}, "val", ("seed", "-1")),
        ({"size": 64.5}, "val", ("size", "64.5")),
    ],
)
def test_bad_settings_are_named(settings, split, words):
    with pytest.raises(InputError) as error:
        shapes.load(settings, split)
    assert all(word in str(error.value) for word in words), error.value

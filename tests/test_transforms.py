"""Augmentation and evaluation views against hand-computed boxes, probabilities and pixels."""

import math

import numpy as np
import pytest
from PIL import Image

from nest_jax import transforms
from nest_jax.transforms import eval_transform, fallback_box, full_image, random_crop_box, train_transform


class Draws(np.random.Generator):
    """Stands for a generator: hands out the given numbers and notes what was asked for."""

    def __init__(self, uniform=(), integers=(), random=()):
        super().__init__(np.random.PCG64())
        self.numbers = {"uniform": list(uniform), "integers": list(integers), "random": list(random)}
        self.asked = []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.numbers["uniform"].pop(0)

    def integers(self, low, high):
        self.asked.append((low, high))
        return self.numbers["integers"].pop(0)

    def random(self):
        return self.numbers["random"].pop(0)


def pair(width, height, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = rng.integers(0, 256, (height, width), np.uint8)
    return Image.fromarray(image), Image.fromarray(mask)


def test_box_follows_the_drawn_numbers():
    # Half of 100x80 is 4000 pixels; at aspect 1.2: w = sqrt(4800) = 69.28, h = sqrt(4000 / 1.2) = 57.74.
    draws = Draws(uniform=[0.5, math.log(1.2)], integers=[7, 11])
    assert random_crop_box(100, 80, draws) == (11, 7, 69, 58)
    assert draws.asked[0] == (0.5, 2.0)
    assert draws.asked[1] == pytest.approx((math.log(3 / 4), math.log(4 / 3)))
    # Then the row and the column of the corner, both ends included.
    assert draws.asked[2:] == [(0, 80 - 58 + 1), (0, 100 - 69 + 1)]


def test_box_that_does_not_fit_is_drawn_again():
    # 1.9 times the area cannot fit; the second try is 0.5 * 8000 at aspect 1: 63 x 63.
    draws = Draws(uniform=[1.9, 0.0, 0.5, 0.0], integers=[0, 37])
    assert random_crop_box(100, 80, draws) == (37, 0, 63, 63)


def test_box_of_exactly_the_image_fits():
    draws = Draws(uniform=[1.0, 0.0], integers=[0, 0])
    assert random_crop_box(64, 64, draws) == (0, 0, 64, 64)
    assert draws.asked[2:] == [(0, 1), (0, 1)]


def test_after_ten_tries_the_whole_image_is_taken():
    draws = Draws(uniform=[2.0, 0.0] * 10)
    assert random_crop_box(100, 80, draws) == (0, 0, 100, 80)
    assert draws.numbers["uniform"] == []


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (500, 375, (0, 0, 500, 375)),  # 4/3 is inside
        (500, 376, (0, 0, 500, 376)),
        (500, 333, (28, 0, 444, 333)),  # too wide: 333 * 4/3 = 444
        (300, 500, (0, 50, 300, 400)),  # too tall: 300 / (3/4) = 400
        (301, 500, (0, 49, 301, 401)),  # 401.33 is rounded, 99 / 2 is floored
    ],
)
def test_fallback_clamps_the_aspect_ratio(width, height, box):
    assert fallback_box(width, height) == box


@pytest.mark.parametrize(("width", "height", "whole"), [(500, 375, 0.146), (500, 500, 0.058), (500, 334, 0.28)])
def test_share_of_samples_without_a_fitting_box(width, height, whole):
    # The shares and areas are those of a simulation of the published augmentation; 20,000 draws: sigma < 0.0032.
    rng = np.random.default_rng(3)
    boxes = np.array([random_crop_box(width, height, rng) for _ in range(20_000)])
    left, top, w, h = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (left + w <= width).all() and (top + h <= height).all()
    fell_back = (boxes == fallback_box(width, height)).all(1)
    assert fell_back.mean() == pytest.approx(whole, abs=0.012)
    if (width, height) == (500, 375):
        area = (w * h / (width * height))[~fell_back]
        assert area.mean() == pytest.approx(0.66, abs=0.01)
        assert np.quantile(area, 0.95) == pytest.approx(0.88, abs=0.01)


def test_train_crops_first_and_resizes_afterwards():
    image, mask = pair(40, 32)
    for mirrored in (False, True):
        draws = Draws(uniform=[0.5, 0.0], integers=[3, 5], random=[0.49 if mirrored else 0.5])
        pixels, labels = train_transform(image, mask, draws, 16)
        box = (5, 3, 5 + 25, 3 + 25)  # sqrt(640) = 25.3
        expected = np.asarray(image.crop(box).resize((16, 16), Image.Resampling.BILINEAR))
        expected_labels = np.asarray(mask.crop(box).resize((16, 16), Image.Resampling.NEAREST))
        step = -1 if mirrored else 1
        np.testing.assert_array_equal(pixels, expected[:, ::step])
        np.testing.assert_array_equal(labels, expected_labels[:, ::step])
        assert pixels.dtype == labels.dtype == np.uint8
        # Pillow's resize with a box looks past the crop's border: it is not the same thing.
        assert (expected != np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, box=box))).any()


def test_mask_takes_the_pixel_under_the_centre():
    mask = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6))
    image = Image.fromarray(np.zeros((6, 6, 3), np.uint8))
    _, labels = eval_transform(image, mask, 2)
    # floor((i + 0.5) * 3) = 1 and 4.
    np.testing.assert_array_equal(labels, [[7, 10], [25, 28]])


def test_image_is_antialiased_when_it_shrinks():
    columns = np.zeros((8, 8, 3), np.uint8)
    columns[:, ::2] = 200
    pixels, _ = eval_transform(Image.fromarray(columns), Image.fromarray(columns[..., 0]), 2)
    # Weights 4 - |x - 2| at x = .5, 1.5, ... 5.5: (2.5 3.5 3.5 2.5 1.5 .5) / 14; even columns get 7.5 / 14.
    # Sampling without antialiasing would mix two neighbours to 100.
    np.testing.assert_array_equal(pixels[:, 0], np.full((2, 3), 107))


def test_half_of_the_samples_are_mirrored():
    ramp = np.tile(np.arange(32, dtype=np.uint8), (32, 1))
    image, mask = Image.fromarray(np.stack([ramp] * 3, -1)), Image.fromarray(ramp)
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(1000):
        pixels, labels = train_transform(image, mask, rng, 8)
        assert (pixels[0, 0, 0] > pixels[0, -1, 0]) == (labels[0, 0] > labels[0, -1])  # image and mask together
        mirrored += bool(labels[0, 0] > labels[0, -1])
    assert mirrored == pytest.approx(500, abs=60)


@pytest.mark.parametrize(
    ("width", "height", "resized", "start"),
    [
        (500, 375, (682, 512), (85, 0)),  # int(682.67); 170 / 2
        (375, 500, (512, 682), (0, 85)),
        (500, 333, (768, 512), (128, 0)),  # int(768.77)
        (500, 372, (688, 512), (88, 0)),
        (500, 376, (680, 512), (84, 0)),
        (400, 500, (512, 640), (0, 64)),
        (500, 374, (684, 512), (86, 0)),
        (512, 513, (512, 513), (0, 0)),  # round(0.5) = 0: halves go to the even number
        (512, 515, (512, 515), (0, 2)),  # round(1.5) = 2
        (600, 600, (512, 512), (0, 0)),
    ],
)
def test_eval_resizes_the_shorter_side_and_takes_the_centre(width, height, resized, start):
    image, mask = pair(width, height)
    pixels, labels = eval_transform(image, mask, 512)
    box = (*start, start[0] + 512, start[1] + 512)
    np.testing.assert_array_equal(pixels, np.asarray(image.resize(resized, Image.Resampling.BILINEAR).crop(box)))
    np.testing.assert_array_equal(labels, np.asarray(mask.resize(resized, Image.Resampling.NEAREST).crop(box)))


def test_eval_of_a_small_image_enlarges_it():
    image, mask = pair(30, 20)
    pixels, labels = eval_transform(image, mask, 64)
    assert pixels.shape == (64, 64, 3) and labels.shape == (64, 64)


def test_full_image_changes_nothing():
    image, mask = pair(31, 17)
    pixels, labels = full_image(image, mask)
    np.testing.assert_array_equal(pixels, np.asarray(image))
    np.testing.assert_array_equal(labels, np.asarray(mask))
    assert pixels.shape == (17, 31, 3)


def test_defaults_are_the_published_ones():
    assert transforms.SCALE == (0.5, 2.0)
    assert transforms.RATIO == (3 / 4, 4 / 3)

"""Batches: what is in them, and that workers, restarts and hosts change nothing."""

import dataclasses
import functools
import io
import itertools
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

import nest_jax
from nest_jax import loader
from nest_jax.datasets import Dataset, shapes
from nest_jax.errors import InputError
from nest_jax.loader import eval_batches, one_pass_batches, train_batches
from nest_jax.transforms import eval_transform

COUNT = 10


def flat(i, side=40):
    """Image i is uniformly of colour i and label i, so that every sample says which image it is."""
    return Image.new("RGB", (side, side), (i, i, i)), Image.new("L", (side, side), i)


def gradient(i, side=40):
    """Like `flat`, with columns that differ: the pixels tell the crop."""
    image = np.full((side, side, 3), i, np.uint8)
    image[..., 1] = np.arange(side) * 6
    return Image.fromarray(image), Image.new("L", (side, side), i)


def broken(kind, i):
    """Image 3 is damaged in one way or another; the others are as `flat`."""
    if i != 3:
        return flat(i)
    if kind == "missing":
        return Image.open("/nowhere/image3.jpg"), flat(i)[1]
    if kind == "reader":
        raise InputError("image3: said by the reader")
    if kind == "size":
        return flat(i)[0], flat(i, side=30)[1]
    if kind == "mode":
        return flat(i)[1], flat(i)[1]
    raise AssertionError(kind)


def dataset(read=gradient, count=COUNT):
    names = tuple(f"image{i}" for i in range(count))
    return Dataset(("background", "thing"), names, np.ones((count, 2), bool), read)


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def train(start=0, stop=None, data=None, **options):
    options = {"size": 16, "batch_size": 4, "seed": (7, 1)} | options
    return train_batches(data or dataset(), range(COUNT), start=start, stop=stop, **options)


def test_train_batches_have_the_promised_form():
    for batch in take(train(), 3):
        assert batch.keys() == {"image", "label"}
        assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.uint8
        assert batch["label"].shape == (4, 16, 16) and batch["label"].dtype == np.uint8
        np.testing.assert_array_equal(batch["image"][..., 0], batch["label"])  # image and label of one sample


def test_an_epoch_shows_no_image_twice_and_drops_the_rest():
    # 10 images in batches of 4: two batches an epoch, two images left out, others in every epoch.
    seen = [batch["label"][:, 0, 0] for batch in take(train(), 40)]
    epochs = [np.concatenate(seen[i : i + 2]) for i in range(0, 40, 2)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set(np.concatenate(epochs)) == set(range(10))


def test_only_the_given_images_take_part():
    batches = train_batches(dataset(), np.array([1, 5, 8]), size=8, batch_size=3, seed=(0,), stop=5)
    assert all(sorted(batch["label"][:, 0, 0]) == [1, 5, 8] for batch in batches)


def test_streams_differ_by_every_part_of_the_seed():
    streams = [take(train(seed=seed), 4) for seed in ((7, 1), (7, 2), (8, 1), (7,), (7, 1, 0))]
    assert_same(streams[0], take(train(seed=(7, 1)), 4))
    for one, other in itertools.combinations(streams, 2):
        assert any((a["image"] != b["image"]).any() for a, b in zip(one, other, strict=True))


def test_samples_and_epochs_have_their_own_randomness():
    # One image only, so the crops tell whether two places of the stream share their random numbers.
    batches = train_batches(dataset(count=1), [0], size=16, batch_size=1, seed=(0,), stop=30)
    assert len({batch["image"].tobytes() for batch in batches}) > 15
    batches = train_batches(dataset(), [4, 4, 4, 4], size=16, batch_size=4, seed=(0,), stop=1)
    assert len({image.tobytes() for image in next(batches)["image"]}) == 4


def test_resume_goes_on_exactly():
    everything = take(train(), 9)
    assert_same(everything[5:], list(train(start=5, stop=9)))
    assert_same([], list(train(start=9, stop=9)))


def test_processes_take_their_rows_of_the_same_batch():
    whole = list(train(stop=3))
    halves = [list(train(stop=3, process=(i, 2))) for i in range(2)]
    for n, batch in enumerate(whole):
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([half[n][key] for half in halves]))


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_change_nothing(workers):
    expected = take(train(data=dataset()), 7)
    batches = train(workers=workers, start=1)
    got = take(batches, 6)
    batches.close()
    assert_same(expected[1:], got)
    assert all(type(value) is np.ndarray for batch in got for value in batch.values())


def test_worker_processes_end_with_the_stream():
    expected = list(eval_batches(dataset(), range(COUNT), size=16, batch_size=4))
    assert_same(expected, list(eval_batches(dataset(), range(COUNT), size=16, batch_size=4, workers=2)))


def test_eval_batches_are_in_order_and_filled_up():
    data, indices = dataset(), [9, 2, 5]
    first, last = eval_batches(data, indices, size=16, batch_size=2)
    for batch in (first, last):
        assert batch.keys() == {"image", "label", "valid", "index"}
        assert batch["image"].shape == (2, 16, 16, 3) and batch["label"].shape == (2, 16, 16)
        assert batch["valid"].dtype == bool and batch["index"].dtype == np.int64
    np.testing.assert_array_equal(first["index"], [9, 2])
    np.testing.assert_array_equal(last["index"], [5, -1])
    np.testing.assert_array_equal(last["valid"], [True, False])
    assert (last["label"][1] == 255).all() and (last["image"][1] == 0).all() and (last["label"][0] == 5).all()
    np.testing.assert_array_equal(first["image"][1], eval_transform(*data.read(2), 16)[0])


def test_eval_rows_of_processes_make_up_the_batch_also_where_one_has_only_padding():
    whole = list(eval_batches(dataset(), range(5), size=16, batch_size=4))
    halves = [list(eval_batches(dataset(), range(5), size=16, batch_size=4, process=(i, 2))) for i in range(2)]
    assert_same(whole, [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves, strict=True)])
    assert not halves[1][1]["valid"].any()


def test_full_images_come_one_by_one_as_they_are():
    data = dataset(lambda i: flat(i, side=20 + i))
    batches = list(eval_batches(data, [4, 7], size=None, batch_size=24))
    assert [batch["image"].shape for batch in batches] == [(1, 24, 24, 3), (1, 27, 27, 3)]
    assert [batch["index"].tolist() for batch in batches] == [[4], [7]]
    with pytest.raises(InputError, match="one process"):
        eval_batches(data, [4, 7], size=None, batch_size=1, process=(0, 2))


def test_one_pass_shows_every_image_once_augmented():
    data = dataset()
    batches = list(one_pass_batches(data, range(COUNT), size=16, batch_size=4, seed=(3,)))
    assert all(batch.keys() == {"image", "label"} for batch in batches)
    assert [len(batch["label"]) for batch in batches] == [4, 4, 4]
    labels = np.concatenate([batch["label"] for batch in batches])
    np.testing.assert_array_equal(labels[:COUNT, 0, 0], range(COUNT))
    assert (labels[COUNT:] == 255).all()
    plain = list(eval_batches(data, range(COUNT), size=16, batch_size=4))
    assert (batches[0]["image"] != plain[0]["image"]).any()
    again = one_pass_batches(data, range(COUNT), size=16, batch_size=4, seed=(3,), start=1)
    assert_same(batches[1:], list(again))


def test_batches_count():
    assert loader.iterations_per_epoch(487, 24) == 20
    assert loader.batches_in_pass(487, 24) == 21 and loader.batches_in_pass(48, 24) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 11}, ("batch_size", "11", "10 training images")),
        ({"batch_size": 0}, ("batch_size", "0")),
        ({"process": (0, 3)}, ("batch_size", "4", "3 processes")),
        ({"process": (2, 2)}, ("process", "2")),
        ({"seed": (-1,)}, ("seed", "-1")),
        ({"start": -1}, ("start", "-1")),
        ({"workers": -1}, ("workers", "-1")),
    ],
)
def test_bad_arguments_are_named_at_the_call(options, words):
    with pytest.raises(InputError) as error:
        train(**options)
    assert all(word in str(error.value) for word in words), error.value


def test_indices_outside_of_the_data_set_are_refused():
    with pytest.raises(InputError, match="0..10 do not lie in the 10 images"):
        eval_batches(dataset(), range(11), size=16, batch_size=4)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ("image3", "cannot be read", "/nowhere/image3.jpg")),
        ("reader", ("image3: said by the reader",)),
        ("size", ("image3", "40x40", "30x30")),
        ("mode", ("image3", "RGB", "got L")),
    ],
)
def test_a_bad_file_is_named(kind, words):
    data = dataset(functools.partial(broken, kind))
    with pytest.raises(InputError) as error:
        list(eval_batches(data, range(COUNT), size=16, batch_size=2))
    assert all(word in str(error.value) for word in words), error.value


def test_a_truncated_file_is_named():
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    cut = file.getvalue()[:900]
    data = dataset(lambda i: (Image.open(io.BytesIO(cut)), flat(i)[1]), count=1)  # Pillow reads the pixels later
    with pytest.raises(InputError, match=r"^image0: .* cannot be read .*truncated"):
        next(train_batches(data, [0], size=16, batch_size=1, seed=(0,)))


def test_a_bad_file_is_named_from_a_worker_process():
    data = dataset(functools.partial(broken, "size"))
    batches = eval_batches(data, range(COUNT), size=16, batch_size=2, workers=1)
    np.testing.assert_array_equal(next(batches)["index"], [0, 1])
    with pytest.raises(InputError, match="image3.*40x40.*30x30"):
        list(batches)


def test_batches_before_a_bad_one_still_arrive_and_threads_end():
    data = dataset(functools.partial(broken, "missing"))
    before = threading.active_count()
    batches = eval_batches(data, range(COUNT), size=16, batch_size=1)
    assert [next(batches)["index"][0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError):
        next(batches)
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(10)
    assert threading.active_count() <= before


def test_errors_of_the_program_itself_are_not_hidden():
    def read(i):
        raise KeyError(i)

    with pytest.raises(KeyError):
        next(eval_batches(dataset(read), range(4), size=16, batch_size=2))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_abandoned_stream_does_not_hang_the_program(workers, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from nest_jax.datasets import shapes\n"
        "from nest_jax.loader import train_batches\n"
        "if __name__ == '__main__':\n"
        "    data = shapes.load({'train_images': 16}, 'train')\n"
        f"    batches = train_batches(data, range(16), size=32, batch_size=4, seed=(0,), workers={workers})\n"
        "    print(next(batches)['image'].shape)\n"
    )
    root = str(pathlib.Path(nest_jax.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(4, 32, 32, 3)"
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr, done.stderr


def test_shapes_go_through_the_loader():
    data = shapes.load({"train_images": 14}, "train")
    batch = next(train_batches(data, range(14), size=64, batch_size=14, seed=(0,)))
    labels = set(np.unique(batch["label"]))
    assert labels <= {*range(8), 255} and {0, 255} <= labels
    assert dataclasses.is_dataclass(data) and len(data) == 14


def test_the_benchmark_compares_with_a_plain_loop():
    root = pathlib.Path(nest_jax.__file__).parent.parent
    command = [sys.executable, root / "benchmarks" / "input_pipeline.py", "--images=24", "--size=32", "--rounds=1"]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    for words in ("PIL + Python, labels pixel by pixel", "images/s and core", "cores that feed 150 images/s"):
        assert words in done.stdout

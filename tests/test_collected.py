"""Pre-tuning on features that are computed once: the same start as online, every image once an epoch, resumable."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import nest_jax
from nest_jax import checkpoints, collected, phases, rundir, sharding, writers
from nest_jax import config as configs
from nest_jax import data as task_data
from nest_jax.errors import InputError
from tests import tiny

CACHED = {"classifier_init__features": "cached", "classifier_init__views": 2, "classifier_init__epochs": 2}


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("online")
    nest_jax.run(tiny.config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def cached(online, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cached")
    nest_jax.run(tiny.config(init_from=online, **CACHED), workdir)
    return workdir


def start(workdir):
    return checkpoints.restore(rundir.start_directory(workdir, 1))[0]


def test_statistics_are_those_of_online_features(online, cached):
    expected, found = start(online)["details"], start(cached)["details"]
    assert_array_equal(found["pixels"], expected["pixels"])
    for name, value in expected["initial"].items():
        assert_allclose(found["initial"][name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_transform_is_trained_and_the_network_stays(online, cached):
    before, after = checkpoints.restore(rundir.task_directory(online, 0))[0]["model"], start(cached)
    for part in ("network", "batch_stats"):
        jax.tree.map(assert_array_equal, after["model"][part], before[part])
    for name, value in after["details"]["pretuned"].items():
        assert np.any(value != after["details"]["initial"][name]), name


def test_a_run_that_dies_in_pretuning_ends_with_the_same_numbers(online, cached, tmp_path, monkeypatch):
    config = tiny.config(init_from=online, checkpoint__every_steps=1, **CACHED)
    save = rundir.save_rolling

    def save_and_die(workdir, task, phase, done, *rest, **options):
        save(workdir, task, phase, done, *rest, **options)
        if (phase, done) == ("pretuning", 2):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(rundir, "save_rolling", save_and_die)
        nest_jax.run(config, tmp_path)
    newest = rundir.latest_rolling(tmp_path, 1)
    assert newest and checkpoints.metadata(newest)["phase"] == "pretuning"
    nest_jax.run(config, tmp_path)
    jax.tree.map(assert_array_equal, start(tmp_path), start(cached))


def test_every_image_once_an_epoch_whatever_the_number_of_processes(monkeypatch, tmp_path):
    images, size, epochs = 11, 4, 2  # two full batches an epoch; the third of a pass has three images and one empty row
    config = tiny.config(train__batch_size=size, classifier_init__epochs=epochs)
    protocol = configs.protocol(config)
    data = task_data.load(config, protocol, protocol)
    monkeypatch.setattr(task_data, "training_images", lambda data, task: np.arange(images))

    def made_by(process):
        rows = slice(process[0] * size // process[1], (process[0] + 1) * size // process[1])

        def one_pass(data, task, phase, begin, *, view):
            for first in range(0, images, size):
                yield {"label": np.arange(first, first + size, dtype=np.uint8)[rows] + 100 * view}

        def outputs(context, phase, function, frozen, batches, steps, title):
            return ((batch, {"features": batch["label"].astype(float)}) for batch in batches)

        with monkeypatch.context() as patched:
            patched.setattr(task_data, "process", lambda: process)
            patched.setattr(task_data, "one_pass", one_pass)
            patched.setattr(phases, "outputs", outputs)
            with writers.Writer(tmp_path) as writer:
                context = phases.Context(tmp_path, config, sharding.mesh(), writer, 1, {}, {})
                return collected.batches(context, data, lambda: None, None, 2)

    whole = made_by((0, 1))
    assert (whole.statistics_steps, whole.pretuning_steps) == (3, 4)
    assert len(list(whole.statistics(1))) == 2
    batches = list(whole.pretuning(0))
    seen = np.array([batch["features"] for batch in batches]).reshape(epochs, -1)
    for epoch, values in enumerate(seen):
        assert len(set(values)) == 8 and set(values) <= {i + 100 * epoch for i in range(images)}
    assert_array_equal(next(iter(whole.pretuning(3)))["label"], batches[3]["label"])
    halves = [list(made_by((i, 2)).pretuning(0)) for i in range(2)]
    for batch, *parts in zip(batches, *halves, strict=True):
        assert_array_equal(batch["features"], np.concatenate([part["features"] for part in parts]))


def test_features_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"classifier_init.features=cached: .* task 3 .* GB"):
        collected._check_memory(3, {"features": np.zeros(1000)}, 10**15)
    collected._check_memory(3, {"features": np.zeros(1000)}, 1000)


def test_views_need_cached_features():
    config = tiny.config("classifier_init=nest", classifier_init__views=2)
    with pytest.raises(InputError, match="views: 2"):
        nest_jax.run(config, "unused")

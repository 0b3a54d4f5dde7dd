import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import checkpoints, figures, inspect, nest, rundir
from nest_jax.errors import CorruptCheckpoint, InputError

NAMES = ("background", "cat", "dog")


def transform(seed=0, new=1, old=2, channels=4):
    rng = np.random.default_rng(seed)
    return {
        "importance": rng.normal(size=(new, old, channels)).astype(np.float32),
        "projection": rng.normal(size=(new, old)).astype(np.float32),
        "bg_importance": np.ones(channels, np.float32),
        "bg_projection": np.ones((), np.float32),
        "bias": np.zeros(new, np.float32),
    }


def save(workdir, task=1, details=None):
    """A checkpoint as the trainer leaves it, of a network of one layer."""
    classes = NAMES[: task + 2]
    rng = np.random.default_rng(task)
    network = {"body": {"conv": {"kernel": np.full((2, 2), task + 1.0, np.float32)}}, "head": {}}
    classifier = {
        "kernel": rng.normal(size=(4, len(classes))).astype(np.float32),
        "bias": np.zeros(len(classes), np.float32),
    }
    model = {"network": network, "classifier": classifier, "batch_stats": {"body": {"mean": np.zeros(2, np.float32)}}}
    report = {"task": task, "new_classes": classes[1:] if task == 0 else classes[-1:], "metrics": {"miou_all": 0.5}}
    metadata = {"task": task, "classes": classes, "config": {"seed": 42}, "report": report}
    tree = {"model": model, "details": details or {}}
    checkpoints.save(rundir.task_directory(workdir, task), tree, metadata)
    if task:
        checkpoints.save(rundir.start_directory(workdir, task), tree, {"seconds": {}, "steps": {}})
    return model


# Loading


def test_load_gives_the_task_as_numpy(tmp_path):
    before = transform()
    model = save(tmp_path, 1, {"initial": before, "pretuned": transform(1), "pixels": np.array([7], np.int32)})
    found = inspect.load(tmp_path, 1)
    assert_array_equal(found.classifier["kernel"], model["classifier"]["kernel"])
    assert_array_equal(found.network["body"]["conv"]["kernel"], model["network"]["body"]["conv"]["kernel"])
    assert_array_equal(found.batch_stats["body"]["mean"], [0, 0])
    assert isinstance(found.classifier["kernel"], np.ndarray)
    assert (found.task, found.class_names, found.new_classes) == (1, NAMES, ("dog",))
    assert found.config == {"seed": 42} and found.report["metrics"] == {"miou_all": 0.5}
    assert_array_equal(inspect.transforms(found)["initial"]["projection"], before["projection"])
    assert list(inspect.transforms(found)) == ["initial", "pretuned"]


def test_start_is_the_model_before_training_and_has_no_report(tmp_path):
    save(tmp_path, 0)
    save(tmp_path, 1)
    found = inspect.load(tmp_path, 1, start=True)
    assert found.class_names == NAMES and found.report == {}
    with pytest.raises(InputError, match="no start of task 0"):
        inspect.load(tmp_path, 0, start=True)


def test_other_initialisations_have_no_transforms_and_plop_has_thresholds(tmp_path):
    save(tmp_path, 1, {"method": {"thresholds": np.array([0.1, 0.2], np.float32)}, "initial": {"kernel": np.ones(2)}})
    found = inspect.load(tmp_path, 1)
    assert inspect.transforms(found) == {}
    assert_allclose(inspect.thresholds(found)["thresholds"], [0.1, 0.2])
    save(tmp_path / "other", 0)
    assert inspect.thresholds(inspect.load(tmp_path / "other", 0)) is None


def test_a_missing_task_names_those_that_are_there(tmp_path):
    save(tmp_path, 0)
    save(tmp_path, 1)
    with pytest.raises(InputError, match="task 4 cannot be loaded; complete: 0, 1"):
        inspect.load(tmp_path, 4)
    with pytest.raises(InputError, match="no task is complete"):
        inspect.load(tmp_path / "nowhere", 0)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    save(tmp_path, 0)
    (rundir.task_directory(tmp_path, 0) / "metadata.json").write_text("{}")
    with pytest.raises(CorruptCheckpoint):
        inspect.load(tmp_path, 0)


# Numbers


def test_cosines_by_hand():
    kernel = np.array([[3.0, 0.0, 0.0], [4.0, 2.0, 0.0]], np.float32)
    assert_allclose(inspect.similarity(kernel), [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 0]], atol=1e-6)
    other = np.array([[-3.0], [-4.0]], np.float32)
    assert_allclose(inspect.similarity(kernel, other), [[-1], [-0.8], [0]], atol=1e-6)


def test_norms_by_hand():
    assert_allclose(inspect.class_norms(np.array([[3.0, 0.0], [4.0, 2.0]])), [5, 2])
    tree = {"body": {"conv": {"kernel": np.full((2, 2, 1), 2.0), "bias": np.zeros(3)}}, "head": {"scale": np.ones(4)}}
    assert inspect.layer_norms(tree) == {"body/conv/bias": 0, "body/conv/kernel": 4, "head/scale": 2}


def test_change_is_relative_and_only_over_classes_that_both_know():
    before = {"body": {"moved": np.array([3.0, 4.0]), "same": np.ones(3), "zero": np.zeros(2)}, "gone": np.ones(1)}
    before["classifier"] = {"kernel": np.array([[1.0, 2.0], [2.0, 4.0]])}
    after = {"body": {"moved": np.array([3.0, 5.0]), "same": np.ones(3), "zero": np.ones(2)}}
    after["classifier"] = {"kernel": np.array([[1.0, 2.0, 9.0], [2.0, 9.0, 9.0]])}
    found = inspect.change(before, after)
    assert found == {
        "body/moved": pytest.approx(0.2),
        "body/same": 0.0,
        "body/zero": float("inf"),
        "classifier/kernel": pytest.approx(1.0),
    }


def test_layers_are_root_mean_squares_of_their_arrays():
    values = {"body/block1/conv/kernel": 3.0, "body/block1/bn/scale": 4.0, "head/conv": 2.0}
    assert inspect.by_layer(values) == {"body/block1": pytest.approx(12.5**0.5), "head/conv": 2.0}
    assert inspect.by_layer(values, depth=1) == {"body": pytest.approx(12.5**0.5), "head": 2.0}


def test_background_has_its_own_contrast():
    """Figure 6: |M| in [0, 1]; the foreground rows share a range, the background row has one of its own."""
    importance = np.array([[10.0, -30.0, 20.0], [0.0, -1.0, 2.0], [4.0, 1.0, 3.0]], np.float32)
    expected = [[0, 1, 0.5], [0, 0.25, 0.5], [1, 0.25, 0.75]]
    assert_allclose(inspect.importance_map(importance), expected, atol=1e-6)


def test_importance_without_a_range_is_zero():
    assert_array_equal(inspect.importance_map(np.full((3, 2), 0.7, np.float32)), np.zeros((3, 2)))
    assert_array_equal(inspect.importance_map(np.array([[1.0, 3.0]], np.float32)), [[0, 1]])


def test_contributions_are_shares_of_nests_new_classifier():
    made, kernel = transform(3, old=3), np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32)
    old = {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(3)}

    def new_column(projection):
        return np.asarray(
            nest.transformed(jax.tree.map(jnp.asarray, {**made, "projection": projection}), old)["kernel"]
        )[:, -1]

    shares, whole = inspect.contributions(made, kernel), new_column(made["projection"])
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    for index, share in enumerate(shares):
        part = new_column(made["projection"] * (np.arange(3) == index).astype(np.float32))
        assert share == pytest.approx(part @ whole / (whole @ whole), abs=1e-5)


def test_contributions_to_nothing_are_nothing():
    made = transform()
    made["projection"] = np.zeros_like(made["projection"])
    assert_array_equal(inspect.contributions(made, np.ones((4, 2), np.float32)), [0, 0])


# Figures


def test_heat_map_numbers_what_there_is():
    values = np.array([[50.0, np.nan], [0.0, 100.0]])
    figure = figures.heat_map(values, ["a", "b"], ["0", "1"], "IoU", outlined=[(0, 0)])
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["0", "100", "50"]
    assert len(axes.patches) == 1


def test_bars_hold_the_values():
    figure = figures.projection([0.25, 0.75], [0.5, -0.5], ["background", "cat"], "dog")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [0.25, 0.75, 0.5, -0.5]
    stacked = figures.bars({"a": [1.0, 2.0], "b": [3.0, 4.0]}, ["x", "y"], "t", "s", stacked=True)
    assert [bar.get_x() for bar in stacked.axes[0].patches] == [0, 0, 1, 2]


def test_series_differ_in_more_than_colour():
    for key in ("color", "linestyle", "marker"):
        assert len({str(figures.series(index)[key]) for index in range(6)}) == 6


def test_files_of_a_figure_are_reproducible_and_themed():
    made = [figures.lines({"a": ([0, 1], [1.0, 2.0])}, "t", "x", "y", spread={"a": [0.1, 0.2]}) for _ in range(2)]
    assert figures.svg(made[0]) == figures.svg(made[1])
    text = figures.svg(made[0])
    assert text.startswith("<svg") and "currentColor" in text and figures.INK not in text
    assert figures.png(made[0], dpi=40).startswith(b"\x89PNG")


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'nest_jax\[report\]'"):
        figures.bars({"a": [1.0]}, ["x"], "t", "s")

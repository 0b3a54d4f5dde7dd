import csv
import json

import numpy as np
import pytest

from nest_jax import compare, pictures, results
from nest_jax.errors import InputError

NAMES = ("background", "cat", "dog", "sofa")


def cyclic(groups):
    """A confusion matrix of `groups` of (classes, IoU): a class's errors go to the next class of its group.

    With n pixels a class and t of them right, IoU = t / (2n - t); n = 50000 (1 + IoU), t = 100000 IoU makes it exact.
    """
    total = sum(classes for classes, _ in groups)
    matrix = np.zeros((total, total), np.int64)
    start = 0
    for classes, value in groups:
        pixels, hits = round(50_000 * (1 + value)), round(100_000 * value)
        for index in range(classes):
            matrix[start + index, start + index] += hits
            matrix[start + index, start + (index + 1) % classes] += pixels - hits
        start += classes
    return matrix


# Numbers


def test_iou_by_hand():
    confusion = np.array([[50, 10, 0, 0], [5, 20, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    confusion[0, 3] = 15  # predicted where it is not
    # background: 50 / (75 + 55 - 50), cat: 20 / (25 + 30 - 20), dog and sofa have no ground truth.
    np.testing.assert_allclose(results.iou(confusion), [50 / 80, 20 / 35, np.nan, np.nan], atol=1e-7)
    assert results.iou(confusion).dtype == np.float64


def test_rows_are_truth():
    # All pixels of class 0 called 1: class 1 has no ground truth, class 0 has none right.
    np.testing.assert_array_equal(results.iou(np.array([[0, 9], [0, 0]])), [0.0, np.nan])


def test_published_epsilon():
    assert results.iou(np.array([[1]]))[0] == 1 / (1 + 1e-6)


def test_large_counts_do_not_overflow_or_round():
    pixels = 2**40
    confusion = np.array([[pixels, 1], [0, pixels]])
    assert results.iou(confusion)[0] == pixels / (pixels + 1 + 1e-6)
    assert results.summary(confusion, 1)["pixel_accuracy"] == 2 * pixels / (2 * pixels + 1)


@pytest.mark.parametrize(
    ("base", "old", "later", "new", "all_classes"),
    [
        (51, 45.9, 100, 23.9, 31.33),  # ADE 50-50, MiB: printed 31.3; without background it would be 31.2
        (16, 45.2, 5, 15.7, 38.18),  # VOC 15-1, MiB
        (16, 70.43, 5, 23.86, 59.34),  # VOC 15-1, a table that NeST's code ships
        (11, 50.25, 10, 16.40, 34.13),  # VOC 10-1, likewise
    ],
)
def test_published_rows_are_means_with_background_in_old(base, old, later, new, all_classes):
    found = results.summary(cyclic([(base, old / 100), (later, new / 100)]), num_base=base)
    assert 100 * found["miou_old"] == pytest.approx(old, abs=0.005)
    assert 100 * found["miou_new"] == pytest.approx(new, abs=0.005)
    assert 100 * found["miou_all"] == pytest.approx(all_classes, abs=0.01)


def test_class_without_truth_is_zero_in_old_and_new_and_absent_from_all():
    confusion = np.zeros((5, 5), np.int64)
    confusion[0, 0], confusion[1, 1], confusion[3, 3], confusion[3, 0] = 100, 100, 50, 50
    found = results.summary(confusion, num_base=3, class_names=(*NAMES, "tv"))
    background, sofa = 100 / 150, 0.5
    assert found["miou_old"] == pytest.approx((background + 1 + 0) / 3)
    assert found["miou_new"] == pytest.approx((sofa + 0) / 2)
    assert found["miou_all"] == pytest.approx((background + 1 + sofa) / 3)
    assert found["pixel_accuracy"] == pytest.approx(250 / 300)
    assert found["per_class"] == {
        "background": pytest.approx(background),
        "cat": pytest.approx(1),
        "dog": None,
        "sofa": pytest.approx(sofa),
        "tv": None,
    }


def test_task_0_has_no_new():
    found = results.summary(np.diag([3, 5, 7]), num_base=3)
    assert found["miou_new"] is None
    assert found["miou_old"] == found["miou_all"] == pytest.approx(1)
    assert list(found["per_class"]) == ["0", "1", "2"]


def test_no_pixels_at_all():
    found = results.summary(np.zeros((2, 2), np.int64), num_base=2)
    assert (found["miou_old"], found["miou_all"], found["pixel_accuracy"]) == (0.0, None, None)


@pytest.mark.parametrize(("num_base", "names"), [(0, None), (4, None), (2, ("a", "b")), (2, ("a", "a", "b"))])
def test_summary_refuses_what_does_not_fit(num_base, names):
    with pytest.raises(ValueError):
        results.summary(np.eye(3, dtype=np.int64), num_base, names)


def test_forgetting_by_hand():
    history = [{"a": 0.9, "b": 0.5}, {"a": 0.95, "b": None, "c": 0.4}, {"a": 0.6, "b": 0.7, "c": 0.1, "d": 0.3}]
    assert results.forgetting(history) == {
        "a": pytest.approx(0.35),
        "b": pytest.approx(-0.2),
        "c": pytest.approx(0.3),
    }
    assert results.forgetting(history[:1]) == {}


def test_mean_over_tasks():
    assert results.mean_over_tasks([0.6, None, 0.3]) == pytest.approx(0.45)
    assert results.mean_over_tasks([]) is None


# Files


def entry(task, values):
    names = NAMES[: len(values)]
    return results.task_entry(
        task,
        new_classes=names[1:3] if task == 0 else names[-1:],
        class_names=names,
        confusion=np.diag(np.round(np.array(values) * 100).astype(int)),
        num_base=3,
        seconds={"training": 12.5, "evaluation": np.float32(0.5)},
        steps={"training": 7},
        images={"train": 10, "val": np.int64(4)},
        peak_memory_bytes=None if task == 0 else 123,
    )


def run_results(label="run"):
    first = entry(0, (0.5, 0.5, 0.5))
    second = entry(1, (0.5, 0.5, 0.5, 0.5))
    second["confusion"] = [[50, 0, 0, 0], [0, 50, 0, 0], [0, 0, 0, 50], [0, 0, 0, 50]]
    numbers = results.summary(np.array(second["confusion"]), 3, NAMES)
    second["per_class"] = numbers.pop("per_class")
    second["metrics"] = numbers
    return results.new(label, {"train": {"epochs": (30, 30)}, "name": label}, 3, [first, second])


def test_written_results_come_back(tmp_path):
    given = run_results()
    results.write(tmp_path, given)
    found = results.read(tmp_path)
    for key, value in given.items():
        assert found[key] == value
    assert found["config"] == {"train": {"epochs": [30, 30]}, "name": "run"}
    assert found["tasks"][0]["confusion"] == [[50, 0, 0], [0, 50, 0], [0, 0, 50]]
    assert found["tasks"][1]["peak_memory_bytes"] == 123
    assert found["tasks"][0]["seconds"] == {"training": 12.5, "evaluation": 0.5}
    assert found["mean_over_tasks"] == pytest.approx((1 + (1 + 1 + 0 + 0.5) / 4) / 2)
    assert found["forgetting"] == {"background": 0, "cat": 0, "dog": pytest.approx(1)}
    assert found["device"]["platform"] and found["versions"]["jax"]
    # A row of a confusion matrix stands on one line.
    assert "[50, 0, 0, 0]" in (tmp_path / "results.json").read_text()


def test_compact_rows_change_no_value():
    value = {"a": [[1, -2], [3.5, 4e-7], []], "b": [None, 1, 2], "c": ["1", "2"], "d": [1], "e": {"1": 5, "2": [7]}}
    text = results.json_text(value, indent=1)
    assert json.loads(results._compact_rows(text)) == value


def test_csv_has_a_row_per_task_and_a_column_per_class(tmp_path):
    results.write(tmp_path, run_results())
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == ["0", "1"]
    assert rows[0]["new_classes"] == "cat; dog" and rows[1]["new_classes"] == "sofa"
    assert rows[0]["new"] == rows[0]["sofa"] == ""
    assert [float(rows[1][key]) for key in ("old", "new", "all")] == pytest.approx([2 / 3, 0.5, 0.625], abs=1e-6)
    assert float(rows[1]["dog"]) == 0 and float(rows[1]["sofa"]) == 0.5
    assert float(rows[1]["mean_over_tasks"]) == pytest.approx(0.8125)


def test_no_damaged_newer_or_missing_results(tmp_path):
    with pytest.raises(InputError, match="no results here"):
        results.read(tmp_path)
    (tmp_path / "results.json").write_text('{"format_version": 99, "tasks": []}')
    with pytest.raises(InputError, match="format 99"):
        results.read(tmp_path)
    for damaged in ('{"format_version": 1', "[]", "{}"):
        (tmp_path / "results.json").write_text(damaged)
        with pytest.raises(InputError, match="damaged"):
            results.read(tmp_path)


# Tables


def test_table_of_one_run():
    lines = results.table(run_results()).splitlines()
    assert lines[0].split() == "task new classes old new all pixel acc. mean over tasks".split()
    assert lines[2].split() == ["0", "cat,", "dog", "100.00", "-", "100.00", "100.00", "100.00"]
    assert lines[3].split() == ["1", "sofa", "66.67", "50.00", "62.50", "75.00", "81.25"]
    assert len({line.index(text) + len(text) for line, text in zip(lines[2:], ("100.00", "66.67"), strict=True)}) == 1


def test_comparison_side_by_side_with_runs_of_different_length():
    short = run_results("b")
    short["tasks"] = short["tasks"][:1]
    lines = results.comparison([("NeST", run_results("a")), ("MiB", short)]).splitlines()
    assert lines[0].split() == ["NeST", "MiB"]
    assert lines[1].split() == ["task", *["old", "new", "all"] * 2]
    assert lines[3].split() == ["0", "100.00", "-", "100.00", "100.00", "-", "100.00"]
    assert lines[4].split() == ["1", "66.67", "50.00", "62.50", "-", "-", "-"]
    assert lines[5].split() == ["mean", "-", "-", "81.25", "-", "-", "100.00"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_comparison_markdown():
    lines = results.comparison([("NeST", run_results())], markdown=True).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == ["task", "NeST old", "NeST new", "NeST all"]
    assert set(lines[1]) <= set("|-: ")
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["1", "66.67", "50.00", "62.50"]


# The command


@pytest.fixture
def two_runs(tmp_path):
    runs = [tmp_path / "one" / "run", tmp_path / "two" / "run"]
    for run in runs:
        results.write(run, run_results())
    return runs


def test_compare_prints_and_writes(two_runs, tmp_path, capsys):
    image, labels = np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), int)
    pictures.save_predictions(two_runs[0], 0, ["a"], [image], [labels], [labels], NAMES)
    pictures.save_predictions(two_runs[1], 0, ["a"], [image], [labels], [labels], NAMES)
    out = tmp_path / "out"
    assert compare.main([str(two_runs[0]), f"other={two_runs[1]}", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "other" in printed and "62.50" in printed
    assert sorted(path.name for path in out.iterdir()) == ["comparison.csv", "comparison.md", "comparison.png"]
    rows = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    assert [(row["run"], row["task"]) for row in rows] == [("run", "0"), ("run", "1"), ("other", "0"), ("other", "1")]
    assert float(rows[3]["all"]) == 0.625
    assert "## other" in (out / "comparison.md").read_text()


def test_compare_without_pictures_says_so(two_runs, tmp_path, capsys):
    assert compare.main([*map(str, two_runs), "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("has no pictures") == 2
    assert not (tmp_path / "out" / "comparison.png").exists()
    assert "one/run" in captured.out and "two/run" in captured.out  # folders of one name are told apart


def test_compare_of_a_missing_run_is_plain(two_runs, tmp_path, capsys):
    assert compare.main([str(two_runs[0]), str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and "nowhere" in captured.err and captured.err.count("\n") == 1
    assert compare.main([str(two_runs[0]), str(two_runs[0])]) == 2
    assert "twice" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        compare.main(["--help"])
    assert caught.value.code == 0
    assert "--out report" in capsys.readouterr().out

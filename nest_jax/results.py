"""From confusion matrices to the numbers that are published, to results.json, results.csv and tables.

IoU and accuracies are fractions, 0 to 1, in everything that is stored; tables print percent, as the papers do.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import platform
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from nest_jax.errors import InputError
from nest_jax.storage import json_text, plain, write_text

FORMAT_VERSION = 1
PACKAGES = (
    "nest_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "pillow",
)
COLUMNS = ("old", "new", "all")
BLANK = "-"  # stands where there is no number


# Numbers from confusion matrices


def iou(confusion: Int[np.ndarray, "classes classes"]) -> Float[np.ndarray, " classes"]:
    """Intersection over union of every class: `TP / (GT + PRED - TP + 1e-6)`; NaN for a class without ground truth.

    Args:
        confusion: pixels, `confusion[truth, prediction]`.

    Returns:
        float64, fractions. The published code (metrics/stream_metrics.py) computes the same ratio for every class and marks
        those without ground truth 'X'; here they are NaN.
    """
    confusion = np.asarray(confusion, np.int64)
    hits = np.diag(confusion).astype(np.float64)
    truth, predicted = confusion.sum(1), confusion.sum(0)
    return np.where(truth > 0, hits / (truth + predicted - hits + 1e-6), np.nan)


def summary(
    confusion: Int[np.ndarray, "classes classes"], num_base: int, class_names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The numbers of one evaluation, by the published conventions.

    Args:
        confusion: pixels, `confusion[truth, prediction]`, over all classes learnt so far, in learnt order.
        num_base: classes of task 0, background included; they come first.
        class_names: one name a class; default "0", "1", ...

    Returns:
        "miou_old": mean IoU of the base classes, background included; "miou_new": mean IoU of all later classes, None when
        there are none; a class without ground truth counts as 0 in both, as in the published average_csv.py.
        "miou_all": mean over the classes that have ground truth (None when there is no pixel at all).
        "pixel_accuracy": correct pixels / all pixels (None when there is no pixel).
        "per_class": {class name: IoU, None without ground truth}.
    """
    confusion = np.asarray(confusion, np.int64)
    if not 1 <= num_base <= len(confusion):
        raise ValueError(f"num_base {num_base} does not fit a confusion matrix of {len(confusion)} classes")
    names = [str(index) for index in range(len(confusion))] if class_names is None else list(class_names)
    if len(set(names)) != len(confusion):
        raise ValueError(f"{len(confusion)} different class names are needed, got {names}")
    values = iou(confusion)
    present, counted = ~np.isnan(values), np.nan_to_num(values)
    pixels = int(confusion.sum())
    return {
        "miou_old": float(counted[:num_base].mean()),
        "miou_new": float(counted[num_base:].mean()) if len(counted) > num_base else None,
        "miou_all": float(values[present].mean()) if present.any() else None,
        "pixel_accuracy": float(np.trace(confusion) / pixels) if pixels else None,
        "per_class": {
            name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)
        },
    }


def of_those_measured(per_class: Mapping[str, float | None], num_base: int) -> dict[str, float | None]:
    """ "miou_old" and "miou_new" over the classes that have ground truth, for data that need not show every class.

    The published rule counts a class without ground truth as 0, which is right where only a mistake can make one.

    Args:
        per_class: IoU by class in learnt order, background first, None without ground truth.
        num_base: classes of task 0, background included.

    Returns:
        None for a mean in which no class but background would be.
    """
    values = list(per_class.values())
    means = {}
    for key, group in (("miou_old", values[:num_base]), ("miou_new", values[num_base:])):
        found = [value for value in group if value is not None]
        seen = any(value is not None for value in (group[1:] if key == "miou_old" else group))
        means[key] = sum(found) / len(found) if seen else None
    return means


def forgetting(history: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Best earlier IoU minus final IoU, of every class that has both; negative where a class improved.

    Args:
        history: per task, {class name: IoU, None without ground truth}.

    The best is over all earlier tasks. A class learnt in the last task has no earlier IoU and is absent.
    """
    *earlier, final = history
    lost = {}
    for name, value in final.items():
        before = [score for task in earlier if (score := task.get(name)) is not None]
        if before and value is not None:
            lost[name] = max(before) - value
    return lost


def mean_over_tasks(values: Sequence[float | None]) -> float | None:
    """Mean of the tasks' "miou_all" (the average incremental mIoU); None when no task has one."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


# One run's results


def task_entry(
    task: int,
    new_classes: Sequence[str],
    class_names: Sequence[str],
    confusion: Int[np.ndarray, "classes classes"],
    num_base: int,
    *,
    seconds: Mapping[str, Any],
    steps: Mapping[str, Any],
    images: Mapping[str, Any],
    peak_memory_bytes: int | None = None,
) -> dict[str, Any]:
    """What results.json says of one task.

    Args:
        new_classes: names of the classes this task added. class_names: of all learnt classes, background first.
        seconds, steps: by phase ("statistics", "pretuning", "training", "evaluation", ...).
        images: by split ("train", "val").
        peak_memory_bytes: of the fullest device; None where the device does not tell.
    """
    numbers = summary(confusion, num_base, class_names)
    return plain(
        {
            "task": task,
            "new_classes": list(new_classes),
            "metrics": {name: value for name, value in numbers.items() if name != "per_class"},
            "per_class": numbers["per_class"],
            "confusion": np.asarray(confusion, np.int64),
            "seconds": seconds,
            "steps": steps,
            "images": images,
            "peak_memory_bytes": peak_memory_bytes,
        }
    )


def new(label: str, config: Any, num_base: int, tasks: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Results of a run with the given tasks so far: configuration, package versions and device beside them."""
    results = {
        "format_version": FORMAT_VERSION,
        "label": label,
        "num_base": num_base,
        "config": config,
        "versions": versions(),
        "device": device(),
        "tasks": list(tasks),
    }
    return plain(results)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any]:
    """What the run computes on."""
    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "host": platform.platform(),
    }


def peak_memory_bytes() -> int:
    """Most bytes in use so far on the fullest of this process's devices; of this process itself where the device does not tell (CPU)."""
    peaks = [(one.memory_stats() or {}).get("peak_bytes_in_use") for one in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(workdir: epath.PathLike, results: Mapping[str, Any]) -> None:
    """Writes results.json and results.csv into a run's work directory, on process 0; "mean_over_tasks" and "forgetting" are added.

    results.csv has one row a task: task, new classes, old, new, all, pixel accuracy, mean over tasks so far, then the IoU of
    every class learnt by the end, empty where there is none; fractions.

    Raises:
        InputError: the disk is full; the old files are intact.
    """
    if jax.process_index() != 0:
        return
    tasks = list(results["tasks"])
    document = {
        **results,
        "mean_over_tasks": mean_over_tasks([task["metrics"]["miou_all"] for task in tasks]),
        "forgetting": forgetting([task["per_class"] for task in tasks]) if tasks else {},
    }
    write_text(epath.Path(workdir) / "results.json", _compact_rows(json_text(document, indent=1)) + "\n")
    write_text(epath.Path(workdir) / "results.csv", to_csv(document))


def read(workdir: epath.PathLike) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        InputError: there are no results here, they are damaged, or of a newer format.
    """
    path = epath.Path(workdir) / "results.json"
    if not path.exists():
        raise InputError(f"{workdir}: there are no results here ({path.name} is missing); give the --workdir of a run")
    try:
        results = json.loads(path.read_text())
        version, _ = results["format_version"], results["tasks"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged: {error!r}") from None
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format {version} is of a newer nest_jax; this one reads formats up to {FORMAT_VERSION}"
        )
    return results


def to_csv(results: Mapping[str, Any]) -> str:
    """results.csv as text; see `write`."""
    tasks = results["tasks"]
    classes = list(tasks[-1]["per_class"]) if tasks else []
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["task", "new_classes", "old", "new", "all", "pixel_accuracy", "mean_over_tasks", *classes])
    for index, task in enumerate(tasks):
        metrics = task["metrics"]
        mean = mean_over_tasks([one["metrics"]["miou_all"] for one in tasks[: index + 1]])
        numbers = [metrics[key] for key in ("miou_old", "miou_new", "miou_all", "pixel_accuracy")] + [mean]
        numbers += [task["per_class"].get(name) for name in classes]
        cells = ["" if number is None else f"{number:.6f}" for number in numbers]
        rows.writerow([task["task"], "; ".join(task["new_classes"]), *cells])
    return out.getvalue()


# Tables


def table(results: Mapping[str, Any], *, markdown: bool = False) -> str:
    """One run: a row per task with new classes, old / new / all, pixel accuracy and the mean over tasks so far, in percent."""
    tasks = results["tasks"]
    rows = [["task", "new classes", *COLUMNS, "pixel acc.", "mean over tasks"]]
    for index, task in enumerate(tasks):
        mean = mean_over_tasks([one["metrics"]["miou_all"] for one in tasks[: index + 1]])
        names = task["new_classes"]
        short = ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:3])}, ... ({len(names)})"
        rows.append(
            [str(task["task"]), short, *_triple(task), _percent(task["metrics"]["pixel_accuracy"]), _percent(mean)]
        )
    return layout(rows, left=(1,), markdown=markdown)


def comparison(runs: Sequence[tuple[str, Mapping[str, Any]]], *, markdown: bool = False) -> str:
    """Runs side by side: a row per task, old / new / all of every run, in percent; the last row is the mean over tasks."""
    labels = [label for label, _ in runs]
    rows = [["task", *(f"{label} {column}" for label in labels for column in COLUMNS)]]
    by_task = [{task["task"]: task for task in results["tasks"]} for _, results in runs]
    for number in sorted(set().union(*by_task)):
        cells = [cell for tasks in by_task for cell in (_triple(tasks[number]) if number in tasks else [BLANK] * 3)]
        rows.append([str(number), *cells])
    means = [mean_over_tasks([task["metrics"]["miou_all"] for task in results["tasks"]]) for _, results in runs]
    rows.append(["mean", *(cell for mean in means for cell in (BLANK, BLANK, _percent(mean)))])
    if markdown:
        return layout(rows, markdown=True)
    # On the console the labels stand once, above their three columns.
    rows[0] = ["task", *COLUMNS * len(runs)]
    text = layout(rows).splitlines()
    widths = _widths(rows)
    header = " " * widths[0]
    for index, label in enumerate(labels):
        width = sum(widths[1 + 3 * index : 4 + 3 * index]) + 4
        header += "  " + (label if len(label) <= width else label[: width - 1] + "…").center(width)
    return "\n".join([header.rstrip(), *text]) + "\n"


def comparison_rows(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[list[Any]]:
    """The comparison as rows for a CSV file, header first: run, task, old, new, all, pixel accuracy, then IoU per class."""
    classes = list(
        dict.fromkeys(name for _, results in runs for task in results["tasks"] for name in task["per_class"])
    )
    rows: list[list[Any]] = [["run", "task", "old", "new", "all", "pixel_accuracy", *classes]]
    for label, results in runs:
        for task in results["tasks"]:
            metrics = task["metrics"]
            numbers = [metrics[key] for key in ("miou_old", "miou_new", "miou_all", "pixel_accuracy")]
            numbers += [task["per_class"].get(name) for name in classes]
            rows.append([label, task["task"], *("" if number is None else f"{number:.6f}" for number in numbers)])
    return rows


def layout(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (), markdown: bool = False) -> str:
    """Rows of text, header first, as an aligned table; numbers to the right, the columns in `left` to the left."""
    widths = _widths(rows)
    aligned = [
        [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    if markdown:
        rule = [
            ":" + "-" * (width - 1) if column in left else "-" * (width - 1) + ":"
            for column, width in enumerate(widths)
        ]
        return "".join("| " + " | ".join(row) + " |\n" for row in [aligned[0], rule, *aligned[1:]])
    rule = ["-" * width for width in widths]
    return "".join("  ".join(row).rstrip() + "\n" for row in [aligned[0], rule, *aligned[1:]])


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]


def _triple(task: Mapping[str, Any]) -> list[str]:
    return [_percent(task["metrics"][f"miou_{column}"]) for column in COLUMNS]


def _percent(value: float | None) -> str:
    return BLANK if value is None else f"{100 * value:.2f}"


def _compact_rows(text: str) -> str:
    """Lists of numbers on one line each: a confusion matrix of 151 classes would be 22,801 lines."""
    lines, out, inside = text.split("\n"), [], False
    for line in lines:
        stripped = line.strip()
        number = stripped.rstrip(",").lstrip("-").replace(".", "").isdigit()
        if number and (inside or out[-1].endswith("[")):
            out[-1] += stripped + (" " if stripped.endswith(",") else "")
            inside = True
        elif inside and stripped in ("]", "],"):
            out[-1] += stripped
            inside = False
        else:
            out.append(line)
            inside = False
    return "\n".join(out)

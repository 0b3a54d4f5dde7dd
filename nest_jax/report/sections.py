"""The chapters of a report, each a function of the runs: what there is to see, or a sentence that says why there is nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nest_jax import config, figures, inspect, results, rundir
from nest_jax.report import page
from nest_jax.report.page import Files, Section
from nest_jax.report.runs import Curve, Run, curve

GROUPS = {"all": "all classes", "old": "old: classes of task 0, with background", "new": "new: classes of later tasks"}
MAX_TRANSFORMS = 6  # new classes whose M and P are shown
PHASES = ("statistics", "pretuning", "preparation", "training", "evaluation")


def summary(runs: Sequence[Run]) -> str:
    """The numbers that a reader wants first, and in what the runs differ."""
    rows: list[list[Any]] = [["run", "tasks", "all", "old", "new", "pixel accuracy", "mean over tasks"]]
    for run in runs:
        metrics = run.tasks[-1]["metrics"]
        mean = results.mean_over_tasks([task["metrics"]["miou_all"] for task in run.tasks])
        last = [metrics[f"miou_{group}"] for group in GROUPS] + [metrics["pixel_accuracy"], mean]
        rows.append([run.label, len(run.tasks), *(percent(value) for value in last)])
    text = page.table(rows, caption="After the last task, in percent: mIoU of all, old and new classes")
    if len(runs) > 1:
        keys = [
            f"<code>{page.escape(key)}</code> ({page.escape(' | '.join(values))})" for key, values in differences(runs)
        ]
        text += page.paragraph(
            f"The runs differ in {', '.join(keys[:8])}{', …' if len(keys) > 8 else ''}." if keys else ""
        )
    return text


def per_task(runs: Sequence[Run], files: Files) -> Section:
    """mIoU after every task (the paper's figure 3)."""
    drawn = []
    for group, title in GROUPS.items():
        found = {}
        for run in runs:
            points = [(t["task"], 100 * v) for t in run.tasks if (v := t["metrics"][f"miou_{group}"]) is not None]
            if points:
                x, y = zip(*points, strict=True)
                found[run.label] = (x, y)
        if found:
            figure = figures.lines(found, title, "after task", "mIoU (%)")
            ends = "; ".join(f"{label} from {y[0]:.1f} to {y[-1]:.1f}" for label, (_, y) in found.items())
            drawn.append(page.chart(files, f"miou-{group}", figure, f"mIoU of {title}, per task: {ends} percent"))
    rows = results.comparison_rows([(run.label, run.results) for run in runs])
    rows = [["run", "task", *rows[0][2:6]]] + [[*row[:2], *(_times_100(cell) for cell in row[2:6])] for row in rows[1:]]
    table = page.folded("The numbers", page.table(rows, caption="mIoU and pixel accuracy after every task, in percent"))
    return Section("miou", "mIoU after every task", page.charts(drawn) + table)


def per_class(runs: Sequence[Run], files: Files) -> Section:
    """What was forgotten when: IoU of every class after every task."""
    drawn, tables = [], []
    for run in runs:
        classes, tasks = list(run.tasks[-1]["per_class"]), [task["task"] for task in run.tasks]
        values = np.asarray([[_percentage(task["per_class"].get(name)) for task in run.tasks] for name in classes])
        born = {name: index for index, task in enumerate(run.tasks) for name in task["new_classes"]}
        frames = [(row, born[name]) for row, name in enumerate(classes) if name in born]
        figure = figures.heat_map(
            values,
            classes,
            [str(task) for task in tasks],
            f"{run.label}: IoU (%)",
            outlined=frames,
            width=max(3.2, 2 + 0.45 * len(tasks)),
        )
        figure.axes[0].set_xlabel("after task")
        lost = results.forgetting([task["per_class"] for task in run.tasks])
        worst = sorted(lost, key=lambda name: -lost[name])[:3]
        alt = f"{run.label}: IoU of every class after every task. Most forgotten: " + (
            ", ".join(f"{name} by {100 * lost[name]:.0f}" for name in worst) or "nothing"
        )
        drawn.append(page.chart(files, f"classes-{run.label}", figure, alt))
        rows: list[list[Any]] = [["class", *(f"task {task}" for task in tasks), "forgotten"]]
        for name, row in zip(classes, values, strict=True):
            numbers = ["" if np.isnan(value) else f"{value:.1f}" for value in row]
            rows.append([name, *numbers, f"{100 * lost[name]:.1f}" if name in lost else ""])
        tables.append(
            page.table(rows, caption=f"{run.label}: IoU in percent; forgotten: best earlier IoU minus the last")
        )
    lead = page.paragraph(
        "A row is a class, a column a task; a frame marks the task that learnt the class. Reading a row to the right shows when a class was forgotten. "
        "Empty: not learnt yet, or absent from the test images."
    )
    return Section(
        "classes", "IoU of every class", lead + page.charts(drawn) + page.folded("The numbers", "".join(tables))
    )


def learning(runs: Sequence[Run], files: Files) -> Section:
    """Loss and feature similarity over the epochs of every later task (the paper's figure 4)."""
    tasks = sorted({task["task"] for run in runs for task in run.tasks} - {0})
    title = "How each task begins"
    if not tasks:
        return Section("learning", title, page.missing("There is no task after the first one yet."))
    similarities, drawn = [], []
    for task in tasks:
        names = next(t["new_classes"] for run in runs for t in run.tasks if t["task"] == task)
        short = f"task {task}: {', '.join(names[:2])}{', …' if len(names) > 2 else ''}"
        similar, losses = (_curves(runs, task, term) for term in ("similarity", "loss"))
        deviations = _curves(runs, task, "similarity_std")
        if similar:
            spread = {label: deviations[label].means for label in similar if label in deviations}
            points = {label: (one.epochs, one.means) for label, one in similar.items()}
            figure = figures.lines(
                points, f"{short} – features against the old model's", "epoch", "cosine of the features", spread=spread
            )
            alt = f"Cosine of student's and old model's features in {short}: {_ends(similar, '.3f')}"
            similarities.append(page.chart(files, f"similarity-task-{task}", figure, alt))
        if losses:
            points = {label: (one.epochs, one.means) for label, one in losses.items()}
            # Steps count from 0 at the start of epoch 1, whose mean stands at 1.
            faint = {label: ([x + 0.5 for x in one.steps], one.values) for label, one in losses.items()}
            figure = figures.lines(points, f"{short} – loss", "epoch", "mean loss", faint=faint)
            alt = f"Mean loss per epoch in {short}: {_ends(losses, '.2f')}"
            drawn.append(page.chart(files, f"loss-task-{task}", figure, alt))
    if not drawn + similarities:
        return Section("learning", title, page.missing("metrics.jsonl holds no training of these tasks."))
    lead = page.paragraph(
        "A good start disturbs less: features that stay close to those of the model before (cosine near 1, narrow band) and a loss that starts low. "
        "Points are means over an epoch; bands are ± the standard deviation over the positions of a batch; thin lines are the log. Losses compare only between runs of one method."
    )
    if not similarities:
        lead += page.missing(
            "No similarity of features to the old model was logged: methods without a teacher do not compute it, nor did earlier versions."
        )
    return Section("learning", title, lead + page.charts(similarities) + page.charts(drawn))


def _curves(runs: Sequence[Run], task: int, term: str) -> dict[str, Curve]:
    found = {run.label: curve(run, task, term) for run in runs}
    return {label: one for label, one in found.items() if one is not None}


def _ends(curves: dict[str, Curve], form: str) -> str:
    return "; ".join(f"{label} from {one.means[0]:{form}} to {one.means[-1]:{form}}" for label, one in curves.items())


def prepared(runs: Sequence[Run], files: Files) -> Section:
    """What NeST made the new classifiers of: P, and M as in the paper's figure 6."""
    title, drawn = "What new classifiers were made of", []
    shown = 0
    for run in runs:
        for task in rundir.completed_tasks(run.workdir)[1:]:
            if shown >= MAX_TRANSFORMS or not (found := inspect.transforms(one := inspect.load(run.workdir, task))):
                break
            old = list(one.class_names[: len(one.class_names) - len(one.new_classes)])
            for index, name in enumerate(one.new_classes[: MAX_TRANSFORMS - shown]):
                shown += 1
                before, after = (found[stage]["projection"][index] for stage in inspect.TRANSFORMS)
                strongest = old[int(np.argmax(after))]
                figure = figures.projection(before.tolist(), after.tolist(), old, f"{run.label}, {name}")
                alt = f"{run.label}: weights P of the old classes in the start of {name}; most: {strongest}"
                row = [page.chart(files, f"projection-{run.label}-{name}", figure, alt)]
                for stage, when in zip(inspect.TRANSFORMS, figures.STAGES, strict=True):
                    normalised = inspect.importance_map(found[stage]["importance"][index])
                    figure = figures.importance(normalised, old, f"{name}: |M| {when}")
                    alt = f"{run.label}: importance of every channel of every old class in the start of {name}, {when}"
                    row.append(page.chart(files, f"importance-{run.label}-{name}-{stage}", figure, alt))
                drawn.append(page.charts(row))
    if not drawn:
        return Section("prepared", title, page.missing("No checkpoint here holds classifiers that NeST prepared."))
    lead = page.paragraph(
        "NeST starts the classifier of a new class as a weighted sum over the old ones, <code>w&nbsp;=&nbsp;(M&nbsp;⊙&nbsp;W)&nbsp;P</code>. P says which old classes it came from, "
        "before and after pre-tuning; M weighs their channels (absolute values from 0 to 1; background in its own scale)."
    )
    return Section("prepared", title, lead + "".join(drawn))


def cost(runs: Sequence[Run], files: Files) -> Section:
    """Seconds per phase and task, peak memory."""
    phases = [name for name in PHASES if any(task["seconds"].get(name) for run in runs for task in run.tasks)]
    longest = max(sum(task["seconds"].values()) for run in runs for task in run.tasks)
    drawn, rows = [], [["run", "task", *phases, "sum of seconds", "training images", "peak memory (MiB)"]]
    for run in runs:
        series = {name: [task["seconds"].get(name, 0.0) for task in run.tasks] for name in phases}
        labels = [f"task {task['task']}" for task in run.tasks]
        totals = [sum(task["seconds"].values()) for task in run.tasks]
        alt = f"{run.label}: seconds per task: " + ", ".join(f"{total:.0f}" for total in totals)
        figure = figures.bars(series, labels, f"{run.label}: seconds", "seconds", stacked=True)
        figure.axes[0].set_xlim(0, 1.05 * longest)  # runs compare at a glance
        drawn.append(page.chart(files, f"seconds-{run.label}", figure, alt))
        for task, total in zip(run.tasks, totals, strict=True):
            spent = [f"{task['seconds'][name]:.1f}" if name in task["seconds"] else "" for name in phases]
            peak = task.get("peak_memory_bytes")
            memory = f"{peak / 2**20:.0f}" if peak else ""
            rows.append([run.label, task["task"], *spent, f"{total:.1f}", task["images"]["train"], memory])
    if not any(row[-1] for row in rows[1:]):  # runs of earlier versions
        rows = [row[:-1] for row in rows]
    device, versions = runs[0].results.get("device", {}), runs[0].results.get("versions", {})
    where = f"{device.get('devices', '?')} × {device.get('kind', '?')}, {device.get('processes', 1)} process(es), {device.get('host', '')}"
    text = page.charts(drawn) + page.table(
        rows,
        caption="Seconds per phase; tasks taken over from another run have only an evaluation; memory is the highest since the run's process began",
    )
    text += page.paragraph(
        f'<span class="soft">{page.escape(where)}; {page.escape(", ".join(f"{name} {v}" for name, v in versions.items()))}</span>'
    )
    return Section("cost", "Time and memory", text)


def settings(runs: Sequence[Run]) -> Section:
    """The config of every run; what differs is set off."""
    flat = [config.flatten(run.config) for run in runs]
    keys = sorted(set().union(*flat))
    rows: list[list[Any]] = [["key", *(run.label for run in runs)]]
    rows += [[key, *(_value(one, key) for one in flat)] for key in keys]
    marked = [index for index, row in enumerate(rows[1:]) if len(set(row[1:])) > 1]
    columns = range(len(runs) + 1)
    everything = page.table(
        rows, caption="The resolved config; rows that differ are set off", text_columns=columns, marked=marked
    )
    differing = [rows[0], *(rows[1 + index] for index in marked)]
    text = page.table(differing, caption="What differs", text_columns=columns) if marked else ""
    return Section("config", "Config", text + page.folded(f"All {len(keys)} values", everything))


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(key, value of every run) where they differ; of two initialisations or methods only the name, since their other keys must differ."""
    flat = [config.flatten(run.config) for run in runs]
    shared = set.intersection(*(set(one) for one in flat)) - {"init_from"}
    pairs = [(key, [_value(one, key) for one in flat]) for key in sorted(shared)]
    return [(key, values) for key, values in pairs if len(set(values)) > 1]


def _value(flat: dict[str, Any], key: str) -> str:
    if key not in flat:
        return "–"
    value = flat[key]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def percent(value: float | None) -> str:
    """A fraction in percent, one decimal; nothing for None."""
    return "" if value is None else f"{100 * value:.1f}"


def _percentage(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _times_100(cell: str) -> str:
    return f"{100 * float(cell):.2f}" if cell else ""

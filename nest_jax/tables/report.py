"""A table's numbers, mean and deviation over seeds, beside the printed ones: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import fnmatch
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from nest_jax import plugins, results
from nest_jax.config import HARMLESS
from nest_jax.errors import InputError
from nest_jax.results import BLANK
from nest_jax.storage import json_text, write_text
from nest_jax.tables import paper
from nest_jax.tables.catalogue import FAMILIES
from nest_jax.tables.paper import Printed
from nest_jax.tables.plan import Plan, Run, command, conflict, outcome

NEST_PHASES = ("statistics", "pretuning")
Results = Mapping[str, Any]


class Metric(NamedTuple):
    """A number of a finished run; None where the run does not tell."""

    heading: str
    value: Callable[[Results], float | None]
    digits: int = 2


def _miou(name: str) -> Callable[[Results], float | None]:
    def value(run: Results) -> float | None:
        found = run["tasks"][-1]["metrics"][f"miou_{name}"]
        return None if found is None else 100 * found

    return value


def _seconds(run: Results, phases: Sequence[str], first: int) -> float | None:
    """Of all tasks from `first` on. A task 0 that came from another run took what it took there."""
    if first == 0 and run["config"]["init_from"]:
        try:
            task_0 = results.read(run["config"]["init_from"])
        except InputError:
            return None
        earlier = _seconds({**task_0, "tasks": task_0["tasks"][:1]}, phases, 0)
        later = _seconds(run, phases, 1)
        return None if earlier is None or later is None else earlier + later
    return sum(task["seconds"].get(phase, 0.0) for task in run["tasks"][first:] for phase in phases)


def _share(first: int) -> Callable[[Results], float | None]:
    def value(run: Results) -> float | None:
        nest, training = _seconds(run, NEST_PHASES, 1), _seconds(run, ("training",), first)
        return 100 * nest / training if nest is not None and training else None

    return value


def _minutes(phases: Sequence[str], first: int) -> Callable[[Results], float | None]:
    def value(run: Results) -> float | None:
        seconds = _seconds(run, phases, first)
        return None if seconds is None else seconds / 60

    return value


def _memory(run: Results) -> float | None:
    found = [task["peak_memory_bytes"] for task in run["tasks"] if task.get("peak_memory_bytes")]
    return max(found) / 1e9 if found else None


METRICS = {
    **{name: Metric(name, _miou(name)) for name in paper.MIOU},
    "memory_per_gpu_gb": Metric("peak GB", _memory),
    "extra_time": Metric("extra time %", _share(0)),
    "extra_time_later": Metric("tasks 1 and up %", _share(1)),
    "nest_minutes": Metric("NeST min", _minutes(NEST_PHASES, 1)),
    "training_minutes": Metric("training min", _minutes(("training",), 0)),
}


class Cell(NamedTuple):
    """One number of a table: the runs' by seed, and the paper's."""

    row: str
    column: str
    metric: str
    values: Mapping[int, float]
    paper: Printed
    literature: bool

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Of the sample; None for a single run."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


def cells(plan: Plan) -> list[Cell]:
    """Every number of the table, rows first: what the finished runs give, whoever started them."""
    table, found = plan.table, []
    finished = {(run.row, run.column, run.seed): done for run in plan.runs if (done := outcome(run))}
    for row in table.rows:
        for metric in table.metrics:
            by_column = {}
            for column in table.columns:
                runs = {seed: finished.get((row.label, column.label, seed)) for seed in plan.seeds}
                numbers = {seed: METRICS[metric].value(run) for seed, run in runs.items() if run}
                by_column[column.label] = {seed: number for seed, number in numbers.items() if number is not None}
            if table.mean_column:  # of the seeds that have all columns
                whole = [seed for seed in plan.seeds if all(seed in values for values in by_column.values())]
                means = {seed: statistics.fmean(values[seed] for values in by_column.values()) for seed in whole}
                by_column[table.mean_column] = means
            for label, values in by_column.items():
                beside = row.paper.get(label, {}).get(metric)
                found.append(Cell(row.label, label, metric, values, beside, row.variant is None))
    return found


# ------------------------------------------------------------------------------------------------------------------------ text


def write(plan: Plan) -> epath.Path:
    """Writes table-N.md, .csv and .json into WORKDIR/DATASET; returns the first.

    Raises:
        InputError: they cannot be written.
    """
    found = cells(plan)
    folder, stem = epath.Path(plan.workdir) / plan.table.dataset, f"table-{plan.table.number}"
    write_text(folder / f"{stem}.json", json_text(document(plan, found), indent=1) + "\n")
    write_text(folder / f"{stem}.csv", to_csv(found))
    write_text(folder / f"{stem}.md", markdown(plan, found))
    return folder / f"{stem}.md"


def document(plan: Plan, found: Sequence[Cell]) -> dict[str, Any]:
    """All that the table is made of, as JSON holds it."""
    table = plan.table
    return {
        "table": table.number,
        "title": table.title,
        "dataset": table.dataset,
        "comparable_with_the_paper": not (FAMILIES[table.dataset].like or _changed(plan)),
        "seeds": plan.seeds,
        "overrides": dict(plan.extra),
        "cells": [{**cell._asdict(), "mean": cell.mean, "deviation": cell.deviation} for cell in found],
        "runs": [
            {"row": run.row, "column": run.column, "seed": run.seed, "workdir": run.workdir, "command": command(run)}
            | {"state": state(run)}
            for run in plan.runs
        ],
        "missing": [one._asdict() for one in plan.missing],
        "notes": table.notes,
    }


def state(run: Run) -> str:
    """What lies in a run's place."""
    if conflict(run):
        return "other recipe"
    if outcome(run):
        return "done"
    return "begun" if (epath.Path(run.workdir) / "config.json").exists() else "not run"


def _not_the_published_images(run: Run) -> str:
    """A remark if a finished run had another number of training images than the full data set gives: a part of it lay in its place."""
    published = getattr(plugins.load("datasets", run.config.dataset.name), "TASK_IMAGES", {})
    tasks, done = run.config.tasks, outcome(run)
    wanted = published.get((tasks.name, tasks.setting))
    if done is None or wanted is None or len(wanted) != run.tasks or tasks.order != "natural" or tasks.classes:
        return ""
    found = tuple(task["images"]["train"] for task in done["tasks"])
    return "" if found == wanted else f"not the full data set: {found[0]} images in task 0, not {wanted[0]}"


def to_csv(found: Sequence[Cell]) -> str:
    """A line per number; unrounded, empty where there is none."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["row", "column", "metric", "mean", "deviation", "seeds", "paper", "literature"])
    for cell in found:
        numbers = ["" if value is None else f"{value:.6f}" for value in (cell.mean, cell.deviation)]
        rows.writerow(
            [cell.row, cell.column, cell.metric, *numbers, len(cell.values), cell.paper, int(cell.literature)]
        )
    return out.getvalue()


def markdown(plan: Plan, found: Sequence[Cell]) -> str:
    """The table as people read it: one table per protocol, or one for all where each has a single number."""
    table, family = plan.table, FAMILIES[plan.table.dataset]
    states = [state(run) for run in plan.runs]
    if family.like:
        lines = [f"# Table {table.number}, planned anew on {table.dataset}", ""]
        lines += [f"The paper's: {table.title}. {family.remark}"]
    else:
        lines = [f"# Table {table.number}: {table.title}", ""]
    if plan.extra:
        lines += [f"Reduced or changed recipe: {', '.join(f'{key}={value}' for key, value in plan.extra)}."]
    seeds = f"seed {plan.seeds[0]}" if len(plan.seeds) == 1 else f"seeds {plan.seeds[0]} to {plan.seeds[-1]}"
    numbers = "mIoU in percent" if set(table.metrics) <= set(paper.MIOU) else "Cost"
    lines += [
        f"{numbers}, {seeds}: mean ± standard deviation of the sample; {BLANK}: no number. "
        f"{states.count('done')} of {len(states)} runs are done."
        + (" *Literature*: copied by the paper, not built here." if any(cell.literature for cell in found) else ""),
        "",
    ]
    columns = list(dict.fromkeys(cell.column for cell in found))
    for group in [columns] if len(table.metrics) == 1 else [[column] for column in columns]:
        if len(columns) > len(group):
            lines += [f"## {group[0]}", ""]
        lines += [results.layout(_grid(found, group, table.metrics), left=(0,), markdown=True)]
    lines += [f"* {note}" for note in table.notes]
    for one in plan.missing:
        lines.append(f"* {one.row}, {one.column}: not possible: {one.reason}")
    for run, what in zip(plan.runs, states, strict=True):
        if what in ("begun", "other recipe"):
            lines.append(f"* {run.label}: {what} ({run.workdir})")
        elif remark := _not_the_published_images(run):
            lines.append(f"* {run.label}: {remark}")
    return "\n".join(lines).rstrip() + "\n"


def _grid(found: Sequence[Cell], columns: Sequence[str], metrics: Sequence[str]) -> list[list[str]]:
    single = len(metrics) == 1
    keys = [(column, metric) for column in columns for metric in metrics]
    heads = [column if single else METRICS[metric].heading for column, metric in keys]
    by_row: dict[str, dict[tuple[str, str], Cell]] = {}
    for cell in found:
        by_row.setdefault(cell.row, {})[cell.column, cell.metric] = cell
    if single:  # each number beside the paper's
        rows = [["", *(text for head in heads for text in (head, "paper"))]]
    else:
        rows = [["", *heads, *(f"paper {head}" for head in heads)]]
    for label, row in by_row.items():
        chosen = [row[key] for key in keys]
        name = label.replace("*", r"\*") + (" (*literature*)" if chosen[0].literature else "")
        if single:
            rows.append([name, *(text for cell in chosen for text in (shown(cell), printed(cell.paper)))])
        else:
            rows.append([name, *map(shown, chosen), *(printed(cell.paper) for cell in chosen)])
    return rows


def shown(cell: Cell) -> str:
    """ "51.80 ± 0.41", "51.80" for one run, "-" for none."""
    if cell.mean is None:
        return BLANK
    digits = METRICS[cell.metric].digits
    spread = "" if cell.deviation is None else f" ± {cell.deviation:.{digits}f}"
    return f"{cell.mean:.{digits}f}{spread}"


def printed(value: Printed) -> str:
    """The paper's number as it stands there."""
    return BLANK if value is None else str(value)


def _changed(plan: Plan) -> bool:
    """Whether the recipe is another than the published one; where data lie and what is logged does not count."""
    return any(not any(fnmatch.fnmatchcase(key, one) for one in HARMLESS) for key, _ in plan.extra)

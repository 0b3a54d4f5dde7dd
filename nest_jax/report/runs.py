"""What a report reads of a run: its results, config and log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from nest_jax import compare, results

NOT_TERMS = ("task", "phase", "step", "time")


class Run(NamedTuple):
    """A run under a name; `log` is metrics.jsonl, a dict a line."""

    label: str
    workdir: epath.Path
    results: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def config(self) -> dict[str, Any]:
        return self.results["config"]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        return self.results["tasks"]


class Curve(NamedTuple):
    """One logged quantity of one task: per epoch, and per log line."""

    epochs: list[int]
    means: list[float]
    steps: list[float]
    """Of the log lines, in epochs."""
    values: list[float]


def read(workdirs: Sequence[str]) -> list[Run]:
    """Runs given as WORKDIR or LABEL=WORKDIR, the default label being the folder's name.

    Raises:
        InputError: a run has no results yet, or a label is given twice.
    """
    return [
        Run(label, path := epath.Path(workdir).expanduser(), results.read(path), log(path))
        for label, workdir in compare._named(workdirs)
    ]


def log(workdir: epath.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; without one that is being written at this moment, and [] where there is no file."""
    path = workdir / "metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if {"task", "phase", "step"} <= line.keys()]


def curve(run: Run, task: int, term: str) -> Curve | None:
    """A term of a task's training, averaged over every epoch; None where it was not logged.

    A line of the log is a mean over the steps since the line before. It counts, with the number of its steps, for the epoch in which the
    middle of them lies.
    """
    entry = next((entry for entry in run.tasks if entry["task"] == task), None)
    total = (entry or {}).get("steps", {}).get("training")
    epochs = run.config["train"]["epochs"][min(task, 1)]
    lines = [line for line in run.log if line["task"] == task and line["phase"] == "training"]
    if not total or not epochs or not any(line.get(term) is not None for line in lines):
        return None
    ends = np.asarray([line["step"] for line in lines], float)
    counts = np.diff(ends, prepend=0.0)
    middles = (ends - counts / 2) / (total / epochs)
    values = np.asarray([np.nan if line.get(term) is None else line[term] for line in lines], float)
    known = ~np.isnan(values)
    middles, counts, values = middles[known], counts[known], values[known]
    numbers = np.floor(middles).astype(int)
    found = sorted(set(numbers.tolist()))
    means = [float(np.average(values[numbers == n], weights=counts[numbers == n])) for n in found]
    return Curve([n + 1 for n in found], means, middles.tolist(), values.tolist())

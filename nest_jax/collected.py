"""What a frozen network makes of a task's images, computed once and kept in host memory, for phases that would compute it anew in every epoch."""

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nest_jax import data as task_data
from nest_jax import loader, phases
from nest_jax.data import Data
from nest_jax.errors import InputError
from nest_jax.pretuning import Batches

Batch = dict[str, np.ndarray]


def batches(context: phases.Context, data: Data, function: Callable, frozen: Any, views: int) -> Batches:
    """Batches for an initialisation: {"label"} and what `function(frozen, batch) -> {name: array}` made of the images.

    Every image is seen under `views` fixed augmentations; the first one is that of the statistics, and epoch e of pre-tuning takes number e % views.
    A process keeps its rows of the batches. Nothing goes to disk: a run that continues computes it again.

    Raises:
        InputError: it does not fit into this machine's memory.
    """
    task = context.task
    steps, images = task_data.pass_steps(data, task), len(task_data.training_images(data, task))
    kept: list[list[Batch]] = []
    for view in range(views):
        raw = task_data.one_pass(data, task, "statistics", 0, view=view)
        title = "features" + (f" {view + 1} of {views}" if views > 1 else "")
        kept.append([])
        for batch, made in phases.outputs(context, "statistics", function, frozen, raw, steps, title):
            kept[-1].append({**made, "label": batch["label"]})
            if len(kept) == len(kept[0]) == 1:
                _check_memory(task, kept[0][0], views * steps)
    index, count = task_data.process()
    columns = range(index * (size := data.config.train.batch_size) // count, (index + 1) * size // count)
    total = task_data.steps(data, task, data.config.classifier_init.epochs)
    order = partial(_order, task_data.seed(data, task, "pretuning"), images, size, columns)
    return Batches(
        statistics=lambda start: iter(kept[0][start:]),
        statistics_steps=steps,
        pretuning=partial(_shuffled, kept, order, images // size, stop=total),
        pretuning_steps=total,
    )


def _shuffled(
    kept: list[list[Batch]], order: Callable[[int], np.ndarray], per_epoch: int, start: int, *, stop: int
) -> Iterator[Batch]:
    epoch, places = -1, np.zeros((0, 0), int)
    for step in range(start, stop):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            places = order(epoch)
        view = kept[epoch % len(kept)]
        rows = list(enumerate(places[step % per_epoch]))
        yield {name: np.stack([view[place][name][row] for row, place in rows]) for name in view[0]}


def _order(seed: tuple[int, ...], images: int, batch_size: int, columns: range, epoch: int) -> np.ndarray:
    """Which kept batch each row of the batches of an epoch is taken from, `[batches, rows]`.

    An image keeps its row and changes its batch, so that it never leaves its process, and the batches do not depend on how many there are.
    """
    of_column = []
    for column in columns:
        count = len(range(column, images, batch_size))
        of_column.append(loader.generator(seed, epoch, column).permutation(count)[: images // batch_size])
    return np.stack(of_column, axis=1)


def _check_memory(task: int, batch: Batch, count: int) -> None:
    needed = count * sum(value.nbytes for value in batch.values())
    free = _available_memory()
    if needed > free:
        raise InputError(
            f"classifier_init.features=cached: the features of task {task} take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are available; "
            "use features=online, or fewer classifier_init.views"
        )


def _available_memory() -> int:
    """Bytes that a process may still take: on Linux what is free or only caches files, which training fills; elsewhere all there is."""
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

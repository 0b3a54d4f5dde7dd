"""A completed task of a run, ready to compute with: the network of its config and the model that was saved."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from nest_jax import base, checkpoints, recipes, rundir, segmenter, storage
from nest_jax import config as configs
from nest_jax.errors import InputError
from nest_jax.segmenter import Segmenter


class Restored(NamedTuple):
    """`model`: {"network", "classifier", "batch_stats"}, NumPy; `class_names` of its outputs, background first."""

    workdir: epath.Path
    task: int
    config: Any  # a ConfigDict; its attributes are known when it runs
    segmenter: Segmenter
    model: dict[str, Any]
    class_names: tuple[str, ...]


def load(workdir: epath.PathLike, task: int | None = None, *, dtype: str = "") -> Restored:
    """The model after a task. The data set is not needed.

    Args:
        workdir: a run's --workdir, also of a run that is still going on.
        task: default: the last completed one.
        dtype: "float32" or "bfloat16" to compute in, default: the run's.

    Raises:
        InputError: the task is not complete or not there (the message lists those that are), its files are damaged, or its network
            is not what this version builds.
    """
    workdir = storage.located(workdir)
    complete = rundir.completed_tasks(workdir)
    if not complete or task not in (None, *complete):
        there = f"complete: {', '.join(map(str, complete))}" if complete else "give the --workdir of a run"
        raise InputError(f"{workdir}: no completed task{'' if task is None else f' {task}'} there; {there}")
    task = complete[-1] if task is None else task
    directory = rundir.task_directory(workdir, task)
    saved = checkpoints.metadata(directory)
    config, names = complete_config(saved["config"]), tuple(saved["classes"])
    if dtype:
        configs.put(config, "dtype", dtype)
    network = segmenter.build(config)
    model = base.restored(directory, base.abstract(config, network, len(names)))
    return Restored(workdir, task, config, network, model, names)


def complete_config(saved: Mapping[str, Any]) -> ConfigDict:
    """The config that a checkpoint holds; keys that are newer than it have their defaults, those that are gone are left out."""
    picks = {section: saved[section]["name"] for section in recipes.SECTIONS}
    config = recipes.base(name=saved["name"], tasks=saved["tasks"]["name"], **picks)
    known = configs.flatten(config)
    for key, value in configs.flatten(configs.from_json(json.dumps(saved))).items():
        if key in known:
            configs.put(config, key, value)
    return config


@contextlib.contextmanager
def precision(config: Any) -> Iterator[None]:
    """As in training: float32 means float32 on accelerators too."""
    with jax.default_matmul_precision("highest" if config.dtype == "float32" else "default"):
        yield


def add_flags(parser: argparse.ArgumentParser, *, dtype: bool = True) -> None:
    """The flags that say which model."""
    parser.add_argument("--workdir", required=True, metavar="RUN", help="a run's --workdir")
    parser.add_argument(
        "--task", type=int, metavar="T", help="the model after this task (default: the last complete one)"
    )
    if dtype:
        parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute in it (default: as the run did)")

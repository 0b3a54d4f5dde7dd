"""`extend_from`: an existing model learns new classes without the data it was trained on.

What the model knows becomes task 0 of the new run, taken over as it is; every task of the config comes after it. The network
(backbone and decoder with their settings) is the model's own. `train.run` and `config` ask here; nothing is trained here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from nest_jax import checkpoints, plugins, recipes, rundir, storage, tasks
from nest_jax.datasets import Dataset
from nest_jax.errors import InputError
from nest_jax.tasks import Protocol

NETWORK = ("backbone", "decoder")


def checkpoint(path: str) -> epath.Path:
    """The checkpoint that `extend_from=path` means: the last completed task of a run's workdir, or the checkpoint itself.

    Raises:
        InputError: there is none, or one from within a task.
    """
    given = storage.located(path)
    if given.suffix in (".pth", ".safetensors"):
        raise InputError(
            f"extend_from={path}: a file does not say which classes its model knows; give the --workdir of a run "
            "(a published checkpoint goes to init_from)"
        )
    if checkpoints.exists(given):
        if "classes" not in checkpoints.metadata(given):
            raise InputError(f"extend_from={path}: not the checkpoint of a completed task (task-00, task-01, ...)")
        return given
    if complete := rundir.completed_tasks(given):
        return rundir.task_directory(given, complete[-1])
    raise InputError(
        f"extend_from={path}: no completed task there; give the --workdir of a run, or WORKDIR/checkpoints/task-NN"
    )


def classes(path: str) -> tuple[str, ...]:
    """Names of the classes that the model knows, in the order of its outputs, background first."""
    return tuple(checkpoints.metadata(checkpoint(path))["classes"])


def network(path: str) -> dict[str, dict[str, Any]]:
    """The sections `backbone` and `decoder` of the model's config; settings that are newer than it have their defaults."""
    return sections(checkpoints.metadata(checkpoint(path))["config"])


def sections(saved: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`backbone` and `decoder` of a config as a checkpoint's metadata hold it."""
    return {key: {**recipes.section(key, saved[key]["name"]), **_tuples(saved[key])} for key in NETWORK}


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}


def take_network(config: Any, arg: str = "") -> None:
    """Puts the model's network in the place of the config's.

    Raises:
        InputError: `arg`, what was picked for the config ("backbone=resnet50,..."), says otherwise.
    """
    picked = dict(item.strip().split("=", 1) for item in arg.split(",") if "=" in item)
    wanted = network(config.extend_from)
    wrong = [
        (key, picked[key], wanted[key]["name"])
        for key in NETWORK
        if picked.get(key, wanted[key]["name"]) != wanted[key]["name"]
    ]
    if wrong:
        raise InputError("\n".join(_differs(key, here, there, "leave it out") for key, here, there in wrong))
    with config.unlocked():
        for key, section in wanted.items():
            config[key] = ConfigDict(section)


def problems(config: Any) -> list[str]:
    """What of a config does not go with the model that it extends; [] where there is no such model (`checkpoint` says that)."""
    found = []
    if getattr(plugins.load("methods", config.method.name), "JOINS_TASKS", False):
        found.append(
            f"method.name={config.method.name!r}: it trains on all tasks at once; extend_from is for when old data is gone"
        )
    if config.init_from:
        found.append(f"init_from={config.init_from}: extend_from={config.extend_from} says already what task 0 is")
    try:
        wanted = network(config.extend_from)
    except InputError:
        return found
    return found + differences(config, wanted)


def differences(config: Any, wanted: dict[str, dict[str, Any]], ignore: Sequence[str] = ()) -> list[str]:
    """Where the network of a config is not the one `wanted`: a line per setting."""
    found = []
    for key, section in wanted.items():
        here = config[key]
        if here.name != section["name"]:
            found.append(_differs(f"{key}.name", here.name, section["name"], f"--config=FILE:{key}={section['name']}"))
            continue
        for name, value in section.items():
            if name not in ignore and here.get(name) != value:
                found.append(_differs(f"{key}.{name}", here.get(name), value, "leave it out"))
    return found


def _differs(key: str, here: object, there: object, remedy: str) -> str:
    return f"{key}={here!r}: the model that is taken over has {there!r}, and its network stays as it is ({remedy})"


def protocol(own: Protocol, path: str, known: Sequence[str] = ()) -> Protocol:
    """`own` with what the model knows as task 0.

    Classes of the model that are not in the masks get label numbers behind those of the data set, which no pixel has.

    Args:
        own: the data set's tasks.
        known: classes of the data set that the model must know.

    Raises:
        InputError: a class to learn that the model knows, a `known` one that it does not know, too many classes.
    """
    there = classes(path)[1:]
    names = list(own.class_names)
    wrong = []
    if again := [names[label] for task in own.tasks for label in task if names[label] in there]:
        wrong.append(f"the model knows {', '.join(again)} already; leave what it knows out of the tasks")
    if strange := [name for name in known if name not in there]:
        wrong.append(f"known: {', '.join(strange)}: not among its classes {', '.join(there)}")
    names += [name for name in there if name not in names]
    if len(names) > tasks.VOID:
        wrong.append(f"{len(names) - 1} classes, its own and the data set's, do not fit 8 bits")
    if wrong:
        raise InputError(f"extend_from={path}: {'; '.join(wrong)}")
    base = tuple(names.index(name) for name in there)
    return dataclasses.replace(own, tasks=(base, *own.tasks), raw_classes=len(names) - 1, class_names=tuple(names))


def widened(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """`dataset` with the further classes of `class_names`, which it never shows."""
    more = max(0, len(class_names) - len(dataset.classes))
    if not more:
        return dataset
    presence = np.pad(dataset.presence, ((0, 0), (0, more)))
    return dataclasses.replace(dataset, classes=tuple(class_names), presence=presence)

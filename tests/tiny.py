"""Runs small enough for tests: synthetic images of 32 x 32, two tasks (5 classes, then 2), a few steps a task."""

from typing import Any

from nest_jax import config as configs

OVERRIDES = {
    "dataset.size": "32",
    "dataset.train_images": "64",
    "dataset.val_images": "24",
    "tasks.name": "5-2",
    "train.crop_size": "32",
    "train.batch_size": "8",
    "train.epochs": "1,1",
    "evaluate.batch_size": "8",
    "evaluate.pictures": "2",
    "log.progress": "False",
    "log.every_steps": "1",
}


def arguments(pick: str = "", **overrides: Any) -> list[str]:
    """The command line of a tiny run; `pick` as in `method=mib,classifier_init=nest`, overrides with `__` for dots."""
    values = {**OVERRIDES, **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    if "classifier_init=nest" in pick or "classifier_init" not in pick:
        values.setdefault("classifier_init.epochs", "1")
    return [f"--config=configs/shapes.py:{pick}", *(f"--config.{key}={value}" for key, value in values.items())]


def config(pick: str = "", **overrides: Any):
    """The config that these arguments give."""
    spec, *rest = arguments(pick, **overrides)
    found = configs.load(spec.removeprefix("--config="))
    pairs = [item.removeprefix("--config.").split("=", 1) for item in rest]
    configs.override(found, [(key, value) for key, value in pairs])
    return found

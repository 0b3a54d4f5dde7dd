"""What each task sees: its images, its label tables, and one random stream per phase."""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from nest_jax import extension, loader, plugins, pretuning, storage, tasks, writers
from nest_jax.datasets import Dataset
from nest_jax.errors import InputError
from nest_jax.tasks import Protocol

STREAMS = (
    "statistics",
    "pretuning",
    "training",
    "preparation",
)  # phases; a place in this list is part of a stream's seed


class Data(NamedTuple):
    """The images of a run. `protocol` is what is learnt; `reported` is what results are grouped by (they differ for joint training)."""

    config: Any
    protocol: Protocol
    reported: Protocol
    train: Dataset
    val: Dataset

    def class_names(self, raw_classes: tuple[int, ...]) -> list[str]:
        """Names of raw classes."""
        return [self.train.classes[c] for c in raw_classes]


def load(config: Any, protocol: Protocol, reported: Protocol) -> Data:
    """Both splits, checked: every task has a full batch and a test image. Better said now than at the last task.

    Raises:
        InputError: data that is not there or not usable; a task without images.
    """
    plugin = plugins.load("datasets", config.dataset.name)
    train, val = (
        extension.widened(plugin.load(config.dataset, split), protocol.class_names) for split in ("train", "val")
    )
    data = Data(config, protocol, reported, train, val)
    for task in range(1 if config.extend_from else 0, len(protocol)):
        images = training_images(data, task)
        if len(images) < config.train.batch_size:
            raise InputError(
                f"task {task} has {len(images)} training images, fewer than train.batch_size={config.train.batch_size}; "
                "choose a smaller batch"
            )
        if not len(tasks.test_indices(data.val.presence, protocol, task)):
            names = ", ".join(data.class_names(protocol.seen(task)[1:]))
            raise InputError(f"task {task}: no validation image shows one of its classes ({names})")
        empty = [c for c in protocol.new(task) if not train.presence[images, c].any()]
        if empty:
            names = ", ".join(data.class_names(tuple(empty)))
            writers.warn_once(f"task {task}: no training image shows {names}: not to be learnt from these data")
    return data


def claim(data: Data, workdir: epath.PathLike) -> None:
    """Notes in `workdir/data.json` which tasks and images a run is made of, or checks that they are the same ones.

    The folders may move (`dataset.root` may differ when a run continues), the images may not.

    Raises:
        InputError: other tasks or images than those that the run began with.
    """
    path = epath.Path(workdir) / "data.json"
    found: dict[str, Any] = {"tasks": [data.class_names(new) for new in data.protocol.tasks]}
    for split, dataset in (("train", data.train), ("val", data.val)):
        content = "\n".join(dataset.names).encode() + np.packbits(dataset.presence).tobytes()
        found[split] = {"images": len(dataset), "sha256": hashlib.sha256(content).hexdigest()}
    if not path.exists():
        storage.write_text(path, storage.json_text(found, indent=1))
        return
    began = json.loads(path.read_text())
    if (before := began.get("tasks", found["tasks"])) != found["tasks"]:
        there, here = (", ".join(f"({', '.join(names)})" for names in classes) for classes in (before, found["tasks"]))
        raise InputError(
            f"workdir {workdir}: its run began with the tasks {there}; now they are {here}; give it the former, or another --workdir"
        )
    for split in ("train", "val"):
        if began[split] != found[split]:
            raise InputError(
                f"workdir {workdir}: its run began with {began[split]['images']} {split} images, here are {found[split]['images']}, "
                "and not the same ones; give it the data set it began with, or another --workdir"
            )


def process() -> tuple[int, int]:
    """This process among all."""
    return jax.process_index(), jax.process_count()


def training_images(data: Data, task: int) -> np.ndarray:
    """Indices of the task's training images; none of what is taken over from a model to extend."""
    if task == 0 and data.config.extend_from:
        return np.zeros(0, int)
    return tasks.train_indices(data.train.presence, data.protocol, task)


def seed(data: Data, task: int, phase: str) -> tuple[int, ...]:
    """Every phase of every task has its own random stream."""
    return (data.config.seed, task, STREAMS.index(phase))


def steps(data: Data, task: int, epochs: int) -> int:
    """Full batches in `epochs` epochs of the task."""
    return epochs * loader.iterations_per_epoch(len(training_images(data, task)), data.config.train.batch_size)


def augmented(data: Data, task: int, phase: str, start: int, *, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """Shuffled training batches [start, stop) of a phase."""
    train = data.config.train
    return loader.train_batches(
        data.train,
        training_images(data, task),
        size=train.crop_size,
        batch_size=train.batch_size,
        seed=seed(data, task, phase),
        start=start,
        stop=stop,
        workers=train.workers,
        process=process(),
    )


def one_pass(data: Data, task: int, phase: str, start: int, *, view: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Every training image of the task once, augmented: NeST's similarity statistics and PLOP's thresholds are taken from it.

    `view` numbers further augmentations of the same images.
    """
    train = data.config.train
    return loader.one_pass_batches(
        data.train,
        training_images(data, task),
        size=train.crop_size,
        batch_size=train.batch_size,
        seed=(*seed(data, task, phase), *([view] if view else [])),
        start=start,
        workers=train.workers,
        process=process(),
    )


def pass_steps(data: Data, task: int) -> int:
    """Batches of `one_pass`."""
    return loader.batches_in_pass(len(training_images(data, task)), data.config.train.batch_size)


def preparation(data: Data, task: int) -> pretuning.Batches:
    """One pass for statistics; then the epochs of pre-tuning, if the initialisation has any."""
    total = steps(data, task, data.config.classifier_init.get("epochs", 0))
    return pretuning.Batches(
        statistics=partial(one_pass, data, task, "statistics"),
        statistics_steps=pass_steps(data, task),
        pretuning=partial(augmented, data, task, "pretuning", stop=total),
        pretuning_steps=total,
    )


def test(data: Data, indices: np.ndarray, *, whole: bool = False) -> Iterator[dict[str, np.ndarray]]:
    """Validation images in order: centre crops, or full images one at a time; the last batch is padded with label 255.

    Every process gets its rows of each batch, or where `whole` all of them.
    """
    full = data.config.evaluate.full_images
    return loader.eval_batches(
        data.val,
        indices,
        size=None if full else data.config.train.crop_size,
        batch_size=1 if full else data.config.evaluate.batch_size,
        workers=data.config.train.workers,
        process=(0, 1) if whole else process(),
    )


def test_steps(data: Data, count: int) -> int:
    """Batches of `test` over `count` images."""
    return count if data.config.evaluate.full_images else loader.batches_in_pass(count, data.config.evaluate.batch_size)


def picture_indices(data: Data) -> np.ndarray:
    """Validation images for the picture sheet, the same for all tasks: of every class in turn, richest in classes first."""
    count = data.config.evaluate.pictures
    presence = data.val.presence[:, list(data.protocol.seen(len(data.protocol) - 1))[1:]]
    order = np.argsort(-presence.sum(axis=1), kind="stable")
    of_class = [[i for i in order if presence[i, c]] for c in range(presence.shape[1])]
    ranked = [
        image for images in zip(*(images + [-1] * len(order) for images in of_class), strict=False) for image in images
    ]
    return np.asarray([i for i in dict.fromkeys(ranked) if i >= 0][:count], int)

"""Evaluates a completed task of a run again: `python -m nest_jax.evaluate --workdir RUN [--task T] ...`.

Without further flags the numbers are the trainer's own, pixel by pixel. Classes are matched by name, so that any data set that shows some of
them will do: what the model does not know counts as background, as classes of later tasks do in training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8
from ml_collections import ConfigDict

from nest_jax import (
    checkpoints,
    compilation,
    evaluate,
    loader,
    memory,
    plugins,
    recipes,
    restored,
    results,
    rundir,
    sharding,
    storage,
)
from nest_jax import config as configs
from nest_jax.command import Parser, exit_code, split_overrides
from nest_jax.datasets import Dataset
from nest_jax.errors import InputError
from nest_jax.evaluate import View
from nest_jax.restored import Restored
from nest_jax.tasks import VOID

# What an evaluation may have otherwise than the run; the rest is what the model is.
CHANGEABLE = ("dataset.", "evaluate.", "log.progress", "train.crop_size", "train.workers", "loss.block_rows", "dtype")
FOLDER = "evaluations"

EXAMPLES = f"""\
examples:
  # the last task as the trainer evaluated it; the data have moved
  python -m nest_jax.evaluate --workdir runs/voc_15_1 --config.dataset.root=/data/VOCdevkit

  # whole images, each with its mirror image and at three scales
  python -m nest_jax.evaluate --workdir runs/voc_15_1 --task 2 --full_images --flip --scales 0.75,1,1.25

  # pictures of one's own that show classes of the same names
  python -m nest_jax.evaluate --workdir runs/voc_15_1 --dataset folder --config.dataset.file=mine.json

Prints a table and writes RUN/{FOLDER}/NAME.json, NAME made of what differs; nothing of the run itself is changed. Probabilities of
scales and mirror images are averaged (they, and full images, are not in the published evaluation). Full images are not padded, which
would change the numbers: the network is compiled once for every size that occurs; JAX_COMPILATION_CACHE_DIR=DIR keeps that for
the next time. --config.KEY=VALUE changes {", ".join(key + "*" if key.endswith(".") else key for key in CHANGEABLE)}.
Exit codes: 0 done, 2 something in the input is wrong, 130 interrupted.
"""


class Evaluation(NamedTuple):
    """A confusion matrix `[truth, prediction]`, int64, of so many images."""

    confusion: np.ndarray
    images: int
    seconds: float


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and the overrides `("dataset.root", "/data")`.

    Raises:
        InputError: an unknown flag, or an override of what the model is.
    """
    parser = Parser(
        prog="python -m nest_jax.evaluate",
        description="Evaluates a completed task of a run again.",
        epilog=EXAMPLES,
    )
    restored.add_flags(parser, dtype=False)
    parser.add_argument("--dataset", metavar="NAME", help="another data set, with its --config.dataset.KEY=VALUE")
    parser.add_argument("--full_images", action="store_true", help="whole images, not centre crops")
    parser.add_argument("--flip", action="store_true", help="each image and its mirror image")
    parser.add_argument("--scales", default="1", metavar="S,...", help="each image at these scales, e.g. 0.75,1,1.25")
    parser.add_argument("--out", metavar="FILE", help=f"where to write (default: RUN/{FOLDER}/NAME.json)")
    parser.add_argument("--config.KEY", dest="key", metavar="VALUE", help="overrides one value of the run's config")
    flags, overrides = split_overrides(arguments)
    for key, _ in overrides:
        if key == "dataset.name":
            raise InputError("--config.dataset.name: it brings its own settings; pick it with --dataset NAME")
        if not any(key.startswith(part) if part.endswith(".") else key == part for part in CHANGEABLE):
            raise InputError(
                f"--config.{key}: part of what the model is; an evaluation changes: {', '.join(CHANGEABLE)}"
            )
    return parser.parse_args(flags), overrides


def views(scales: str, flip: bool) -> tuple[View, ...]:
    """The views of each image: "0.75,1" -> every scale, and mirrored too if `flip`.

    Raises:
        InputError: not positive numbers.
    """
    values = configs.parse_value((1.0,), scales, "--scales")
    if not values or not all(math.isfinite(scale) and scale > 0 for scale in values):
        raise InputError(f"--scales={scales}: scales are positive numbers, e.g. 0.75,1,1.25")
    return tuple(
        (scale, mirrored) for scale in dict.fromkeys(values) for mirrored in ((False, True) if flip else (False,))
    )


def confusion(found: Restored, views: tuple[View, ...] = evaluate.PLAIN) -> Evaluation:
    """Evaluates a model on the validation split of `found.config.dataset`, as the config's sections `evaluate` and `train` say.

    Raises:
        InputError: the data are not there, or no image shows a class that the model knows.
    """
    config = found.config
    dataset = plugins.load("datasets", config.dataset.name).load(config.dataset, "val")
    indices = showing(dataset, found.class_names)
    full, devices = config.evaluate.full_images, jax.device_count()
    batch_size = 1 if full else -(-config.evaluate.batch_size // devices) * devices  # changes no number
    mesh = sharding.mesh()
    step = evaluate.make_step(found.segmenter, mesh, block_rows=0 if full else config.loss.block_rows, views=views)
    table = label_table(dataset.classes, found.class_names)
    placed = sharding.replicate({"model": found.model, "table": table}, mesh)
    size = None if full else config.train.crop_size
    batches = loader.eval_batches(dataset, indices, size=size, batch_size=batch_size, workers=config.train.workers)
    steps, text = loader.batches_in_pass(len(indices), batch_size), f"task {found.task} evaluation"
    started = time.monotonic()
    with restored.precision(config):
        pairs = evaluate.evaluated(step, placed, batches, mesh, whole=full)
        matrix = evaluate.total(pairs, len(found.class_names), steps, text, progress=config.log.progress)
    return Evaluation(matrix, len(indices), time.monotonic() - started)


def label_table(classes: Sequence[str], known: Sequence[str]) -> UInt8[np.ndarray, " 256"]:
    """Raw label -> output of the model that has its name, background (0) where none has; 255 stays."""
    table = np.full(256, VOID, np.uint8)
    table[: len(classes)] = [known.index(name) if name in known else 0 for name in classes]
    return table


def showing(dataset: Dataset, known: Sequence[str]) -> np.ndarray:
    """Indices of the images that show a class of the model: the trainer's rule.

    Raises:
        InputError: none does.
    """
    raw = [label for label, name in enumerate(dataset.classes) if label and name in known]
    indices = np.flatnonzero(dataset.presence[:, raw].any(axis=1))
    if not len(indices):
        raise InputError(
            f"no validation image shows a class that the model knows: {', '.join(known[1:])}; the data set has "
            f"{', '.join(dataset.classes[1:])}"
        )
    return indices


def run(arguments: Sequence[str]) -> epath.Path:
    """What `main` does, with errors as exceptions; the path of the JSON file."""
    flags, overrides = parse(arguments)
    seen = views(flags.scales, flags.flip)
    memory.keep_freed()
    compilation.keep()
    found = restored.load(flags.workdir, flags.task, dtype=dict(overrides).get("dtype", ""))
    own = results.read(found.workdir)
    if flags.dataset:
        if flags.dataset not in plugins.names("datasets"):
            raise InputError(plugins.unknown("--dataset", flags.dataset, plugins.names("datasets")))
        with found.config.unlocked():
            found.config.dataset = ConfigDict(recipes.section("dataset", flags.dataset))
    configs.override(found.config, overrides)
    if flags.full_images:
        configs.put(found.config, "evaluate.full_images", True)
    path = out_path(flags, overrides, found)
    measured = confusion(found, seen)
    entry = report(found, measured, own["num_base"], other_data=bool(flags.dataset))
    before = next((task for task in own["tasks"] if task["task"] == found.task), None)
    print(f"task {found.task}, {measured.images} images\n{table(entry, before)}")
    settings = {key: found.config[key] for key in ("dataset", "evaluate", "dtype")}
    document = {
        "format_version": results.FORMAT_VERSION,
        "workdir": found.workdir,
        "settings": {**settings, "crop_size": found.config.train.crop_size, "views": seen},
        "versions": results.versions(),
        "device": results.device(),
        **entry,
    }
    storage.write_text(path, results._compact_rows(storage.json_text(document, indent=1)) + "\n")
    print(path)
    return path


def out_path(flags: argparse.Namespace, overrides: Sequence[tuple[str, str]], found: Restored) -> epath.Path:
    """Where the numbers go. The default name says what differs from the trainer's evaluation; the same again replaces it.

    Raises:
        InputError: `--out` exists.
    """
    if flags.out:
        path = epath.Path(flags.out).expanduser()
        if path.exists():
            raise InputError(f"--out={flags.out}: there is something already; give another name")
        return path
    parts = [f"task-{found.task:02d}"]
    parts += [flags.dataset] if flags.dataset else []
    parts += ["full_images"] if flags.full_images else []
    parts += ["flip"] if flags.flip else []
    parts += [f"scales-{flags.scales.replace(',', '-').replace(' ', '')}"] if flags.scales != "1" else []
    parts += [hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:6]] if overrides else []
    return found.workdir / FOLDER / f"{'-'.join(parts)}.json"


def report(found: Restored, measured: Evaluation, num_base: int, *, other_data: bool = False) -> dict[str, Any]:
    """What results.json says of a task, of this evaluation.

    Where the data need not show every class (`other_data`, `extend_from`), means are over those they show.
    """
    saved = checkpoints.metadata(rundir.task_directory(found.workdir, found.task))["report"]
    entry = results.task_entry(
        found.task,
        saved["new_classes"],
        found.class_names,
        measured.confusion,
        num_base,
        seconds={"evaluation": measured.seconds},
        steps={},
        images={"val": measured.images},
        peak_memory_bytes=results.peak_memory_bytes(),
    )
    if other_data or found.config.extend_from:
        entry["metrics"] |= results.of_those_measured(entry["per_class"], num_base)
    return entry


def table(entry: dict[str, Any], own: dict[str, Any] | None) -> str:
    """A row per class with its IoU in percent and its share of the pixels, then the means; beside them the run's own numbers, if any."""
    pixels = np.asarray(entry["confusion"]).sum(axis=1)
    share = [f"{100 * part:.1f}" for part in pixels / max(1, pixels.sum())]
    rows = [["class", "IoU", "the run's own", "% of pixels"]]
    mine, theirs = entry["per_class"], (own or {}).get("per_class", {})
    for (name, value), part in zip(mine.items(), share, strict=True):
        rows.append([name, results._percent(value), results._percent(theirs.get(name)), part])
    for key, label in (("old", "mIoU old"), ("new", "mIoU new"), ("all", "mIoU all")):
        before = (own or {}).get("metrics", {}).get(f"miou_{key}")
        rows.append([label, results._percent(entry["metrics"][f"miou_{key}"]), results._percent(before), ""])
    before = (own or {}).get("metrics", {}).get("pixel_accuracy")
    rows.append(["pixel accuracy", results._percent(entry["metrics"]["pixel_accuracy"]), results._percent(before), ""])
    return results.layout(rows, left=(0,))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return exit_code(lambda given: run(given) and None, arguments, interrupted="interrupted; nothing was written")

"""Checks a data set's official files and packs them for training: `python -m nest_jax.prepare voc2012 --source DIR`.

Training does the same on first use where it is told the folder; doing it apart is for slow disks and shared machines. Interrupted, it
is started again by the same command; a finished one is only reported. Says how the result differs from the published set.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

import numpy as np

from nest_jax import plugins, tasks
from nest_jax.command import Parser, exit_code
from nest_jax.datasets import Dataset, _check, _prepared
from nest_jax.errors import InputError

EXAMPLES = """\
examples:
  python -m nest_jax.prepare voc2012 --source /data/VOCdevkit
  python -m nest_jax.prepare ade20k --source /data/ADEChallengeData2016 --data_dir /data/prepared

  # go on without damaged images; they are listed
  python -m nest_jax.prepare coco_stuff10k --source /data/cocostuff-10k-v1.1 --skip_bad
"""


def run(arguments: Sequence[str]) -> None:
    """Prepares, says where the result lies, and compares it with what was published.

    Raises:
        InputError: unknown data set, or what its `prepare` finds wrong.
    """
    able = [name for name in plugins.names("datasets") if hasattr(plugins.load("datasets", name), "prepare")]
    parser = Parser(
        prog="python -m nest_jax.prepare", description="Check and pack a data set for training.", epilog=EXAMPLES
    )
    parser.add_argument("dataset", help=f"one of: {', '.join(able)}")
    parser.add_argument("--source", required=True, metavar="DIR", help="the official folders, unpacked")
    parser.add_argument(
        "--data_dir",
        default="",
        metavar="DIR",
        help="where to write (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    parser.add_argument(
        "--skip_bad",
        action="store_true",
        help=f"go on without images that have a problem, and list them in {_prepared.SKIPPED}",
    )
    flags = parser.parse_args(arguments)
    if flags.dataset not in able:
        raise InputError(plugins.unknown("dataset to prepare", flags.dataset, able))
    plugin = plugins.load("datasets", flags.dataset)
    given = {"root": flags.source, "data_dir": flags.data_dir, "skip_bad": flags.skip_bad}
    settings = {**plugin.defaults(flags.dataset), **given}
    directory = plugin.prepare(settings)
    splits = {split: plugin.load(settings, split) for split in ("train", "val")}
    print(f"{flags.dataset}: {_counts({split: len(data) for split, data in splits.items()})} images in {directory}")
    skipped = _prepared.skipped_images(directory)
    lines = [line for images in skipped.values() for found in images.values() for line in found]
    if lines:
        counts = _counts({split: len(images) for split, images in skipped.items()})
        print(_check.report(f"bad and left out: {counts}; {directory / _prepared.SKIPPED} lists them", lines))
    print("\n".join(comparison(plugin, splits)))


def comparison(plugin: ModuleType, splits: Mapping[str, Dataset]) -> list[str]:
    """How a prepared set differs from the published one, a line for every difference.

    Numbers of images first; training images by task only where those are right, since otherwise they cannot be. A plug-in says
    what was published in `IMAGES` and `TASK_IMAGES`.
    """
    lines = []
    for split, data in splits.items():
        shown = np.flatnonzero(data.presence.any(axis=0)).tolist()
        absent = [name for label, name in enumerate(data.classes) if label and label not in shown]
        if absent:
            lines.append(f"no {split} image shows: {', '.join(absent)}")
    published = getattr(plugin, "IMAGES", None)
    if published is None:
        return lines
    counts = {split: len(data) for split, data in splits.items()}
    if counts != published:
        return [f"not the published set, which has {_counts(published)} images", *lines]
    lines.insert(0, f"published: {_counts(published)} images, as here")
    train, same = splits["train"], []
    for (name, setting), expected in plugin.TASK_IMAGES.items():
        protocol = tasks.parse(name, setting=setting, class_names=train.classes)
        found = tuple(_images(train, protocol, task) for task in range(len(protocol)))
        if found == expected:
            same.append(f"{name} {setting}")
        else:
            lines.append(f"training images by task of {name} {setting}: {_row(found)}; published: {_row(expected)}")
    if same:
        lines.append(f"training images by task as published: {', '.join(same)}")
    return lines


def _images(train: Dataset, protocol: tasks.Protocol, task: int) -> int:
    try:
        return len(tasks.train_indices(train.presence, protocol, task))
    except InputError:  # none
        return 0


def _counts(images: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in images.items())


def _row(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    told = "interrupted: nothing is left behind; the same command begins again"
    return exit_code(run, arguments, interrupted=told)


if __name__ == "__main__":
    sys.exit(main())

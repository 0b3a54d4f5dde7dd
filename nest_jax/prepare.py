"""Checks a data set's official files and packs them for training: `python -m nest_jax.prepare voc2012 --source DIR`.

Training does the same on first use where it is told the folder; doing it apart is for slow disks and shared machines.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from nest_jax import plugins
from nest_jax.errors import InputError


def run(arguments: Sequence[str]) -> None:
    """Prepares and says where the result lies.

    Raises:
        InputError: unknown data set, or what its `prepare` finds wrong.
    """
    able = [name for name in plugins.names("datasets") if hasattr(plugins.load("datasets", name), "prepare")]
    parser = argparse.ArgumentParser(
        prog="python -m nest_jax.prepare", description="Check and pack a data set for training."
    )
    parser.add_argument("dataset", help=f"one of: {', '.join(able)}")
    parser.add_argument("--source", required=True, metavar="DIR", help="the official folders, unpacked")
    parser.add_argument(
        "--data_dir",
        default="",
        metavar="DIR",
        help="where to write (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    )
    flags = parser.parse_args(arguments)
    if flags.dataset not in able:
        raise InputError(plugins.unknown("dataset to prepare", flags.dataset, able))
    plugin = plugins.load("datasets", flags.dataset)
    settings = {**plugin.defaults(flags.dataset), "root": flags.source, "data_dir": flags.data_dir}
    directory = plugin.prepare(settings)
    counts = ", ".join(f"{len(plugin.load(settings, split))} {split}" for split in ("train", "val"))
    print(f"{flags.dataset}: {counts} images in {directory}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code. Bad input is one message and code 2."""
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Kills a small run at random instants, starts it again, and compares its final parameters with those of an undisturbed run.

    python benchmarks/chaos.py --kills 50

Every trial is a run of its own on the synthetic images (PLOP + NeST, which has all phases; a rolling checkpoint every 3 steps): it is started,
killed after a random time (kill -9 and SIGTERM in turn), started again with the same command and left to end. The instants are uniform over
the time of the undisturbed run, start-up included, so that some fall into a save. Bit-identity on CPU holds for an equal number of cores.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from nest_jax import checkpoints, rundir

ROOT = Path(__file__).parent.parent
CONFIG = {
    "dataset.size": 32,
    "dataset.train_images": 64,
    "dataset.val_images": 16,
    "tasks.name": "5-2",
    "train.crop_size": 32,
    "train.batch_size": 4,
    "train.epochs": "1,2",
    "classifier_init.epochs": 1,
    "evaluate.batch_size": 8,
    "evaluate.pictures": 2,
    "checkpoint.every_steps": 3,
    "log.progress": False,
}
TASKS = (0, 1)


def start(workdir: Path) -> subprocess.Popen:
    """The run, in a process of its own."""
    settings = [f"--config.{key}={value}" for key, value in CONFIG.items()]
    command = [
        sys.executable,
        "-m",
        "nest_jax.main",
        "--config=configs/shapes.py:method=plop",
        *settings,
        f"--workdir={workdir}",
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    """ "" where the run ended with 0, else the end of what it said."""
    _, said = process.communicate()
    return "" if process.returncode == 0 else f"exit {process.returncode}: {said.strip()[-500:]}"


def parameters(workdir: Path) -> list[np.ndarray]:
    """All arrays of all tasks' checkpoints."""
    trees = [checkpoints.restore(rundir.task_directory(workdir, task))[0] for task in TASKS]
    return jax.tree.leaves(trees)


def trial(workdir: Path, number: int, after: float, reference: list[np.ndarray]) -> str:
    """What became of a run that was told to end `after` seconds from its start: "identical", or what is wrong."""
    process = start(workdir)
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
    _, said = process.communicate()
    if number == signal.SIGTERM and process.returncode not in (
        0,
        -signal.SIGTERM,
    ):  # before it listens, the signal ends it
        return f"SIGTERM: exit {process.returncode}: {said.strip()[-500:]}"
    if wrong := finish(start(workdir)):
        return wrong
    found = parameters(workdir)
    same = len(found) == len(reference) and all(np.array_equal(a, b) for a, b in zip(found, reference, strict=True))
    return "identical" if same else "other parameters"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="trials (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args()
    chance, outcomes = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        clock = time.monotonic()
        if wrong := finish(start(Path(folder) / "whole")):
            print(f"the undisturbed run failed: {wrong}")
            return 1
        took = time.monotonic() - clock
        reference = parameters(Path(folder) / "whole")
        for index in range(options.kills):
            number = (signal.SIGKILL, signal.SIGTERM)[index % 2]
            after = chance.uniform(0, took)
            outcomes.append(trial(Path(folder) / str(index), number, after, reference))
            print(
                f"{index + 1:3d} of {options.kills}: {number.name} after {after:5.1f} of {took:.1f} s: {outcomes[-1]}",
                flush=True,
            )
    identical = outcomes.count("identical")
    print(f"{identical} of {options.kills} ended with identical parameters")
    return int(identical < options.kills)


if __name__ == "__main__":
    sys.exit(main())

"""The benchmarks run and print what README quotes; what they measure is not tested."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("script", "arguments", "printed"),
    [
        (
            "similarity_statistics.py",
            ["--old", "4", "--new", "2", "--channels", "8", "--size", "16", "--images", "1"],
            ["published form", "pixels in chunks", "closed form"],
        ),
        (
            "nest_cost.py",
            ["--config=configs/shapes.py", "--set", "train.crop_size=32", "--images", "64,32,32", "--rounds", "1"],
            ["statistics", "pretuning", "training", "features online", "features cached"],
        ),
        (
            "loss_memory.py",
            ["--config=configs/shapes.py:method=mib", "--set", "train.crop_size=32", "--rounds", "1"],
            ["21 classes, blocks of rows", "151 classes, whole images", "s/step"],
        ),
        (
            "floor.py",
            ["--config=configs/shapes.py:method=mib", "--set", "train.crop_size=32", "--rounds", "1"],
            ["GFLOP/s", "teacher forward", "student with gradient", "losses", "update", "step"],
        ),
        (
            "device_idle.py",
            ["--config=configs/shapes.py", "--config.train.crop_size=32", "--steps", "2", "--rounds", "1"],
            ["one batch", "loader", "the device waits"],
        ),
        (
            "startup.py",
            ["--config=configs/shapes.py", "--set", "train.crop_size=32", "--set", "dataset.size=32", "--rounds", "1"],
            ["cold", "warm", "ratio"],
        ),
    ],
)
def test_benchmarks_run(script, arguments, printed):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    finished = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    for words in printed:
        assert words in finished.stdout

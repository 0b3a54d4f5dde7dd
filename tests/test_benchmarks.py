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
            ["pixel by pixel", "closed form", "ratio"],
        ),
        (
            "nest_cost.py",
            ["--config=configs/shapes.py", "--set", "train.crop_size=32", "--images", "64,32,32", "--rounds", "1"],
            ["statistics", "pretuning", "training", "NeST / whole run"],
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

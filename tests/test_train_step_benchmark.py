"""benchmarks/train_step.py: the trainer's step and the plain PyTorch one are the same, and the report's arithmetic."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TINY = ["--set", "train.crop_size=32", "--set", "train.batch_size=2", "--rounds", "1", "--device", "cpu"]


@pytest.fixture
def train_step(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("train_step")


def run(*arguments):
    command = [sys.executable, str(ROOT / "benchmarks" / "train_step.py"), *arguments, *TINY]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_report_compares_medians(train_step):
    about = {"what": "mib, tiny", "batch": 4, "crop": 32, "dtype": "float32", "device": "cpu"}
    ours = {"first": 9.0, "seconds": [0.5, 9.0, 0.4], "bytes": 2**30}
    theirs = {"first": 1.0, "seconds": [1.0, 1.1, 0.2], "bytes": 2**32}
    lines = train_step.report(about, {"nest_jax": ours, "torch": theirs}).splitlines()
    assert lines[2].split() == ["nest_jax", "0.5000", "8.00", "1.00", "GiB", "9.0", "s"]
    assert lines[3].split()[:3] == ["torch", "1.0000", "4.00"]
    assert lines[4] == "nest_jax / torch: 2.00x the speed, 0.25x the memory"


def test_changes_are_compared_relative_to_their_size(train_step):
    start = {"large": np.zeros(4), "small": np.zeros(4), "other": np.zeros(4)}
    theirs = {"large": np.full(4, 1.0), "small": np.full(4, 1e-9), "other": np.full(4, 1.0)}
    ours = {"large": np.full(4, 1.1), "small": np.zeros(4), "other": np.full(4, -1.0)}
    found = train_step.update_differences(start, ours, theirs, ["large", "small"])
    assert found["large"] == pytest.approx(0.1)
    assert found["small"] < 1e-6  # far below the others' size
    assert train_step.update_differences(start, ours, theirs, ["other"])["other"] == pytest.approx(2.0)
    assert train_step.relative({"a": 1.1, "mine": 5.0}, {"a": 1.0}) == pytest.approx(0.1)


def test_our_side_alone_is_measured():
    finished = run("--config=configs/shapes.py:classifier_init=background", "--sides", "nest_jax")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[0].startswith("mib, tiny + plain: batch 2, crop 32, float32")
    assert " GiB " in finished.stdout


def test_a_worker_that_ends_is_told_with_its_last_words():
    finished = run("--config=configs/none.py", "--sides", "nest_jax")
    assert finished.returncode == 1
    assert "--config=configs/none.py: no such file" in finished.stderr


@pytest.mark.parametrize("method", ["mib", "plop", "rcil"])
def test_pytorch_makes_the_same_step(method):
    pytest.importorskip("torch", reason="PyTorch is not installed: the reference cannot run")
    config = f"--config=configs/voc_15_1.py:classifier_init=background,backbone=resnet50,method={method}"
    finished = run(config, "--set", "backbone.blocks=1,1,1,1", "--sides", "nest_jax,torch", "--check")
    assert finished.returncode == 0, finished.stderr
    assert "tensors' changes differ by" in finished.stdout

"""Killed runs continue to the same numbers; several devices give the numbers of one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import checkpoints, results, rundir
from tests import tiny

ROOT = Path(__file__).parent.parent
# Kills its own process at the second batch after the first rolling checkpoint of a phase: that batch's work is lost.
KILLED_RUN = """
import os, signal, sys
from nest_jax import main, rundir, sharding
save, place, left = rundir.save_rolling, sharding.global_batch, []
def save_rolling(workdir, task, phase, *rest, **options):
    path = save(workdir, task, phase, *rest, **options)
    if f"{phase} {task}" == sys.argv[1]:
        left.append(2)
    return path
def global_batch(*arguments):
    if left:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    return place(*arguments)
rundir.save_rolling, sharding.global_batch = save_rolling, global_batch
sys.exit(main.main(sys.argv[2:]))
"""


def launch(arguments, *, phase="", devices=1):
    """Exit code of a run in its own process; with `phase`, one that kills itself there."""
    command = [sys.executable, "-c", KILLED_RUN, phase] if phase else [sys.executable, "-m", "nest_jax.main"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run([*command, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(finished.stdout + finished.stderr)
    return finished.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of PLOP + NeST, which has all phases, on one device; the batch of 4 makes phases long enough to be killed in."""
    workdir = tmp_path_factory.mktemp("whole")
    arguments = tiny.arguments("method=plop", train__batch_size=4, checkpoint__every_steps=3)
    assert launch([*arguments, f"--workdir={workdir}"]) == 0
    return workdir, arguments


def leaves(workdir, task):
    tree, _ = checkpoints.restore(rundir.task_directory(workdir, task))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def log_without_times(workdir):
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in lines]


@pytest.mark.parametrize(
    ("phase", "task"), [("training", 0), ("statistics", 1), ("pretuning", 1), ("preparation", 1), ("training", 1)]
)
def test_a_killed_run_ends_with_the_same_numbers(whole, tmp_path, phase, task):
    reference, arguments = whole
    command = [*arguments, f"--workdir={tmp_path}"]
    assert launch(command, phase=f"{phase} {task}") == -signal.SIGKILL
    newest = rundir.latest_rolling(tmp_path, task)
    assert newest is not None
    saved = checkpoints.metadata(newest)
    assert (saved["phase"], saved["iteration"]) == (phase, 3)
    assert launch(command) == 0

    for completed in (0, 1):
        expected, found = leaves(reference, completed), leaves(tmp_path, completed)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert_array_equal(found[name], value, err_msg=name)
    assert log_without_times(tmp_path) == log_without_times(reference)
    for ours, theirs in zip(results.read(tmp_path)["tasks"], results.read(reference)["tasks"], strict=True):
        assert ours["confusion"] == theirs["confusion"]
        assert ours["steps"] == theirs["steps"]


def test_four_devices_give_the_numbers_of_one(whole, tmp_path):
    one, arguments = whole
    assert launch([*arguments, f"--workdir={tmp_path}", f"--config.init_from={one}"], devices=4) == 0
    first, second = results.read(one), results.read(tmp_path)
    assert (first["device"]["devices"], second["device"]["devices"]) == (1, 4)
    # The same model evaluated on one device and on four: the same pixels. After training: sums in another order.
    assert first["tasks"][0]["confusion"] == second["tasks"][0]["confusion"]
    confusions = [np.array(found["tasks"][1]["confusion"]) for found in (first, second)]
    assert np.abs(confusions[0] - confusions[1]).sum() <= 0.002 * confusions[0].sum()
    expected, found = leaves(one, 1), leaves(tmp_path, 1)
    assert expected.keys() == found.keys() and any("batch_stats" in name for name in expected)
    for name, value in expected.items():
        if not np.issubdtype(value.dtype, np.floating):
            assert_array_equal(found[name], value, err_msg=name)  # sampled pixels per class
        else:
            scale = np.abs(value).max()
            assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * scale, err_msg=name)

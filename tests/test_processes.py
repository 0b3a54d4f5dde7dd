"""Several processes, several devices and shared parameters give the numbers of one device; a signal ends a run saved."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from nest_jax import checkpoints, command, main, results, rundir
from nest_jax.errors import InputError
from tests import tiny

ROOT = Path(__file__).parent.parent
# Few and small steps: what is compared is the arithmetic, not how training amplifies its rounding.
ARGUMENTS = tiny.arguments("method=plop", train__learning_rate="0.01,0.0001", classifier_init__learning_rate=0.0001)


def start(workdir, *more, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "nest_jax.main", *ARGUMENTS, f"--workdir={workdir}", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, env=environment, cwd=ROOT, start_new_session=True, **pipes)


def finish(*processes):
    outputs = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run on one device, whose task 0 the others share."""
    workdir = tmp_path_factory.mktemp("one")
    finish(start(workdir))
    return workdir


def two_processes(workdir, one, *arguments):
    where = f"--coordinator=127.0.0.1:{free_port()}"
    common = (f"--config.init_from={one}", where, "--num_processes=2", *arguments)
    return finish(*(start(workdir, *common, f"--process_id={index}", devices=2) for index in range(2)))


def assert_same(one, other):
    first, second = results.read(one), results.read(other)
    for ours, theirs in zip(first["tasks"], second["tasks"], strict=True):
        assert ours["confusion"] == theirs["confusion"]
    trees = [checkpoints.restore(rundir.task_directory(workdir, 1))[0] for workdir in (one, other)]
    (expected, structure), (found, other_structure) = (jax.tree_util.tree_flatten_with_path(tree) for tree in trees)
    assert structure == other_structure
    for (path, value), (_, theirs) in zip(expected, found, strict=True):
        name = jax.tree_util.keystr(path)
        if np.issubdtype(value.dtype, np.floating):
            assert_allclose(theirs, value, rtol=1e-5, atol=1e-5 * np.abs(value).max(), err_msg=name)
        else:
            assert_array_equal(theirs, value, err_msg=name)  # pixels that NeST sampled


def test_four_devices_with_shared_parameters_give_the_numbers_of_one(one, tmp_path):
    finish(start(tmp_path, f"--config.init_from={one}", "--config.sharding.fsdp=2", devices=4))
    assert results.read(tmp_path)["device"]["devices"] == 4
    assert_same(one, tmp_path)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_two_processes_give_the_numbers_of_one(one, tmp_path, fsdp):
    """With fsdp=4 every process holds half of each large array, and none sees a whole one."""
    (first, _), (second, _) = two_processes(
        tmp_path, one, f"--config.sharding.fsdp={fsdp}", "--config.checkpoint.every_steps=2"
    )
    spoken = [line for line in second.splitlines() if line and not line.startswith("[Gloo]")]
    assert "mean over tasks" in first and not spoken  # process 0 alone speaks
    assert results.read(tmp_path)["device"]["devices"] == 4
    assert (tmp_path / "pictures" / "sheet.png").stat().st_size > 1000
    assert_same(one, tmp_path)


def test_two_processes_keep_features_of_their_own_images(one, tmp_path):
    cached = (
        f"--config.init_from={one}",
        "--config.classifier_init.features=cached",
        "--config.classifier_init.epochs=2",
    )
    finish(start(tmp_path / "one", *cached))
    two_processes(tmp_path / "two", one, *cached[1:])
    assert_same(tmp_path / "one", tmp_path / "two")


LONGER = ("--config.train.epochs=1,60", "--config.log.every_steps=1")


@pytest.fixture(scope="module")
def longer(one, tmp_path_factory):
    """A run with enough steps to be stopped in."""
    workdir = tmp_path_factory.mktemp("longer")
    finish(start(workdir, f"--config.init_from={one}", *LONGER))
    return workdir


@pytest.mark.parametrize(
    ("number", "to_all", "workers"),
    [(signal.SIGTERM, False, 0), (signal.SIGINT, True, 1)],
    ids=["sigterm", "ctrl-c with a data worker"],
)
def test_a_signal_ends_the_run_saved_and_the_same_command_continues(one, longer, tmp_path, number, to_all, workers):
    """A terminal sends Ctrl-C to the data workers, too, which must outlive the step in hand."""
    command = (f"--config.init_from={one}", *LONGER, f"--config.train.workers={workers}")
    process = start(tmp_path, *command)
    log = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and '"training"' in log.read_text()):
        time.sleep(0.1)
    (os.killpg if to_all else os.kill)(process.pid, number)
    ((_, said),) = finish(process)
    assert "stopped and saved (task 1, training, step " in said and "the same command continues" in said
    newest = rundir.latest_rolling(tmp_path, 1)
    assert newest is not None and checkpoints.metadata(newest)["phase"] == "training"
    finish(start(tmp_path, *command))
    for ours, theirs in zip(
        *(jax.tree.leaves(checkpoints.restore(rundir.task_directory(w, 1))[0]) for w in (tmp_path, longer)), strict=True
    ):
        assert_array_equal(ours, theirs)


def test_a_data_worker_that_dies_ends_the_run_in_plain_words(tmp_path):
    """A worker process is killed as the kernel does when memory is short."""
    more = ("--config.train.workers=1", "--config.train.epochs=500,1", "--config.log.every_steps=1")
    process = start(tmp_path, *more)
    log = tmp_path / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and '"training"' in log.read_text()):
        time.sleep(0.1)
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")  # a child belongs to the thread that made it
    children = [pid for thread in threads for pid in thread.read_text().split()]
    (worker,) = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(worker), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == command.TRAINING_ERROR and "Traceback" not in said
    assert "training stopped: reading images: Worker process was terminated" in said
    assert "The same command continues" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--coordinator=localhost:1"], "go together; missing: --num_processes, --process_id"),
        (["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"], "--process_id=2: .* 0 to 1"),
    ],
)
def test_flags_of_processes_that_do_not_fit(flags, message):
    with pytest.raises(InputError, match=message):
        main.run(["--config=configs/shapes.py", *flags])

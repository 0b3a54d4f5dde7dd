import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest

from nest_jax import checkpoints, rundir
from nest_jax.errors import InputError


def test_rolling_keeps_the_newest_and_finds_it(tmp_path):
    assert rundir.latest_rolling(tmp_path, 1) is None
    # The order is that of saving, not of iterations: a new phase starts again at 0.
    for phase, iteration in (("statistics", 5), ("pre-tuning", 900), ("training", 10)):
        rundir.save_rolling(tmp_path, 1, phase, iteration, {"a": jnp.int32(iteration)}, {"x": 1}, keep=2)
    rundir.save_rolling(tmp_path, 2, "training", 1, {"a": jnp.int32(0)}, {})
    newest = rundir.latest_rolling(tmp_path, 1)
    assert newest is not None
    tree, metadata = checkpoints.restore(newest)
    assert tree["a"] == 10
    assert metadata == {"x": 1, "task": 1, "phase": "training", "iteration": 10, "format_version": 1}
    assert len(os.listdir(newest.parent)) == 2
    rundir.drop_rolling(tmp_path, 1)
    assert rundir.latest_rolling(tmp_path, 1) is None
    assert rundir.latest_rolling(tmp_path, 2) is not None
    rundir.drop_rolling(tmp_path, 1)  # nothing to drop is fine


def test_a_corrupt_rolling_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    good, bad, half = (
        rundir.save_rolling(tmp_path, 0, "training", i, {"a": jnp.arange(50.0)}, {}, keep=5) for i in (1, 2, 3)
    )
    data = next(path for path in sorted((bad / "arrays").glob("d/*")))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(bytes(content))
    (half / "digests.json").unlink()
    (half.parent / f".tmp-{bad.name}").mkdir()  # what a kill leaves

    assert rundir.latest_rolling(tmp_path, 0) == good
    assert bad.name in caplog.text and half.name in caplog.text
    assert {path.name for path in good.parent.iterdir() if path.name.endswith(".corrupt")} == {
        f"{bad.name}.corrupt",
        f"{half.name}.corrupt",
    }
    caplog.clear()
    assert rundir.latest_rolling(tmp_path, 0) == good
    assert not caplog.records
    following = rundir.save_rolling(tmp_path, 0, "training", 2, {"a": jnp.zeros(1)}, {}, keep=1)
    assert following.name.startswith("000004-")
    assert rundir.latest_rolling(tmp_path, 0) == following


def test_a_newer_rolling_checkpoint_is_not_put_aside(tmp_path, monkeypatch):
    rundir.save_rolling(tmp_path, 0, "training", 1, {"a": jnp.ones(1)}, {})
    monkeypatch.setattr(checkpoints, "FORMAT_VERSION", 0)
    with pytest.raises(InputError, match="newer nest_jax"):
        rundir.latest_rolling(tmp_path, 0)
    monkeypatch.undo()
    assert rundir.latest_rolling(tmp_path, 0) is not None


def test_completed_tasks(tmp_path):
    assert rundir.completed_tasks(tmp_path) == []
    for task in (0, 2, 10):
        checkpoints.save(rundir.task_directory(tmp_path, task), {"a": jnp.ones(1)}, {})
    rundir.save_rolling(tmp_path, 11, "training", 1, {"a": jnp.ones(1)}, {})
    checkpoints.save(rundir.start_directory(tmp_path, 11), {"a": jnp.ones(1)}, {})
    (rundir.task_directory(tmp_path, 2) / "digests.json").unlink()
    stepped_aside = rundir.task_directory(tmp_path, 10)
    stepped_aside.rename(stepped_aside.parent / f".old-{stepped_aside.name}")
    assert rundir.completed_tasks(tmp_path) == [0, 10]
    checkpoints.restore(stepped_aside)


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="checkpoint.keep"):
        rundir.save_rolling(tmp_path, 0, "training", 1, {"a": jnp.ones(1)}, {}, keep=0)


HOLDER = textwrap.dedent(
    """
    import sys, time
    from nest_jax import rundir
    with rundir.lock(sys.argv[1]):
        print("held", flush=True)
        sys.stdin.read()
    """
)


def test_lock_names_its_holder_and_goes_with_it(tmp_path):
    workdir = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert holder.stdin and holder.stdout
    with holder.stdin, holder.stdout:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(InputError, match=rf"process {holder.pid} on host "), rundir.lock(workdir):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
    assert str(holder.pid) in (workdir / ".lock").read_text()  # stale, and no obstacle
    with rundir.lock(workdir):
        assert str(os.getpid()) in (workdir / ".lock").read_text()


def test_lock_can_be_taken_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), rundir.lock(tmp_path):
        with pytest.raises(InputError, match=str(os.getpid())), rundir.lock(tmp_path):
            pass
        raise RuntimeError
    with rundir.lock(tmp_path):
        pass


def test_remote_work_directories_are_not_locked():
    with rundir.lock("gs://bucket/run"):
        pass

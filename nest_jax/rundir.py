"""A run's work directory: where its checkpoints lie, which of them stay, and the lock that keeps a second run out.

It holds

    checkpoints/task-01/                                after task 1
    checkpoints/start-01/                               before the training of task 1; stays
    checkpoints/rolling-task-01/000007-training-1200/   inside task 1: 7th save, phase "training", iteration 1200
    .lock                                               one run at a time (local file systems)
"""

import contextlib
import errno
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from nest_jax import checkpoints
from nest_jax.errors import CorruptCheckpoint, InputError
from nest_jax.storage import is_remote, on_first_process

ROLLING_NAME = re.compile(r"(\d+)-(.+)-(\d+)")

log = logging.getLogger(__name__)


def task_directory(workdir: epath.PathLike, task: int) -> epath.Path:
    """Where the checkpoint of a completed task lies."""
    return _root(workdir) / f"task-{task:02d}"


def start_directory(workdir: epath.PathLike, task: int) -> epath.Path:
    """Where the model lies that the training of a task starts from (task >= 1).

    It spares a resumed run the initialisation. It is kept after the task, one model per task, because nothing else shows
    what the initialisation made: training changes the classifier.
    """
    return _root(workdir) / f"start-{task:02d}"


def completed_tasks(workdir: epath.PathLike) -> list[int]:
    """The tasks whose checkpoint is complete, in order."""
    matches = [re.fullmatch(r"task-(\d+)", name) for name in _names(_root(workdir))]
    tasks = {int(match.group(1)) for match in matches if match}
    return sorted(task for task in tasks if checkpoints.exists(task_directory(workdir, task)))


def save_rolling(
    workdir: epath.PathLike,
    task: int,
    phase: str,
    iteration: int,
    tree: Any,
    metadata: Mapping[str, Any],
    keep: int = 2,
) -> epath.Path:
    """Saves a checkpoint from the middle of a task and drops all but the newest `keep` of this task.

    The metadata gains "task", "phase" and "iteration". Returns the checkpoint's directory.
    """
    if keep < 1:
        raise InputError(f"checkpoint.keep: {keep} checkpoints to keep; it must be 1 or more")
    root = _rolling_root(workdir, task)

    def name() -> str:
        # Those put aside as corrupt count too, so that no number is given twice.
        numbers = [int(found.group(1)) for name in _names(root) if (found := re.match(r"(\d+)-", name))]
        return f"{max(numbers, default=0) + 1:06d}-{phase}-{iteration}"

    directory = root / on_first_process(name)
    checkpoints.save(directory, tree, {**metadata, "task": task, "phase": phase, "iteration": iteration})

    def drop_old() -> None:
        for old in _rolling(root)[:-keep]:
            old.rmtree(missing_ok=True)

    on_first_process(drop_old)
    return directory


def latest_rolling(workdir: epath.PathLike, task: int) -> epath.Path | None:
    """The newest valid checkpoint from the middle of a task, or None.

    One that is corrupt or half-written gets the suffix `.corrupt`, a warning names it, and the one before it is tried.

    Raises:
        InputError: the newest one has a newer format.
    """
    root = _rolling_root(workdir, task)

    def newest() -> str:
        for directory in reversed(_rolling(root)):
            try:
                checkpoints.verify(directory)
                checkpoints.metadata(directory)  # refuses a newer format
                return directory.name
            except CorruptCheckpoint as error:
                aside = directory.parent / (directory.name + ".corrupt")
                aside.rmtree(missing_ok=True)
                directory.rename(aside)
                log.warning("%s\nIt is now %s; the checkpoint before it is used.", error, aside)
        return ""

    name = on_first_process(newest)
    return root / name if name else None


def drop_rolling(workdir: epath.PathLike, task: int) -> None:
    """Deletes the checkpoints from the middle of a task, those put aside as corrupt too."""
    on_first_process(lambda: _rolling_root(workdir, task).rmtree(missing_ok=True))


@contextlib.contextmanager
def lock(workdir: epath.PathLike) -> Iterator[None]:
    """Holds a work directory for this run; the kernel lets go of it when the process ends, however it ends.

    Work directories that are not on a local file system (gs://...) are not locked. In a run of several processes,
    process 0 holds the lock.

    Raises:
        InputError: another run holds it; the message names its process and host.
    """
    held: list[int] = []
    if not is_remote(workdir):
        on_first_process(lambda: held.append(_take_lock(epath.Path(workdir))))
    try:
        yield
    finally:
        for descriptor in held:
            # The file stays: deleting it would let a run that has opened it lock a file that is no longer there.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)


def _take_lock(workdir: epath.Path) -> int:
    import fcntl  # not there on Windows, where runs are not locked by this

    path = workdir / ".lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(os.fspath(path), os.O_RDWR | os.O_CREAT, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"workdir {workdir}: {error.filename or workdir} is a file, not a directory") from None
    except OSError as error:
        raise InputError(f"workdir {workdir}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "unknown process"
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise InputError(f"workdir {workdir}: {path} cannot be locked: {error.strerror}") from error
        raise InputError(
            f"workdir {workdir}: another run is using it ({holder}). Wait for it, end it, or give another --workdir."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on host {socket.gethostname()}".encode(), 0)
    return descriptor


def _root(workdir: epath.PathLike) -> epath.Path:
    return epath.Path(workdir) / "checkpoints"


def _rolling_root(workdir: epath.PathLike, task: int) -> epath.Path:
    return _root(workdir) / f"rolling-task-{task:02d}"


def _rolling(root: epath.Path) -> list[epath.Path]:
    """Oldest first; neither temporary directories nor those put aside as corrupt."""
    names = [name for name in _names(root) if ROLLING_NAME.fullmatch(name)]
    return [root / name for name in sorted(names, key=lambda name: int(name.split("-")[0]))]


def _names(directory: epath.Path) -> set[str]:
    """What lies in a directory of checkpoints; one that a kill left stepped aside counts as in its place."""
    if not directory.exists():
        return set()
    return {path.name.removeprefix(checkpoints.ASIDE) for path in directory.iterdir()}

"""Checkpoints: a pytree of arrays and JSON metadata in one directory, whole or not there at all.

A checkpoint directory holds

    arrays/         the arrays, written by Orbax as nested dicts: `task.params.body.conv1.kernel`
    metadata.json   {"format_version", "leaves": {path: [dtype, shape]}, "metadata": what the caller gave}
    digests.json    the SHA-256 of every other file; written last, so a directory without it is half-written

and is readable without this package: `orbax.checkpoint.PyTreeCheckpointer().restore(directory / "arrays")` gives
NumPy arrays. Orbax does not notice a flipped byte in its data files, hence the digests.

A run's work directory holds

    checkpoints/task-00/                            task 0, completed
    checkpoints/rolling-task-01/000007-training-1200/   inside task 1: 7th save, phase "training", iteration 1200
    .lock                                           one run at a time (local file systems)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from nest_jax.errors import InputError

FORMAT_VERSION = 1

ARRAYS, METADATA, DIGESTS = "arrays", "metadata.json", "digests.json"
ROLLING_NAME = re.compile(r"(\d+)-(.+)-(\d+)")
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_WORDS = tuple(os.strerror(number) for number in FULL_DISK)
MESSAGE_BYTES = 8192

log = logging.getLogger(__name__)


class CorruptCheckpoint(InputError):
    """A checkpoint's files are not the ones that were saved; the message names the file."""


# One checkpoint


def save(directory: epath.PathLike, tree: Any, metadata: Mapping[str, Any]) -> None:
    """Saves a pytree of arrays with metadata; the directory appears whole, or stays what it was.

    Everything is written to a sibling `.tmp-NAME`, which is renamed when it is complete. In a run of several processes
    every process calls this, with the same directory on a file system that all of them see.

    Args:
        directory: local path or gs://...; a checkpoint already there is replaced once the new one is complete.
        tree: any pytree (nested dicts, tuples, optimiser states); leaves are JAX or NumPy arrays of any shape, or Python
            numbers. Typed PRNG keys do not go in: give `jax.random.key_data(key)`.
        metadata: JSON values, NumPy scalars and arrays, tuples and mappings.

    Raises:
        InputError: the disk is full or the directory cannot be written; the previous checkpoint is intact.
    """
    directory = epath.Path(directory)
    temporary = directory.parent / f".tmp-{directory.name}"
    leaves = {path: _to_host(path, leaf) for path, leaf in _flatten(tree)[0].items()}
    described = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}
    text = json_text({"format_version": FORMAT_VERSION, "leaves": described, "metadata": metadata})

    def start() -> None:
        with _plain_disk_errors(directory):
            _heal(directory)
            temporary.rmtree(missing_ok=True)
            temporary.mkdir(parents=True)

    def finish() -> None:
        with _plain_disk_errors(directory):
            (temporary / METADATA).write_text(text)
            (temporary / DIGESTS).write_text(json_text(_digests(temporary)))
            _replace(directory, temporary)

    try:
        _on_first_process(start)
        with _plain_disk_errors(directory):
            _write_arrays(temporary / ARRAYS, {path: leaf for path, leaf in leaves.items() if leaf.size})
        _on_first_process(finish)
    except BaseException:
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                temporary.rmtree(missing_ok=True)
        raise


def restore(directory: epath.PathLike, target: Any = None) -> tuple[Any, dict[str, Any]]:
    """The tree and the metadata that were saved, bit for bit, after every file's digest has been checked.

    Args:
        directory: what `save` was given.
        target: None, or a pytree of arrays or `jax.ShapeDtypeStruct` that says structure, shapes and dtypes. A leaf with
            a sharding comes back as a JAX array of that sharding, any other leaf as a NumPy array.

    Returns:
        (tree, metadata). Without a target: nested dicts of NumPy arrays; a tuple's items have the keys "0", "1", ...; a
        named tuple's its field names; containers without arrays are absent.

    Raises:
        CorruptCheckpoint: a file is missing, cut off or altered; the message names it.
        InputError: no checkpoint here, one of a newer format, or not the target's leaves: all differences, by path.
    """
    directory = epath.Path(directory)
    _on_first_process(lambda: verify(directory))
    document = _read_document(directory)
    described = document["leaves"]
    if target is None:
        leaves = _read_arrays(directory, described)
        return _unflatten(leaves), _public_metadata(document)
    wanted, structure = _flatten(target)
    _compare(directory, described, wanted)
    leaves = _read_arrays(directory, described)
    placed = [_place(leaves[path], leaf) for path, leaf in wanted.items()]
    return jax.tree_util.tree_unflatten(structure, placed), _public_metadata(document)


def metadata(directory: epath.PathLike) -> dict[str, Any]:
    """What `save` was given as metadata, with "format_version", without reading arrays.

    Raises:
        CorruptCheckpoint: the metadata file is not the one that was saved.
        InputError: no checkpoint here, or one of a newer format.
    """
    directory = epath.Path(directory)
    _heal_first(directory)
    _verify(directory, only=METADATA)
    return _public_metadata(_read_document(directory))


def shapes(directory: epath.PathLike) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Path of every leaf ("params/body/conv1/kernel") with its (dtype, shape), without reading arrays."""
    directory = epath.Path(directory)
    _verify(directory, only=METADATA)
    return {path: (dtype, tuple(shape)) for path, (dtype, shape) in _read_document(directory)["leaves"].items()}


def exists(directory: epath.PathLike) -> bool:
    """Whether a complete checkpoint is here (its bytes are checked by `verify` and `restore`)."""
    directory = epath.Path(directory)
    return (directory / DIGESTS).exists() or (_aside(directory) / DIGESTS).exists()


def verify(directory: epath.PathLike) -> None:
    """Reads every file of a checkpoint and compares it with its digest.

    Raises:
        CorruptCheckpoint: a file is missing, cut off or altered; the message names it.
        InputError: no checkpoint here.
    """
    directory = epath.Path(directory)
    _heal_first(directory)
    _verify(directory)


# The checkpoints of a run


def task_directory(workdir: epath.PathLike, task: int) -> epath.Path:
    """Where the checkpoint of a completed task lies."""
    return epath.Path(workdir) / "checkpoints" / f"task-{task:02d}"


def completed_tasks(workdir: epath.PathLike) -> list[int]:
    """The tasks whose checkpoint is complete, in order."""
    root = epath.Path(workdir) / "checkpoints"
    if not root.exists():
        return []
    matches = [re.fullmatch(r"(?:\.old-)?task-(\d+)", path.name) for path in root.iterdir()]
    tasks = {int(match.group(1)) for match in matches if match}
    return sorted(task for task in tasks if exists(task_directory(workdir, task)))


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
        numbers = [int(found.group(1)) for path in _listing(root) if (found := re.match(r"(\d+)-", path.name))]
        return f"{max(numbers, default=0) + 1:06d}-{phase}-{iteration}"

    directory = root / _on_first_process(name)
    save(directory, tree, {**metadata, "task": task, "phase": phase, "iteration": iteration})

    def drop_old() -> None:
        for old in _rolling(root)[:-keep]:
            old.rmtree(missing_ok=True)

    _on_first_process(drop_old)
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
                verify(directory)
                _read_document(directory)
                return directory.name
            except CorruptCheckpoint as error:
                aside = directory.parent / (directory.name + ".corrupt")
                aside.rmtree(missing_ok=True)
                directory.rename(aside)
                log.warning("%s\nIt is now %s; the checkpoint before it is used.", error, aside)
        return ""

    name = _on_first_process(newest)
    return root / name if name else None


def drop_rolling(workdir: epath.PathLike, task: int) -> None:
    """Deletes the checkpoints from the middle of a task, those put aside as corrupt too."""
    _on_first_process(lambda: _rolling_root(workdir, task).rmtree(missing_ok=True))


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
        _on_first_process(lambda: held.append(_take_lock(epath.Path(workdir))))
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


def _rolling_root(workdir: epath.PathLike, task: int) -> epath.Path:
    return epath.Path(workdir) / "checkpoints" / f"rolling-task-{task:02d}"


def _rolling(root: epath.Path) -> list[epath.Path]:
    """Oldest first; neither temporary directories nor those put aside."""
    found = {path.name.removeprefix(".old-") for path in _listing(root) if not path.name.endswith(".corrupt")}
    names = [name for name in found if ROLLING_NAME.fullmatch(name)]
    return [root / name for name in sorted(names, key=lambda name: int(name.split("-")[0]))]


def _listing(directory: epath.Path) -> list[epath.Path]:
    return sorted(directory.iterdir()) if directory.exists() else []


# JSON, as checkpoints, results and logs write it


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tuples and arrays as lists, NumPy scalars as numbers, NaN and infinities as None."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        return plain(array.tolist() if array.dtype.kind in "bifuU" else array.astype(np.float64).tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON of `plain(value)`; without `indent` no byte of it is insignificant, so that any flipped one is noticed."""
    return json.dumps(plain(value), indent=indent, separators=None if indent else (",", ":"), allow_nan=False)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a small file so that a reader sees the old one or the new one, never a part.

    Raises:
        InputError: the disk is full or the file cannot be written; the old file is intact.
    """
    path = epath.Path(path)
    temporary = path.parent / f".tmp-{path.name}"
    with _plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object store (gs://..., s3://...) and not a local file system."""
    return "://" in os.fspath(path)


# Trees


def _flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    pairs, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves: dict[str, Any] = {}
    for keys, leaf in pairs:
        parts = [_key_text(key) for key in keys] or ["value"]
        path = "/".join(parts)
        # "/" separates paths here and "." does in Orbax: two leaves could get one name.
        if any(not part or "/" in part or "." in part for part in parts) or path in leaves:
            raise ValueError(f"a checkpoint cannot hold the leaf {parts}: twice, or a key is empty or has '/' or '.'")
        leaves[path] = leaf
    return leaves, structure


def _key_text(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"unknown kind of pytree key {key!r}")


def _unflatten(leaves: Mapping[str, Any]) -> Any:
    if list(leaves) == ["value"]:
        return leaves["value"]
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _to_host(path: str, leaf: Any) -> Any:
    # NumPy wherever this process sees the whole value, so that a checkpoint does not know the devices it came from.
    if isinstance(leaf, jax.Array):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{path}: a checkpoint holds no typed PRNG keys; save jax.random.key_data(key)")
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return leaf
    return np.asarray(leaf)


def _place(value: np.ndarray, like: Any) -> Any:
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return value
    if not getattr(like, "committed", True):  # an array that JAX may still move to where it is needed
        return jax.numpy.asarray(value)
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _compare(directory: epath.Path, described: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    problems = []
    for path in sorted(described.keys() | wanted.keys()):
        if path not in described:
            problems.append(f"{path}: not in the checkpoint")
        elif path not in wanted:
            problems.append(f"{path}: in the checkpoint, not expected")
        else:
            dtype, shape = described[path]
            leaf = wanted[path] if hasattr(wanted[path], "dtype") else np.asarray(wanted[path])
            if (dtype, tuple(shape)) != (str(leaf.dtype), tuple(leaf.shape)):
                found, expected = f"{dtype}{list(shape)}", f"{leaf.dtype}{list(leaf.shape)}"
                problems.append(f"{path}: {found} in the checkpoint, {expected} expected")
    if problems:
        lines = "\n  ".join(problems)
        raise InputError(f"checkpoint {directory}: {len(problems)} arrays do not fit this configuration:\n  {lines}")


# Files


def _write_arrays(directory: epath.Path, leaves: Mapping[str, Any]) -> None:
    if leaves:
        with _silent_orbax(), contextlib.closing(ocp.PyTreeCheckpointer()) as checkpointer:
            checkpointer.save(directory, _unflatten(leaves))


@contextlib.contextmanager
def _silent_orbax() -> Iterator[None]:
    # Orbax logs the stack traces of its threads and then raises the same error, which is shown as one plain message.
    orbax_log = logging.getLogger("absl")
    orbax_log.addFilter(_nothing)
    try:
        yield
    finally:
        orbax_log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _read_arrays(directory: epath.Path, described: Mapping[str, Any]) -> dict[str, np.ndarray]:
    # Orbax refuses arrays without elements; metadata.json says all about them.
    empty = {path: np.zeros(shape, _dtype(dtype)) for path, (dtype, shape) in described.items() if 0 in shape}
    paths = [path for path in described if path not in empty]
    found: dict[str, Any] = {}
    if paths:
        arguments = _unflatten({path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths})
        with contextlib.closing(ocp.PyTreeCheckpointer()) as checkpointer:
            found, _ = _flatten(checkpointer.restore(directory / ARRAYS, restore_args=arguments))
    leaves = {path: empty[path] if path in empty else np.asarray(found[path]) for path in described}
    for path, (dtype, shape) in described.items():
        if (str(leaves[path].dtype), list(leaves[path].shape)) != (dtype, shape):
            raise CorruptCheckpoint(f"checkpoint {directory}: {path} is not the {dtype}{shape} that was saved")
    return leaves


def _dtype(name: str) -> np.dtype:
    return np.dtype(jax.numpy.bfloat16) if name == "bfloat16" else np.dtype(name)


def _read_document(directory: epath.Path) -> dict[str, Any]:
    document = json.loads((directory / METADATA).read_text())
    version = document["format_version"]
    if version > FORMAT_VERSION:
        raise InputError(
            f"checkpoint {directory}: it has format {version}, written by a newer nest_jax; "
            f"this one reads formats up to {FORMAT_VERSION}. Install the newer version."
        )
    return document


def _public_metadata(document: Mapping[str, Any]) -> dict[str, Any]:
    return {**document["metadata"], "format_version": document["format_version"]}


def _files(directory: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    found: dict[str, epath.Path] = {}
    for path in sorted(directory.iterdir()):
        name = prefix + path.name
        if path.is_dir():
            found |= _files(path, name + "/")
        else:
            found[name] = path
    return found


def _digest(path: epath.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _digests(directory: epath.Path) -> dict[str, str]:
    return {name: _digest(path) for name, path in _files(directory).items() if name != DIGESTS}


def _verify(directory: epath.Path, only: str | None = None) -> None:
    advice = "Copy the checkpoint from elsewhere, or delete this directory so that it is made again."
    if not directory.exists():
        raise InputError(f"checkpoint {directory}: there is none")
    if not (directory / DIGESTS).exists():
        raise CorruptCheckpoint(f"checkpoint {directory}: half-written, {DIGESTS} is missing. {advice}")
    try:
        digests = json.loads((directory / DIGESTS).read_text())
        if not isinstance(digests, dict) or METADATA not in digests:
            raise ValueError
    except (ValueError, OSError):
        raise CorruptCheckpoint(f"checkpoint {directory}: {directory / DIGESTS} is damaged. {advice}") from None
    for name, digest in digests.items():
        if only in (None, name):
            try:
                same = _digest(directory / name) == digest
            except (OSError, ValueError):  # ValueError: a damaged digests.json may give a name no file can have
                same = False
            if not same:
                raise CorruptCheckpoint(
                    f"checkpoint {directory}: {directory / name} is missing or not the file that was saved. {advice}"
                )


def _aside(directory: epath.Path) -> epath.Path:
    return directory.parent / f".old-{directory.name}"


def _replace(directory: epath.Path, complete: epath.Path) -> None:
    # A directory cannot be renamed onto a full one: the old one steps aside, and `_heal` brings it back if we are killed.
    aside = _aside(directory)
    if directory.exists():
        aside.rmtree(missing_ok=True)
        directory.rename(aside)
    complete.rename(directory)
    aside.rmtree(missing_ok=True)


def _heal(directory: epath.Path) -> None:
    aside = _aside(directory)
    if aside.exists():
        if directory.exists():
            aside.rmtree(missing_ok=True)
        else:
            aside.rename(directory)


def _heal_first(directory: epath.Path) -> None:
    if jax.process_index() == 0:
        _heal(directory)


@contextlib.contextmanager
def _plain_disk_errors(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if _is_full_disk(error):
            raise InputError(
                f"{path}: the disk is full. What was saved before is intact; make room, then start again in the same workdir."
            ) from error
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written: {error}") from error
        raise


def _is_full_disk(error: BaseException | None) -> bool:
    # Orbax wraps the error of its storage library, which speaks in words and not in numbers.
    if error is None:
        return False
    told = getattr(error, "errno", None) in FULL_DISK or any(words in str(error) for words in FULL_DISK_WORDS)
    return told or _is_full_disk(error.__cause__ or error.__context__)


def _on_first_process(action: Callable[[], Any]) -> str:
    """Process 0 does it; every process gets its text or its error, and none runs ahead."""
    if jax.process_count() == 1:
        result = action()
        return result if isinstance(result, str) else ""
    text = ""
    if jax.process_index() == 0:
        try:
            result = action()
            text = "=" + (result if isinstance(result, str) else "")
        except InputError as error:
            text = ("!" if isinstance(error, CorruptCheckpoint) else "?") + str(error)
        except Exception as error:  # the other processes wait for this message
            text = "?" + f"{type(error).__name__}: {error}"
    buffer = np.zeros(MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:MESSAGE_BYTES]
    buffer[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8))
    text = received.rstrip(b"\0").decode(errors="replace")
    if text.startswith("="):
        return text[1:]
    raise (CorruptCheckpoint if text.startswith("!") else InputError)(text[1:])

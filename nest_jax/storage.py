"""Small files and file systems: JSON, text that is replaced as a whole, full disks, what process 0 does for all."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from nest_jax.errors import CorruptCheckpoint, InputError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_WORDS = tuple(os.strerror(number) for number in FULL_DISK)
MESSAGE_BYTES = 8192


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
    with plain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)


def located(path: epath.PathLike) -> epath.Path:
    """`path` with `~` expanded and, on a local file system, absolute: Orbax takes no relative paths."""
    path = epath.Path(path).expanduser()
    return path if is_remote(path) else path.resolve()


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object store (gs://..., s3://...) and not a local file system."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def plain_disk_errors(path: epath.PathLike) -> Iterator[None]:
    """Errors of writing `path`, a full disk above all, as an InputError that names it."""
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


def on_first_process(action: Callable[[], str | None]) -> str:
    """Process 0 does it; every process gets its text ("" for None) or its error, and none runs ahead."""
    if jax.process_count() == 1:
        return action() or ""
    text = ""
    if jax.process_index() == 0:
        try:
            text = "=" + (action() or "")
        except InputError as error:
            text = ("!" if isinstance(error, CorruptCheckpoint) else "?") + str(error)
        except Exception as error:  # the other processes wait for this message
            text = f"?{type(error).__name__}: {error}"
    buffer = np.zeros(MESSAGE_BYTES, np.uint8)
    encoded = text.encode()[:MESSAGE_BYTES]
    buffer[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    received = bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).astype(np.uint8))
    text = received.rstrip(b"\0").decode(errors="replace")
    if text.startswith("="):
        return text[1:]
    raise (CorruptCheckpoint if text.startswith("!") else InputError)(text[1:])

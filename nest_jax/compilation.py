"""Compiled programs kept on disk, so that another run of equal shapes does not compile them again."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LIMIT = 4 * 2**30  # bytes; a program of ResNet-101 takes a few million
# JAX keeps only what took a second to compile; the many small programs around a step take as long together.
SETTINGS = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/nest_jax/xla`, or `~/.cache/nest_jax/xla`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nest_jax" / "xla"


def keep() -> Path | None:
    """Has JAX keep what it compiles in `default_folder`, and load it from there; the folder, or None where nothing is kept.

    Call it before anything is compiled. JAX's own environment variables win: JAX_COMPILATION_CACHE_DIR names another folder, which is left as it
    is; JAX_ENABLE_COMPILATION_CACHE=0 turns the cache off. JAX's key of a program holds everything it depends on (operations and shapes, versions,
    flags, kind and features of the processor), so that the folder may be shared by different machines, and a program that was loaded computes bit by
    bit what it did when it was compiled. An entry that cannot be read costs a warning of JAX and the compilation.

    Several processes use it only where the environment names a folder that all of them see: XLA shares out its measurements of kernels
    among them, and one that has loaded its program would not take part. A folder that cannot be written to costs one warning.
    """
    import jax

    settings: Any = jax.config  # its attributes are known when it runs, not to a type checker
    if not settings.jax_enable_compilation_cache:
        return None
    given = settings.jax_compilation_cache_dir
    if not given and jax.distributed.is_initialized():
        return None
    if given:
        folder = Path(given)
    else:
        try:
            folder = default_folder()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            trim(folder.rglob("*"), LIMIT)
        except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows the home directory
            log.warning("compiled programs are not kept: %s", error)
            return None
        settings.update("jax_compilation_cache_dir", str(folder))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            settings.update(name, value)
    return folder


def trim(paths: Iterable[Path], limit: int) -> None:
    """Deletes the files that have not been read for longest until the others take no more than `limit` bytes.

    JAX's own limit needs a lock for every program that is read, and gives up keeping programs for good after a kill at the wrong moment.
    """
    found = []
    for path in paths:
        try:
            if path.is_file():
                facts = path.stat()
                found.append((max(facts.st_atime, facts.st_mtime), facts.st_size, path))
        except FileNotFoundError:  # another process trims as well
            continue
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size

"""Checkpoints: a pytree of arrays and JSON metadata in one directory, whole or not there at all.

A checkpoint directory holds

    arrays/         the arrays, written by Orbax as nested dicts: `task.params.body.conv1.kernel`
    metadata.json   {"format_version", "leaves": {path: [dtype, shape]}, "metadata": what the caller gave}
    digests.json    the SHA-256 of every other file; written last, so a directory without it is half-written

and is readable without this package: `orbax.checkpoint.PyTreeCheckpointer().restore(directory / "arrays")` gives
NumPy arrays. Which checkpoints a run keeps, and where: `rundir`.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nest_jax import digests, trees
from nest_jax.errors import CorruptCheckpoint, InputError
from nest_jax.storage import json_text, located, on_first_process, plain_disk_errors

FORMAT_VERSION = 1
ARRAYS, METADATA = "arrays", "metadata.json"
ASIDE = ".old-"  # prefix of a checkpoint that makes way for its replacement


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
    directory = located(directory)
    temporary = directory.parent / f".tmp-{directory.name}"
    leaves = {path: trees.to_host(path, leaf) for path, leaf in trees.flatten(tree)[0].items()}
    described = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}
    text = json_text({"format_version": FORMAT_VERSION, "leaves": described, "metadata": metadata})

    def start() -> None:
        with plain_disk_errors(directory):
            _heal(directory)
            temporary.rmtree(missing_ok=True)
            temporary.mkdir(parents=True)

    def finish() -> None:
        with plain_disk_errors(directory):
            (temporary / METADATA).write_text(text)
            digests.write(temporary)
            _replace(directory, temporary)

    try:
        on_first_process(start)
        with plain_disk_errors(directory):
            _write_arrays(temporary / ARRAYS, {path: leaf for path, leaf in leaves.items() if leaf.size})
        on_first_process(finish)
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
    directory = located(directory)
    on_first_process(lambda: verify(directory))
    document = _read_document(directory)
    described = document["leaves"]
    if target is None:
        return trees.unflatten(_read_arrays(directory, described)), _public_metadata(document)
    wanted, structure = trees.flatten(target)
    if problems := trees.differences(described, wanted):
        lines = "\n  ".join(problems)
        raise InputError(f"checkpoint {directory}: {len(problems)} arrays do not fit this configuration:\n  {lines}")
    leaves = _read_arrays(directory, described)
    placed = [trees.place(leaves[path], leaf) for path, leaf in wanted.items()]
    return jax.tree_util.tree_unflatten(structure, placed), _public_metadata(document)


def metadata(directory: epath.PathLike) -> dict[str, Any]:
    """What `save` was given as metadata, with "format_version", without reading arrays.

    Raises:
        CorruptCheckpoint: the metadata file is not the one that was saved.
        InputError: no checkpoint here, or one of a newer format.
    """
    return _public_metadata(_checked_document(directory))


def shapes(directory: epath.PathLike) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Path of every leaf ("params/body/conv1/kernel") with its (dtype, shape), without reading arrays; raises as `metadata`."""
    leaves = _checked_document(directory)["leaves"]
    return {path: (dtype, tuple(shape)) for path, (dtype, shape) in leaves.items()}


def exists(directory: epath.PathLike) -> bool:
    """Whether a complete checkpoint is here (its bytes are checked by `verify` and `restore`)."""
    directory = located(directory)
    return digests.present(directory) or digests.present(_aside(directory))


def verify(directory: epath.PathLike) -> None:
    """Reads every file of a checkpoint and compares it with its digest.

    Raises:
        CorruptCheckpoint: a file is missing, cut off or altered; the message names it.
        InputError: no checkpoint here.
    """
    directory = located(directory)
    _heal(directory)
    digests.check(directory, METADATA)


# metadata.json


def _checked_document(directory: epath.PathLike) -> dict[str, Any]:
    directory = located(directory)
    _heal(directory)
    digests.check(directory, METADATA, others=False)
    return _read_document(directory)


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


# arrays/


def _write_arrays(directory: epath.Path, leaves: Mapping[str, Any]) -> None:
    if leaves:
        with _silent_orbax(), contextlib.closing(ocp.PyTreeCheckpointer()) as checkpointer:
            checkpointer.save(directory, trees.unflatten(leaves))


@contextlib.contextmanager
def _silent_orbax() -> Iterator[None]:
    # Orbax logs the stack traces of its threads and then raises the same error, which is shown as one plain message.
    def nothing(record: logging.LogRecord) -> bool:
        return False

    orbax_log = logging.getLogger("absl")
    orbax_log.addFilter(nothing)
    try:
        yield
    finally:
        orbax_log.removeFilter(nothing)


def _read_arrays(directory: epath.Path, described: Mapping[str, Any]) -> dict[str, np.ndarray]:
    # Orbax refuses arrays without elements; metadata.json says all about them.
    empty = {path: np.zeros(shape, np.dtype(dtype)) for path, (dtype, shape) in described.items() if 0 in shape}
    paths = [path for path in described if path not in empty]
    found: dict[str, Any] = {}
    if paths:
        arguments = trees.unflatten({path: ocp.RestoreArgs(restore_type=np.ndarray) for path in paths})
        with contextlib.closing(ocp.PyTreeCheckpointer()) as checkpointer:
            found, _ = trees.flatten(checkpointer.restore(directory / ARRAYS, restore_args=arguments))
    leaves = {path: empty[path] if path in empty else np.asarray(found[path]) for path in described}
    for path, (dtype, shape) in described.items():
        if (str(leaves[path].dtype), list(leaves[path].shape)) != (dtype, shape):
            raise CorruptCheckpoint(f"checkpoint {directory}: {path} is not the {dtype}{shape} that was saved")
    return leaves


# Replacing a checkpoint


def _aside(directory: epath.Path) -> epath.Path:
    return directory.parent / f"{ASIDE}{directory.name}"


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
    if aside.exists() and jax.process_index() == 0:
        if directory.exists():
            aside.rmtree(missing_ok=True)
        else:
            aside.rename(directory)

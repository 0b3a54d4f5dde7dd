"""Pytrees as flat dicts, path -> leaf ("params/body/conv1/kernel"), and the placement of their leaves."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def flatten(tree: Any) -> tuple[dict[str, Any], Any]:
    """The leaves by path, in the tree's order, and the structure for `jax.tree_util.tree_unflatten`.

    Raises:
        ValueError: two leaves would get one path.
    """
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


def unflatten(leaves: Mapping[str, Any]) -> Any:
    """Nested dicts from leaves by path; a tree that is one leaf comes back as this leaf."""
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


def to_host(path: str, leaf: Any) -> Any:
    """NumPy wherever this process sees the whole value, so that a checkpoint does not know the devices it came from.

    Raises:
        ValueError: a typed PRNG key.
    """
    if isinstance(leaf, jax.Array):
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{path}: a checkpoint holds no typed PRNG keys; save jax.random.key_data(key)")
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return leaf
    return np.asarray(leaf)


def place(value: np.ndarray, like: Any) -> Any:
    """The value where `like` lies: an array or `jax.ShapeDtypeStruct` with a sharding, else NumPy as it is."""
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return value
    if not getattr(like, "committed", True):  # an array that JAX may still move to where it is needed
        return jax.numpy.asarray(value)
    if jax.process_count() == 1:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def differences(described: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """A line per leaf that is not in both, or has another dtype or shape: `described` {path: (dtype, shape)}, `wanted` leaves."""
    found = []
    for path in sorted(described.keys() | wanted.keys()):
        if path not in described:
            found.append(f"{path}: not in the checkpoint")
        elif path not in wanted:
            found.append(f"{path}: in the checkpoint, not expected")
        else:
            dtype, shape = described[path]
            leaf = wanted[path] if hasattr(wanted[path], "dtype") else np.asarray(wanted[path])
            if (dtype, tuple(shape)) != (str(leaf.dtype), tuple(leaf.shape)):
                saved, expected = f"{dtype}{list(shape)}", f"{leaf.dtype}{list(leaf.shape)}"
                found.append(f"{path}: {saved} in the checkpoint, {expected} expected")
    return found

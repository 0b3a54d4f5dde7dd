"""PyTorch's state dicts as NumPy arrays, without PyTorch, and their place in trees of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nest_jax.errors import InputError
from nest_jax.torch_files import read

__all__ = ["from_tree", "leaf_name", "leaf_path", "matches", "read", "to_tree"]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def leaf_name(leaf: str) -> str:
    """PyTorch's name of a leaf: kernel and scale are `weight`, mean and var `running_mean` and `running_var`."""
    return LEAVES.get(leaf, leaf)


def leaf_path(key_path: Sequence[Any]) -> tuple[str, ...]:
    """The keys of a path as `jax.tree_util` gives them."""
    return tuple(str(entry.key) for entry in key_path)


def to_tree(
    state: Mapping[str, np.ndarray],
    target: dict,
    name: Callable[[tuple[str, ...]], str],
    *,
    ignore: Sequence[str] = (),
    keep: Sequence[str] = (),
    source: str = "the weights",
) -> dict:
    """Arrays of a state dict in the shape of `target`, every entry accounted for.

    Args:
        state: PyTorch's names and arrays. Convolution kernels [out, in, h, w] become [h, w, in, out], linear ones [in, out].
        target: {"params": ..., "batch_stats": ...} (either may be left out), whose leaves give shapes and dtypes.
        name: the state's name of a leaf, from its path without the collection. Leaves of one name get the same numbers.
        ignore: regular expressions of names that `state` may hold beside those of `target`.
        keep: regular expressions of names that `state` may lack; these leaves stay what they are in `target`.
        source: what the state was read from, for messages.

    Raises:
        InputError: entries are missing, left over or of other shapes; one message lists them all.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(target)
    names = [name(leaf_path(path)[1:]) for path, _ in leaves]
    missing = sorted(key for key in set(names) - set(state) if not matches(keep, key))
    extra = sorted(key for key in set(state) - set(names) if not matches(ignore, key))
    values, shapes = [], []
    for key, (path, leaf) in zip(names, leaves, strict=True):
        if key not in state:
            values.append(leaf)
            continue
        value = to_channels_last(np.asarray(state[key]), leaf_path(path)[-1])
        if value.shape != leaf.shape:
            shapes.append(f"{key} is {list(value.shape)}, needed {list(leaf.shape)} (channels last)")
        else:
            values.append(jnp.array(value, leaf.dtype))
    problems = [
        f"{title} ({len(entries)}): {'; '.join(entries)}"
        for title, entries in (("missing", missing), ("not known to this network", extra), ("other shapes", shapes))
        if entries
    ]
    if problems:
        raise InputError(f"{source} does not fit the network. " + ". ".join(problems))
    return jax.tree_util.tree_unflatten(structure, values)


def matches(rules: Sequence[str], name: str) -> bool:
    """Whether one of the regular expressions is the whole of `name`."""
    return any(re.fullmatch(rule, name) for rule in rules)


def from_tree(tree: dict, name: Callable[[tuple[str, ...]], str]) -> dict[str, np.ndarray]:
    """The inverse of `to_tree`: {"params": ..., "batch_stats": ...} as PyTorch's names and arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    state = {
        name(leaf_path(path)[1:]): to_channels_first(np.asarray(leaf), leaf_path(path)[-1]) for path, leaf in leaves
    }
    assert len(state) == len(leaves), "two leaves have one name"
    return state


def to_channels_last(value: np.ndarray, leaf: str) -> np.ndarray:
    """[o, i, h, w] -> [h, w, i, o] and [o, i] -> [i, o] for a `kernel`; other leaves as they are."""
    if leaf != "kernel":
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def to_channels_first(value: np.ndarray, leaf: str) -> np.ndarray:
    """[h, w, i, o] -> [o, i, h, w] and [i, o] -> [o, i] for a `kernel`; other leaves as they are."""
    if leaf != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T

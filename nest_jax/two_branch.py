"""RCIL's two-branch convolutions (Zhang et al., CVPR 2022): random fusion, and the merge of the branches into one.

A *branch* is one or more parallel convolutions and the normalisation after them. A network asks one of the three ways below to
combine them: `branch(suffix, activation, train)` makes the branch whose names end in `suffix` ("" or "_new").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from nest_jax.layers import InPlaceABN, identity

Branch = Callable[[str, Callable, bool], Array]
Leaves = dict[tuple[str, ...], Any]
EPSILON = InPlaceABN.epsilon


class Fusion(nn.Module):
    """The mean of two maps; where `train`, and with a key for "dropout", a channel may be of one of them alone.

    Per channel: the first with probability .33, the second .33, the mean .34 (the paper: thirds). One draw per layer and step, for all
    images; the published draws differ between GPUs.
    """

    @nn.compact
    def __call__(
        self, one: Float[Array, "b h w c"], two: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b h w c"]:
        if not (train and self.has_rng("dropout")):
            return (one + two) / 2
        draw = jax.random.uniform(self.make_rng("dropout"), (one.shape[-1],))
        share = jnp.where(draw < 0.33, 1.0, jnp.where(draw < 0.66, 0.0, 0.5)).astype(one.dtype)
        return share * one + (1 - share) * two


def single(branch: Branch, activation: Callable, train: bool) -> Array:
    """One branch: an ordinary network."""
    return branch("", activation, train)


def both(branch: Branch, activation: Callable, train: bool) -> Array:
    """Two branches, fused, then activated."""
    return activation(Fusion(name="fusion")(branch("", identity, train), branch("_new", identity, train), train))


def first_fixed(branch: Branch, activation: Callable, train: bool) -> Array:
    """As `both`, but the first branch normalises with its running statistics, which stay. In eval mode the two are one function."""
    return activation(Fusion(name="fusion")(branch("", identity, False), branch("_new", identity, train), train))


def twin(path: Sequence[str]) -> tuple[str, ...]:
    """A leaf's path in the second branch: (.., "conv2", "kernel") -> "conv2_new", (.., "map_convs_0", "kernel") -> "map_convs_new_0"."""
    *modules, name, leaf = path
    return (*modules, re.sub(r"(_\d+)?$", r"_new\1", name, count=1), leaf)


def trainable(params: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of booleans: False for the leaves of first branches, True for all else."""
    leaves = flatten_dict(params)
    return unflatten_dict({path: twin(path) not in leaves for path in leaves})


def merge(
    params: Mapping[str, Any], batch_stats: Mapping[str, Any], *, exact: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trees with every first branch replaced by one that computes, in eval mode, the mean of the two.

    The published code adds biases to the first branch's convolutions and makes its normalisation the identity. Here the normalisation's
    bias takes them, and the trees keep their structure. Its statistics are those that the merged convolution has where the branches'
    outputs are fully correlated, and its scale undoes them: it subtracts a mean that its bias adds again.

    Args:
        exact: the second branch becomes the same, so that the network computes what it did; in train mode it normalises as the mean
            of the branches would. Else the second branch stays as it is, as published: the network then computes the mean of the merged
            and the second branch, which is another function.
    """
    trees = [flatten_dict(tree) for tree in (params, batch_stats)]
    leaves: Leaves = {**trees[0], **trees[1]}
    for path in [path for path in leaves if path[-1] == "scale" and twin(path) in leaves]:
        merged = _merged(leaves, path[:-1])
        leaves |= merged
        if exact:
            leaves |= {twin(path): leaf for path, leaf in merged.items()}
    params, batch_stats = (unflatten_dict({path: leaves[path] for path in tree}) for tree in trees)
    return params, batch_stats


def _merged(leaves: Leaves, norm: tuple[str, ...]) -> Leaves:
    """The merged branch that ends with `norm`."""

    def pair(*path: str) -> tuple[Array, Array]:
        return jnp.asarray(leaves[path]), jnp.asarray(leaves[twin(path)])  # NumPy where they were restored

    def mean(one: Array, two: Array) -> Array:
        return (one + two) / 2

    gammas = [jnp.abs(scale) + EPSILON for scale in pair(*norm, "scale")]
    factors = [gamma / jnp.sqrt(var + EPSILON) for gamma, var in zip(gammas, pair(*norm, "var"), strict=True)]
    scaled_means = [factor * value for factor, value in zip(factors, pair(*norm, "mean"), strict=True)]
    var = jnp.square(mean(*gammas))
    merged: Leaves = {
        (*norm, "scale"): jnp.sqrt(var + EPSILON) - EPSILON,
        (*norm, "bias"): mean(*pair(*norm, "bias")),
        (*norm, "mean"): mean(*scaled_means),
        (*norm, "var"): var,
    }
    start = 0
    kernels = [path for path in leaves if path[:-2] == norm[:-1] and path[-1] == "kernel" and twin(path) in leaves]
    for path in sorted(kernels, key=lambda path: (len(path[-2]), path[-2])):  # as their outputs are concatenated
        one, two = pair(*path)
        outputs = slice(start, start + one.shape[-1])
        merged[path] = mean(one * factors[0][outputs], two * factors[1][outputs])
        start = outputs.stop
    return merged

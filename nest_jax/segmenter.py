"""Backbone + decoder -> features; logits from features and a classifier, which is a plain pytree beside the network.

The parameter tree is {"body": ..., "head": ...}, and so is that of the running statistics, where a part without any (a transformer body) has
no entry. Images are [b, h, w, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from nest_jax import plugins


class Features(NamedTuple):
    """What the network gives for a batch, float32: all that losses, distillations and classifiers read."""

    pre_logits: Float[Array, "b h w d"]
    maps: tuple[Float[Array, "b _ _ _"], ...]
    body: Float[Array, "b h w c"]


class Segmenter(NamedTuple):
    """A network without its weights: the module, its image normalisation, and `channels`, the width of the pre-logits."""

    network: nn.Module
    normalise: Callable[[Array], Array]
    channels: int


class Network(nn.Module):
    """images -> (pre_logits, maps, body)."""

    body: nn.Module
    head: nn.Module

    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> Features:
        body, maps = self.body(images, train)
        return Features(self.head(body, train), maps, body)


def build(config: Any) -> Segmenter:
    """The segmenter of `config.backbone`, `config.decoder` and `config.dtype` ("float32" or "bfloat16", the compute dtype)."""
    backbone = plugins.load("backbones", config.backbone.name)
    decoder = plugins.load("decoders", config.decoder.name)
    dtype = jnp.dtype(config.dtype)
    stride = backbone.output_stride(config.backbone)
    network = Network(
        body=backbone.build(config.backbone.name, config.backbone, dtype),
        head=decoder.build(config.decoder.name, config.decoder, dtype, output_stride=stride),
    )
    return Segmenter(network, backbone.normalise, int(config.decoder.channels))


def init(segmenter: Segmenter, key: Array, size: int) -> tuple[dict, dict]:
    """Random (params, batch_stats) for images of `size` x `size`; float32 whatever the compute dtype."""
    # Under jit the forward pass that Linen runs to find the shapes is dead code and is dropped.
    start = jax.jit(lambda key: segmenter.network.init(key, jnp.zeros((1, size, size, 3)), train=False))
    variables = start(key)
    return variables["params"], variables.get("batch_stats", {})


def load_pretrained(config: Any, params: dict, batch_stats: dict) -> tuple[dict, dict]:
    """`params` and `batch_stats` with the body's pretrained weights, as `config.backbone.pretrained` says.

    Raises:
        InputError: the weights are not there or do not fit; the message says how to get them.
    """
    backbone = plugins.load("backbones", config.backbone.name)
    body, stats = backbone.load_pretrained(config.backbone, params["body"], batch_stats.get("body", {}))
    return {**params, "body": body}, {**batch_stats, **({"body": stats} if stats else {})}


def apply(
    segmenter: Segmenter,
    params: Mapping,
    batch_stats: Mapping,
    images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
    *,
    train: bool,
    key: Array | None = None,
) -> tuple[Features, dict]:
    """Features of a batch, and the running statistics after it.

    Args:
        images: uint8 RGB, normalised here, or floating point and normalised already.
        train: normalise by the statistics of this batch and move the running ones (else they come back as they are).
        key: for dropout and stochastic depth, where `train`; without one both are off.
    """
    if images.dtype == jnp.uint8:
        images = segmenter.normalise(images)
    variables = {"params": params, "batch_stats": batch_stats}
    rngs = None if key is None else {"dropout": key}
    if train:
        features, updates = segmenter.network.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
        batch_stats = updates["batch_stats"] if batch_stats else batch_stats
    else:
        features = segmenter.network.apply(variables, images, train=False, rngs=rngs)
    return jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), features), dict(batch_stats)


def logits(pre_logits: Float[Array, "b h w d"], classifier: Mapping[str, Array]) -> Float[Array, "b h w k"]:
    """pre_logits @ kernel [d, k] + bias [k], float32: the published 1x1 convolutions of all tasks side by side."""
    product = jnp.einsum("bhwd,dk->bhwk", pre_logits, classifier["kernel"], precision=jax.lax.Precision.HIGHEST)
    return product + classifier["bias"]


def torch_name(config: Any, path: tuple[str, ...]) -> str:
    """The name in the published state dict of a leaf of `params` or `batch_stats`, e.g. "body.mod2.block1.convs.conv1.weight"."""
    kind, section = {"body": ("backbones", config.backbone), "head": ("decoders", config.decoder)}[path[0]]
    return f"{path[0]}.{plugins.load(kind, section.name).torch_name(path[1:])}"


def num_parameters(tree: Any) -> int:
    """How many numbers the arrays of a tree hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

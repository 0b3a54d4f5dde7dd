"""The DeepLabV3 head of the published code (Chen et al. 2017, as in MiB, PLOP and NeST); `_rc` with two branches, as in RCIL."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from nest_jax import two_branch
from nest_jax.errors import InputError
from nest_jax.layers import Conv, InPlaceABN, leaky_relu, scaled_normal
from nest_jax.torch_weights import leaf_name

NAMES = ("deeplabv3", "deeplabv3_rc")

DILATIONS = {32: (6, 12, 18), 16: (6, 12, 18), 8: (12, 24, 32)}
POOLING_SIZE = 32
# xavier_normal with PyTorch's gain for a leaky ReLU: the variance is gain^2 * 2 / (fan_in + fan_out)
GAIN = math.sqrt(2 / (1 + 0.01**2))
xavier_normal = scaled_normal(GAIN**2, "fan_avg")
# RCIL's norms are told a slope of 1, since the activation comes after them, and the published initialisation reads it there: gain 1
TWO_BRANCH = {"branches": two_branch.both, "init": scaled_normal(1.0, "fan_avg")}


def defaults(name: str) -> dict[str, Any]:
    """Config values. `channels` of the features; `dilations` of the 3x3 convolutions, () = published ones for the output stride."""
    return {"channels": 256, "dilations": ()}


def image_pooling(x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b hh ww c"]:
    """Mean over the image where `train`, else over a window of 32 x 32 (or the map, where smaller) around each pixel.

    Returns [b, 1, 1, c] where all pixels have the same mean, else [b, h, w, c]: windows wholly inside the map, replicated to its borders
    as in the published code, whose two ways agree at 512 x 512 images and output stride 16 only.
    """
    rows, cols = min(POOLING_SIZE, x.shape[1]), min(POOLING_SIZE, x.shape[2])
    x = x.astype(jnp.float32)
    if train or (rows, cols) == x.shape[1:3]:
        return jnp.mean(x, (1, 2), keepdims=True)
    x = lax.reduce_window(x, 0.0, lax.add, (1, rows, 1, 1), (1, 1, 1, 1), "VALID")
    x = lax.reduce_window(x, 0.0, lax.add, (1, 1, cols, 1), (1, 1, 1, 1), "VALID") / (rows * cols)
    sides = [((size - 1) // 2, size // 2) for size in (rows, cols)]
    return jnp.pad(x, ((0, 0), *sides, (0, 0)), mode="edge")


class DeepLabV3(nn.Module):
    """Four parallel convolutions, reduced, plus the reduced image pooling: leaky(norm(A + B)), [b, h, w, channels].

    The pooled branch is added, not concatenated, and there is no dropout: the published code's differences from the DeepLabV3 paper.
    """

    channels: int
    dilations: tuple[int, ...]
    norm: Callable[..., nn.Module] = InPlaceABN
    branches: Callable[..., Array] = two_branch.single
    init: Callable[..., Array] = xavier_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, body: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
        conv = partial(Conv, self.channels, init=self.init, dtype=self.dtype)

        def branch(suffix: str, activation: Callable, train: bool) -> Array:
            parts = [conv(name=f"map_convs{suffix}_0")(body)]
            for index, dilation in enumerate(self.dilations, start=1):
                parts.append(conv(3, dilation=dilation, name=f"map_convs{suffix}_{index}")(body))
            norm = self.norm(activation=activation, dtype=self.dtype, name=f"map_bn{suffix}")
            return norm(jnp.concatenate(parts, -1), train)

        x = self.branches(branch, leaky_relu, train)
        x = conv(name="red_conv")(x)
        pool = conv(name="global_pooling_conv")(image_pooling(body, train))
        pool = self.norm(dtype=self.dtype, name="global_pooling_bn")(pool, train)
        pool = conv(name="pool_red_conv")(pool)
        return self.norm(dtype=self.dtype, name="red_bn")(x + pool, train)


def build(name: str, settings: Any, dtype: Any, *, output_stride: int = 16) -> nn.Module:
    """The head for a body of `output_stride` image pixels per pixel.

    Raises:
        InputError: no dilations are given and none are published for this stride.
    """
    dilations = tuple(settings["dilations"]) or DILATIONS.get(output_stride)
    if dilations is None:
        raise InputError(
            f"decoder.dilations: () means the published values, and there are none for output stride {output_stride}"
            f" (only {', '.join(map(str, DILATIONS))}); give them, e.g. (3, 6, 9)"
        )
    style: dict[str, Any] = TWO_BRANCH if name == "deeplabv3_rc" else {}
    return DeepLabV3(int(settings["channels"]), dilations, dtype=dtype, **style)


def torch_name(path: tuple[str, ...]) -> str:
    """The published name of a leaf: ("map_convs_1", "kernel") -> "map_convs.1.weight"."""
    return re.sub(r"^(map_convs(_new)?)_", r"\1.", ".".join((*path[:-1], leaf_name(path[-1]))))

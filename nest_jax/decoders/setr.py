"""The head of SETR (Zheng et al. 2021) as far as the published code uses it: up to the features, without its own classifier."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nest_jax.attention import LayerNorm, normal
from nest_jax.layers import BatchNorm
from nest_jax.torch_weights import leaf_name


def defaults(name: str) -> dict[str, Any]:
    """Config values: `channels` of the features."""
    return {"channels": 256}


class Setr(nn.Module):
    """relu(norm(conv3x3(layer norm(body)))), the convolution with bias, the norm over the whole batch: [b, h, w, channels], 0 or more.

    The published head also has a `conv_seg` and a `conv_1`, which no forward pass reads; they are left out (`weights.UNUSED`).
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, body: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
        x = LayerNorm(epsilon=1e-6, name="norm")(body)
        x = nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype, kernel_init=normal, name="conv_0")(x)
        return BatchNorm(nn.relu, dtype=self.dtype, name="syncbn_fc_0")(x, train)


def build(name: str, settings: Any, dtype: Any, *, output_stride: int = 16) -> nn.Module:
    """The network; it is the same for every output stride."""
    return Setr(int(settings["channels"]), dtype)


def torch_name(path: tuple[str, ...]) -> str:
    """The published name of a leaf: ("conv_0", "kernel") -> "conv_0.weight"."""
    return ".".join((*path[:-1], leaf_name(path[-1])))

"""One 3x3 convolution and InPlace-ABN: a decoder for the synthetic images and the tests. Not from the paper."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nest_jax.layers import Conv, InPlaceABN


def defaults(name: str) -> dict[str, Any]:
    """Config values: `channels` of the features that the classifier reads."""
    return {"channels": 64}


class Plain(nn.Module):
    """act(norm(conv3x3(body)))."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, body: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w d"]:
        x = Conv(self.channels, 3, dtype=self.dtype, name="conv")(body)
        return InPlaceABN(dtype=self.dtype, name="bn")(x, train)


def build(name: str, settings: Any, dtype: Any, *, output_stride: int = 8) -> nn.Module:
    """The network; it is the same for every output stride."""
    return Plain(int(settings["channels"]), dtype)


def torch_name(path: tuple[str, ...]) -> str:
    """The leaf's path joined by dots: there is no PyTorch twin."""
    return ".".join(path)

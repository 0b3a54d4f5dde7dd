"""A four-stage convolutional network of stride 8 for the synthetic images and the tests. Not from the paper."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from nest_jax.errors import InputError
from nest_jax.layers import Conv, InPlaceABN


def defaults(name: str) -> dict[str, Any]:
    """Config values: `widths` of the four stages; there are no pretrained weights."""
    return {"pretrained": "none", "widths": (16, 32, 64, 64)}


def output_stride(settings: Any) -> int:
    """Image pixels per pixel of the body's output."""
    return 8


class Tiny(nn.Module):
    """3x3 convolution and InPlace-ABN per stage, the first three with stride 2."""

    widths: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> tuple[Array, tuple[Array, ...]]:
        x, maps = images, []
        for stage, width in enumerate(self.widths):
            x = Conv(width, 3, stride=2 if stage < 3 else 1, dtype=self.dtype, name=f"conv{stage + 1}")(x)
            x = InPlaceABN(dtype=self.dtype, name=f"bn{stage + 1}")(x, train)
            maps.append(x)
        return x, tuple(maps)


def build(name: str, settings: Any, dtype: Any) -> nn.Module:
    """The network; `widths` needs four entries."""
    widths = tuple(settings["widths"])
    if len(widths) != 4:
        raise InputError(
            f"backbone.widths: {widths} has {len(widths)} entries; tiny has four stages, e.g. (16, 32, 64, 64)"
        )
    return Tiny(widths, dtype)


def normalise(images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """0..255 to -1..1."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def load_pretrained(settings: Any, params: dict, batch_stats: dict) -> tuple[dict, dict]:
    """The arguments: nothing is pretrained.

    Raises:
        InputError: `pretrained` asks for weights.
    """
    if settings["pretrained"] != "none":
        raise InputError(
            f"backbone.pretrained: {settings['pretrained']!r}; tiny has no pretrained weights, only 'none'"
        )
    return params, batch_stats


def torch_name(path: tuple[str, ...]) -> str:
    """The leaf's path joined by dots: there is no PyTorch twin."""
    return ".".join(path)

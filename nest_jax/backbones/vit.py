"""ViT-B/16 (Dosovitskiy et al. 2021) as SETR uses it in the published code: no layer norm after the last block."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nest_jax import torch_weights, upsample, weights
from nest_jax.attention import Attention, LayerNorm, Mlp, PatchEmbed, drop, normal
from nest_jax.backbones.resnet import normalise

__all__ = ["NAMES", "build", "defaults", "load_pretrained", "normalise", "output_stride", "problems", "torch_name"]

NAMES = ("vit_b",)
# No maps to distil: the published code's are tokens, which POD cannot read.
HAS_MAPS = False

PATCH = 16
WIDTH, DEPTH, HEADS = 768, 12, 12
GRID = 32  # of the position embedding: images of 512 x 512


def defaults(name: str) -> dict[str, Any]:
    """Config values. `pretrained`: "imagenet", a path or "none"; `dropout` of every dense layer's output; `depth`: blocks."""
    return {"pretrained": "imagenet", "dropout": 0.1, "depth": DEPTH}


def problems(settings: Any) -> list[str]:
    """What is wrong with `dropout` and `depth`."""
    found = []
    if not 0 <= settings["dropout"] < 1:
        found.append(f"dropout={settings['dropout']}: must be at least 0 and below 1")
    if settings["depth"] < 1:
        found.append(f"depth={settings['depth']}: must be at least 1")
    return found


def output_stride(settings: Any) -> int:
    """Image pixels per pixel of the body's output."""
    return PATCH


def resized_positions(
    positions: Float[Array, "1 _ c"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, "1 _ c"]:
    """A position embedding, class token first, of a grid of `old` (rows, columns) patches for one of `new`: bilinear, not antialiased."""
    if old == new:
        return positions
    grid = positions[:, 1:].reshape(1, *old, positions.shape[-1])
    grid = upsample.bilinear(grid, new).reshape(1, new[0] * new[1], -1)
    return jnp.concatenate([positions[:, :1], grid], 1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout."""

    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], train: bool) -> Float[Array, "b t c"]:
        attention = Attention(HEADS, self.dropout, self.dtype, name="attn")
        x = x + attention(LayerNorm(epsilon=1e-6, name="norm1")(x)[:, None], train)[:, 0]
        mlp = Mlp(self.dropout, self.dtype, name="mlp")
        return x + mlp(LayerNorm(epsilon=1e-6, name="norm2")(x), train)


class ViT(nn.Module):
    """Body [b, h / 16, w / 16, 768]: the last block's tokens on their grid, without the class token; and no maps.

    The published code asserts images of 512 x 512. Here other sizes interpolate the position embedding, whose parameter stays that of 512.
    """

    depth: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> tuple[Array, tuple[Array, ...]]:
        x = PatchEmbed(WIDTH, PATCH, dtype=self.dtype, name="patch_embed")(images)
        b, h, w, c = x.shape
        first = self.param("cls_token", normal, (1, 1, WIDTH), jnp.float32)
        positions = self.param("pos_embed", normal, (1, 1 + GRID * GRID, WIDTH), jnp.float32)
        x = jnp.concatenate([jnp.broadcast_to(first, (b, 1, c)), x.reshape(b, h * w, c)], 1)
        x = drop(self, x + resized_positions(positions, (GRID, GRID), (h, w)), self.dropout, train)
        for index in range(self.depth):
            x = Block(self.dropout, self.dtype, name=f"blocks_{index}")(x, train)
        return x[:, 1:].reshape(b, h, w, c), ()


def build(name: str, settings: Any, dtype: Any) -> nn.Module:
    """The network."""
    return ViT(int(settings["depth"]), float(settings["dropout"]), dtype)


def torch_name(path: tuple[str, ...]) -> str:
    """The published name of a leaf: ("blocks_1", "attn", "qkv", "kernel") -> "blocks.1.attn.qkv.weight"."""
    return ".".join((*path[:-1], torch_weights.leaf_name(path[-1]))).replace("blocks_", "blocks.")


def load_pretrained(settings: Any, params: dict, batch_stats: dict) -> tuple[dict, dict]:
    """`params` with the weights that `settings.pretrained` names; classification layer and last norm are dropped.

    Raises:
        InputError: the file is missing or does not fit.
    """
    return weights.load_backbone(settings, params, batch_stats, torch_name)

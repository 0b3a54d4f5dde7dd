"""Swin transformers (Liu et al. 2021) as the published code has them: Swin-B, and Swin-T as its small sibling."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nest_jax import torch_weights, weights
from nest_jax.attention import Attention, Dense, LayerNorm, Mlp, PatchEmbed, drop, normal, padded
from nest_jax.backbones.resnet import normalise

__all__ = ["NAMES", "build", "defaults", "load_pretrained", "normalise", "output_stride", "problems", "torch_name"]

NAMES = ("swin_b", "swin_t")


class Size(NamedTuple):
    """Width of the first stage (it doubles in each), blocks and heads of the four stages, window, stochastic depth."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    drop_path: float


SIZES = {
    "swin_b": Size(128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 0.3),
    "swin_t": Size(96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 0.2),
}
PATCH = 4


def defaults(name: str) -> dict[str, Any]:
    """Config values.

    `pretrained`: "imagenet", a path or "none". `drop_path`: the rate at which images skip the last block; it grows linearly from 0
    at the first. `depths`: blocks of the four stages, () = the published ones.
    """
    return {"pretrained": "imagenet", "drop_path": SIZES[name].drop_path, "depths": ()}


def problems(settings: Any) -> list[str]:
    """What is wrong with `depths` and `drop_path`."""
    depths, found = tuple(settings["depths"]), []
    if depths and (len(depths) != 4 or not all(isinstance(depth, int) and depth >= 1 for depth in depths)):
        found.append(f"depths={depths}: needs four numbers, each at least 1, or () for the published ones")
    if not 0 <= settings["drop_path"] < 1:
        found.append(f"drop_path={settings['drop_path']}: must be at least 0 and below 1")
    return found


def output_stride(settings: Any) -> int:
    """Image pixels per pixel of the body's output."""
    return 32


def windows(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b n t c"]:
    """The windows of `size` x `size` tokens, row by row; both sides of `x` must be divisible by `size`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    return x.swapaxes(2, 3).reshape(b, -1, size * size, c)


def unwindowed(x: Float[Array, "b n t c"], height: int, width: int) -> Float[Array, "b h w c"]:
    """The inverse of `windows` for a map of `height` x `width`."""
    b, _, tokens, c = x.shape
    size = round(tokens**0.5)
    x = x.reshape(b, height // size, width // size, size, size, c)
    return x.swapaxes(2, 3).reshape(b, height, width, c)


def shifted_mask(height: int, width: int, size: int, shift: int) -> Bool[Array, "n t t"]:
    """Which tokens see each other in the windows of a map rolled by -`shift`: those that were neighbours before.

    Rolling brings the first `shift` rows and columns to the end, so the last windows hold parts of both borders.
    """
    rows, cols = (np.digitize(np.arange(side), (side - size, side - shift)) for side in (height, width))
    regions = (3 * rows[:, None] + cols).astype(np.float32)
    part = windows(jnp.asarray(regions[None, :, :, None]), size)[0, :, :, 0]
    return part[:, :, None] == part[:, None, :]


def relative_positions(size: int) -> Int[np.ndarray, "t t"]:
    """The row of the bias table for each pair of tokens of a window: (dy + size - 1) (2 size - 1) + dx + size - 1."""
    y, x = np.divmod(np.arange(size * size), size)
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + size - 1) * (2 * size - 1) + dx + size - 1


class WindowAttention(Attention):
    """Attention within windows, with a learnt bias for each relative position and head."""

    window: int = 0

    def bias(self) -> Float[Array, "1 heads t t"]:
        """Of shape [1, heads, t, t] from the table [(2 window - 1)^2, heads]."""
        rows = (2 * self.window - 1) ** 2
        table = self.param("relative_position_bias_table", normal, (rows, self.heads), jnp.float32)
        return table[relative_positions(self.window)].transpose(2, 0, 1)[None]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the attention is within windows, shifted by `shift` tokens.

    Maps that windows do not fill are padded with zeros after the norm. As in the published code these take part in the attention.
    """

    heads: int
    window: int
    shift: int
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        height, width, shift = x.shape[1], x.shape[2], self.shift
        y = padded(LayerNorm(epsilon=1e-5, name="norm1")(x), self.window)
        full, mask = (y.shape[1], y.shape[2]), None
        if shift:
            y = jnp.roll(y, (-shift, -shift), (1, 2))
            mask = shifted_mask(full[0], full[1], self.window, shift)
        attention = WindowAttention(self.heads, window=self.window, dtype=self.dtype, name="attn")
        y = unwindowed(attention(windows(y, self.window), train, mask), *full)
        y = jnp.roll(y, (shift, shift), (1, 2)) if shift else y
        x = x + drop(self, y[:, :height, :width], self.drop_path, train, whole=True)
        y = Mlp(dtype=self.dtype, name="mlp")(LayerNorm(epsilon=1e-5, name="norm2")(x), train)
        return x + drop(self, y, self.drop_path, train, whole=True)


class PatchMerging(nn.Module):
    """2 x 2 tokens side by side, normalised, reduced to twice the width."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b hh ww d"]:
        x = padded(x, 2)
        x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        x = LayerNorm(epsilon=1e-5, name="norm")(x)
        return Dense(x.shape[-1] // 2, use_bias=False, dtype=self.dtype, name="reduction")(x).astype(jnp.float32)


class Stage(nn.Module):
    """Blocks, every second one shifted by half a window; returns their output, and it merged where another stage follows."""

    heads: int
    window: int
    drop_paths: tuple[float, ...]
    merge: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> tuple[Array, Array]:
        for index, rate in enumerate(self.drop_paths):
            shift = self.window // 2 if index % 2 else 0
            x = Block(self.heads, self.window, shift, rate, self.dtype, name=f"blocks_{index}")(x, train)
        return x, PatchMerging(self.dtype, name="downsample")(x) if self.merge else x


class Swin(nn.Module):
    """Body [b, h / 32, w / 32, 8 width], the last stage's output, and the outputs of the first three stages, all layer-normalised.

    Those three maps are what the published code distils ("attentions").
    """

    size: Size
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> tuple[Array, tuple[Array, ...]]:
        size, maps = self.size, []
        x = PatchEmbed(size.width, PATCH, dtype=self.dtype, name="patch_embed")(images)
        x = LayerNorm(epsilon=1e-5, name="patch_embed_norm")(x)
        rates = np.linspace(0, size.drop_path, sum(size.depths)).tolist()
        for index, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
            taken, rates = tuple(rates[:depth]), rates[depth:]
            stage = Stage(heads, size.window, taken, index < 3, self.dtype, name=f"layers_{index}")
            out, x = stage(x, train)
            maps.append(LayerNorm(epsilon=1e-5, name=f"norm{index}")(out))
        return maps[-1], tuple(maps[:-1])


def build(name: str, settings: Any, dtype: Any) -> nn.Module:
    """The network."""
    size = SIZES[name]
    depths = tuple(settings["depths"]) or size.depths
    return Swin(size._replace(depths=depths, drop_path=float(settings["drop_path"])), dtype)


def torch_name(path: tuple[str, ...]) -> str:
    """The published name of a leaf: ("layers_0", "blocks_1", "attn", "qkv", "kernel") -> "layers.0.blocks.1.attn.qkv.weight"."""
    name = ".".join((*path[:-1], torch_weights.leaf_name(path[-1]))).replace("patch_embed_norm", "patch_embed.norm")
    return re.sub(r"(layers|blocks)_", r"\1.", name)


def load_pretrained(settings: Any, params: dict, batch_stats: dict) -> tuple[dict, dict]:
    """`params` with the weights that `settings.pretrained` names; the classification layer is dropped, the stages' output norms are new.

    Raises:
        InputError: the file is missing or does not fit.
    """
    return weights.load_backbone(settings, params, batch_stats, torch_name)

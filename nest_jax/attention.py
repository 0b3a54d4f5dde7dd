"""What Swin and ViT share: attention, the MLP, patches, and how their weights start.

The residual stream, layer norms and the softmax are float32 whatever the compute dtype, as under PyTorch's mixed precision. Dropout and
stochastic depth draw from the stream "dropout"; without it, or outside of training, they do nothing.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nest_jax.layers import scaled_normal

LayerNorm = partial(nn.LayerNorm, use_fast_variance=False, dtype=jnp.float32)
gelu = partial(nn.gelu, approximate=False)


def normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal numbers of deviation .02: the published "truncated" normal is cut at +-2, a hundred deviations away."""
    return scaled_normal(0.02**2 * math.prod(shape[:-1]), "fan_in")(key, shape, dtype)


Dense = partial(nn.Dense, kernel_init=normal)


def padded(x: Float[Array, "b h w c"], multiple: int) -> Float[Array, "b hh ww c"]:
    """`x` with zeros below and to the right, so that both sides are divisible by `multiple`."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, -x.shape[2] % multiple), (0, 0)))


def drop(
    module: nn.Module, x: Float[Array, "*shape"], rate: float, train: bool, *, whole: bool = False
) -> Float[Array, "*shape"]:
    """Dropout of the elements of `x` or, where `whole`, of each image's whole branch (stochastic depth, Huang et al. 2016).

    What stays is divided by 1 - rate. `module` is the Linen module that calls it; it must be in a compact method.
    """
    axes = tuple(range(1, x.ndim)) if whole else ()
    return nn.Dropout(rate, broadcast_dims=axes)(x, deterministic=not (train and module.has_rng("dropout")))


class PatchEmbed(nn.Module):
    """Non-overlapping patches to vectors of `width`, by a convolution with bias; images are padded to whole patches."""

    width: int
    patch: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b hh ww c"]:
        size = (self.patch, self.patch)
        proj = nn.Conv(self.width, size, size, "VALID", dtype=self.dtype, kernel_init=normal, name="proj")
        return proj(padded(images, self.patch)).astype(jnp.float32)


class Attention(nn.Module):
    """Multi-head self-attention among the tokens t of each group n: softmax(q k^T / sqrt(d) + bias) v, projected.

    `mask` [n or 1, t, t] is true where a token (rows) sees another (columns).
    """

    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def bias(self) -> Float[Array, "1 heads t t"] | None:
        """What is added to the scores."""
        return None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n t c"], train: bool, mask: Bool[Array, "n t t"] | None = None
    ) -> Float[Array, "b n t c"]:
        width = x.shape[-1]
        qkv = Dense(3 * width, dtype=self.dtype, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(*x.shape[:3], 3, self.heads, -1), 3, 0)
        attend = partial(
            jax.nn.dot_product_attention, bias=self.bias(), mask=None if mask is None else mask[:, None]
        )  # its softmax is float32
        x = jax.vmap(attend)(query, key, value).reshape(x.shape)
        x = Dense(width, dtype=self.dtype, name="proj")(x)
        return drop(self, x, self.dropout, train)


class Mlp(nn.Module):
    """Dense to four times the width, GELU (the exact one), dense back; each followed by dropout."""

    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], train: bool) -> Float[Array, "*b c"]:
        width = x.shape[-1]
        x = drop(self, gelu(Dense(4 * width, dtype=self.dtype, name="fc1")(x)), self.dropout, train)
        return drop(self, Dense(width, dtype=self.dtype, name="fc2")(x), self.dropout, train)

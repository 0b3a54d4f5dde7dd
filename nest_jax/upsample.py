"""Bilinear resampling as two small matrix products.

A bilinear map is separable and linear, so resizing is `R x Cᵀ` with one interpolation matrix per axis. The products suit every accelerator, their
transposes are the gradient, and rows can be produced block by block.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

HIGHEST = jax.lax.Precision.HIGHEST


def matrix(out_size: int, in_size: int) -> Float[np.ndarray, "out in"]:
    """Interpolation matrix of one axis: PyTorch's bilinear `align_corners=False`, without antialiasing when it shrinks."""
    position = np.maximum((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0.0)
    low = np.minimum(np.floor(position).astype(int), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    fraction = position - low
    result = np.zeros((out_size, in_size))
    rows = np.arange(out_size)
    np.add.at(result, (rows, low), 1.0 - fraction)
    np.add.at(result, (rows, high), fraction)
    return result.astype(np.float32)


def apply(x: Float[Array, "b h w c"], rows: Array, columns: Array) -> Float[Array, "b H W c"]:
    """`x` resampled with an interpolation matrix per axis (`[H, h]`, `[W, w]`), float32."""
    x = jnp.einsum("Hh,bhwc->bHwc", rows, x, precision=HIGHEST)
    return jnp.einsum("Ww,bHwc->bHWc", columns, x, precision=HIGHEST)


def bilinear(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b H W c"]:
    """`x` resized to `size = (height, width)`."""
    return apply(x, jnp.asarray(matrix(size[0], x.shape[1])), jnp.asarray(matrix(size[1], x.shape[2])))

"""Per-pixel terms at full resolution without the full-resolution logits.

At 24 x 512 x 512 pixels and 151 classes one float32 logits tensor takes 3.8 GB, and a loss with its gradient holds several. Every per-pixel term is
a function of the logits and the label at one pixel, so the upsampling and the terms are computed for a block of rows at a time and recomputed
in the backward pass; what leaves a block is one sum per image.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nest_jax import upsample

# Bytes of one block's float32 logits. Large enough to fill an accelerator, small enough not to matter beside the network's activations.
BLOCK_BYTES = 64 * 2**20


def block_rows(height: int, row_bytes: int) -> int:
    """The largest divisor of `height` whose rows fit into BLOCK_BYTES (at least 1)."""
    return max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r * row_bytes <= BLOCK_BYTES))


def map_rows(
    function: Callable[..., Any],
    maps: tuple[Float[Array, "b h w _"] | None, ...],
    labels: Int[Array, "b H W"],
    *,
    rows: int = 0,
) -> Any:
    """`function(*maps upsampled to a block of rows, labels of the block)`, results stacked over blocks on a new first axis.

    Args:
        function: of `[b, rows, W, c]` arrays (None where the map is None) and `[b, rows, W]` labels.
        maps: small logits, or None.
        labels: set the full resolution.
        rows: rows of a block, a divisor of H; 0 chooses by BLOCK_BYTES.
    """
    batch, height, width = labels.shape
    present = [m for m in maps if m is not None]
    rows = rows or block_rows(height, batch * width * 4 * max(m.shape[-1] for m in present))
    if height % rows:
        raise ValueError(f"rows={rows} does not divide the height {height}")
    count = height // rows
    columns = [None if m is None else jnp.asarray(upsample.matrix(width, m.shape[2])) for m in maps]
    blocks = [
        None if m is None else jnp.asarray(upsample.matrix(height, m.shape[1]).reshape(count, rows, m.shape[1]))
        for m in maps
    ]

    def block(maps, row_matrices, labels):
        full = [
            m if c is None else upsample.apply(m, r, c) for m, r, c in zip(maps, row_matrices, columns, strict=True)
        ]
        return function(*full, labels)

    if count == 1:
        result = block(maps, [None if b is None else b[0] for b in blocks], labels)
        return jax.tree.map(lambda x: x[None], result)
    label_blocks = jnp.moveaxis(labels.reshape(batch, count, rows, width), 1, 0)
    recomputed = jax.checkpoint(block, prevent_cse=False)  # a scan already keeps the two passes apart
    return jax.lax.scan(lambda _, xs: (None, recomputed(maps, *xs)), None, (blocks, label_blocks))[1]


def sums_per_image(
    pixel_terms: Callable[..., dict[str, Array]],
    logits: Float[Array, "b h w c"],
    old_logits: Float[Array, "b h w old"] | None,
    labels: Int[Array, "b H W"],
    *,
    rows: int = 0,
) -> dict[str, Float[Array, " b"]]:
    """`pixel_terms(logits, old_logits, labels)` at the labels' resolution, each term summed over the pixels of an image."""

    def block_sums(logits, old_logits, labels):
        terms = pixel_terms(logits, old_logits, labels)
        return {name: jnp.sum(term, axis=(1, 2)) for name, term in terms.items()}

    blocks = map_rows(block_sums, (logits, old_logits), labels, rows=rows)
    return {name: jnp.sum(block, axis=0) for name, block in blocks.items()}

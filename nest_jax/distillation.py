"""Distances between the feature maps of an old and a new model: local POD (PLOP) and pooled cube distillation (RCIL).

Maps are [b, h, w, c] and float32. All of these distances are norms of linear poolings of squared maps, so one pooling of the
difference old^2 - new^2 replaces the published two, and no pooled vectors are put together: squared norms add up. The gradient of a
distance of 0 is 0, as in PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Map = Float[Array, "b _ _ _"]
Maps = Sequence[Map]

SCALES = (1, 2, 4)
POOLING_SIZES = (4, 8, 12, 16, 20, 24)


def items(features: Any, logits: Map, num_old: int) -> tuple[Map, ...]:
    """The maps that are compared: the body's, the pre-logits, the small logits (four ResNet maps: six items).

    Logits of classes from `num_old` on are added to channel 0, background, which is what the old model calls them.

    Args:
        features: `segmenter.Features` of student or teacher.
        logits: of the same model, before upsampling.
    """
    background = logits[..., :1] + jnp.sum(logits[..., num_old:], -1, keepdims=True)
    return (*features.maps, features.pre_logits, jnp.concatenate([background, logits[..., 1:num_old]], -1))


def local_pod(
    old: Maps, new: Maps, *, factor: float, last_factor: float, num_old: int, num_new: int
) -> Float[Array, ""]:
    """PLOP's local POD (Douillard et al. 2021, eq. 5) over `items`, weighted.

    Without the L2 normalisation of the paper, on squared maps, as in the published code.

    Args:
        factor: of every item but the last (published: .01 for VOC, .001 for ADE20K).
        last_factor: of the last, the logits (.0005, .00001).
        num_old: classes of the old model, background included.
    """
    return _weighted(pod_distance, old, new, factor, last_factor, num_old, num_new)


def pooled_cube_spatial(
    old: Maps, new: Maps, *, factor: float, last_factor: float, num_old: int, num_new: int
) -> Float[Array, ""]:
    """RCIL's pooled cube distillation in space (Zhang et al. 2022) over all `items`; arguments as of `local_pod`.

    Published: .01 and .0005 for VOC, .000005 and .0000005 for ADE20K.
    """
    return _weighted(spatial_distance, old, new, factor, last_factor, num_old, num_new)


def pooled_cube_channel(
    old: Maps, new: Maps, *, factor: float, last_factor: float, num_old: int, num_new: int
) -> Float[Array, ""]:
    """RCIL's pooled cube distillation over channels; as `pooled_cube_spatial`, but of the items without the logits.

    So `last_factor` holds for the pre-logits: the published code counts from the end of the list.
    """
    return _weighted(channel_distance, old[:-1], new[:-1], factor, last_factor, num_old, num_new)


def _weighted(
    distance: Callable[[Map, Map], Array],
    old: Maps,
    new: Maps,
    factor: float,
    last_factor: float,
    num_old: int,
    num_new: int,
) -> Float[Array, ""]:
    """sqrt(classes / new classes) x mean over items of factor x distance."""
    factors = (*[factor] * (len(old) - 1), last_factor)
    terms = [weight * distance(a, b) for weight, a, b in zip(factors, old, new, strict=True)]
    return math.sqrt((num_old + num_new) / num_new) * sum(terms, jnp.zeros(())) / len(terms)


def difference(old: Map, new: Map) -> Map:
    """old^2 - new^2, exactly 0 where they are equal: compiled as a difference of squares it is not, for the second is not rounded."""
    return (old - new) * (old + new)


def pod_distance(old: Map, new: Map) -> Float[Array, ""]:
    """|local POD embedding of old^2 - that of new^2|, mean over the batch."""
    parts = pod_parts(difference(old, new))
    squares = [jnp.sum(jnp.square(means), (1, 2, 3)) for pair in parts for means in pair]
    return jnp.mean(_root(sum(squares, jnp.zeros(len(old)))))


def pod_parts(x: Map) -> list[tuple[Map, Map]]:
    """Per scale s, of s x s regions of (h // s) x (w // s) pixels: means over a region's width [b, h', s, c] and height [b, s, w', c].

    Rows and columns beyond the regions are dropped (h' = s * (h // s)), as published. The published code takes the region's height
    from the width, which is the same for square maps. A scale above the size of the map, where it finds empty regions and NaN, is left out.
    """
    parts = []
    for scale in SCALES:
        height, width = x.shape[1] // scale, x.shape[2] // scale
        if height and width:
            seen = x[:, : scale * height, : scale * width]
            batch, rows, cols, channels = seen.shape
            parts.append(
                (
                    jnp.mean(seen.reshape(batch, rows, scale, width, channels), 3),
                    jnp.mean(seen.reshape(batch, scale, height, cols, channels), 2),
                )
            )
    return parts


def spatial_distance(old: Map, new: Map) -> Float[Array, ""]:
    """Mean over windows of 4, 8, .. 24 pixels and the batch of |average pooling of old^2 - new^2|.

    Stride 1 and padding by half a window, so k x k windows give maps of (h + 1) x (w + 1); padding counts as zeros.
    """
    return jnp.mean(jnp.stack([_pooled_norm(size, old, new) for size in POOLING_SIZES]))


@partial(jax.checkpoint, static_argnums=0)  # pyright: ignore[reportPrivateImportUsage]
def _pooled_norm(size: int, old: Map, new: Map) -> Float[Array, " b"]:
    """Per image; the pooled maps, as large as the maps themselves, are computed again in the backward pass."""
    x = difference(old, new) / size**2
    sides = (size // 2, size // 2)
    x = lax.reduce_window(x, 0.0, lax.add, (1, size, 1, 1), (1, 1, 1, 1), ((0, 0), sides, (0, 0), (0, 0)))
    x = lax.reduce_window(x, 0.0, lax.add, (1, 1, size, 1), (1, 1, 1, 1), ((0, 0), (0, 0), sides, (0, 0)))
    return _root(jnp.sum(jnp.square(x), (1, 2, 3)))


def channel_distance(old: Map, new: Map) -> Float[Array, ""]:
    """|mean over 3 neighbouring channels of old^2 - new^2|, zeros beyond the first and last; mean over the batch."""
    x = jnp.pad(difference(old, new), ((0, 0), (0, 0), (0, 0), (1, 1)))
    x = (x[..., :-2] + x[..., 1:-1] + x[..., 2:]) / 3
    return jnp.mean(_root(jnp.sum(jnp.square(x), (1, 2, 3))))


def _root(x: Float[Array, " b"]) -> Float[Array, " b"]:
    """sqrt(x) with gradient 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)

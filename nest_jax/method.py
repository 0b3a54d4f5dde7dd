"""What a CISS method is: functions of one batch, put together by `methods/<name>.py: build(settings, num_old, num_new)`."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

PixelTerms = Callable[..., dict[str, Array]]
Terms = dict[str, Array]


def mean_over_pixels(sums: dict[str, Float[Array, " b"]], pixels_per_image: int) -> Terms:
    """Each term's mean over all pixels of the batch; ignored pixels count in the denominator, as published."""
    return {name: jnp.mean(value) / pixels_per_image for name, value in sums.items()}


def no_feature_terms(features, old_features, logits, old_logits) -> Terms:
    """No term on feature maps."""
    return {}


@dataclasses.dataclass(frozen=True)
class Method:
    """The loss of a training step: the sum of `combine(sums of pixel_terms)` and `feature_terms`, every term already weighted.

    Attributes:
        pixel_terms: `(logits [..., c], old_logits [..., old] or None, labels [...]) -> {name: [...]}`, at one pixel each; it is given blocks
            of rows and must not assume the whole image.
        combine: `({name: per-image sums [b]}, pixels of an image) -> {name: scalar}`.
        feature_terms: `(Features, old Features, small logits, small old logits) -> {name: scalar}`.
        teacher: whether the previous task's model runs in the step.
    """

    pixel_terms: PixelTerms
    combine: Callable[[dict[str, Array], int], Terms] = mean_over_pixels
    feature_terms: Callable[..., Terms] = no_feature_terms
    teacher: bool = False

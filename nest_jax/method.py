"""What a CISS method is: functions of one batch, put together by `methods/<name>.py: build(settings, num_old, num_new)`."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nest_jax.segmenter import Segmenter

PixelTerms = Callable[..., dict[str, Array]]
Terms = dict[str, Array]


def mean_over_pixels(sums: dict[str, Float[Array, " b"]], pixels_per_image: int) -> Terms:
    """Each term's mean over all pixels of the batch; ignored pixels count in the denominator, as published."""
    return {name: jnp.mean(value) / pixels_per_image for name, value in sums.items()}


def no_feature_terms(features, old_features, logits, old_logits) -> Terms:
    """No term on feature maps."""
    return {}


class Preparation(NamedTuple):
    """One pass of the previous model over the task's augmented images, before training.

    Attributes:
        sums: `(old_logits [..., old], labels [...]) -> pytree of float32 sums` over these pixels; they are added up over blocks and batches.
        finish: the sums of the whole pass -> what `pixel_terms` is given as `prepared=`.
        numbers_per_pixel: that `sums` makes on its way, if they are more than the logits; blocks are cut accordingly.
    """

    sums: Callable[[Array, Array], Any]
    finish: Callable[[Any], Any]
    numbers_per_pixel: int = 0


@dataclasses.dataclass(frozen=True)
class Method:
    """The loss of a training step: the sum of `combine(sums of pixel_terms)` and `feature_terms`, every term already weighted.

    Attributes:
        pixel_terms: `(logits [..., c], old_logits [..., old] or None, labels [...]) -> {name: [...]}`, at one pixel each; it is given blocks
            of rows and must not assume the whole image. With a `preparation` it is also given `prepared=`.
        combine: `({name: per-image sums [b]}, pixels of an image) -> {name: scalar}`.
        feature_terms: `(Features, old Features, small logits, small old logits) -> {name: scalar}`.
        teacher: whether the previous task's model runs in the step.
        preparation: a pass over the data before training, or None.
    """

    pixel_terms: PixelTerms
    combine: Callable[[dict[str, Array], int], Terms] = mean_over_pixels
    feature_terms: Callable[..., Terms] = no_feature_terms
    teacher: bool = False
    preparation: Preparation | None = None


class Student(NamedTuple):
    """What a later task starts from before its new classifier is made: `methods/<name>.py: student(segmenter, model)` may change the network.

    Attributes:
        segmenter: the network as it trains; in eval mode it must be the function of the run's own segmenter.
        model: {"network", "classifier", "batch_stats"}, of the same structure as the previous task's.
        trainable: tree of booleans over `model["network"]`, or True for all of it.
    """

    segmenter: Segmenter
    model: dict[str, Any]
    trainable: Any = True

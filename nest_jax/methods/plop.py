"""PLOP: pseudo-labels of the old model and distillation of pooled outputs (Douillard et al., CVPR 2021)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nest_jax import distillation, losses
from nest_jax.method import Method, Preparation
from nest_jax.plugins import Settings

NEEDS_MAPS = True  # the feature terms compare maps of the backbone
THRESHOLDS = ("code", "clean")
BINS = 100


def defaults(name: str) -> dict:
    """Published values for VOC (`recipes.PUBLISHED` has ADE20K's).

    `pod`, `pod_logits`: weights of local POD for the maps and for the logits. `thresholds`: "code" is the published computation with its slip,
    "clean" the median that it was meant to be, of the entropy as the paper defines it. `threshold_floor`: the least threshold.
    """
    return {"pod": 0.01, "pod_logits": 0.0005, "thresholds": "code", "threshold_floor": 0.001}


def problems(settings: Settings) -> list[str]:
    """What is wrong with the section, in plain words."""
    known = settings["thresholds"] in THRESHOLDS
    return [] if known else [f"thresholds: {settings['thresholds']!r} is not one of {', '.join(THRESHOLDS)}"]


def build(settings: Settings, *, num_old: int, num_new: int) -> Method:
    """Adaptive factor x cross entropy on labels and confident pseudo-labels + local POD."""
    published = settings["thresholds"] == "code"
    # The published code divides an entropy that is normalised already, and is a mean, once more.
    scale = num_old * math.log(num_old + num_new) if published else 1.0
    floor: Any = settings["threshold_floor"]
    factors: Any = {"factor": settings["pod"], "last_factor": settings["pod_logits"]}

    def uncertainty(old_logits):
        return losses.normalised_entropy(old_logits) / scale

    def pixel_terms(logits, old_logits, labels, *, prepared):
        guess = jnp.argmax(old_logits, axis=-1)
        unlabelled = labels < num_old
        certain = unlabelled & (uncertainty(old_logits) < prepared[guess])
        labels = jnp.where(unlabelled, jnp.where(certain, guess, losses.IGNORE), labels)
        return {
            "ce": losses.cross_entropy(logits, labels),
            "certain": certain.astype(jnp.float32),
            "unlabelled": unlabelled.astype(jnp.float32),
        }

    def combine(sums, pixels):
        return {"ce": jnp.mean(sums["certain"] / (sums["unlabelled"] + 1e-6) * sums["ce"]) / pixels}

    def feature_terms(features, old_features, logits, old_logits):
        old = distillation.items(old_features, old_logits, num_old)
        new = distillation.items(features, logits, num_old)
        return {"pod": distillation.local_pod(old, new, num_old=num_old, num_new=num_new, **factors)}

    def sums(old_logits, labels):
        return histograms(old_logits, uncertainty(old_logits), labels)

    def finish(counts):
        found = published_medians(counts) if published else medians(counts)
        return jnp.clip(jnp.nan_to_num(found), floor, 1.0)  # ±inf accept everything and nothing; so do 1 and the floor

    return Method(
        pixel_terms, combine, feature_terms, teacher=True, preparation=Preparation(sums, finish, num_old + BINS)
    )


def histograms(
    old_logits: Float[Array, "*p old"], uncertainty: Float[Array, "*p"], labels: Int[Array, "*p"]
) -> Float[Array, "old bins"]:
    """Background pixels of each predicted class by uncertainty, in 100 bins over [0, 1]: a product of one-hot matrices, no scatter."""
    classes = jax.nn.one_hot(jnp.argmax(old_logits, axis=-1), old_logits.shape[-1])
    bins = jax.nn.one_hot(jnp.clip((uncertainty * BINS).astype(jnp.int32), 0, BINS - 1), BINS)
    counted = classes * (labels == 0)[..., None]
    flat = (x.reshape(-1, x.shape[-1]) for x in (counted, bins))
    return jnp.matmul(next(flat).T, next(flat), precision=jax.lax.Precision.HIGHEST)


def medians(counts: Float[Array, "old bins"]) -> Float[Array, " old"]:
    """The median of each class, linear within its bin; 0 for a class without pixels."""
    half = jnp.sum(counts, axis=1) / 2
    above = jnp.cumsum(counts, axis=1)
    index = jnp.argmax(above >= half[:, None], axis=1)
    inside = jnp.take_along_axis(counts, index[:, None], axis=1)[:, 0]
    below = jnp.take_along_axis(above, index[:, None], axis=1)[:, 0] - inside
    median = (index + (half - below) / jnp.where(inside > 0, inside, 1.0)) / BINS
    return jnp.where(half > 0, median, 0.0)


def published_medians(counts: Float[Array, "old bins"]) -> Float[Array, " old"]:
    """What the published code computes in the place of the median.

    It adds each bin's number where it means the bin's count, so that only a median in the first bins comes out right. Where no bin holds the
    half it divides by the last bin's count: ±inf if that is 0. 0 for a class without pixels.
    """
    half = jnp.sum(counts, axis=1, keepdims=True) / 2
    numbers = jnp.arange(BINS, dtype=jnp.float32)
    before = jnp.cumsum(numbers) - numbers  # each bin: the sum of the numbers of the bins before it
    holds = (half >= before) & (half <= before + counts)
    found = jnp.any(holds, axis=1)
    index = jnp.where(found, jnp.argmax(holds, axis=1), BINS - 1)
    inside = jnp.take_along_axis(counts, index[:, None], axis=1)[:, 0]
    running = jnp.where(found, before[index], jnp.sum(numbers))
    median = (index + (half[:, 0] - running) / inside) / BINS
    return jnp.where(half[:, 0] > 0, median, 0.0)

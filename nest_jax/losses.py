"""Per-pixel losses of class-incremental segmentation.

Arrays first, options by keyword, no reduction: every function maps `[..., classes]` logits and `[...]` labels to `[...]` float32 losses.
Label 255 is ignored: its loss is 0, and it stays in the denominator of later means, as in the published code.
Class 0 is background; classes `0 .. num_old - 1` are the old ones, background included.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

IGNORE = 255


def _negative_log_likelihood(log_probabilities, labels):
    safe = jnp.where(labels == IGNORE, 0, labels)
    picked = jnp.take_along_axis(log_probabilities, safe[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jnp.where(labels == IGNORE, 0.0, -picked)


def cross_entropy(logits: Float[Array, "*p c"], labels: Int[Array, "*p"]) -> Float[Array, "*p"]:
    """Softmax cross entropy; 0 at ignored pixels."""
    return _negative_log_likelihood(jax.nn.log_softmax(logits), labels)


def unbiased_cross_entropy(
    logits: Float[Array, "*p c"], labels: Int[Array, "*p"], *, num_old: int
) -> Float[Array, "*p"]:
    """MiB's unbiased cross entropy (Cermelli et al. 2020): "background" in the labels means background or any old class.

    `log p(0) = LSE(z_0 .. z_{old-1}) - LSE(z)`, `log p(c) = z_c - LSE(z)` for a new class; labels below `num_old` count as 0.
    """
    total = jax.nn.logsumexp(logits, axis=-1)
    background = jax.nn.logsumexp(logits[..., :num_old], axis=-1) - total
    new = logits[..., num_old:] - total[..., None]
    folded = jnp.where(labels == IGNORE, IGNORE, jnp.maximum(labels.astype(jnp.int32) - (num_old - 1), 0))
    return _negative_log_likelihood(jnp.concatenate([background[..., None], new], axis=-1), folded)


def unbiased_distillation(logits: Float[Array, "*p c"], old_logits: Float[Array, "*p old"]) -> Float[Array, "*p"]:
    """MiB's unbiased knowledge distillation (Cermelli et al. 2020): the old model's background may be any new class.

    `-1/old Σ_k q_k log q̂_k` with `log q̂_0 = LSE(z_0, z_new) - LSE(z)`. The `1/old` is the published code's, absent from the paper's
    equation; the published weight 10 goes with it. Every pixel counts, ignored ones too.
    """
    num_old = old_logits.shape[-1]
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    background_or_new = jnp.concatenate([logits[..., :1], logits[..., num_old:]], axis=-1)
    background = jax.nn.logsumexp(background_or_new, axis=-1, keepdims=True)
    student = jnp.concatenate([background, logits[..., 1:num_old]], axis=-1) - total
    return -jnp.mean(jax.nn.softmax(old_logits) * student, axis=-1)


def distillation(logits: Float[Array, "*p c"], old_logits: Float[Array, "*p old"]) -> Float[Array, "*p"]:
    """Knowledge distillation over the old classes alone (LwF, ILT): cross entropy of the two softmaxes, mean over old classes."""
    student = jax.nn.log_softmax(logits[..., : old_logits.shape[-1]])
    return -jnp.mean(jax.nn.softmax(old_logits) * student, axis=-1)


def normalised_entropy(logits: Float[Array, "*p c"]) -> Float[Array, "*p"]:
    """Entropy of the softmax over log(classes), in [0, 1]; with PLOP's 1e-8 inside the logarithm. 0 for a single class."""
    probabilities = jax.nn.softmax(logits)
    entropy = -jnp.sum(probabilities * jnp.log(probabilities + 1e-8), axis=-1)
    return entropy / jnp.log(float(max(logits.shape[-1], 2)))


def _binary_cross_entropies(logits, targets):
    """-t log σ(z) - (1 - t) log(1 - σ(z)), summed over classes; stable for large logits."""
    return jnp.sum(jnp.maximum(logits, 0.0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits))), axis=-1)


def binary_cross_entropy(logits: Float[Array, "*p c"], labels: Int[Array, "*p"]) -> Float[Array, "*p"]:
    """Sigmoid cross entropy against one-hot labels, summed over classes; 0 at ignored pixels (LwF-MC's classification part)."""
    values = _binary_cross_entropies(logits, jax.nn.one_hot(labels, logits.shape[-1]))
    return jnp.where(labels == IGNORE, 0.0, values)


def binary_cross_entropy_with_teacher(
    logits: Float[Array, "*p c"], old_logits: Float[Array, "*p old"], labels: Int[Array, "*p"]
) -> Float[Array, "*p"]:
    """iCaRL's loss: the old classes' targets are the old model's sigmoids, the new classes' are one-hot labels; summed over classes.

    Ignored pixels count, as in the published code: there every new class has target 0.
    """
    new = jax.nn.one_hot(labels, logits.shape[-1])[..., old_logits.shape[-1] :]
    return _binary_cross_entropies(logits, jnp.concatenate([jax.nn.sigmoid(old_logits), new], axis=-1))

"""The training step: teacher forward, student forward and backward, update; one jitted, donated function per task."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nest_jax import blockwise
from nest_jax import segmenter as seg
from nest_jax.method import Method
from nest_jax.segmenter import Segmenter
from nest_jax.state import TrainState

Batch = dict[str, Array]
Step = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


def make(
    segmenter: Segmenter,
    method: Method,
    optimiser: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    block_rows: int = 0,
    gather: Callable[[Any], Any] = lambda tree: tree,
    trainable: Any = True,
) -> Step:
    """`step(state, frozen, batch) -> (state, terms)`, pure; the caller jits it.

    `frozen` = {"teacher": {"network", "classifier", "batch_stats"} or None, "table": uint8 [256], "key": uint32 [2]}.
    `batch` = {"image" uint8 (or normalised float) [b, H, W, 3], "label" uint8 [b, H, W], raw}. `terms` are the weighted loss terms and their
    sum "loss", means over the batch; with a teacher also "similarity" and "similarity_std", mean and standard deviation over positions of the cosine
    between its pre-logits and the student's, which are watched and not trained. `gather` makes sharded parameters whole. `trainable`, booleans
    over the network's parameters, leaves out the gradients of those that are False. With `accumulation` > 1 the batch is cut into that many
    parts, one after the other: the gradient is that of the whole batch, batch statistics are those of each part.
    """

    def loss(params, batch_stats, frozen, prepared, images, labels, key):
        params, batch_stats = gather(params), gather(batch_stats)
        if trainable is not True:
            network = jax.tree.map(lambda t, p: p if t else jax.lax.stop_gradient(p), trainable, params["network"])
            params = {**params, "network": network}
        labels = frozen["table"][labels.astype(jnp.int32)].astype(jnp.int32)
        with jax.named_scope("student"):
            features, batch_stats = seg.apply(segmenter, params["network"], batch_stats, images, train=True, key=key)
            logits = seg.logits(features.pre_logits, params["classifier"])
        old_features, old_logits = None, None
        if method.teacher:
            with jax.named_scope("teacher"):
                teacher = gather(frozen["teacher"])
                old_features, _ = seg.apply(segmenter, teacher["network"], teacher["batch_stats"], images, train=False)
                old_logits = seg.logits(old_features.pre_logits, teacher["classifier"])
        pixel_terms = partial(method.pixel_terms, prepared=prepared) if method.preparation else method.pixel_terms
        with jax.named_scope("losses"):
            sums = blockwise.sums_per_image(pixel_terms, logits, old_logits, labels, rows=block_rows)
            terms = method.combine(sums, labels.shape[1] * labels.shape[2])
            terms = {**terms, **method.feature_terms(features, old_features, logits, old_logits)}
        watched = similarity(features.pre_logits, old_features.pre_logits) if old_features else {}
        return sum(terms.values()), (batch_stats, {**terms, **watched})

    gradient = jax.value_and_grad(loss, has_aux=True)

    def accumulated(params, batch_stats, frozen, prepared, batch, key):
        if accumulation == 1:
            (total, (batch_stats, terms)), gradients = gradient(
                params, batch_stats, frozen, prepared, batch["image"], batch["label"], key
            )
            return gradients, batch_stats, {"loss": total, **terms}
        # Part i takes rows i, i + accumulation, ...: each device keeps its own rows.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulation, *x.shape[1:]), 1, 0), batch)

        def part(carry, xs):
            batch, key = xs
            (total, (batch_stats, terms)), gradients = gradient(
                params, carry, frozen, prepared, batch["image"], batch["label"], key
            )
            return batch_stats, (gradients, {"loss": total, **terms})

        def add(carry, xs):
            batch_stats, (gradients, terms) = part(carry[0], xs)
            return (batch_stats, *jax.tree.map(jnp.add, carry[1:], (gradients, terms))), None

        keys = jax.random.split(key, accumulation)
        first = jax.tree.map(lambda x: x[0], (parts, keys))
        rest = jax.tree.map(lambda x: x[1:], (parts, keys))
        batch_stats, start = part(batch_stats, first)
        (batch_stats, gradients, terms), _ = jax.lax.scan(add, (batch_stats, *start), rest)
        gradients, terms = jax.tree.map(lambda x: x / accumulation, (gradients, terms))
        return gradients, batch_stats, terms

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(frozen["key"]), state.step)
        gradients, batch_stats, terms = accumulated(state.params, state.batch_stats, frozen, state.prepared, batch, key)
        with jax.named_scope("update"):
            updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
            params = cast(dict[str, Any], optax.apply_updates(state.params, updates))
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.prepared), terms

    return step


def similarity(features: Float[Array, "b h w d"], old_features: Float[Array, "b h w d"]) -> dict[str, Array]:
    """Mean and standard deviation over positions of the cosine of two feature maps (what NeST's fig. 4 shows); no gradient."""
    new, old = jax.lax.stop_gradient((features, old_features))
    norms = jnp.linalg.norm(new, axis=-1) * jnp.linalg.norm(old, axis=-1)
    cosine = jnp.sum(new * old, axis=-1) / jnp.maximum(norms, 1e-12)
    return {"similarity": jnp.mean(cosine), "similarity_std": jnp.std(cosine)}


def make_preparation(segmenter: Segmenter, method: Method, *, block_rows: int = 0) -> Callable:
    """`step(sums, frozen, batch) -> (sums, {})` of the method's pass over the data with the teacher; `frozen` as in `make`."""
    preparation = method.preparation
    assert preparation is not None

    def step(sums, frozen, batch):
        labels = frozen["table"][batch["label"].astype(jnp.int32)].astype(jnp.int32)
        teacher = frozen["teacher"]
        features, _ = seg.apply(segmenter, teacher["network"], teacher["batch_stats"], batch["image"], train=False)
        logits = seg.logits(features.pre_logits, teacher["classifier"])
        widest = max(logits.shape[-1], preparation.numbers_per_pixel)
        rows = block_rows or blockwise.block_rows(labels.shape[1], labels.shape[0] * labels.shape[2] * 4 * widest)
        blocks = blockwise.map_rows(preparation.sums, (logits,), labels, rows=rows)
        return jax.tree.map(lambda total, block: total + jnp.sum(block, axis=0), sums, blocks), {}

    return step


def no_sums(method: Method, num_old: int) -> Any:
    """The sums over no pixels."""
    assert method.preparation is not None
    logits, labels = jnp.zeros((1, 1, 1, num_old)), jnp.zeros((1, 1, 1), jnp.int32)
    found = jax.eval_shape(method.preparation.sums, logits, labels)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)

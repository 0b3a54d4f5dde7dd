"""Training a small pytree on a frozen network's features: the loop that NeST and the two-stage initialisation share.

Nothing but the given pytree is trained; the gradient stops at the features, so that no backward pass runs through the network.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from nest_jax import blockwise, classifier, losses, optim

HIGHEST = jax.lax.Precision.HIGHEST


STEPS, MATRICES = 2**31 + 1, 2**31 + 2  # folded into the task's key; the training step folds in its number


class Batches(NamedTuple):
    """Where the two phases find their data: each function maps a first step to an iterator over the remaining batches."""

    statistics: Callable[[int], Iterable[Any]]
    statistics_steps: int
    pretuning: Callable[[int], Iterable[Any]]
    pretuning_steps: int


def repeated(batches: Sequence[Any], epochs: int) -> Batches:
    """Batches in memory: one pass for the statistics, `epochs` passes in the same order for pre-tuning."""
    total = epochs * len(batches)
    return Batches(
        lambda start: batches[start:],
        len(batches),
        lambda start: (batches[i % len(batches)] for i in range(start, total)),
        total,
    )


def given(frozen: Any, network: Any, batch: Any, key: Array | None) -> tuple[Array, Array, Any]:
    """Features function of batches that already are `(features, labels)`."""
    return jnp.asarray(batch[0]), jnp.asarray(batch[1]), network


def run_all(phase: str, step: Callable, carry: Any, frozen: Any, batches: Callable, steps: int) -> Any:
    """Plain loop over a phase. The trainer passes one that is sharded, shows progress and survives a kill."""
    step = jax.jit(step)
    for batch in batches(0):
        carry, _ = step(carry, frozen, batch)
    return carry


def optimiser(settings: Any, steps: int, trainable: Any = True) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and poly decay; `trainable` is a tree of booleans over the tuned pytree, or True for all of it.

    `settings`: learning_rate, momentum, weight_decay, poly_power and `schedule`: "shifted" advances the schedule before the update, as published (the
    last step has rate 0); "plain" after it.
    """
    shift = int(settings.schedule == "shifted")
    poly = optim.poly(settings.learning_rate, steps, settings.poly_power, shift=shift)
    sgd = optim.sgd(poly, momentum=settings.momentum, weight_decay=settings.weight_decay)
    return sgd if trainable is True else optim.freeze(sgd, trainable)


def carry(tuned: Any, optimiser: optax.GradientTransformation, network: Any, kept: dict[str, Any]) -> dict[str, Any]:
    """What pre-tuning changes, and what it hands through: `initial` (the start of `tuned`) and `kept`."""
    start = {"step": jnp.zeros((), jnp.int32), "tuned": tuned, "opt_state": optimiser.init(tuned), "network": network}
    return {**start, "initial": jax.tree.map(jnp.copy, tuned), **kept}  # copied: the trainer donates the carry


def make_step(
    as_classifier: Callable[[Any, classifier.Classifier], classifier.Classifier],
    optimiser: optax.GradientTransformation,
    features: Callable,
    *,
    block_rows: int = 0,
) -> Callable:
    """`step(carry, frozen, batch) -> (carry, {"unce"})`: MiB's unbiased cross entropy on the labels, mean over all pixels.

    Args:
        as_classifier: `(tuned, old classifier) -> classifier of all classes`.
        features: `(frozen["features"], network, batch, key) -> (features [b, h, w, d], labels [b, H, W], network)`.
        block_rows: rows of the label map computed at a time (0 = by size).

    `frozen` = {"old": classifier, "features": anything, "key": uint32 [2]}.
    """

    def step(carry, frozen, batch):
        key = jax.random.fold_in(jax.random.wrap_key_data(frozen["key"]), carry["step"])
        pre_logits, labels, network = features(frozen["features"], carry["network"], batch, key)
        pre_logits = jax.lax.stop_gradient(pre_logits)
        num_old = frozen["old"]["bias"].shape[0]

        def loss(tuned):
            now = as_classifier(tuned, frozen["old"])
            logits = jnp.matmul(pre_logits, now["kernel"], precision=HIGHEST) + now["bias"]
            sums = blockwise.sums_per_image(
                lambda z, _, y: {"unce": losses.unbiased_cross_entropy(z, y, num_old=num_old)},
                logits,
                None,
                labels,
                rows=block_rows,
            )
            return jnp.sum(sums["unce"]) / labels.size

        value, gradients = jax.value_and_grad(loss)(carry["tuned"])
        updates, opt_state = optimiser.update(gradients, carry["opt_state"], carry["tuned"])
        tuned = optax.apply_updates(carry["tuned"], updates)
        changed = {"step": carry["step"] + 1, "tuned": tuned, "opt_state": opt_state, "network": network}
        return {**carry, **changed}, {"unce": value}

    return step


def key_data(key: Array) -> Array:
    """The `frozen["key"]` of a task's key: other draws than the training's, which starts from the same one."""
    return jax.random.key_data(jax.random.fold_in(key, STEPS))


def as_arrays(kernel: Array | np.ndarray, bias: Array | np.ndarray) -> classifier.Classifier:
    """A classifier of JAX arrays."""
    return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}

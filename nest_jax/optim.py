"""SGD with Nesterov momentum and poly decay, as all methods of this family were published, and elements that stay frozen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def poly(learning_rate: float, steps: int, power: float, *, shift: int = 0) -> Callable[[Any], Any]:
    """`learning_rate (1 - (i + shift)/steps)^power` at step i. `shift=1`: schedule advanced before the update, so that the last one is 0."""

    def schedule(count):
        return learning_rate * ((steps - jnp.minimum(count + shift, steps)) / steps) ** power  # never below 0

    return schedule


def sgd(schedule, *, momentum: float, weight_decay: float, nesterov: bool = True) -> optax.GradientTransformation:
    """PyTorch's SGD: L2 weight decay joins the gradient before the momentum, on every leaf (norms and biases too)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(schedule),
    )


def freeze(optimiser: optax.GradientTransformation, trainable: Any) -> optax.GradientTransformation:
    """`optimiser` with exact zeros where `trainable` (a pytree of booleans that broadcast against the leaves) is False."""

    def mask(updates, params=None):
        return jax.tree.map(lambda u, t: jnp.where(jnp.asarray(t), u, 0), updates, trainable)

    return optax.chain(optimiser, optax.stateless(mask))

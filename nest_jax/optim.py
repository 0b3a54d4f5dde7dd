"""SGD with Nesterov momentum and poly decay, as all methods of this family were published, and elements that stay frozen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array


class PolyState(NamedTuple):
    """Of `poly`. Rate and number of steps are data, so that tasks and runs that differ in them alone share one compiled step."""

    count: Array
    learning_rate: Array
    steps: Array


def rate(state: PolyState, power: float, *, shift: int = 0) -> Array:
    """`learning_rate (1 - (i + shift)/steps)^power` at step i = `state.count`; never below 0."""
    left = state.steps - jnp.minimum(state.count + shift, state.steps)
    # Times the reciprocal, as XLA divides by constants: the rates are those of a program that knows the number of steps.
    return state.learning_rate * (left * (1 / state.steps)) ** power


def poly(learning_rate: float, steps: int, power: float, *, shift: int = 0) -> optax.GradientTransformation:
    """Multiplies updates by the negative `rate`. `shift=1`: schedule advanced before the update, so that the last rate is 0."""

    def init(params):
        return PolyState(jnp.int32(0), jnp.float32(learning_rate), jnp.int32(steps))

    def update(updates, state, params=None):
        factor = -rate(state, power, shift=shift)
        return jax.tree.map(lambda u: factor * u, updates), state._replace(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def sgd(
    schedule: optax.GradientTransformation, *, momentum: float, weight_decay: float, nesterov: bool = True
) -> optax.GradientTransformation:
    """PyTorch's SGD: L2 weight decay joins the gradient before the momentum, on every leaf (norms and biases too).

    `schedule` turns the momentum into the update: `poly`.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum, nesterov=nesterov),
        schedule,
    )


def freeze(optimiser: optax.GradientTransformation, trainable: Any) -> optax.GradientTransformation:
    """`optimiser` with exact zeros where `trainable` (a pytree of booleans that broadcast against the leaves) is False."""

    def mask(updates, params=None):
        return jax.tree.map(lambda u, t: jnp.where(jnp.asarray(t), u, 0), updates, trainable)

    return optax.chain(optimiser, optax.stateless(mask))

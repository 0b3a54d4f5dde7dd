"""What training changes: one frozen pytree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """The state of one task's training.

    Attributes:
        step: optimiser updates made in this task, int32 [].
        params: {"network": {"body", "head"}, "classifier": {"kernel" [d, classes], "bias" [classes]}}.
        batch_stats: running statistics of the network's norms.
        opt_state: of the optimiser over `params`.
        prepared: what the method's pass over the data found (PLOP's thresholds); constant, and here so that a checkpoint holds it.
    """

    step: Any  # not jaxtyping's: trees of this structure also hold shardings
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    prepared: Any = None


def create(model: dict[str, Any], optimiser: optax.GradientTransformation, prepared: Any = None) -> TrainState:
    """The state before the first update of {"network", "classifier", "batch_stats"}.

    Arrays are copied: the step donates them, and the teacher must keep its own.
    """
    model = jax.tree.map(jnp.array, model)
    params = {"network": model["network"], "classifier": model["classifier"]}
    return TrainState(jnp.zeros((), jnp.int32), params, model["batch_stats"], optimiser.init(params), prepared)


def trainable(model: dict[str, Any], *, network: Any = True, frozen_classes: int = 0) -> dict[str, Any]:
    """A tree of booleans over `params`: `network` as given (True: all of it), False for the first `frozen_classes` columns of the classifier."""
    if network is True:
        network = jax.tree.map(lambda _: True, model["network"])
    columns = jnp.arange(model["classifier"]["bias"].shape[0]) >= frozen_classes
    return {"network": network, "classifier": {"kernel": columns[None, :], "bias": columns}}

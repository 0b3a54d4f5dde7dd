"""What training changes: one frozen pytree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int


@struct.dataclass
class TrainState:
    """The state of one task's training.

    Attributes:
        step: optimiser updates made in this task.
        params: {"network": {"body", "head"}, "classifier": {"kernel" [d, classes], "bias" [classes]}}.
        batch_stats: running statistics of the network's norms.
        opt_state: of the optimiser over `params`.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any


def create(model: dict[str, Any], optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first update of {"network", "classifier", "batch_stats"}.

    Arrays are copied: the step donates them, and the teacher must keep its own.
    """
    model = jax.tree.map(jnp.array, model)
    params = {"network": model["network"], "classifier": model["classifier"]}
    return TrainState(jnp.zeros((), jnp.int32), params, model["batch_stats"], optimiser.init(params))


def trainable(model: dict[str, Any], *, frozen_classes: int = 0) -> dict[str, Any]:
    """A tree of booleans over `params`: False for the first `frozen_classes` columns of the classifier."""
    columns = jnp.arange(model["classifier"]["bias"].shape[0]) >= frozen_classes
    network = jax.tree.map(lambda _: True, model["network"])
    return {"network": network, "classifier": {"kernel": columns[None, :], "bias": columns}}

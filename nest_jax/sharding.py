"""One mesh axis, "data": parameters are replicated over it, batches are split along it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh() -> Mesh:
    """All devices of all processes in one axis."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A tree with every array copied to every device; fresh buffers, so that the result may be donated while `tree` lives on."""
    return jax.device_put(tree, replicated(mesh), may_alias=False)


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the devices."""
    return {name: jax.make_array_from_process_local_data(split(mesh), value) for name, value in batch.items()}

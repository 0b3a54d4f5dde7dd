"""The mesh and where arrays lie on it: batches are split over all devices, parameters replicated or, along the axis "fsdp", cut up."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA, FSDP = "data", "fsdp"
SMALLEST = 2**14  # numbers; smaller arrays are not worth cutting


def mesh(fsdp: int = 1) -> Mesh:
    """All devices of all processes; `fsdp` neighbours share the parameters."""
    shape = (jax.device_count() // fsdp, fsdp)
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The first axis is divided over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def spread(tree: Any, mesh: Mesh) -> Any:
    """The shardings of a tree of parameters or optimiser state: large arrays are cut along their longest axis that "fsdp" divides."""
    parts = mesh.shape[FSDP]

    def of(leaf: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(np.shape(leaf)) if size % parts == 0]
        if parts == 1 or np.size(leaf) < SMALLEST or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: np.shape(leaf)[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, FSDP))

    return jax.tree.map(of, tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """A tree where `spread` says; fresh buffers, so that the result may be donated while `tree` lives on."""
    return jax.device_put(tree, spread(tree, mesh), may_alias=False)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A tree with every array copied whole to every device; fresh buffers, too."""
    return jax.device_put(tree, replicated(mesh), may_alias=False)


def gathered(tree: Any, mesh: Mesh) -> Any:
    """Inside a jit: the whole of every array on every device, whose gradient is cut up again by where it goes."""
    if mesh.shape[FSDP] == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch as global arrays, split over the devices."""
    return {name: jax.make_array_from_process_local_data(split(mesh), value) for name, value in batch.items()}


def own_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split as batches are."""
    parts = {part.index[0].start or 0: part.data for part in array.addressable_shards}
    return np.concatenate([np.asarray(parts[first]) for first in sorted(parts)])

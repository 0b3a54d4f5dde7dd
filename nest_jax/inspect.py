"""What a task of a run has learnt, as NumPy arrays: `load(workdir, task)`, and plain functions of these arrays.

Nothing of the run is built again, neither its data nor its network. `nest_jax.figures` draws what the functions here compute, and
`notebooks/inspect_checkpoint.ipynb` shows all of it on one checkpoint.

Arrays: kernels `[d, classes]` in learnt order, background first; NeST's transform of the task's new classes as a dict of
`importance` (M) `[new, old, d]`, `projection` (P) `[new, old]`, `bg_importance` `[d]`, `bg_projection` `[]`, `bias` `[new]`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from nest_jax import checkpoints, rundir, storage, trees
from nest_jax.errors import InputError

TRANSFORMS = ("initial", "pretuned")  # NeST's details: after the similarity statistics, and after pre-tuning


class Inspected(NamedTuple):
    """One task of a run.

    Attributes:
        network: parameters {"body", "head"}; batch_stats: running statistics of the same; nested dicts.
        classifier: {"kernel" [d, classes], "bias" [classes]}.
        details: what the classifier initialisation and the method left for inspection ({} for task 0); see `transforms`.
        config: the run's resolved config, as nested dicts.
        class_names: of all classes learnt so far, background first. new_classes: those of this task.
        report: the task's entry of results.json: "metrics", "per_class", "confusion", "seconds", ... ({} with `start`).
    """

    task: int
    network: dict[str, Any]
    batch_stats: dict[str, Any]
    classifier: dict[str, np.ndarray]
    details: dict[str, Any]
    config: dict[str, Any]
    class_names: tuple[str, ...]
    new_classes: tuple[str, ...]
    report: dict[str, Any]


def load(workdir: epath.PathLike, task: int, *, start: bool = False) -> Inspected:
    """A completed task of a run, its files' digests checked.

    Args:
        workdir: a run's --workdir, also of a run that is still going on.
        start: the model that the task's training started from (tasks >= 1), with the prepared classifier.

    Raises:
        InputError: the task is not complete or not there (the message lists those that are), or its files are damaged.
    """
    workdir = storage.located(workdir)
    complete = rundir.completed_tasks(workdir)
    if task not in complete:
        there = f"complete: {', '.join(map(str, complete))}" if complete else "no task is complete there"
        raise InputError(f"{workdir}: task {task} cannot be loaded; {there}")
    directory = rundir.task_directory(workdir, task)
    saved = checkpoints.metadata(directory)
    if start:
        directory = rundir.start_directory(workdir, task)
        if not checkpoints.exists(directory):
            raise InputError(f"{workdir}: no start of task {task} ({directory}); task 0 has none")
    tree, _ = checkpoints.restore(directory)
    model, names = tree["model"], tuple(saved["classes"])
    return Inspected(
        task=task,
        network=model["network"],
        batch_stats=model.get("batch_stats", {}),
        classifier=model["classifier"],
        details=tree.get("details", {}),
        config=saved["config"],
        class_names=names,
        new_classes=tuple(saved["report"]["new_classes"]),
        report={} if start else saved["report"],
    )


# --- parameters -----------------------------------------------------------------------------------------------------------------------


def layer_norms(tree: Mapping[str, Any]) -> dict[str, float]:
    """The L2 norm of every array of a tree, by path ("body/conv1/kernel")."""
    return {path: float(np.linalg.norm(np.ravel(leaf))) for path, leaf in trees.flatten(dict(tree))[0].items()}


def class_norms(kernel: Float[np.ndarray, "d classes"]) -> Float[np.ndarray, " classes"]:
    """The L2 norm of every class's column."""
    return np.linalg.norm(kernel, axis=0)


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """‖after - before‖ / ‖before‖ of every array that both trees have, by path; of a classifier, over the classes that both know.

    0 where nothing moved; infinite where an array that was all zeros did.
    """
    old, new = trees.flatten(dict(before))[0], trees.flatten(dict(after))[0]
    found = {}
    for path in (path for path in old if path in new):
        was, now = np.asarray(old[path], np.float64), np.asarray(new[path], np.float64)
        if was.shape[:-1] != now.shape[:-1] or was.ndim == 0:
            continue
        both = min(was.shape[-1], now.shape[-1])
        was, now = was[..., :both], now[..., :both]
        moved, size = np.linalg.norm(now - was), np.linalg.norm(was)
        found[path] = float(moved / size) if size else (float("inf") if moved else 0.0)
    return found


def by_layer(values: Mapping[str, float], depth: int = 2) -> dict[str, float]:
    """Root of the mean square over the arrays of each layer: paths cut to their first `depth` names, in their order.

    A deep network has hundreds of arrays; their stages are few enough for a chart.
    """
    groups: dict[str, list[float]] = {}
    for path, value in values.items():
        groups.setdefault("/".join(path.split("/")[:depth]), []).append(value)
    return {name: float(np.sqrt(np.mean(np.square(group)))) for name, group in groups.items()}


# --- classifiers ----------------------------------------------------------------------------------------------------------------------


def similarity(
    kernel: Float[np.ndarray, "d a"], other: Float[np.ndarray, "d b"] | None = None
) -> Float[np.ndarray, "a b"]:
    """Cosine of the classifiers of `kernel` (rows) and `other` (columns; default: the same); 0 for a column of zeros.

    Of two tasks: `similarity(load(run, 1).classifier["kernel"], load(run, 2).classifier["kernel"])`.
    """
    other = kernel if other is None else other

    def unit(columns: np.ndarray) -> np.ndarray:
        norms = np.linalg.norm(columns, axis=0)
        return columns / np.where(norms > 0, norms, 1.0)

    return unit(kernel).T @ unit(other)


# --- NeST -----------------------------------------------------------------------------------------------------------------------------


def transforms(found: Inspected) -> dict[str, dict[str, np.ndarray]]:
    """NeST's "initial" and "pretuned" transform of the task's new classes; {} where the classifiers were made in another way."""
    details = {name: found.details[name] for name in TRANSFORMS if name in found.details}
    return details if all("projection" in transform for transform in details.values()) else {}


def thresholds(found: Inspected) -> Any:
    """What the method's pass over the data found (PLOP's entropy thresholds per old class), or None."""
    return found.details.get("method")


def importance_map(importance: Float[np.ndarray, "old d"]) -> Float[np.ndarray, "old d"]:
    """|M| of one new class, normalised to [0, 1]: the foreground rows by their common range, the background row (the first) by its own.

    Background scores are far higher than the others, because most of every image is background to the old model: in a common
    contrast it would be all that one sees (the paper's figure 6). A range of zero width becomes zeros.
    """
    size = np.abs(np.asarray(importance, np.float64))
    parts = [part for part in (size[:1], size[1:]) if part.size]
    return np.concatenate([_to_unit_range(part) for part in parts]).astype(np.float32)


def _to_unit_range(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def contributions(
    transform: Mapping[str, np.ndarray], kernel: Float[np.ndarray, "d old"], new: int = 0
) -> Float[np.ndarray, " old"]:
    """How much of new class `new`'s classifier each old class gives: its part (M_i ⊙ w_i) P_i projected on the whole, as a share.

    The shares add up to 1; a negative one pulls against the result. P alone does not tell this, for M weighs channels too.

    Args:
        transform: of `transforms`. kernel: of the task before, which the transform acts on.
    """
    parts = transform["importance"][new] * kernel.T * transform["projection"][new][:, None]
    whole = parts.sum(axis=0)
    size = float(whole @ whole)
    return (parts @ whole) / size if size else np.zeros(len(parts), np.float32)

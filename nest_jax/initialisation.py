"""What an initialisation of new classifiers is given and returns: `classifier_init/<name>.py: initialise(job) -> Initialised`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from nest_jax import segmenter as seg
from nest_jax.classifier import Classifier
from nest_jax.pretuning import Batches
from nest_jax.segmenter import Segmenter


class Job(NamedTuple):
    """The classifier of `num_new` classes is wanted on top of `model`.

    Attributes:
        settings: the config's `classifier_init` section.
        key: randomness of this task's initialisation.
        segmenter: the network without weights.
        model: the previous task's {"network", "classifier", "batch_stats"}.
        num_new: classes to add.
        batches: raw batches {"image", "label"} for initialisations that look at data.
        table: uint8 [256], raw label -> training target.
        run: runs a phase of jitted steps over batches (`pretuning.run_all`'s signature): sharded, shown, resumable.
        collect: `(function, frozen, views) -> Batches` of what `function(frozen, batch)` makes of the images, computed once (`collected.batches`).
        block_rows: rows of the label map computed at a time.
    """

    settings: Any
    key: Array
    segmenter: Segmenter
    model: dict[str, Any]
    num_new: int
    batches: Batches
    table: Array
    run: Callable
    collect: Callable
    block_rows: int


class Initialised(NamedTuple):
    """The classifier of all classes; the running statistics that training starts from; arrays to keep with the task for inspection."""

    classifier: Classifier
    batch_stats: dict[str, Any]
    details: dict[str, Any]


def frozen_network(job: Job) -> dict[str, Any]:
    """What the features functions below read from the device beside a batch."""
    return {"network": job.model["network"], "batch_stats": job.model["batch_stats"], "table": job.table}


def old_features(job: Job) -> Callable:
    """Features function of `pretuning` that leaves the network (the student's, before its training) as it is."""

    def features(frozen, network, batch, key):
        found, _ = seg.apply(job.segmenter, frozen["network"], frozen["batch_stats"], batch["image"], train=False)
        return found.pre_logits, _targets(frozen, batch), network

    return features


def collected_features(job: Job, views: int) -> tuple[Batches, Callable]:
    """Batches that hold the features of `old_features`, under `views` fixed augmentations of every image, and the features function that reads them."""

    def compute(frozen, batch):
        found, _ = seg.apply(job.segmenter, frozen["network"], frozen["batch_stats"], batch["image"], train=False)
        return {"features": found.pre_logits}

    def features(frozen, network, batch, key):
        return batch["features"], _targets(frozen, batch), network

    return job.collect(compute, frozen_network(job), views), features


def student_features(job: Job, *, train: bool) -> Callable:
    """Features function whose `network` are the running statistics; where `train` they move, as in the published code, though no weight does.

    The published code leaves dropout and stochastic depth on here, too.
    """

    def features(frozen, batch_stats, batch, key):
        images = batch["image"]
        found, batch_stats = seg.apply(job.segmenter, frozen["network"], batch_stats, images, train=train, key=key)
        return found.pre_logits, _targets(frozen, batch), batch_stats

    return features


def _targets(frozen: dict[str, Any], batch: dict[str, Array]) -> Array:
    return frozen["table"][batch["label"].astype(jnp.int32)].astype(jnp.int32)

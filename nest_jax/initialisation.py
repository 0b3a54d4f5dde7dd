"""What an initialisation of new classifiers is given and returns: `classifier_init/<name>.py: initialise(job) -> Initialised`."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from nest_jax.classifier import Classifier
from nest_jax.nest import Batches
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
        run: runs a phase of jitted steps over batches (`nest.run_all`'s signature): sharded, shown, resumable.
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
    block_rows: int


class Initialised(NamedTuple):
    """The classifier of all classes; the running statistics that training starts from; arrays to keep with the task for inspection."""

    classifier: Classifier
    batch_stats: dict[str, Any]
    details: dict[str, Any]

"""What task 0 starts from: a pretrained backbone, or the model of an earlier run."""

from typing import Any

import jax

from nest_jax import checkpoints, classifier, rundir, storage
from nest_jax import segmenter as seg
from nest_jax.data import Data
from nest_jax.errors import InputError


def model(config: Any, segmenter: seg.Segmenter, data: Data, key: jax.Array) -> dict[str, Any]:
    """{"network", "classifier", "batch_stats"}: the pretrained backbone with a random decoder and classifier; or an earlier run's task 0.

    Raises:
        InputError: weights or the earlier run are not there or do not fit.
    """
    if config.init_from:
        return earlier_run(config, segmenter, data)
    network_key, classifier_key = jax.random.split(key)
    network, batch_stats = seg.init(segmenter, network_key, config.train.crop_size)
    network, batch_stats = seg.load_pretrained(config, network, batch_stats)
    base = classifier.random(classifier_key, segmenter.channels, len(data.protocol.seen(0)))
    return {"network": network, "classifier": base, "batch_stats": batch_stats}


def earlier_run(config: Any, segmenter: seg.Segmenter, data: Data) -> dict[str, Any]:
    """The model after task 0 of the run `config.init_from`, which must have learnt the same classes with the same network."""
    directory = rundir.task_directory(storage.located(config.init_from), 0)
    if not checkpoints.exists(directory):
        raise InputError(f"init_from={config.init_from}: no completed task 0 there ({directory})")
    wanted = data.class_names(data.protocol.seen(0))
    found = checkpoints.metadata(directory)["classes"]
    if found != wanted:
        raise InputError(
            f"init_from={config.init_from}: its task 0 learnt {', '.join(found)}; here it is {', '.join(wanted)}"
        )
    return checkpoints.restore(directory, {"model": abstract(config, segmenter, len(wanted))})[0]["model"]


def abstract(config: Any, segmenter: seg.Segmenter, classes: int) -> dict[str, Any]:
    """Shapes and dtypes of a model of `classes` classes, background included."""
    key = jax.random.key(0)
    network, batch_stats = jax.eval_shape(lambda: seg.init(segmenter, key, config.train.crop_size))
    head = jax.eval_shape(lambda: classifier.random(key, segmenter.channels, classes))
    return {"network": network, "classifier": head, "batch_stats": batch_stats}

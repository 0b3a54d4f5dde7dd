"""What task 0 starts from: a pretrained backbone, or a model that exists: taken over as task 0, or extended."""

from typing import Any

import jax
from etils import epath

from nest_jax import checkpoints, classifier, extension, rundir, storage, trees, weights
from nest_jax import segmenter as seg
from nest_jax.data import Data
from nest_jax.errors import InputError


def model(config: Any, segmenter: seg.Segmenter, data: Data, key: jax.Array) -> dict[str, Any]:
    """{"network", "classifier", "batch_stats"}: what `init_from` or `extend_from` names; else the pretrained backbone with a random
    decoder and classifier.

    Raises:
        InputError: weights, checkpoint or earlier run are not there or do not fit.
    """
    if config.extend_from:
        return extended(config, segmenter, data)
    if config.init_from:
        return taken_over(config, segmenter, data)
    network_key, classifier_key = jax.random.split(key)
    network, batch_stats = seg.init(segmenter, network_key, config.train.crop_size)
    network, batch_stats = seg.load_pretrained(config, network, batch_stats)
    base = classifier.random(classifier_key, segmenter.channels, len(data.protocol.seen(0)))
    return {"network": network, "classifier": base, "batch_stats": batch_stats}


def extended(config: Any, segmenter: seg.Segmenter, data: Data) -> dict[str, Any]:
    """The model of the checkpoint `config.extend_from`, whose classes are those of task 0 (`extension.protocol`)."""
    directory = extension.checkpoint(config.extend_from)
    return restored(directory, abstract(config, segmenter, len(data.protocol.seen(0))))


def taken_over(config: Any, segmenter: seg.Segmenter, data: Data) -> dict[str, Any]:
    """The model after task 0 of the run `config.init_from`, or of a PyTorch checkpoint file; same classes, same network.

    A published file has no names of classes: only their number is checked.
    """
    source = storage.located(config.init_from)
    wanted = data.class_names(data.protocol.seen(0))
    target = abstract(config, segmenter, len(wanted))
    if source.is_file():
        return weights.task_checkpoint(str(source), config, target)
    directory = rundir.task_directory(source, 0)
    if not checkpoints.exists(directory):
        raise InputError(f"init_from={config.init_from}: no completed task 0 there ({directory})")
    saved = checkpoints.metadata(directory)
    found = saved["classes"]
    if found != wanted:
        raise InputError(
            f"init_from={config.init_from}: its task 0 learnt {', '.join(found)}; here it is {', '.join(wanted)}"
        )
    # Shapes do not tell one normalisation, stride or dilation from another.
    if wrong := extension.differences(config, extension.sections(saved["config"]), ignore=("pretrained",)):
        raise InputError(f"init_from={config.init_from}: " + "; ".join(wrong))
    return restored(directory, target)


def restored(directory: epath.Path, target: dict[str, Any]) -> dict[str, Any]:
    """The model of a completed task, which must be like `target`; what its initialisation and method left beside it stays aside."""
    beside = {
        path: jax.ShapeDtypeStruct(shape, dtype)
        for path, (dtype, shape) in checkpoints.shapes(directory).items()
        if not path.startswith("model/")
    }
    return checkpoints.restore(directory, {**trees.unflatten(beside), "model": target})[0]["model"]


def abstract(config: Any, segmenter: seg.Segmenter, classes: int) -> dict[str, Any]:
    """Shapes and dtypes of a model of `classes` classes, background included."""
    key = jax.random.key(0)
    network, batch_stats = jax.eval_shape(lambda: seg.init(segmenter, key, config.train.crop_size))
    head = jax.eval_shape(lambda: classifier.random(key, segmenter.channels, classes))
    return {"network": network, "classifier": head, "batch_stats": batch_stats}

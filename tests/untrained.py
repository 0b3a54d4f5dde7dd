"""A run's workdir that holds one completed task whose model was never trained: quickly made, and all that predictions need."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from nest_jax import checkpoints, rundir
from nest_jax import config as configs
from nest_jax import segmenter as seg
from tests import tiny


def workdir(path: Path, task: int = 0, **overrides: Any) -> Path:
    """`path`, with the task's checkpoint in it: a random network and a random classifier of its classes, far from each other."""
    config = configs.resolve(tiny.config("method=mib,classifier_init=random", **overrides))
    protocol = configs.protocol(config)
    network = seg.build(config)
    params, batch_stats = seg.init(network, jax.random.key(task), 32)
    names = [protocol.class_names[raw] for raw in protocol.seen(task)]
    kernel = np.random.default_rng(task).normal(size=(network.channels, len(names))).astype(np.float32)
    classifier = {"kernel": kernel, "bias": np.zeros(len(names), np.float32)}
    model = {"network": params, "classifier": classifier, "batch_stats": batch_stats}
    saved = {"task": task, "classes": names, "config": config, "report": {"new_classes": names[1:]}}
    checkpoints.save(rundir.task_directory(path, task), {"model": model, "details": {}}, saved)
    return path

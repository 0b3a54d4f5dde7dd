"""NeST: new classifiers pre-tuned as transformations of all old ones. The mathematics is in `nest_jax.nest`; this gives it features."""

import dataclasses

import numpy as np

from nest_jax import nest
from nest_jax.initialisation import Initialised, Job, frozen_network, old_features, student_features


def defaults(name: str) -> dict:
    """`nest.Settings`, the published code's choices."""
    return dataclasses.asdict(nest.Settings())


def problems(settings) -> list[str]:
    """What is wrong with the section, in plain words."""
    found = [
        f"{name}: {settings[name]!r} is not one of {', '.join(choices)}"
        for name, choices in nest.CHOICES.items()
        if settings[name] not in choices
    ]
    if settings["statistics_stride"] < 1:
        found.append(f"statistics_stride: {settings['statistics_stride']}; it must be 1 or more")
    return found


def initialise(job: Job) -> Initialised:
    """Similarity statistics of the old model over the task's images, pre-tuning on its frozen network, write-back."""
    settings = nest.Settings(**{field.name: job.settings[field.name] for field in dataclasses.fields(nest.Settings)})
    old = job.model["classifier"]
    result = nest.new_classifier(
        old["kernel"],
        old["bias"],
        job.batches,
        settings,
        num_new=job.num_new,
        key=job.key,
        frozen=frozen_network(job),
        network=job.model["batch_stats"],
        statistics_features=old_features(job),
        pretuning_features=student_features(job, train=settings.batch_norm == "train"),
        run=job.run,
        block_rows=job.block_rows,
    )
    return Initialised({"kernel": result.kernel, "bias": result.bias}, result.network, result.details)


def warnings(details, class_names: list[str]) -> list[str]:
    """One line per class whose start had to fall back."""
    return [
        f"NeST: no pixel of {name!r} was sampled; its pre-tuning started from the background classifier"
        for name, pixels in zip(class_names, np.asarray(details.get("pixels", [1] * len(class_names))), strict=True)
        if pixels == 0
    ]

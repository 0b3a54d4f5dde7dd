"""NeST: new classifiers pre-tuned as transformations of all old ones. The mathematics is in `nest_jax.nest`; this gives it features."""

import dataclasses

import numpy as np

from nest_jax import nest
from nest_jax.initialisation import (
    Initialised,
    Job,
    collected_features,
    frozen_network,
    old_features,
    student_features,
)

FEATURES = ("online", "cached")


def defaults(name: str) -> dict:
    """`nest.Settings`, the published code's choices, and where features come from.

    `features`: "online" computes them in every step, as published; "cached" once, in eval mode, under `views` fixed augmentations of every image, which
    all epochs run on; the running statistics then stay as they are, whatever `batch_norm` says.
    """
    return {**dataclasses.asdict(nest.Settings()), "features": "online", "views": 1}


def problems(settings) -> list[str]:
    """What is wrong with the section, in plain words."""
    found = [
        f"{name}: {settings[name]!r} is not one of {', '.join(choices)}"
        for name, choices in {**nest.CHOICES, "features": FEATURES}.items()
        if settings[name] not in choices
    ]
    if settings["statistics_stride"] < 1:
        found.append(f"statistics_stride: {settings['statistics_stride']}; it must be 1 or more")
    if settings["views"] < 1 or (settings["views"] > 1 and settings["features"] != "cached"):
        found.append(f"views: {settings['views']}; it must be 1, or with features=cached more")
    return found


def initialise(job: Job) -> Initialised:
    """Similarity statistics of the old model over the task's images, pre-tuning on its frozen network, write-back."""
    settings = nest.Settings(**{field.name: job.settings[field.name] for field in dataclasses.fields(nest.Settings)})
    old, batches = job.model["classifier"], job.batches
    of_statistics, of_pretuning = old_features(job), student_features(job, train=settings.batch_norm == "train")
    if job.settings["features"] == "cached":
        batches, of_statistics = collected_features(job, job.settings["views"])
        of_pretuning = of_statistics
    result = nest.new_classifier(
        old["kernel"],
        old["bias"],
        batches,
        settings,
        num_new=job.num_new,
        key=job.key,
        frozen=frozen_network(job),
        network=job.model["batch_stats"],
        statistics_features=of_statistics,
        pretuning_features=of_pretuning,
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

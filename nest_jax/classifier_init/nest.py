"""NeST: new classifiers pre-tuned as transformations of all old ones. The mathematics is in `nest_jax.nest`; this gives it features."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from nest_jax import nest
from nest_jax import segmenter as seg
from nest_jax.initialisation import Initialised, Job


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
    moving = settings.batch_norm == "train"

    def old_features(frozen, network, batch):
        features, _ = seg.apply(job.segmenter, frozen["network"], frozen["batch_stats"], batch["image"], train=False)
        return features.pre_logits, labels(frozen, batch), network

    def student_features(frozen, batch_stats, batch):
        # The statistics of the norms move as in the published code, though no weight of the network does.
        key = None  # stochastic layers, where a backbone has them, get their key from the trainer's step only
        features, batch_stats = seg.apply(
            job.segmenter, frozen["network"], batch_stats, batch["image"], train=moving, key=key
        )
        return features.pre_logits, labels(frozen, batch), batch_stats

    def labels(frozen, batch):
        return frozen["table"][batch["label"].astype(jnp.int32)].astype(jnp.int32)

    old = job.model["classifier"]
    result = nest.new_classifier(
        old["kernel"],
        old["bias"],
        job.batches,
        settings,
        num_new=job.num_new,
        key=job.key,
        frozen={"network": job.model["network"], "batch_stats": job.model["batch_stats"], "table": job.table},
        network=job.model["batch_stats"],
        statistics_features=old_features,
        pretuning_features=student_features,
        run=job.run,
        block_rows=job.block_rows,
    )
    return Initialised({"kernel": result.kernel, "bias": result.bias}, result.network, result.details)


def warnings(details, class_names: list[str]) -> list[str]:
    """One line per class whose start had to fall back."""
    return [
        f"NeST: no pixel of {name!r} was sampled; its pre-tuning started from the background classifier"
        for name, pixels in zip(class_names, np.asarray(details["pixels"]), strict=True)
        if pixels == 0
    ]

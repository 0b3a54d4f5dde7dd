"""Two-stage: the new classifiers themselves are tuned on the frozen network before the task's training (NeST's table 3)."""

import jax.numpy as jnp

from nest_jax import classifier, nest, pretuning
from nest_jax.initialisation import Initialised, Job, frozen_network, student_features
from nest_jax.plugins import Settings

# Pre-tuning as NeST's; its matrices and what is done to biases and background belong to NeST alone.
KEYS = (
    "epochs",
    "learning_rate",
    "momentum",
    "weight_decay",
    "poly_power",
    "schedule",
    "batch_norm",
    "weight_alignment",
)
CHOICES = {name: nest.CHOICES[name] for name in ("schedule", "batch_norm")} | {"start": ("background", "random")}


def defaults(name: str) -> dict:
    """`start`: "background" (copies of the background classifier, as the paper says) or "random" (what the published code does).

    The others are NeST's (`nest.Settings`).
    """
    published = nest.Settings()
    return {"start": "background", **{key: getattr(published, key) for key in KEYS}}


def problems(settings: Settings) -> list[str]:
    """What is wrong with the section, in plain words."""
    return [
        f"{name}: {settings[name]!r} is not one of {', '.join(choices)}"
        for name, choices in CHOICES.items()
        if settings[name] not in choices
    ]


def initialise(job: Job) -> Initialised:
    """Old columns as they are; new ones from `start`, tuned with the unbiased cross entropy, then weight alignment."""
    settings = nest.Settings(**{key: job.settings[key] for key in KEYS})
    old = pretuning.as_arrays(job.model["classifier"]["kernel"], job.model["classifier"]["bias"])
    if job.settings["start"] == "random":  # the published rows are one random row for all new classes
        row = classifier.random(job.key, old["kernel"].shape[0], 1)
    else:
        row = {"kernel": old["kernel"][:, :1], "bias": old["bias"][:1]}
    start = {"kernel": jnp.repeat(row["kernel"], job.num_new, 1), "bias": jnp.repeat(row["bias"], job.num_new)}

    optimiser = pretuning.optimiser(settings, job.batches.pretuning_steps)
    carry = pretuning.carry(start, optimiser, job.model["batch_stats"], {})
    features = student_features(job, train=settings.batch_norm == "train")
    step = pretuning.make_step(
        lambda new, old: classifier.append(old, new), optimiser, features, block_rows=job.block_rows
    )
    frozen = {"old": old, "features": frozen_network(job), "key": pretuning.key_data(job.key)}
    carry = job.run("pretuning", step, carry, frozen, job.batches.pretuning, job.batches.pretuning_steps)

    made = classifier.append(old, carry["tuned"])
    if settings.weight_alignment:
        made["kernel"] = classifier.align_weights(made["kernel"], old["bias"].shape[0])
    return Initialised(made, carry["network"], {"initial": carry["initial"], "pretuned": carry["tuned"]})

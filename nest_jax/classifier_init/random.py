"""New classifiers drawn at random: PyTorch's default for a 1x1 convolution."""

from nest_jax import classifier
from nest_jax.initialisation import Initialised, Job


def defaults(name: str) -> dict:
    """No settings."""
    return {}


def initialise(job: Job) -> Initialised:
    """Old columns as they are, new ones U(±1/√d)."""
    old = job.model["classifier"]
    new = classifier.random(job.key, old["kernel"].shape[0], job.num_new)
    return Initialised(classifier.append(old, new), job.model["batch_stats"], {})

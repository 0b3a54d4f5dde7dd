"""MiB's initialisation: the new classes share the background's probability evenly with it."""

import jax.numpy as jnp

from nest_jax import classifier
from nest_jax.initialisation import Initialised, Job
from nest_jax.plugins import Settings

BIASES = ("shared", "random")


def defaults(name: str) -> dict:
    """`bias`: "shared" (MiB, PLOP) or "random" (RCIL's code copies the weights alone: new biases U(±1/√d), background's as it is)."""
    return {"bias": "shared"}


def problems(settings: Settings) -> list[str]:
    """What is wrong with the section, in plain words."""
    known = settings["bias"] in BIASES
    return [] if known else [f"bias: {settings['bias']!r} is not one of {', '.join(BIASES)}"]


def initialise(job: Job) -> Initialised:
    """`w_new = w_bg`; "shared": `b_new = b_bg = b_bg - log(new + 1)`, so that p(bg) + Σ p(new) is what p(bg) was."""
    kernel, bias = (jnp.asarray(job.model["classifier"][name]) for name in ("kernel", "bias"))
    if job.settings["bias"] == "shared":
        shared = bias[0] - jnp.log(job.num_new + 1.0)
        old, new_bias = bias.at[0].set(shared), jnp.full(job.num_new, shared)
    else:
        old, new_bias = bias, classifier.random(job.key, kernel.shape[0], job.num_new)["bias"]
    grown = classifier.append(
        {"kernel": kernel, "bias": old}, {"kernel": jnp.repeat(kernel[:, :1], job.num_new, axis=1), "bias": new_bias}
    )
    return Initialised(grown, job.model["batch_stats"], {})

"""MiB's initialisation: the new classes share the background's probability evenly with it."""

import jax.numpy as jnp

from nest_jax.initialisation import Initialised, Job


def defaults(name: str) -> dict:
    """No settings."""
    return {}


def initialise(job: Job) -> Initialised:
    """`w_new = w_bg`; `b_new = b_bg = b_bg - log(new + 1)`, so that p(bg) + Σ p(new) is what p(bg) was."""
    kernel, bias = (jnp.asarray(job.model["classifier"][name]) for name in ("kernel", "bias"))
    shared = bias[0] - jnp.log(job.num_new + 1.0)
    new_kernel = jnp.repeat(kernel[:, :1], job.num_new, axis=1)
    grown = {
        "kernel": jnp.concatenate([kernel, new_kernel], axis=1),
        "bias": jnp.concatenate([bias.at[0].set(shared), jnp.full(job.num_new, shared)]),
    }
    return Initialised(grown, job.model["batch_stats"], {})

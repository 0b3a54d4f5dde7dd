"""The classifier as a pytree: `{"kernel": [channels, classes], "bias": [classes]}`, class 0 is background."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Classifier = dict[str, Array]


def random(key: Array, channels: int, classes: int) -> Classifier:
    """PyTorch's default for a 1x1 convolution: weights and biases U(-1/√channels, 1/√channels)."""
    bound = channels**-0.5
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel_key, (channels, classes), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(bias_key, (classes,), minval=-bound, maxval=bound),
    }


def append(old: Classifier, new: Classifier) -> Classifier:
    """The classes of `old`, then those of `new`."""
    return {name: jnp.concatenate([old[name], new[name]], axis=-1) for name in ("kernel", "bias")}


def align_weights(kernel: Float[Array, "d classes"], num_old: int) -> Float[Array, "d classes"]:
    """Weight alignment (NeST eq. 13): new columns x mean norm of the old ones / mean norm of the new ones; all-zero new columns stay."""
    norms = jnp.linalg.norm(kernel, axis=0)
    new_norm = jnp.mean(norms[num_old:])
    factor = jnp.where(new_norm > 0, jnp.mean(norms[:num_old]) / jnp.where(new_norm > 0, new_norm, 1.0), 1.0)
    return jnp.concatenate([kernel[:, :num_old], kernel[:, num_old:] * factor], axis=1)

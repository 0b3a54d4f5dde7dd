"""Class activation maps of a segmenter: Seg-Grad-CAM (Vinogradova et al., 2020), the paper's figure 9."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from nest_jax import plugins, segmenter, upsample
from nest_jax.inspect import Inspected
from nest_jax.segmenter import Segmenter


def activation_map(found: Inspected, image: UInt8[np.ndarray, "h w 3"], name: str) -> Float[np.ndarray, "h w"]:
    """Where a task's model looks when it says `name`, in [0, 1], 1 being the image's strongest place; zeros where nothing speaks for it.

    Raises:
        InputError: the network of the run's config is not there.
    """
    column = found.classifier["kernel"][:, found.class_names.index(name)]
    variables = {"params": found.network, "batch_stats": found.batch_stats}
    sections = {key: found.config[key] for key in ("backbone", "decoder", "dtype")}
    return np.asarray(_of_network(json.dumps(sections, sort_keys=True))(variables, image[None], column))[0]


@cache
def _of_network(sections: str) -> Callable:
    return make(build(json.loads(sections)))


def build(config: Mapping[str, Any]) -> Segmenter:
    """The segmenter of a run's config, also of one written before some of today's keys existed: they get their defaults."""
    sections: dict[str, Any] = {"dtype": config["dtype"]}
    for section, kind in (("backbone", "backbones"), ("decoder", "decoders")):
        name = config[section]["name"]
        settings = {key: tuple(v) if isinstance(v, list) else v for key, v in config[section].items()}
        sections[section] = {**plugins.load(kind, name).defaults(name), **settings}
    return segmenter.build(ConfigDict(sections))


def make(network: Segmenter) -> Callable:
    """`cam(variables, images [b, h, w, 3], column [d]) -> [b, h, w]`, jitted.

    The gradient of the class's logit, summed over all positions, with respect to the body's last map; its mean over positions weighs the
    map's channels; what is negative is dropped. The bias has no gradient, so `column` is all that is needed of the classifier, and one
    compilation serves all classes and tasks.
    """

    def head(module: Any, body: Array) -> Array:
        return module.head(body, False)

    @jax.jit
    def cam(variables: Mapping, images: Array, column: Array) -> Array:
        params, batch_stats = variables["params"], variables["batch_stats"]
        features, _ = segmenter.apply(network, params, batch_stats, images, train=False)

        def score(body: Float[Array, "b h w c"]) -> Array:
            pre_logits = nn.apply(head, network.network)(variables, body)
            return jnp.sum(pre_logits.astype(jnp.float32) @ column)

        weights = jnp.mean(jax.grad(score)(features.body), axis=(1, 2), keepdims=True)
        found = jax.nn.relu(jnp.sum(weights * features.body, axis=-1, keepdims=True))
        found = upsample.bilinear(found, (images.shape[1], images.shape[2]))[..., 0]
        return found / jnp.maximum(jnp.max(found, axis=(1, 2), keepdims=True), 1e-12)

    return cam

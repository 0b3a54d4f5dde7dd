"""MiB: Modeling the Background for incremental learning in semantic segmentation (Cermelli et al., CVPR 2020)."""

from nest_jax import losses
from nest_jax.method import Method


def defaults(name: str) -> dict:
    """`distillation`: weight of the unbiased distillation, 10 in all published runs of MiB and MiB+NeST."""
    return {"distillation": 10.0}


def build(settings, *, num_old: int, num_new: int) -> Method:
    """Unbiased cross entropy + `distillation` x unbiased knowledge distillation from the previous model."""

    def pixel_terms(logits, old_logits, labels):
        return {
            "unce": losses.unbiased_cross_entropy(logits, labels, num_old=num_old),
            "unkd": settings["distillation"] * losses.unbiased_distillation(logits, old_logits),
        }

    return Method(pixel_terms, teacher=True)

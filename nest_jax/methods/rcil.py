"""RCIL: representation compensation networks and pooled cube distillation (Zhang et al., CVPR 2022)."""

from dataclasses import replace
from typing import Any

from nest_jax import distillation, two_branch
from nest_jax.method import Method, Student
from nest_jax.methods import mib
from nest_jax.plugins import Settings
from nest_jax.segmenter import Segmenter

NEEDS_MAPS = True  # the feature terms compare maps of the backbone
# the networks with two branches, by those without
NEEDS = {
    "backbone": {"resnet50": "resnet50_rc", "resnet101": "resnet101_rc"},
    "decoder": {"deeplabv3": "deeplabv3_rc"},
}
STUDENT_STARTS = ("code", "exact")


def defaults(name: str) -> dict:
    """Published values for VOC (`recipes.PUBLISHED` has ADE20K's).

    `distillation`: weight of the unbiased distillation. `pooled_cube`: of pooled cube distillation for all items but the last;
    `pooled_cube_last`: for the last one. `student_start`: the second branches of a later task's student "code": stay, so that the student
    starts as half the merged, half the second branch; "exact": start as the merged ones, so that it starts as its teacher.
    """
    return {"distillation": 100.0, "pooled_cube": 0.01, "pooled_cube_last": 0.0005, "student_start": "code"}


def problems(settings: Settings) -> list[str]:
    """What is wrong with the section, in plain words."""
    start = settings["student_start"]
    return [] if start in STUDENT_STARTS else [f"student_start: {start!r} is not one of {', '.join(STUDENT_STARTS)}"]


def student(settings: Settings, segmenter: Segmenter, model: dict[str, Any]) -> Student:
    """The branches are merged into the first, which stays fixed with its statistics; all else trains, classifiers of all tasks too."""
    network, batch_stats = two_branch.merge(
        model["network"], model["batch_stats"], exact=settings["student_start"] == "exact"
    )
    body, head = (getattr(segmenter.network, part).clone(branches=two_branch.first_fixed) for part in ("body", "head"))
    return Student(
        segmenter._replace(network=segmenter.network.clone(body=body, head=head)),
        {**model, "network": network, "batch_stats": batch_stats},
        two_branch.trainable(network),
    )


def build(settings: Settings, *, num_old: int, num_new: int) -> Method:
    """MiB's terms, `distillation` for their weight, + pooled cube distillation in space and over channels."""

    def feature_terms(features, old_features, logits, old_logits):
        old = distillation.items(old_features, old_logits, num_old)
        new = distillation.items(features, logits, num_old)
        options = {
            "factor": settings["pooled_cube"],
            "last_factor": settings["pooled_cube_last"],
            "num_old": num_old,
            "num_new": num_new,
        }
        return {
            "pooled_cube_spatial": distillation.pooled_cube_spatial(old, new, **options),
            "pooled_cube_channel": distillation.pooled_cube_channel(old, new, **options),
        }

    return replace(mib.build(settings, num_old=num_old, num_new=num_new), feature_terms=feature_terms)

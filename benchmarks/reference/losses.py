"""The loss terms of MiB, PLOP and RCIL at full resolution: `terms(method, student, teacher, labels, ...) -> {name: scalar}`."""

# pyright: reportMissingImports=false
import math

import torch
import torch.nn.functional as F

IGNORE = 255


def upsampled(logits, labels):
    return F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


def unbiased_cross_entropy(logits, labels, old):
    """Background in the labels is background or any of the `old` classes; mean over all pixels."""
    total = logits.logsumexp(1, keepdim=True)
    background = logits[:, :old].logsumexp(1, keepdim=True) - total
    log_probabilities = torch.cat([background, logits[:, old:] - total], 1)
    folded = torch.where(labels == IGNORE, IGNORE, (labels - (old - 1)).clamp(min=0))
    return F.nll_loss(log_probabilities, folded, ignore_index=IGNORE, reduction="none").mean()


def unbiased_distillation(logits, old_logits):
    """The teacher's background is background or any new class; mean over pixels and old classes."""
    old = old_logits.shape[1]
    total = logits.logsumexp(1, keepdim=True)
    background = torch.cat([logits[:, :1], logits[:, old:]], 1).logsumexp(1, keepdim=True)
    student = torch.cat([background, logits[:, 1:old]], 1) - total
    return -(old_logits.softmax(1) * student).mean()


def pseudo_labelled_cross_entropy(method, logits, old_logits, labels, thresholds):
    """PLOP's: the teacher's confident predictions on background, weighted by their share in the image."""
    old, classes = old_logits.shape[1], logits.shape[1]
    probabilities = old_logits.softmax(1)
    entropy = -(probabilities * (probabilities + 1e-8).log()).sum(1) / math.log(max(old, 2))
    if method["thresholds"] == "code":
        entropy = entropy / (old * math.log(classes))
    guess = old_logits.argmax(1)
    unlabelled = labels < old
    certain = unlabelled & (entropy < thresholds[guess])
    labels = torch.where(unlabelled, torch.where(certain, guess, IGNORE), labels)
    share = certain.sum((1, 2)) / (unlabelled.sum((1, 2)) + 1e-6)
    return (share[:, None, None] * F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")).mean()


def compared(outputs, old):
    """Maps of the body, pre-logits, and the small logits with those of new classes added to background."""
    logits = outputs["logits"]
    background = logits[:, :1] + logits[:, old:].sum(1, keepdim=True)
    return [*outputs["maps"], outputs["pre_logits"], torch.cat([background, logits[:, 1:old]], 1)]


def weighted(distance, teacher, student, factor, last_factor, classes, new):
    factors = [factor] * (len(teacher) - 1) + [last_factor]
    distances = [weight * distance(a, b) for weight, a, b in zip(factors, teacher, student, strict=True)]
    return math.sqrt(classes / new) * sum(distances) / len(distances)


def local_pod_embedding(x):
    """Means over the width and over the height of the regions of a 1, 2 and 4 times divided map, side by side."""
    parts = []
    for scale in (1, 2, 4):
        height, width = x.shape[2] // scale, x.shape[3] // scale
        for i in range(scale):
            for j in range(scale):
                if height and width:
                    region = x[:, :, i * height : (i + 1) * height, j * width : (j + 1) * width]
                    parts += [region.mean(3).flatten(1), region.mean(2).flatten(1)]
    return torch.cat(parts, 1)


def pod_distance(old, new):
    return (local_pod_embedding(old**2) - local_pod_embedding(new**2)).norm(dim=1).mean()


def spatial_distance(old, new):
    """RCIL's pooled cubes: average pooling of several sizes."""
    distances = []
    for size in (4, 8, 12, 16, 20, 24):
        pooled = [F.avg_pool2d(x**2, size, stride=1, padding=size // 2).flatten(1) for x in (old, new)]
        distances.append((pooled[0] - pooled[1]).norm(dim=1).mean())
    return torch.stack(distances).mean()


def channel_distance(old, new):
    """As `spatial_distance`, over three neighbouring channels."""
    pooled = [F.avg_pool3d((x**2)[:, None], (3, 1, 1), 1, (1, 0, 0)).flatten(1) for x in (old, new)]
    return (pooled[0] - pooled[1]).norm(dim=1).mean()


def terms(method, student, teacher, labels, thresholds=None):
    """The weighted terms of `method`, a config's section; student and teacher are outputs of `Segmenter`."""
    name = method["name"]
    old, classes = teacher["logits"].shape[1], student["logits"].shape[1]
    logits, old_logits = upsampled(student["logits"], labels), upsampled(teacher["logits"], labels)
    if name in ("mib", "rcil"):
        found = {
            "unce": unbiased_cross_entropy(logits, labels, old),
            "unkd": method["distillation"] * unbiased_distillation(logits, old_logits),
        }
    elif name == "plop":
        found = {"ce": pseudo_labelled_cross_entropy(method, logits, old_logits, labels, thresholds)}
    else:
        raise SystemExit(f"the reference has no method {name!r}, only mib, plop and rcil")
    if name == "mib":
        return found
    new_maps, old_maps = compared(student, old), compared(teacher, old)
    if name == "plop":
        factors = method["pod"], method["pod_logits"], classes, classes - old
        return {**found, "pod": weighted(pod_distance, old_maps, new_maps, *factors)}
    factors = method["pooled_cube"], method["pooled_cube_last"], classes, classes - old
    return {
        **found,
        "pooled_cube_spatial": weighted(spatial_distance, old_maps, new_maps, *factors),
        "pooled_cube_channel": weighted(channel_distance, old_maps[:-1], new_maps[:-1], *factors),
    }

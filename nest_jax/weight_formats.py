"""Whose names a file of weights uses: every format is a rename from the published names (`torch_name` of our modules) to its own.

The names and shapes of the files were listed from the packages that write them (tests/golden/names); the published ones are those of
the PyTorch code of MiB, PLOP, RCIL and NeST.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from nest_jax import upsample
from nest_jax.torch_weights import matches

T = TypeVar("T")

NORMS = {"iabn": "InPlace-ABN and leaky ReLU", "bn": "plain batch norm and ReLU"}
COUNTERS = r".*\.num_batches_tracked"  # PyTorch's, never needed: momentum is a constant
BUFFERS = r".*\.(relative_position_index|attn_mask)"  # made from the window's size here


class Format(NamedTuple):
    """Names of a source.

    Attributes:
        title: of the source, for messages.
        backbones: the beginning of the names of the backbones that it can have.
        name: a published name of the body ("mod1.conv1.weight") -> the source's.
        ignore: regular expressions of the source's names that segmentation does not use: its classification layers, its buffers.
        keep: those of names that the network has and the source lacks; they start as the network makes them.
        norm: the `norm` of the backbone's settings that the weights were trained with, where there is a choice.
        fit: (the source's name, array, the network's shape) -> array, where another shape can be made to fit.
    """

    title: str
    backbones: str
    name: Callable[[str], str] = str
    ignore: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    norm: str | None = None
    fit: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray] = lambda name, value, shape: value


def torchvision_resnet(name: str) -> str:
    """ "mod2.block1.convs.conv1.weight" -> "layer1.0.conv1.weight", "mod2.block1.proj_bn.bias" -> "layer1.0.downsample.1.bias"."""
    stage = re.fullmatch(r"mod(\d)\.block(\d+)\.(.*)", name)
    if stage is None:
        return name.removeprefix("mod1.")
    number, block, rest = stage.groups()
    rest = rest.removeprefix("convs.").replace("proj_conv", "downsample.0").replace("proj_bn", "downsample.1")
    return f"layer{int(number) - 1}.{int(block) - 1}.{rest}"


def timm_swin(name: str) -> str:
    """ "layers.0.downsample.norm.bias" -> "layers.1.downsample.norm.bias": timm merges patches where a stage begins, not where one ends."""
    return re.sub(r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)


def positions(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """ViT's `pos_embed` [1, 1 + n², c] for another grid of patches: bilinear, the class token as it is; other entries unchanged.

    The published code makes the 24 x 24 of the ImageNet weights the 32 x 32 of its images in this way.
    """
    if name != "pos_embed" or value.ndim != 3 or len(shape) != 3:
        return value
    old, new = (math.isqrt(max(count - 1, 0)) for count in (value.shape[1], shape[1]))
    if (1, 1 + old * old, shape[2]) != value.shape or 1 + new * new != shape[1] or old == new:
        return value
    matrix = upsample.matrix(new, old)
    grid = np.einsum("Hh,hwc,Ww->HWc", matrix, value[0, 1:].reshape(old, old, -1), matrix, optimize=True)
    return np.concatenate([value[:, :1], grid.reshape(1, new * new, -1)], axis=1)


SWIN = {"ignore": (r"(norm|head)\..*", BUFFERS), "keep": (r"norm\d\..*",)}
FORMATS = (
    Format("InPlace-ABN ResNet (Mapillary)", "resnet", ignore=(r"(classifier\.)?fc\..*",), norm="iabn"),
    Format("torchvision / timm ResNet", "resnet", torchvision_resnet, ignore=(r"fc\..*",), norm="bn"),
    Format("Swin (official)", "swin", **SWIN),
    Format("Swin (timm)", "swin", timm_swin, **SWIN),
    Format("ViT (timm)", "vit", ignore=(r"(norm|head)\..*",), fit=positions),
    Format("EfficientNet-Lite", "efficientnet_lite", ignore=(r"(_conv_head|_bn1|_fc)\..*",)),
)
OTHER = Format("the network's own names", "")


def body(state: Mapping[str, T]) -> dict[str, T]:
    """The entries of a body without prefixes: "module." of data-parallel training goes; of a whole network, only "body." stays."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if any(name.startswith("body.") for name in state):
        state = {name.removeprefix("body."): value for name, value in state.items() if name.startswith("body.")}
    return {name: value for name, value in state.items() if not matches((COUNTERS,), name)}


def nearest(backbone: str, published: Collection[str], state: Collection[str]) -> Format:
    """The format of `backbone` that leaves the fewest names of network and file without a partner."""

    def strangers(form: Format) -> int:
        wanted = {form.name(name) for name in published}
        missing = [name for name in wanted - set(state) if not matches(form.keep, name)]
        return len(missing) + sum(not matches(form.ignore, name) for name in set(state) - wanted)

    return min((form for form in FORMATS if backbone.startswith(form.backbones)), key=strangers, default=OTHER)

"""ResNet-50 and ResNet-101 with InPlace-ABN, as MiB, PLOP and NeST use them; `_rc` with two-branch blocks, as RCIL does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from nest_jax import torch_weights, two_branch, weights
from nest_jax.errors import InputError
from nest_jax.layers import BatchNorm, Conv, InPlaceABN, identity, leaky_relu
from nest_jax.plugins import unknown

NAMES = ("resnet50", "resnet101", "resnet50_rc", "resnet101_rc")

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
NORMS: dict[str, dict[str, Any]] = {
    "iabn": {},
    "bn": {"norm": BatchNorm, "activation": nn.relu, "stem_activation": nn.relu},
}
# RCIL's network, which has no activation after the stem and gives its maps activated
TWO_BRANCH = {"branches": two_branch.both, "stem_activation": identity, "map_activation": leaky_relu}
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def defaults(name: str) -> dict[str, Any]:
    """Config values.

    `pretrained`: "imagenet" (ResNet-101: the published InPlace-ABN weights; with `norm="bn"`: torchvision's), a name of
    `python -m nest_jax.weights list`, the path of a file or of the folder that holds it, or "none". `output_stride`: 8, 16 or 32. `blocks` of the four stages, () = the published depth. `norm`: "iabn", or "bn" (batch norm
    and ReLU, for weights of other origin); the two-branch networks have InPlace-ABN only.
    """
    values = {"pretrained": "imagenet", "output_stride": 16, "blocks": ()}
    return values if has_two_branches(name) else {**values, "norm": "iabn"}


def has_two_branches(name: str) -> bool:
    """Whether the network is RCIL's."""
    return name.endswith("_rc")


def output_stride(settings: Any) -> int:
    """Image pixels per pixel of the body's output."""
    return int(settings["output_stride"])


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated), 1x1; returns the sum with the shortcut before its activation."""

    width: int
    stride: int
    dilation: int
    norm: Callable[..., nn.Module]
    activation: Callable[[Array], Array]
    branches: Callable[..., Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b hh ww d"]:
        width, outputs, dtype = self.width, self.width * EXPANSION, self.dtype
        y = Conv(width, dtype=dtype, name="conv1")(x)
        y = self.norm(activation=self.activation, dtype=dtype, name="bn1")(y, train)

        def branch(suffix: str, activation: Callable, train: bool, y: Array = y) -> Array:
            z = Conv(width, 3, self.stride, self.dilation, dtype=dtype, name=f"conv2{suffix}")(y)
            return self.norm(activation=activation, dtype=dtype, name=f"bn2{suffix}")(z, train)

        y = self.branches(branch, self.activation, train)
        y = Conv(outputs, dtype=dtype, name="conv3")(y)
        y = self.norm(activation=identity, dtype=dtype, name="bn3")(y, train)
        if self.stride != 1 or x.shape[-1] != outputs:
            x = Conv(outputs, stride=self.stride, dtype=dtype, name="proj_conv")(x)
            x = self.norm(activation=identity, dtype=dtype, name="proj_bn")(x, train)
        return x + y


class ResNet(nn.Module):
    """Body [b, h / stride, w / stride, 2048] and the sums of the last block of each stage.

    Those four maps are what the published code distils ("attentions"): before their activation, but after it in RCIL's network.
    """

    blocks: tuple[int, ...]
    output_stride: int
    norm: Callable[..., nn.Module] = InPlaceABN
    activation: Callable[[Array], Array] = leaky_relu
    stem_activation: Callable[[Array], Array] = leaky_relu
    map_activation: Callable[[Array], Array] = identity
    branches: Callable[..., Array] = two_branch.single
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> tuple[Array, tuple[Array, ...]]:
        x = Conv(64, 7, 2, dtype=self.dtype, name="mod1_conv1")(images)
        x = self.norm(activation=self.stem_activation, dtype=self.dtype, name="mod1_bn1")(x, train)
        padding: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), padding)
        maps, reached, dilation = [], 4, 1
        for stage, (count, width) in enumerate(zip(self.blocks, WIDTHS, strict=True)):
            stride = 1 if stage == 0 else 2
            if reached * stride > self.output_stride:
                # the first block of a stage that keeps its resolution is dilated as well
                stride, dilation = 1, dilation * 2
            reached *= stride
            total = x
            for index in range(count):
                block = Bottleneck(
                    width,
                    stride if index == 0 else 1,
                    dilation,
                    self.norm,
                    self.activation,
                    self.branches,
                    self.dtype,
                    name=f"mod{stage + 2}_block{index + 1}",
                )
                total = block(x, train)
                x = self.activation(total)
            maps.append(self.map_activation(total))
        return x, tuple(maps)


def build(name: str, settings: Any, dtype: Any) -> nn.Module:
    """The network.

    Raises:
        InputError: a value of `settings` that this network does not have.
    """
    stride = output_stride(settings)
    if stride not in (8, 16, 32):
        raise InputError(f"backbone.output_stride: {stride}; {name} knows 8, 16 and 32")
    blocks = tuple(settings["blocks"]) or BLOCKS[name.removesuffix("_rc")]
    if len(blocks) != len(WIDTHS) or min(blocks) < 1:
        raise InputError(f"backbone.blocks: {blocks}; four positive numbers, or () for the published depth")
    if has_two_branches(name):
        return ResNet(blocks, stride, dtype=dtype, **TWO_BRANCH)
    if settings["norm"] not in NORMS:
        raise InputError(unknown("backbone.norm", settings["norm"], NORMS))
    return ResNet(blocks, stride, dtype=dtype, **NORMS[settings["norm"]])


def normalise(images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """(rgb / 255 - mean) / std of ImageNet."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def torch_name(path: tuple[str, ...]) -> str:
    """The published name of a leaf: ("mod2_block1", "conv1", "kernel") -> "mod2.block1.convs.conv1.weight"."""
    name = ".".join((*path[:-1], torch_weights.leaf_name(path[-1])))
    return re.sub(r"^(mod\d)_", r"\1.", re.sub(r"(block\d+)\.(conv|bn)", r"\1.convs.\2", name))


def load_pretrained(settings: Any, params: dict, batch_stats: dict) -> tuple[dict, dict]:
    """`params` and `batch_stats` with the weights that `settings.pretrained` names; the classification layer is dropped.

    Second branches start as copies of the first.

    Raises:
        InputError: the file is missing or does not fit.
    """
    return weights.load_backbone(
        settings, params, batch_stats, torch_name, twin=lambda name: name.replace("_new.", ".")
    )

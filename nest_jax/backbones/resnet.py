"""ResNet-50 and ResNet-101 with InPlace-ABN, as MiB, PLOP, RCIL and NeST use them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from nest_jax import torch_weights
from nest_jax.errors import InputError
from nest_jax.layers import Conv, InPlaceABN, identity, leaky_relu

NAMES = ("resnet50", "resnet101")

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WEIGHTS = "resnet101_iabn_sync.pth.tar"
CACHE = "~/.cache/nest_jax/weights"


def defaults(name: str) -> dict[str, Any]:
    """Config values.

    `pretrained`: "imagenet" (the published InPlace-ABN weights; ResNet-101 only), a path to such a file or to the folder that holds it,
    or "none". `output_stride`: 8, 16 or 32.
    """
    return {"pretrained": "imagenet", "output_stride": 16}


def output_stride(settings: Any) -> int:
    """Image pixels per pixel of the body's output."""
    return int(settings["output_stride"])


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, dilated), 1x1; returns the sum with the shortcut before its activation."""

    width: int
    stride: int
    dilation: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b hh ww d"]:
        width, outputs, dtype = self.width, self.width * EXPANSION, self.dtype
        y = Conv(width, dtype=dtype, name="conv1")(x)
        y = self.norm(dtype=dtype, name="bn1")(y, train)
        y = Conv(width, 3, self.stride, self.dilation, dtype=dtype, name="conv2")(y)
        y = self.norm(dtype=dtype, name="bn2")(y, train)
        y = Conv(outputs, dtype=dtype, name="conv3")(y)
        y = self.norm(activation=identity, dtype=dtype, name="bn3")(y, train)
        if self.stride != 1 or x.shape[-1] != outputs:
            x = Conv(outputs, stride=self.stride, dtype=dtype, name="proj_conv")(x)
            x = self.norm(activation=identity, dtype=dtype, name="proj_bn")(x, train)
        return x + y


class ResNet(nn.Module):
    """Body [b, h / stride, w / stride, 2048] and the pre-activation sums of the last block of each stage.

    Those four maps, not the activated ones, are what the published code distils ("attentions").
    """

    blocks: tuple[int, ...]
    output_stride: int
    norm: Callable[..., nn.Module] = InPlaceABN
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> tuple[Array, tuple[Array, ...]]:
        x = Conv(64, 7, 2, dtype=self.dtype, name="mod1_conv1")(images)
        x = self.norm(dtype=self.dtype, name="mod1_bn1")(x, train)
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
                    self.dtype,
                    name=f"mod{stage + 2}_block{index + 1}",
                )
                total = block(x, train)
                x = leaky_relu(total)
            maps.append(total)
        return x, tuple(maps)


def build(name: str, settings: Any, dtype: Any) -> nn.Module:
    """The network.

    Raises:
        InputError: `output_stride` is not 8, 16 or 32.
    """
    stride = output_stride(settings)
    if stride not in (8, 16, 32):
        raise InputError(f"backbone.output_stride: {stride}; {name} knows 8, 16 and 32")
    return ResNet(BLOCKS[name], stride, dtype=dtype)


def normalise(images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """(rgb / 255 - mean) / std of ImageNet."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def torch_name(path: tuple[str, ...]) -> str:
    """The published name of a leaf: ("mod2_block1", "conv1", "kernel") -> "mod2.block1.convs.conv1.weight"."""
    name = ".".join((*path[:-1], torch_weights.leaf_name(path[-1])))
    return re.sub(r"^(mod\d)_", r"\1.", re.sub(r"(block\d+)\.(conv|bn)", r"\1.convs.\2", name))


def load_pretrained(settings: Any, params: dict, batch_stats: dict) -> tuple[dict, dict]:
    """`params` and `batch_stats` with the weights that `settings.pretrained` names; the classification layer is dropped.

    Raises:
        InputError: the file is missing or does not fit.
    """
    if settings["pretrained"] == "none":
        return params, batch_stats
    path = weights_path(str(settings["name"]), str(settings["pretrained"]))
    state = {re.sub(r"^(module\.)?(body\.)?", "", key): value for key, value in torch_weights.read(path).items()}
    tree = torch_weights.to_tree(
        state,
        {"params": params, "batch_stats": batch_stats},
        torch_name,
        ignore=(r"(classifier\.)?fc\..*", r".*\.num_batches_tracked"),
        source=str(path),
    )
    return tree["params"], tree["batch_stats"]


def weights_path(name: str, pretrained: str) -> Path:
    """The weights file: `pretrained` as a file or folder, or for "imagenet" in $NEST_JAX_WEIGHTS, then ~/.cache/nest_jax/weights.

    Raises:
        InputError: it is in none of them; the message says where to get it and where to put it.
    """
    scratch = "--config.backbone.pretrained=none trains from scratch"
    if pretrained != "imagenet":
        path = Path(pretrained).expanduser()
        path = path / WEIGHTS if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"backbone.pretrained: {path} is not a file; {scratch}")
        return path
    if name != "resnet101":
        raise InputError(
            f"backbone.pretrained: no InPlace-ABN weights of {name} are published; give the path of a file of your own"
            f" (--config.backbone.pretrained=PATH); {scratch}"
        )
    places = [Path(place).expanduser() for place in (os.environ.get("NEST_JAX_WEIGHTS"), CACHE) if place]
    for place in places:
        path = place if place.is_file() else place / WEIGHTS
        if path.is_file():
            return path
    raise InputError(
        f"backbone.pretrained: {WEIGHTS} is not in {' or '.join(map(str, places))}. Get it from the release v1.0 of the PLOP repository"
        f" (arthurdouillard/CVPR2021_PLOP), put it into {places[-1]} or set NEST_JAX_WEIGHTS to its folder, or give its path as"
        f" --config.backbone.pretrained=PATH; {scratch}"
    )

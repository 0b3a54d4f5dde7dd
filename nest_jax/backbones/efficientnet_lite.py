"""EfficientNet-Lite0: the pretrained backbone that installs with pip and trains on a CPU. Not one of the paper's."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from nest_jax import torch_weights, weights
from nest_jax.errors import InputError
from nest_jax.layers import BatchNorm, Conv, relu6, scaled_normal

NAMES = ("efficientnet_lite0",)

# repeats, channels, stride, expansion, kernel (Tan & Le 2019, table 1; lite: no squeeze-and-excitation, ReLU6, fixed stem)
STAGES = (
    (1, 16, 1, 1, 3),
    (2, 24, 2, 6, 3),
    (2, 40, 2, 6, 5),
    (3, 80, 2, 6, 3),
    (3, 112, 1, 6, 5),
    (4, 192, 2, 6, 5),
    (1, 320, 1, 6, 3),
)
STEM = 32
MAP_CHANNELS = (24, 40, 112, 320)


def defaults(name: str) -> dict[str, Any]:
    """Config values.

    `pretrained`: "imagenet" (the pip package), a path to the same file, or "none". `output_stride`: 8, 16 or 32; strides beyond it become
    dilations. `momentum` of the running statistics: TensorFlow trained these weights with 0.01, but a run of a few hundred steps on a
    new data set would then be evaluated with statistics that are mostly ImageNet's; 0.1 follows the data within tens of steps.
    """
    return {"pretrained": "imagenet", "output_stride": 16, "momentum": 0.1}


def output_stride(settings: Any) -> int:
    """Image pixels per pixel of the body's output."""
    return int(settings["output_stride"])


class Block(nn.Module):
    """MBConv: expand 1x1, depthwise k x k, project 1x1, each normalised; the input is added where shapes allow."""

    channels: int
    expansion: int
    kernel_size: int
    stride: int
    dilation: int
    momentum: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b hh ww d"]:
        def norm(y: Array, name: str, activation: Any) -> Array:
            return BatchNorm(activation, epsilon=1e-3, momentum=self.momentum, dtype=self.dtype, name=name)(y, train)

        y, width = x, x.shape[-1] * self.expansion
        if self.expansion != 1:
            y = norm(Conv(width, dtype=self.dtype, name="expand_conv")(y), "bn0", relu6)
        depthwise = Conv(
            width,
            self.kernel_size,
            self.stride,
            self.dilation,
            padding="same",
            depthwise=True,
            init=scaled_normal(2.0, "fan_in"),
            dtype=self.dtype,
            name="depthwise_conv",
        )
        y = norm(depthwise(y), "bn1", relu6)
        y = norm(Conv(self.channels, dtype=self.dtype, name="project_conv")(y), "bn2", lambda v: v)
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """Body [b, h / stride, w / stride, 320] and the outputs of the last blocks with 24, 40, 112 and 320 channels."""

    output_stride: int
    momentum: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> tuple[Array, tuple[Array, ...]]:
        x = Conv(STEM, 3, 2, padding="same", dtype=self.dtype, name="conv_stem")(images)
        x = BatchNorm(relu6, epsilon=1e-3, momentum=self.momentum, dtype=self.dtype, name="bn0")(x, train)
        maps, index, reached, dilation = [], 0, 2, 1
        for repeats, channels, stage_stride, expansion, kernel in STAGES:
            stride = stage_stride
            if reached * stage_stride > self.output_stride:
                stride, dilation = 1, dilation * stage_stride
            reached *= stride
            for repeat in range(repeats):
                block = Block(
                    channels,
                    expansion,
                    kernel,
                    stride if repeat == 0 else 1,
                    dilation,
                    self.momentum,
                    self.dtype,
                    name=f"blocks_{index}",
                )
                x = block(x, train)
                index += 1
            if channels in MAP_CHANNELS:
                maps.append(x)
        return x, tuple(maps)


def build(name: str, settings: Any, dtype: Any) -> nn.Module:
    """The network.

    Raises:
        InputError: `output_stride` is not 8, 16 or 32.
    """
    stride = output_stride(settings)
    if stride not in (8, 16, 32):
        raise InputError(f"backbone.output_stride: {stride}; {name} knows 8, 16 and 32")
    return EfficientNetLite(stride, float(settings["momentum"]), dtype)


def normalise(images: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """(rgb - 127) / 128, as the weights expect."""
    return (images.astype(jnp.float32) - 127.0) / 128.0


def torch_name(path: tuple[str, ...]) -> str:
    """The published name of a leaf: ("blocks_3", "bn1", "scale") -> "_blocks.3._bn1.weight"."""
    modules = [f"_{name}".replace("_blocks_", "_blocks.") for name in path[:-1]]
    return ".".join((*modules, torch_weights.leaf_name(path[-1])))


def load_pretrained(settings: Any, params: dict, batch_stats: dict) -> tuple[dict, dict]:
    """`params` and `batch_stats` with the weights that `settings.pretrained` names; the classification layers are dropped.

    Raises:
        InputError: the package or the file is missing or does not fit.
    """
    return weights.load_backbone(settings, params, batch_stats, torch_name)

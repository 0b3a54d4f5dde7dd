"""The layers of all networks: convolutions without bias, and batch normalisations exactly as the published networks compute them.

Why not Linen's own BatchNorm: it has no |gamma| + eps, keeps the biased variance and computes it by a difference that cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from nest_jax.convolutions import (
    centred_padding,
    channel_sum,
    conv_as_products,
    conv_ordinary,
    depthwise_as_sums,
    on_cpu,
    same_padding,
)


def scaled_normal(scale: float, mode: str) -> Callable[..., Array]:
    """An initialiser: normal numbers of variance scale / n, n the "fan_in", "fan_out" or "fan_avg" (their mean).

    As `jax.nn.initializers.variance_scaling(scale, mode, "normal")`, but NumPy draws the numbers: XLA takes a quarter of a minute to compile
    the generators of all the kernels of a network.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        inputs, outputs = (math.prod(shape[:-2]) * channels for channels in shape[-2:])
        fan = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}[mode]
        deviation = math.sqrt(scale / fan)

        def draw(seed: Any) -> np.ndarray:
            generator = np.random.Generator(np.random.PCG64(np.asarray(seed).tolist()))
            return generator.standard_normal(shape, np.float32) * np.float32(deviation)

        words = jax.random.bits(key, (4,), jnp.uint32)
        return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, jnp.float32), words).astype(dtype)

    return init


# He et al. 2015, on the outputs (torchvision's choice for ResNets): for bodies trained from scratch. The published runs always start from
# ImageNet weights, so there is no published choice to follow.
he_normal = scaled_normal(2.0, "fan_out")


def leaky_relu(x: Float[Array, "*shape"], slope: float = 0.01) -> Float[Array, "*shape"]:
    """max(x, 0) + slope * min(x, 0)."""
    return jnp.where(x >= 0, x, slope * x)


def relu6(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """min(max(x, 0), 6)."""
    return jnp.clip(x, 0, 6)


def identity(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x."""
    return x


class Conv(nn.Module):
    """A convolution without bias; `padding` "centred" is PyTorch's k // 2, "same" TensorFlow's. Parameter: `kernel`, HWIO."""

    features: int
    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    padding: str = "centred"
    depthwise: bool = False
    init: Callable[..., Array] = he_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b hh ww o"]:
        size, stride, dilation = self.kernel_size, self.stride, self.dilation
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param("kernel", self.init, (size, size, inputs, self.features), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        padding = centred_padding(size, dilation)
        if self.padding == "same":
            padding = same_padding((x.shape[1], x.shape[2]), size, stride, dilation)
        if self.depthwise:
            if on_cpu():
                return depthwise_as_sums(x, kernel, stride, dilation, padding)
            return conv_ordinary(x, kernel, stride=stride, dilation=dilation, padding=padding, groups=self.features)
        if on_cpu() and (size == 1 or (dilation > 1 and stride == 1)):
            if size == 1:
                x = x[:, ::stride, ::stride]
            return conv_as_products(x, kernel, dilation=dilation, padding=padding)
        return conv_ordinary(x, kernel, stride=stride, dilation=dilation, padding=padding)


def normalise_batch(
    x: Float[Array, "b h w c"], factor: Float[Array, " c"], bias: Float[Array, " c"], epsilon: float
) -> tuple[Float[Array, "b h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """(x - mean) / sqrt(var + eps) * factor + bias with the mean and biased variance of this batch, and those two; float32.

    The variance is of the centred values: E[x^2] - E[x]^2 cancels where the mean is large. Under a `jit` whose batch is sharded over devices
    the statistics are those of the global batch. The gradient is written out because it needs two sums instead of five; the
    returned statistics carry none, as in PyTorch.
    """
    result: Any = _normalise(x, factor, bias, epsilon)
    return result


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(x, factor, bias, epsilon):
    return _normalise_forward(x, factor, bias, epsilon)[0]


def _normalise_forward(x, factor, bias, epsilon):
    count = x.size // x.shape[-1]
    mean = channel_sum(x) / count
    centred = x.astype(jnp.float32) - mean
    var = channel_sum(centred, centred) / count
    y = centred * (lax.rsqrt(var + epsilon) * factor) + bias
    return (y, mean, var), (x, factor, mean, var)


def _normalise_backward(epsilon, saved, grads):
    x, factor, mean, var = saved
    grad, count, inverse = grads[0], x.size // x.shape[-1], lax.rsqrt(var + epsilon)
    unit = (x.astype(jnp.float32) - mean) * inverse
    bias_grad, factor_grad = channel_sum(grad), channel_sum(grad, unit)
    x_grad = (grad - bias_grad / count - unit * (factor_grad / count)) * (factor * inverse)
    return x_grad.astype(x.dtype), factor_grad, bias_grad


_normalise.defvjp(_normalise_forward, _normalise_backward)


class BatchNorm(nn.Module):
    """Batch normalisation and activation: act((x - mean) / sqrt(var + eps) * gamma + beta).

    Parameters `scale`, `bias`; collection "batch_stats": `mean` and (unbiased) `var`, updated as stat + momentum * (batch - stat), where
    `train`. Statistics and arithmetic are float32 for every compute dtype.
    """

    activation: Callable[[Array], Array] = identity
    epsilon: float = 1e-5
    momentum: float = 0.1
    dtype: Any = jnp.float32

    def gamma(self, scale: Float[Array, " c"]) -> Float[Array, " c"]:
        """The factor that the parameter `scale` stands for."""
        return scale

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b h w c"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        factor = self.gamma(scale)
        if train:
            y, mean, var = normalise_batch(x, factor, bias, self.epsilon)
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        else:
            inverse = lax.rsqrt(running_var.value + self.epsilon)
            y = (x.astype(jnp.float32) - running_mean.value) * (inverse * factor) + bias
        return self.activation(y).astype(self.dtype)


class InPlaceABN(BatchNorm):
    """InPlace-ABN (Rota Bulo et al. 2018): the factor is |gamma| + eps, the activation a leaky ReLU of slope 0.01.

    As in the published CUDA code; the formula in its docstring leaves |.| + eps out. The parameter stays as it is stored (it may be
    negative), so its gradient carries sign(gamma), with + at 0, and weight decay acts on the raw value. The published layer recovers its
    input from its output in the backward pass to save memory; the gradient is the same up to rounding.
    """

    activation: Callable[[Array], Array] = partial(leaky_relu, slope=0.01)

    def gamma(self, scale: Float[Array, " c"]) -> Float[Array, " c"]:
        """|scale| + eps."""
        return jnp.where(scale < 0, -scale, scale) + self.epsilon

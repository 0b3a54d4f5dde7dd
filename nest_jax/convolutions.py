"""Convolutions as functions, each in the form that its processor is fast at.

XLA's CPU gradients of grouped and dilated convolutions are far slower than the same sums written out: matrix products
for dense kernels, shifted multiply-adds for depthwise ones. Accelerators get the ordinary form. Both take the same kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]


def on_cpu() -> bool:
    """Whether to write sums in the form that is fast on CPUs; asked while tracing."""
    return jax.default_backend() == "cpu"


def centred_padding(kernel: int, dilation: int = 1) -> Padding:
    """The padding of PyTorch's `padding=dilation * (kernel // 2)`, for rows and columns."""
    side = dilation * (kernel // 2)
    return (side, side), (side, side)


def same_padding(shape: tuple[int, int], kernel: int, stride: int = 1, dilation: int = 1) -> Padding:
    """TensorFlow's SAME for a map of `shape` (height, width): ceil(size / stride) outputs, the odd pixel of padding last."""

    def sides(size: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        return total // 2, total - total // 2

    return sides(shape[0]), sides(shape[1])


def conv_ordinary(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw g o"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding,
    groups: int = 1,
) -> Float[Array, "b hh ww o"]:
    """Cross-correlation, as every deep-learning library calls convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def conv_as_products(
    x: Float[Array, "b h w i"], kernel: Float[Array, "kh kw i o"], *, dilation: int, padding: Padding
) -> Float[Array, "b hh ww o"]:
    """A stride 1 convolution as one matrix product per kernel tap.

    Each tap multiplies only the part of the map that it sees: of a 3x3 kernel with dilation 12 on a 10x10 map only the centre is left.
    """
    rows, cols = kernel.shape[:2]
    (top, bottom), (left, right) = padding
    height = x.shape[1] + top + bottom - (rows - 1) * dilation
    width = x.shape[2] + left + right - (cols - 1) * dilation
    out = None
    for row in range(rows):
        for col in range(cols):
            y0, y1, pad_y = _seen(row * dilation - top, x.shape[1], height)
            x0, x1, pad_x = _seen(col * dilation - left, x.shape[2], width)
            if y0 >= y1 or x0 >= x1:
                continue
            product = lax.dot_general(x[:, y0:y1, x0:x1], kernel[row, col], (((3,), (0,)), ((), ())))
            product = jnp.pad(product, ((0, 0), pad_y, pad_x, (0, 0)))
            out = product if out is None else out + product
    if out is None:
        return jnp.zeros((x.shape[0], height, width, kernel.shape[3]), x.dtype)
    return out


def _seen(offset: int, size: int, out_size: int) -> tuple[int, int, tuple[int, int]]:
    """Input range [first, last) that a tap at `offset` reads, and the zeros around it in the output."""
    first, last = max(offset, 0), min(offset + out_size, size)
    return first, last, (first - offset, out_size - (last - offset))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_as_sums(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], stride: int, dilation: int, padding: Padding
) -> Float[Array, "b hh ww c"]:
    """A depthwise convolution as a sum of shifted copies of the map, each times one row of the kernel; gradients likewise."""
    rows, cols = kernel.shape[:2]
    height, width = _out_size(x.shape, kernel.shape, stride, dilation, padding)
    taps = [
        (row * dilation - padding[0][0], col * dilation - padding[1][0], kernel[row, col, 0])
        for row in range(rows)
        for col in range(cols)
    ]
    return _shifted_sum(x, taps, height, width, stride)


def _depthwise_forward(x, kernel, stride, dilation, padding):
    return depthwise_as_sums(x, kernel, stride, dilation, padding), (x, kernel)


def _depthwise_backward(stride, dilation, padding, saved, grad):
    x, kernel = saved
    return (
        _depthwise_input_gradient(x.shape, kernel, grad, stride, dilation, padding).astype(x.dtype),
        _depthwise_kernel_gradient(x, kernel.shape, grad, stride, dilation, padding).astype(kernel.dtype),
    )


depthwise_as_sums.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_input_gradient(shape, kernel, grad, stride, dilation, padding):
    """Pixels u = stride * m + phase of one phase meet the same taps: each phase is a sum of shifted gradients, then they interleave."""
    (top, _), (left, _) = padding
    height, width = -(-shape[1] // stride), -(-shape[2] // stride)
    phases = []
    for row_phase in range(stride):
        for col_phase in range(stride):
            taps = []
            for row in range(kernel.shape[0]):
                for col in range(kernel.shape[1]):
                    y, x = row_phase + top - row * dilation, col_phase + left - col * dilation
                    if y % stride == 0 and x % stride == 0:
                        taps.append((y // stride, x // stride, kernel[row, col, 0]))
            phases.append(_shifted_sum(grad, taps, height, width, 1))
    if stride == 1:
        return phases[0]
    batch, channels = shape[0], shape[3]
    grid = jnp.stack(phases, 3).reshape(batch, height, width, stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(batch, height * stride, width * stride, channels)[:, : shape[1], : shape[2]]


def _depthwise_kernel_gradient(x, shape, grad, stride, dilation, padding):
    """Per tap: the sum of shifted input times output gradient.

    A loop over the kernel's rows: XLA then keeps its two operands in memory, where without the loop it would compute whatever
    produced them once more for every tap; and it compiles one row instead of all.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, cols = (stride * (size - 1) + 1 for size in grad.shape[1:3])

    def add_row(row, out):
        part = lax.dynamic_slice_in_dim(x, row * dilation, rows, 1)[:, ::stride]
        taps = [
            channel_sum(part[:, :, col * dilation : col * dilation + cols : stride], grad) for col in range(shape[1])
        ]
        return lax.dynamic_update_index_in_dim(out, jnp.stack(taps)[:, None], row, 0)

    return lax.fori_loop(0, shape[0], add_row, jnp.zeros(shape, jnp.float32))


def _shifted_sum(x, taps, height: int, width: int, stride: int) -> Array:
    """sum over taps (y, x, weight [c]) of weight * map[y + stride * row, x + stride * col], zero outside the map."""
    if not taps:
        return jnp.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    ys, xs = [tap[0] for tap in taps], [tap[1] for tap in taps]
    top, left = max(0, -min(ys)), max(0, -min(xs))
    bottom = max(0, max(ys) + stride * (height - 1) + 1 - x.shape[1])
    right = max(0, max(xs) + stride * (width - 1) + 1 - x.shape[2])
    x = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    out: Any = None
    for row, col, weight in taps:
        y0, x0 = row + top, col + left
        part = x[:, y0 : y0 + stride * (height - 1) + 1 : stride, x0 : x0 + stride * (width - 1) + 1 : stride]
        out = part * weight if out is None else out + part * weight
    return out


def _out_size(shape, kernel, stride: int, dilation: int, padding: Padding) -> tuple[int, int]:
    return tuple(
        (shape[1 + axis] + sum(padding[axis]) - (kernel[axis] - 1) * dilation - 1) // stride + 1 for axis in (0, 1)
    )  # pyright: ignore[reportReturnType]


def channel_sum(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"] | None = None) -> Float[Array, " c"]:
    """sum of x (times y) over batch, rows and columns, float32.

    On CPUs a few bands of rows are added first, element by element, and a product with ones does the rest: XLA's own reduction is slow
    where something is fused into it. The batch is left whole, so that it may be sharded.
    """
    x = x.astype(jnp.float32)
    y = None if y is None else y.astype(jnp.float32)
    if not on_cpu():
        return jnp.sum(x if y is None else x * y, (0, 1, 2))
    bands = next(count for count in (5, 4, 3, 2, 1) if x.shape[1] % count == 0)
    total = None
    for part in jnp.split(x if y is None else x * y, bands, axis=1):
        total = part if total is None else total + part
    assert total is not None
    flat = total.reshape(-1, x.shape[3])
    return lax.dot(jnp.ones((1, flat.shape[0]), jnp.float32), flat, precision=lax.Precision.HIGHEST)[0]

"""Batch normalisation as the published networks compute it, and the convolutions around it."""

# pyright: reportMissingImports=false
import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, size=1, stride=1, dilation=1):
    """A convolution without bias, padded by half of its extent."""
    return nn.Conv2d(inputs, outputs, size, stride, padding=dilation * (size // 2), dilation=dilation, bias=False)


def leaky_relu(x, inplace=False):
    return F.leaky_relu(x, 0.01, inplace)


class BatchNorm(nn.Module):
    """Batch normalisation, then `activation(y, inplace=True)`."""

    def __init__(self, channels, activation=None, eps=1e-5, momentum=0.1):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.activation, self.eps, self.momentum = activation, eps, momentum

    def factor(self):
        return self.weight

    def forward(self, x):
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.factor(), self.bias, self.training, self.momentum, self.eps
        )
        return y if self.activation is None else self.activation(y, inplace=True)


class ABN(BatchNorm):
    """InPlace-ABN's arithmetic in plain operations: |weight| + eps for the factor, a leaky ReLU after it."""

    def __init__(self, channels, activation=leaky_relu):
        super().__init__(channels, activation)

    def factor(self):
        return self.weight.abs() + self.eps


class Fusion(nn.Module):
    """RCIL's random fusion: while training each channel is the first map's, the second's, or their mean."""

    def forward(self, one, two):
        if not self.training:
            return (one + two) / 2
        draw = torch.rand(one.shape[1], device=one.device)
        share = torch.where(draw < 0.33, 1.0, torch.where(draw < 0.66, 0.0, 0.5)).to(one.dtype).view(1, -1, 1, 1)
        return share * one + (1 - share) * two


class DropPath(nn.Module):
    """Stochastic depth: while training an image skips the branch with probability `rate`."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))

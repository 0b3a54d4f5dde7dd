"""The published DeepLabV3 head, with one or (RCIL) two atrous branches."""

# pyright: reportMissingImports=false
import torch
import torch.nn.functional as F
from torch import nn

from .layers import ABN, Fusion, conv, leaky_relu

DILATIONS = {32: (6, 12, 18), 16: (6, 12, 18), 8: (12, 24, 32)}


class DeepLabV3(nn.Module):
    def __init__(self, settings, inputs, output_stride):
        super().__init__()
        width, dilations = settings["channels"], settings["dilations"] or DILATIONS[output_stride]

        def atrous():
            return nn.ModuleList([conv(inputs, width), *(conv(inputs, width, 3, 1, rate) for rate in dilations)])

        self.two_branches = settings["name"] == "deeplabv3_rc"
        self.map_convs = atrous()
        self.map_bn = ABN(4 * width, None if self.two_branches else leaky_relu)
        if self.two_branches:
            self.map_convs_new, self.map_bn_new, self.fusion = atrous(), ABN(4 * width, None), Fusion()
        self.red_conv = conv(4 * width, width)
        self.global_pooling_conv, self.global_pooling_bn = conv(inputs, width), ABN(width)
        self.pool_red_conv, self.red_bn = conv(width, width), ABN(width)

    def pooled(self, x):
        """Mean over the image while training, else over the 32 x 32 pixels around each pixel."""
        if self.training:
            return x.mean((2, 3), keepdim=True)
        size = [min(32, side) for side in x.shape[2:]]
        pads = ((size[1] - 1) // 2, size[1] // 2, (size[0] - 1) // 2, size[0] // 2)
        return F.pad(F.avg_pool2d(x, size, stride=1), pads, mode="replicate")

    def forward(self, body):
        x = self.map_bn(torch.cat([one(body) for one in self.map_convs], 1))
        if self.two_branches:
            new = self.map_bn_new(torch.cat([one(body) for one in self.map_convs_new], 1))
            x = leaky_relu(self.fusion(x, new), inplace=True)
        pool = self.global_pooling_bn(self.global_pooling_conv(self.pooled(body)))
        return self.red_bn(self.red_conv(x) + self.pool_red_conv(pool))

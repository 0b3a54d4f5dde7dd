"""ResNet with InPlace-ABN, with one or (RCIL) two 3x3 branches in every block."""

# pyright: reportMissingImports=false
import torch.nn.functional as F
from torch import nn

from .layers import ABN, Fusion, conv, leaky_relu

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, dilation, two_branches):
        super().__init__()
        middle = None if two_branches else leaky_relu
        self.convs = nn.ModuleDict(
            {
                "conv1": conv(inputs, width),
                "bn1": ABN(width),
                "conv2": conv(width, width, 3, stride, dilation),
                "bn2": ABN(width, middle),
                "conv3": conv(width, 4 * width),
                "bn3": ABN(4 * width, None),
            }
        )
        if two_branches:
            self.convs["conv2_new"] = conv(width, width, 3, stride, dilation)
            self.convs["bn2_new"] = ABN(width, None)
            self.fusion = Fusion()
        self.two_branches, self.projected = two_branches, stride != 1 or inputs != 4 * width
        if self.projected:
            self.proj_conv, self.proj_bn = conv(inputs, 4 * width, 1, stride), ABN(4 * width, None)

    def forward(self, x):
        layers = self.convs
        y = layers["bn1"](layers["conv1"](x))
        z = layers["bn2"](layers["conv2"](y))
        if self.two_branches:
            z = leaky_relu(self.fusion(z, layers["bn2_new"](layers["conv2_new"](y))), inplace=True)
        z = layers["bn3"](layers["conv3"](z))
        return z + (self.proj_bn(self.proj_conv(x)) if self.projected else x)


class ResNet(nn.Module):
    """The body's map, and the sums of the last block of each stage: before their activation, in RCIL's network after it."""

    channels = 2048

    def __init__(self, settings):
        super().__init__()
        name = settings["name"]
        self.two_branches = name.endswith("_rc")
        if settings.get("norm", "iabn") != "iabn":
            raise SystemExit(f"the reference has no backbone.norm={settings['norm']!r}, only 'iabn'")
        blocks = settings["blocks"] or BLOCKS[name.removesuffix("_rc")]
        self.mod1 = nn.ModuleDict(
            {"conv1": conv(3, 64, 7, 2), "bn1": ABN(64, None if self.two_branches else leaky_relu)}
        )
        inputs, reached, dilation = 64, 4, 1
        for stage, (count, width) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
            stride = 1 if stage == 0 else 2
            if reached * stride > settings["output_stride"]:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            made = {}
            for index in range(count):
                made[f"block{index + 1}"] = Bottleneck(
                    inputs, width, stride if index == 0 else 1, dilation, self.two_branches
                )
                inputs = 4 * width
            setattr(self, f"mod{stage + 2}", nn.ModuleDict(made))

    def forward(self, images):
        x = self.mod1["bn1"](self.mod1["conv1"](images))
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in (self.mod2, self.mod3, self.mod4, self.mod5):
            *earlier, last = stage.values()
            for block in earlier:
                x = leaky_relu(block(x), inplace=True)
            total = last(x)
            x = leaky_relu(total)
            maps.append(x if self.two_branches else total)
        return x, maps

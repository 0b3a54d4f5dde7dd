"""EfficientNet-Lite0 with TensorFlow's padding."""

# pyright: reportMissingImports=false
import torch.nn.functional as F
from torch import nn

from .layers import BatchNorm

# repeats, channels, stride, expansion, kernel
STAGES = (
    (1, 16, 1, 1, 3),
    (2, 24, 2, 6, 3),
    (2, 40, 2, 6, 5),
    (3, 80, 2, 6, 3),
    (3, 112, 1, 6, 5),
    (4, 192, 2, 6, 5),
    (1, 320, 1, 6, 3),
)
MAP_CHANNELS = (24, 40, 112, 320)


class SameConv(nn.Conv2d):
    """A convolution without bias that pads to ceil(size / stride) outputs, the odd pixel last."""

    def forward(self, x):
        pads = []
        for axis in (1, 0):  # columns first, as F.pad has them
            size, stride = x.shape[2 + axis], self.stride[axis]
            extent = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            total = max((-(-size // stride) - 1) * stride + extent - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return F.conv2d(x, self.weight, None, self.stride, (pads[2], pads[0]), self.dilation, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, self.dilation, self.groups)


class Block(nn.Module):
    def __init__(self, inputs, outputs, expansion, kernel, stride, dilation, momentum):
        super().__init__()
        width, self.expanded, self.added = inputs * expansion, expansion != 1, stride == 1 and inputs == outputs
        if self.expanded:
            self._expand_conv = SameConv(inputs, width, 1, bias=False)
            self._bn0 = BatchNorm(width, F.relu6, 1e-3, momentum)
        self._depthwise_conv = SameConv(width, width, kernel, stride, dilation=dilation, groups=width, bias=False)
        self._bn1 = BatchNorm(width, F.relu6, 1e-3, momentum)
        self._project_conv = SameConv(width, outputs, 1, bias=False)
        self._bn2 = BatchNorm(outputs, None, 1e-3, momentum)

    def forward(self, x):
        y = self._bn0(self._expand_conv(x)) if self.expanded else x
        y = self._bn2(self._project_conv(self._bn1(self._depthwise_conv(y))))
        return x + y if self.added else y


class EfficientNetLite(nn.Module):
    """The body's map, and the outputs of the last blocks with 24, 40, 112 and 320 channels."""

    channels = 320

    def __init__(self, settings):
        super().__init__()
        momentum = settings["momentum"]
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = BatchNorm(32, F.relu6, 1e-3, momentum)
        self._blocks, self.ends = nn.ModuleList(), []
        inputs, reached, dilation = 32, 2, 1
        for repeats, channels, stage_stride, expansion, kernel in STAGES:
            stride = stage_stride
            if reached * stage_stride > settings["output_stride"]:
                stride, dilation = 1, dilation * stage_stride
            reached *= stride
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                self._blocks.append(Block(inputs, channels, expansion, kernel, step, dilation, momentum))
                inputs = channels
            if channels in MAP_CHANNELS:
                self.ends.append(len(self._blocks) - 1)

    def forward(self, images):
        x, maps = self._bn0(self._conv_stem(images)), []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        return x, maps

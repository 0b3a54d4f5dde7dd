"""Swin-B and Swin-T; token maps are [b, h, w, c] inside."""

# pyright: reportMissingImports=false
import torch
import torch.nn.functional as F
from torch import nn

from .layers import DropPath

# width, blocks, heads, window
SIZES = {"swin_b": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12), "swin_t": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7)}


def padded(x, multiple):
    return F.pad(x, (0, 0, 0, -x.shape[2] % multiple, 0, -x.shape[1] % multiple))


def windows(x, size):
    """[b, h, w, c] -> [b, windows, tokens, c]."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c).transpose(2, 3)
    return x.reshape(b, -1, size * size, c)


def unwindowed(x, size, height, width):
    b, _, _, c = x.shape
    x = x.view(b, height // size, width // size, size, size, c).transpose(2, 3)
    return x.reshape(b, height, width, c)


def shifted_mask(height, width, size, shift, device):
    """0 where two tokens of a window were neighbours before the roll, else -inf."""
    regions = torch.zeros(1, height, width, 1, device=device)
    for row, rows in enumerate((slice(0, -size), slice(-size, -shift), slice(-shift, None))):
        for column, columns in enumerate((slice(0, -size), slice(-size, -shift), slice(-shift, None))):
            regions[:, rows, columns] = 3 * row + column
    part = windows(regions, size)[0, :, :, 0]
    return torch.zeros_like(part[:, :, None] - part[:, None]).masked_fill(part[:, :, None] != part[:, None], -torch.inf)


class WindowAttention(nn.Module):
    def __init__(self, width, heads, window):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        y, x = torch.arange(window**2) // window, torch.arange(window**2) % window
        dy, dx = y[:, None] - y, x[:, None] - x
        index = (dy + window - 1) * (2 * window - 1) + dx + window - 1
        self.register_buffer("index", index, persistent=False)

    def forward(self, x, mask):
        b, n, t, c = x.shape
        query, key, value = self.qkv(x).view(b, n, t, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        if mask is not None:
            bias = bias + mask[:, None]
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(x.transpose(2, 3).reshape(b, n, t, c))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, window, shift, drop_path):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, heads, window)
        self.norm2, self.mlp, self.drop_path = nn.LayerNorm(width), Mlp(width), DropPath(drop_path)

    def forward(self, x, mask):
        height, width, shift = x.shape[1], x.shape[2], self.shift
        y = padded(self.norm1(x), self.window)
        full = y.shape[1], y.shape[2]
        if shift:
            y = y.roll((-shift, -shift), (1, 2))
        y = unwindowed(self.attn(windows(y, self.window), mask if shift else None), self.window, *full)
        if shift:
            y = y.roll((shift, shift), (1, 2))
        x = x + self.drop_path(y[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x):
        x = padded(x, 2)
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)))


class Stage(nn.Module):
    def __init__(self, width, heads, window, rates, merge):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            Block(width, heads, window, window // 2 if index % 2 else 0, rate) for index, rate in enumerate(rates)
        )
        if merge:
            self.downsample = PatchMerging(width)

    def forward(self, x):
        height, width = (side + -side % self.window for side in x.shape[1:3])
        mask = shifted_mask(height, width, self.window, self.window // 2, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class PatchEmbed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)

    def forward(self, images):
        images = F.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """The last stage's normalised output, and those of the first three stages."""

    def __init__(self, settings):
        super().__init__()
        width, depths, heads, window = SIZES[settings["name"]]
        depths = settings["depths"] or depths
        rates = torch.linspace(0, settings["drop_path"], sum(depths), dtype=torch.float64).tolist()
        self.channels, self.patch_embed = 8 * width, PatchEmbed(width)
        self.layers = nn.ModuleList()
        for index, depth in enumerate(depths):
            taken, rates = rates[:depth], rates[depth:]
            self.layers.append(Stage(width << index, heads[index], window, taken, merge=index < 3))
            setattr(self, f"norm{index}", nn.LayerNorm(width << index))

    def forward(self, images):
        x, maps = self.patch_embed(images), []
        for index, stage in enumerate(self.layers):
            x = stage(x)
            maps.append(getattr(self, f"norm{index}")(x).permute(0, 3, 1, 2))
            x = stage.downsample(x) if index < 3 else x
        return maps[-1], maps[:-1]

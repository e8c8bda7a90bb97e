"""What is done to tokens (B, N, C) in real numbers: norm, activation, affine transformation, shortcut, the grid."""

import torch
from torch import Tensor, nn

from binaryvit.models.quantizers import at_least_float32


def tokens_to_grid(x: Tensor, grid_size: int) -> Tensor:
    """(B, H*W, C) to (B, C, H, W), a view (channels last in memory)."""
    return x.unflatten(1, (grid_size, grid_size)).permute(0, 3, 1, 2)


def grid_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def add_shortcut(y: Tensor, x: Tensor) -> Tensor:
    """y + x, the shortcut around a layer that may change the width of x (..., C), without parameters.

    Where y is wider, copies of x are concatenated (channel i goes to i, i + C, ...), without being written out; where
    it is narrower, groups of adjacent channels are averaged. The one is not the inverse of the other.
    """
    width, channels = x.shape[-1], y.shape[-1]
    if channels > width:
        return (y.unflatten(-1, (-1, width)) + x.unsqueeze(-2)).flatten(-2)
    if channels < width:
        # In the channels' order: that of mean depends on their number and the processor, and a packed model follows it.
        first, *others = x.unflatten(-1, (channels, -1)).unbind(-1)
        x = sum(others, start=first) / (width // channels)
    return y + x


class TokenBatchNorm(nn.Module):
    """Batch normalization of (B, N, C) tokens per channel, over all tokens of all images.

    It holds a `BatchNorm1d` over the flattened (B*N, C) view, so nothing is transposed and `ops.synchronized` can
    replace it where several processes train. It takes the place of every LayerNorm of a ViT.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(channels, eps=1e-5, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        # Contiguous also for a single image, which PyTorch would normalize by a kernel with other roundings.
        return self.batch_norm(at_least_float32(x).flatten(0, -2).contiguous()).reshape(x.shape)


class RPReLU(nn.Module):
    """PReLU(x - m1) + m2 with one slope and two shifts per channel, on (..., C) (ReActNet, Liu et al. 2020).

    Written out because autocast runs `F.prelu` in half precision, whose rounding the next layer's sign would turn into
    flipped bits. At exactly zero the slope's side is taken, as PyTorch's PReLU does.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift_in = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.shift_out = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.shift_in
        return torch.where(x > 0, x, self.slope * x) + self.shift_out


class Affine(nn.Module):
    """The paper's affine transformation x * alpha + beta per channel, on (..., C); beta starts at 0."""

    def __init__(self, channels: int, initial_scale: float):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((channels,), initial_scale))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha + self.beta

"""A depthwise convolution whose kernel is a cross, with a backward pass that knows it.

The general backward pass of a depthwise convolution computes all 25 places of the kernel's gradient, at several times
the cost.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from binaryvit.models.ops.precision import without_autocast

# The places (row, column) of a 5x5 kernel that a cross covers: its row, then its column without the centre.
CROSS = tuple((2, column) for column in range(5)) + tuple((row, 2) for row in (0, 1, 3, 4))


def _cross_kernel(taps: Tensor) -> Tensor:
    """Taps (9, C) in the order of CROSS to a depthwise kernel (C, 1, 5, 5)."""
    kernel = taps.new_zeros(5, 5, taps.shape[1])
    kernel[2] = taps[:5]
    kernel[:2, 2] = taps[5:7]
    kernel[3:, 2] = taps[7:]
    return kernel.permute(2, 0, 1).unsqueeze(1)


class _CrossConvolution(Function):
    @staticmethod
    def forward(ctx, grid: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(grid, taps)
        return F.conv2d(grid, _cross_kernel(taps), bias, padding=2, groups=grid.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid, taps = ctx.saved_tensors
        # The transposed convolution turns the kernel around.
        of_grid = F.conv2d(gradient, _cross_kernel(taps).flip(2, 3), padding=2, groups=grid.shape[1])
        # In channels-last order, as tokens lie in memory.
        padded, g = F.pad(grid, (2, 2, 2, 2)).permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        height, width = g.shape[1:3]
        of_taps = [(g * padded[:, i : i + height, j : j + width]).sum((0, 1, 2)) for i, j in CROSS]
        return of_grid, torch.stack(of_taps), g.sum((0, 1, 2))


def cross_convolution(grid: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """A depthwise 5x5 convolution with zero padding whose kernel is a cross, in the type of its input.

    Args:
        grid: (B, C, H, W), best in channels-last memory.
        taps: (9, C), the kernel at the places of `CROSS`.
        bias: (C,).
    """
    with without_autocast(grid):
        return _CrossConvolution.apply(grid, taps, bias)

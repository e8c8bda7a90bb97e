"""The pooling branches' convolution against the general one, and against the poolings."""

import pytest
import torch
import torch.nn.functional as F
from helpers.units import randomized

from binaryvit.models import layers
from binaryvit.models.layers import PoolingBranches
from binaryvit.models.ops.cross_convolution import CROSS, cross_convolution


def test_cross_convolution_and_its_gradients(device: torch.device) -> None:
    grid = torch.randn(2, 6, 7, 5, dtype=torch.float64, device=device, requires_grad=True)
    taps = torch.randn(9, 6, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, device=device, requires_grad=True)
    kernel = torch.zeros(6, 1, 5, 5, dtype=torch.float64, device=device)
    for tap, (row, column) in zip(taps, CROSS, strict=True):
        kernel[:, 0, row, column] = tap
    expected = F.conv2d(grid, kernel, bias, padding=2, groups=6)
    found = cross_convolution(grid, taps, bias)
    gradient = torch.randn_like(found)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, (grid, taps, bias), gradient),
        torch.autograd.grad(expected, (grid, taps, bias), gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("mixed", [False, True])
def test_pooling_branches_are_four_average_poolings(mixed: bool) -> None:
    branches = randomized(PoolingBranches(4, 6), torch.float32)
    x = torch.randn(2, 36, 4)
    grid = layers.tokens_to_grid(x, 6)
    expected = sum(
        branches.affines[name](
            layers.grid_to_tokens(F.avg_pool2d(grid, size, stride=1, padding=[side // 2 for side in size]))
        )
        for name, size in layers.POOLING_WINDOWS.items()
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = branches(x)
    torch.testing.assert_close(found, expected)

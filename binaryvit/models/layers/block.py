"""The transformer block: attention, feed-forward network, and the paper's pooling branches."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from binaryvit.models.layers.attention import BinaryAttention
from binaryvit.models.layers.tokens import Affine, TokenBatchNorm, grid_to_tokens, tokens_to_grid
from binaryvit.models.layers.unit import BinaryUnit
from binaryvit.models.ops.cross_convolution import cross_convolution
from binaryvit.models.quantizers import at_least_float32


class BinaryMlp(nn.Module):
    """The feed-forward network: two binary units, C to hidden (shortcut: copies) and back (shortcut: averages)."""

    def __init__(self, dim: int, hidden_dim: int, weight_bits: int = 1, activation_bits: int = 1):
        super().__init__()
        self.fc1 = BinaryUnit(dim, hidden_dim, weight_bits, activation_bits)
        self.fc2 = BinaryUnit(hidden_dim, dim, weight_bits, activation_bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


# (height, width) of the four poolings.
POOLING_WINDOWS = {"pool1x3": (1, 3), "pool3x1": (3, 1), "pool1x5": (1, 5), "pool5x1": (5, 1)}


class PoolingBranches(nn.Module):
    """The sum of four average poolings of the grid, 1x3, 3x1, 1x5, 5x1 (height x width), each with its own Affine.

    Stride 1, zero padding that counts in the average. Being linear, the four poolings and their affines are computed
    as the one depthwise convolution they are equal to, with a cross-shaped 5x5 kernel per channel and a bias.
    Their alphas start at 0, so a new model computes without them.
    """

    def __init__(self, dim: int, grid_size: int):
        super().__init__()
        self.grid_size = grid_size
        self.affines = nn.ModuleDict({name: Affine(dim, initial_scale=0.0) for name in POOLING_WINDOWS})

    def taps_and_bias(self) -> tuple[Tensor, Tensor]:
        """The equal depthwise convolution: its kernel at the places of `CROSS` (9, C), and its bias (C,)."""
        share = {name: self.affines[name].alpha / (h * w) for name, (h, w) in POOLING_WINDOWS.items()}
        row_end, column_end = share["pool1x5"], share["pool5x1"]
        row, column = row_end + share["pool1x3"], column_end + share["pool3x1"]
        taps = torch.stack([row_end, row, row + column, row, row_end, column_end, column, column, column_end])
        return taps, sum(affine.beta for affine in self.affines.values())

    def forward(self, x: Tensor) -> Tensor:
        grid = tokens_to_grid(at_least_float32(x), self.grid_size)
        return grid_to_tokens(cross_convolution(grid, *self.taps_and_bias()))


class BinaryBlock(nn.Module):
    """A pre-norm transformer block of binary layers, (B, N, C) to (B, N, C).

        x = x + Affine(Attention(BN(x)))
        y = BN(x)
        x = x + Affine(FFN(y)) + PoolingBranches(y)

    Args:
        affine: puts the paper's Affine, initially 0.1, before both residual additions.
        pooling_branches: adds the average-pooling branches, parallel to the FFN.
        drop_path: drops the two main branches per image; the pooling branches are shortcuts and stay.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        grid_size: int,
        reduction: int = 1,
        pooling_branches: bool = True,
        affine: bool = True,
        weight_bits: int = 1,
        activation_bits: int = 1,
        attention_level: float = 0.005,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = TokenBatchNorm(dim)
        self.attn = BinaryAttention(
            dim, num_heads, grid_size, reduction, weight_bits, activation_bits, attention_level, attn_drop
        )
        self.affine1 = Affine(dim, initial_scale=0.1) if affine else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = TokenBatchNorm(dim)
        self.mlp = BinaryMlp(dim, mlp_dim, weight_bits, activation_bits)
        self.affine2 = Affine(dim, initial_scale=0.1) if affine else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.pool = PoolingBranches(dim, grid_size) if pooling_branches else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.affine1(self.attn(self.norm1(x))))
        y = self.norm2(x)
        x = x + self.drop_path2(self.affine2(self.mlp(y)))
        return x if self.pool is None else x + self.pool(y)

"""Self-attention whose two products are binary, and the learned levels of its probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binaryvit.models.layers.binary import BinaryActivation
from binaryvit.models.layers.tokens import RPReLU, TokenBatchNorm, grid_to_tokens, tokens_to_grid
from binaryvit.models.layers.unit import BinaryUnit, apply_units
from binaryvit.models.ops.products import level_matmul, sign_matmul
from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL, at_least_float32, binarize_attention


class AttentionBinarizer(nn.Module):
    """Attention probabilities to {0, a} with one learnable level a (see `quantizers.binarize_attention`)."""

    def __init__(self, initial_level: float):
        super().__init__()
        self.initial_level = initial_level
        self.level = nn.Parameter(torch.tensor(initial_level))

    @property
    def effective_level(self) -> Tensor:
        """The level the forward pass computes with: a, but at least MINIMUM_ATTENTION_LEVEL."""
        return self.level.clamp(min=MINIMUM_ATTENTION_LEVEL)

    def forward(self, probabilities: Tensor) -> Tensor:
        return binarize_attention(probabilities, self.level)


def attention_binarizers(model: nn.Module) -> dict[str, AttentionBinarizer]:
    """The binarizer of each binary attention, by the module path of the attention."""
    return {
        name.rpartition(".")[0]: module
        for name, module in model.named_modules()
        if isinstance(module, AttentionBinarizer)
    }


@torch.no_grad()
def attention_levels(model: nn.Module) -> dict[str, float]:
    """The learned level a of each binary attention, by its module path."""
    levels = {name: binarizer.level for name, binarizer in attention_binarizers(model).items()}
    return dict(zip(levels, torch.stack([*levels.values()]).tolist(), strict=True)) if levels else {}


class BinaryAttention(nn.Module):
    """Multi-head self-attention whose two products are binary.

    Q, K, V are binary units; their signs are multiplied, the softmax's probabilities become {0, a}. The context is
    normalized, gets the real-valued q, k and v as shortcut, an RPReLU, and the binary output projection. With a
    spatial reduction R > 1, keys and values come from the grid averaged over R x R, itself passed through a binary
    unit, and are upsampled (nearest neighbour) for the shortcut.

    `attn_drop` sees the probabilities the product uses, where timm's attention extraction looks for them. With 1-bit
    activations the product takes from it which of them are on: a hook there can switch off some, and scale none.

    Args:
        dim: channels C, a multiple of num_heads; head i owns channels i * C / num_heads and following.
        grid_size: side of the token grid (N = grid_size ** 2, plus a CLS token where there is one and R = 1).
        reduction: R, a divisor of grid_size.
        attention_level: the initial level a.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: int,
        reduction: int = 1,
        weight_bits: int = 1,
        activation_bits: int = 1,
        attention_level: float = 0.005,
        attn_drop: float = 0.0,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.grid_size = grid_size
        self.reduction = reduction
        self.softmax_scale = (dim // num_heads) ** -0.5
        self.activation_bits = activation_bits
        bits = dict(weight_bits=weight_bits, activation_bits=activation_bits)
        self.q = BinaryUnit(dim, dim, **bits)
        self.k = BinaryUnit(dim, dim, **bits)
        self.v = BinaryUnit(dim, dim, **bits)
        self.reduce = BinaryUnit(dim, dim, **bits) if reduction > 1 else nn.Identity()
        self.binarize_q = BinaryActivation(dim, activation_bits)
        self.binarize_k = BinaryActivation(dim, activation_bits)
        self.binarize_v = BinaryActivation(dim, activation_bits)
        self.binarize_attn = AttentionBinarizer(attention_level) if activation_bits == 1 else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = TokenBatchNorm(dim)
        self.act = RPReLU(dim)
        self.proj = BinaryUnit(dim, dim, **bits)

    def _reduced(self, x: Tensor) -> Tensor:
        """(B, N, C) to the real-valued input of keys and values, (B, N / R^2, C)."""
        if self.reduction == 1:
            return x
        grid = F.avg_pool2d(tokens_to_grid(x, self.grid_size), self.reduction)
        return self.reduce(grid_to_tokens(grid))

    def _upsampled(self, x: Tensor) -> Tensor:
        """(B, N / R^2, C) back to (B, N, C), each value repeated over its R x R cell."""
        if self.reduction == 1:
            return x
        side = self.grid_size // self.reduction
        grid = x.reshape(x.shape[0], side, 1, side, 1, x.shape[-1])
        return grid.expand(-1, -1, self.reduction, -1, self.reduction, -1).flatten(1, 4)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self._reduced(x)
        q, k, v = apply_units((self.q, x), (self.k, z), (self.v, z))
        scores = self._scores(self._heads(self.binarize_q(q)), self._heads(self.binarize_k(k)))
        attn = torch.softmax(at_least_float32(scores) * self.softmax_scale, dim=-1)
        attn = self.attn_drop(self.binarize_attn(attn))
        context = self._context(attn, self._heads(self.binarize_v(v))).transpose(1, 2).flatten(2)
        return self.proj(self.act(self.norm(context) + q + self._upsampled(k + v)))

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Unscaled scores (B, heads, N, M) of queries (B, heads, N, C / heads) and M = N / R^2 keys."""
        multiply = torch.matmul if self.activation_bits == 32 else sign_matmul
        return multiply(q, k.transpose(-2, -1))

    def _context(self, attn: Tensor, v: Tensor) -> Tensor:
        """Probabilities (B, heads, N, M) times values (B, heads, M, C / heads), to (B, heads, N, C / heads)."""
        if self.activation_bits == 32:
            return attn @ v
        kept = 1 - self.attn_drop.p if self.attn_drop.training else 1.0  # dropout divides by it
        return level_matmul(attn, self.binarize_attn.effective_level / (kept or 1.0), v)

"""The building blocks of binary vision transformers, bottom-up.

Tokens are (B, N, C): batch, tokens in row-major order over the square grid, channels. Wherever `weight_bits` or
`activation_bits` is 32, the value stays real: no sign is taken, but the learnable shifts are still added.
"""

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from binaryvit.models.bits import unpack_weight
from binaryvit.models.ops.choice import step_of
from binaryvit.models.ops.cross_convolution import cross_convolution
from binaryvit.models.ops.precision import without_autocast
from binaryvit.models.ops.products import level_matmul, sign_linear, sign_matmul
from binaryvit.models.ops.reference import UnitParameters
from binaryvit.models.ops.synchronized import SynchronizedBatchNorm, normalize, track
from binaryvit.models.quantizers import (
    MINIMUM_ATTENTION_LEVEL,
    at_least_float32,
    binarize_activation,
    binarize_attention,
    binarize_weight,
    centre_rows,
    weight_scale,
)


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


class BinaryActivation(nn.Module):
    """Learnable per-channel shift, then the sign (see `quantizers.binarize_activation`); 32 bits: the shift alone."""

    def __init__(self, channels: int, activation_bits: int = 1):
        super().__init__()
        self.activation_bits = activation_bits
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_bits == 32:
            return x + self.shift
        return binarize_activation(x, self.shift)

    def extra_repr(self) -> str:
        return f"{self.shift.numel()}, activation_bits={self.activation_bits}"


class _BinaryWeight(nn.Module):
    """What binary linear layers and convolutions share: a latent weight that the forward pass uses in one bit.

    A layer whose weight was fixed (`fix_weight`) holds the binary weight s * sign(W) itself and no latent weight; it
    computes the same outputs and can't be trained.
    """

    weight: nn.Parameter
    weight_bits: int
    is_fixed = False

    def centred_weight(self) -> Tensor:
        """What the sign is taken of, in the shape of the weight."""
        raise NotImplementedError

    @property
    def scale(self) -> Tensor:
        """s, one number per output channel, broadcastable to the weight."""
        return weight_scale(self.weight)

    def effective_weight(self) -> Tensor:
        """The weight the forward pass multiplies with: s * sign(W), or W itself for 32 bits."""
        if self.weight_bits == 32 or self.is_fixed:
            return self.weight
        return binarize_weight(self.centred_weight(), self.scale)

    def fix_weight(self, binary_weight: Tensor) -> None:
        """Replaces the latent weight by a binary weight; for inference only."""
        self.weight = nn.Parameter(binary_weight, requires_grad=False)
        self.is_fixed = True

    def free_weight(self) -> None:
        """Makes the weight a latent one again, to be binarized and trained."""
        self.weight.requires_grad_(True)
        self.is_fixed = False

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"


class BinaryLinear(_BinaryWeight, nn.Linear):
    """Linear layer without bias whose weight is s * sign(W - mean_row(W)), s = mean_row(|W|) per output channel.

    With activation_bits=1 its input must be signs, in {-1, +1}, as `BinaryActivation` gives them.
    """

    def __init__(self, in_features: int, out_features: int, weight_bits: int = 1, activation_bits: int = 32):
        super().__init__(in_features, out_features, bias=False)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits

    def centred_weight(self) -> Tensor:
        return centre_rows(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        multiply = sign_linear if self.weight_bits == self.activation_bits == 1 else F.linear
        return multiply(x, self.effective_weight())


class BinaryConv2d(_BinaryWeight, nn.Conv2d):
    """Convolution without bias or padding, NCHW, whose weight is s * sign(W); unlike the linear's, not centred.

    With activation_bits=1 its input must be signs, in {-1, +1}, as `BinaryActivation` gives them. It then is the linear
    layer on the windows that it is equal to.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 2,
        stride: int = 2,
        weight_bits: int = 1,
        activation_bits: int = 32,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits

    def centred_weight(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.effective_weight()
        if not self.weight_bits == self.activation_bits == 1:
            return F.conv2d(x, weight, stride=self.stride)
        windows = F.unfold(x, self.kernel_size, stride=self.stride).transpose(1, 2)
        products = sign_linear(windows, weight.flatten(1))
        return products.transpose(1, 2).unflatten(2, (-1, (x.shape[3] - self.kernel_size[1]) // self.stride[1] + 1))


def binary_layers(model: nn.Module) -> dict[str, BinaryLinear | BinaryConv2d]:
    """The layers of a model whose weights are one bit, by module path; empty for a full-precision model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BinaryWeight) and module.weight_bits == 1
    }


def prepare_binary_weights(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Makes a model's binary layers ready for the weights in a state dict, before it is loaded.

    `<layer>.weight.bits` and `.scale` (see `weights_file`) are replaced by the binary weight they stand for, and the
    layer then has no latent weight (`BinaryLinear.fix_weight`). A layer without one that is given a latent weight has
    it from then on.
    """
    for name, layer in binary_layers(model).items():
        packed = (f"{name}.weight.bits", f"{name}.weight.scale")
        if all(part in state_dict for part in packed):
            bits, scale = (state_dict.pop(part) for part in packed)
            state_dict[f"{name}.weight"] = unpack_weight(bits, scale, layer.weight.shape)
            layer.fix_weight(state_dict[f"{name}.weight"].to(layer.weight))
        elif layer.is_fixed and f"{name}.weight" in state_dict and not _is_binary(state_dict[f"{name}.weight"]):
            layer.free_weight()


def _is_binary(weight: Tensor) -> bool:
    """Whether each row of a weight (out, ...) has one magnitude, as s * sign(W) has: a fixed layer's own weight."""
    magnitudes = weight.flatten(1).abs()
    return bool((magnitudes == magnitudes[:, :1]).all())


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


class BinaryUnit(nn.Module):
    """A binary linear layer as BinaryViT always uses it: RPReLU(BN(BinLinear(sign(x + b))) + shortcut(x)).

    Maps (B, N, in_features) to (B, N, out_features), one of the two widths a multiple of the other. The shortcut
    carries the unshifted, real-valued x.
    """

    def __init__(self, in_features: int, out_features: int, weight_bits: int, activation_bits: int):
        super().__init__()
        self.binarize = BinaryActivation(in_features, activation_bits)
        self.linear = BinaryLinear(in_features, out_features, weight_bits, activation_bits)
        self.norm = TokenBatchNorm(out_features)
        self.act = RPReLU(out_features)

    def forward(self, x: Tensor) -> Tensor:
        parameters = self.parameters_in_order() if self._has_its_own_parts() else None
        step = parameters and step_of(self, parameters, x)
        if step is None:
            return self.act(add_shortcut(self.norm(self.linear(self.binarize(x))), x))
        tokens = at_least_float32(x).flatten(0, -2)
        y, mean, variance = step(tokens, parameters, self.norm.batch_norm.eps)
        track(self.norm.batch_norm, mean, variance, len(y))
        return y.unflatten(0, x.shape[:-1])

    def _has_its_own_parts(self) -> bool:
        """Whether no part was replaced, subclassed or parametrized: a step would compute as if it were not."""
        parts = {
            self.binarize: BinaryActivation,
            self.linear: BinaryLinear,
            self.norm: TokenBatchNorm,
            self.act: RPReLU,
        }
        return all(type(part) is kind for part, kind in parts.items())

    def parameters_in_order(self) -> UnitParameters:
        """All of the unit's parameters, by role."""
        norm, act = self.norm.batch_norm, self.act
        return UnitParameters(
            self.binarize.shift, self.linear.weight, norm.weight, norm.bias, act.shift_in, act.slope, act.shift_out
        )


def _units(*units: tuple[BinaryUnit, Tensor]) -> list[Tensor]:
    """Applies each binary unit to its input; if their norms are synchronized, with one communication for all.

    In the latter case hooks on a unit and on its norm are not called, those on its other modules are. The processes
    would wait for each other forever if one that is watched communicated more often than the rest.
    """
    norms = [unit.norm.batch_norm for unit, _ in units]
    if not all(isinstance(norm, SynchronizedBatchNorm) and norm.training for norm in norms):
        return [unit(x) for unit, x in units]
    products = [unit.linear(unit.binarize(x)) for unit, x in units]
    normalized = normalize([at_least_float32(product).flatten(0, -2) for product in products], norms)
    return [
        unit.act(add_shortcut(y.unflatten(0, x.shape[:-1]), x)) for (unit, x), y in zip(units, normalized, strict=True)
    ]


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

    `attn_drop` sees the probabilities the product uses, where timm's attention extraction looks for them.

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
        return grid.expand(-1, -1, self.reduction, -1, self.reduction, -1).reshape(x.shape[0], -1, x.shape[-1])

    def _heads(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self._reduced(x)
        q, k, v = _units((self.q, x), (self.k, z), (self.v, z))
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
        kept = 1 - self.attn_drop.p if self.training else 1.0  # dropout divides by it
        return level_matmul(attn, self.binarize_attn.effective_level / kept, v)


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


class PatchEmbedding(nn.Module):
    """The full-precision stem, images to tokens (B, N, C): a convolution over patches, optionally a batch norm."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, norm: bool):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = TokenBatchNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            return self.norm(grid_to_tokens(self.proj(x)))


class BinaryPatchMerging(nn.Module):
    """Halves the grid and widens the channels with a binary 2x2 convolution.

    x = BN(x); RPReLU(BN(BinConv(sign(x + b))) + shortcut), the shortcut being the 2x2 average, channels concatenated.
    """

    def __init__(self, dim: int, out_dim: int, grid_size: int, weight_bits: int = 1, activation_bits: int = 1):
        super().__init__()
        self.grid_size = grid_size
        self.norm_in = TokenBatchNorm(dim)
        self.binarize = BinaryActivation(dim, activation_bits)
        self.proj = BinaryConv2d(dim, out_dim, weight_bits=weight_bits, activation_bits=activation_bits)
        self.norm = TokenBatchNorm(out_dim)
        self.act = RPReLU(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_in(x)
        main = self.norm(grid_to_tokens(self.proj(tokens_to_grid(self.binarize(x), self.grid_size))))
        shortcut = grid_to_tokens(F.avg_pool2d(tokens_to_grid(x, self.grid_size), 2))
        return self.act(add_shortcut(main, shortcut))


class FullPrecisionPatchMerging(nn.Module):
    """The merge of the "some-fp" variant: BN(Conv2x2/2(BN(x))), full precision, no bias, no shortcut, no RPReLU."""

    def __init__(self, dim: int, out_dim: int, grid_size: int):
        super().__init__()
        self.grid_size = grid_size
        self.norm_in = TokenBatchNorm(dim)
        self.proj = nn.Conv2d(dim, out_dim, kernel_size=2, stride=2, bias=False)
        self.norm = TokenBatchNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(grid_to_tokens(self.proj(tokens_to_grid(self.norm_in(x), self.grid_size))))


def tokens_to_grid(x: Tensor, grid_size: int) -> Tensor:
    """(B, H*W, C) to (B, C, H, W), a view (channels last in memory)."""
    return x.unflatten(1, (grid_size, grid_size)).permute(0, 3, 1, 2)


def grid_to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H*W, C)."""
    return x.flatten(2).transpose(1, 2)

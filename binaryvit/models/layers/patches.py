"""From images to tokens, and from the tokens of one stage to those of the next."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.layers.binary import BinaryActivation, BinaryConv2d
from binaryvit.models.layers.tokens import RPReLU, TokenBatchNorm, add_shortcut, grid_to_tokens, tokens_to_grid
from binaryvit.models.ops.precision import without_autocast
from binaryvit.models.quantizers import at_least_float32


class PatchEmbedding(nn.Module):
    """The full-precision stem, images to tokens (B, N, C): a convolution over patches, optionally a batch norm.

    Raises BinaryViTError for images of another size than (in_chans, img_size, img_size), and with parameters in half
    precision.
    """

    def __init__(self, img_size: int, in_chans: int, dim: int, patch_size: int, norm: bool):
        super().__init__()
        self.image_shape = (in_chans, img_size, img_size)
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = TokenBatchNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # Another shape can have as many patches, and would be computed on the wrong grid.
        if tuple(x.shape[1:]) != self.image_shape:
            raise BinaryViTError(
                f"The model takes images of the shape {self.image_shape}, and these have {tuple(x.shape[1:])}: resize "
                "them, or create the model with their img_size and in_chans."
            )
        if self.proj.weight.dtype in (torch.float16, torch.bfloat16):
            raise BinaryViTError(
                f"The model's parameters are {self.proj.weight.dtype}, which would flip signs: keep them in float32, "
                "and use autocast."
            )
        with without_autocast(x):
            return self.norm(grid_to_tokens(self.proj(at_least_float32(x))))


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

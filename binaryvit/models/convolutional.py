"""A binary convolutional network to compare BinaryViT with: residual 3x3 convolutions after ReActNet.

It is built from the same parts as the transformers (signs with learnable shifts, weights of one bit and a scale, batch
norm, RPReLU, average-pooled shortcuts) and costs what BinaryViT costs at the same size.
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from binaryvit.models.classifier import TokenClassifier
from binaryvit.models.ladder import default_cfgs as ladder_cfgs
from binaryvit.models.layers import (
    BinaryActivation,
    BinaryConv2d,
    PatchEmbedding,
    RPReLU,
    TokenBatchNorm,
    add_shortcut,
    grid_to_tokens,
    prepare_binary_weights,
    tokens_to_grid,
)
from binaryvit.models.shapes import check_choice, check_grid, check_widening, count_stages, one_per_stage, one_side


class BinaryConvBlock(nn.Module):
    """RPReLU(BN(BinConv3x3(sign(x + b))) + shortcut(x)) on tokens of a square grid (ReActNet, Liu et al. 2020).

    With a stride of 2 the shortcut is the 2x2 average, its channels concatenated, as in binary patch merging. The
    borders are padded with +1, the sign of 0: a third value does not fit into one bit.

    Maps (B, grid_size^2, dim) to (B, (grid_size / stride)^2, out_dim).
    """

    def __init__(self, dim: int, out_dim: int, grid_size: int, stride: int, weight_bits: int, activation_bits: int):
        super().__init__()
        self.grid_size = grid_size
        self.stride = stride
        self.binarize = BinaryActivation(dim, activation_bits)
        self.conv = BinaryConv2d(dim, out_dim, 3, stride, weight_bits, activation_bits)
        self.norm = TokenBatchNorm(out_dim)
        self.act = RPReLU(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        padding = float(self.binarize.activation_bits == 1)
        signs = F.pad(tokens_to_grid(self.binarize(x), self.grid_size), (1, 1, 1, 1), value=padding)
        main = self.norm(grid_to_tokens(self.conv(signs)))
        if self.stride > 1:
            x = grid_to_tokens(F.avg_pool2d(tokens_to_grid(x, self.grid_size), self.stride))
        return self.act(add_shortcut(main, x))


class BinaryResNet(TokenClassifier):
    """A full-precision patch embedding, stages of binary residual convolutions, then the mean over all tokens.

    Each stage but the first begins with a block of stride 2. Stem and classifier are those of BinaryViT.

    Args:
        img_size: side of the square images, a multiple of patch_size * 2^(stages - 1).
        patch_size: side and stride of the stem's convolution.
        num_classes: 0 removes the classifier.
        dims, depths: channels of each stage, each a multiple of the one before, and its blocks of stride 1.
        weight_bits, activation_bits: 1 or 32.
        drop_rate: dropout before the classifier.

    Raises:
        BinaryViTError: an argument that is inconsistent with the others, named, with what would be right.
    """

    def __init__(
        self,
        img_size: int = 32,
        patch_size: int = 2,
        in_chans: int = 3,
        num_classes: int = 10,
        dims: tuple[int, ...] = (64, 128, 256),
        depths: tuple[int, ...] = (3, 3, 1),
        weight_bits: int = 1,
        activation_bits: int = 1,
        drop_rate: float = 0.0,
    ):
        super().__init__()
        check_choice("weight_bits", weight_bits, (1, 32))
        check_choice("activation_bits", activation_bits, (1, 32))
        img_size, patch_size = one_side("img_size", img_size), one_side("patch_size", patch_size)
        num_stages = count_stages("dims", dims)
        dims, depths = (
            one_per_stage(name, value, num_stages, like="dims") for name, value in (("dims", dims), ("depths", depths))
        )
        check_grid(img_size, patch_size, num_stages)
        self.img_size, self.in_chans = img_size, in_chans
        self.num_features = self.head_hidden_size = dims[-1]
        self.num_prefix_tokens, self.global_pool = 0, "avg"
        self.stem = PatchEmbedding(img_size, in_chans, dims[0], patch_size, norm=True)
        grid_size, stages = img_size // patch_size, []
        for index, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks = []
            if index > 0:
                check_widening("dims", dims[index - 1], dim, index)
                blocks.append(BinaryConvBlock(dims[index - 1], dim, grid_size, 2, weight_bits, activation_bits))
                grid_size //= 2
            blocks += [BinaryConvBlock(dim, dim, grid_size, 1, weight_bits, activation_bits) for _ in range(depth)]
            stages.append(ConvStage(grid_size, blocks))
        self.stages = nn.ModuleList(stages)
        self._add_head(num_classes, drop_rate)
        self.register_load_state_dict_pre_hook(_adapt_state_dict)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, img_size, img_size) to the last stage's tokens (B, N, C)."""
        x = self.stem(x)
        for stage in self.stages:
            for block in stage.blocks:
                x = block(x)
        return x


def _adapt_state_dict(model: BinaryResNet, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: prepares the binary layers for latent or packed weights."""
    if not prefix:
        prepare_binary_weights(model, state_dict)


class ConvStage(nn.Module):
    """The blocks of one stage; the first may halve the grid, to the side `grid_size`."""

    def __init__(self, grid_size: int, blocks: list[BinaryConvBlock]):
        super().__init__()
        self.grid_size = grid_size
        self.blocks = nn.ModuleList(blocks)


default_cfgs = generate_default_cfgs({
    "reactresnet_micro_patch2_32": ladder_cfgs["binaryvit_micro_patch2_32"].default.to_dict()
    | {"first_conv": "stem.proj"}
})  # fmt: skip


@register_model
def reactresnet_micro_patch2_32(pretrained: bool = False, **model_args: Any) -> BinaryResNet:
    """A binary residual network with the parameters and operations of binaryvit_micro_patch2_32."""
    return build_model_with_cfg(BinaryResNet, "reactresnet_micro_patch2_32", pretrained, **model_args)

"""The building blocks of binary vision transformers: `tokens`, `binary`, then `unit`, `attention`, `block`, `patches`.

Tokens are (B, N, C): batch, tokens in row-major order over the square grid, channels. Wherever `weight_bits` or
`activation_bits` is 32, the value stays real: no sign is taken, but the learnable shifts are still added.
"""

from binaryvit.models.layers.attention import (
    AttentionBinarizer,
    BinaryAttention,
    attention_binarizers,
    attention_levels,
)
from binaryvit.models.layers.binary import (
    BinaryActivation,
    BinaryConv2d,
    BinaryLinear,
    binary_layers,
    prepare_binary_weights,
)
from binaryvit.models.layers.block import POOLING_WINDOWS, BinaryBlock, BinaryMlp, PoolingBranches
from binaryvit.models.layers.patches import BinaryPatchMerging, FullPrecisionPatchMerging, PatchEmbedding
from binaryvit.models.layers.tokens import Affine, RPReLU, TokenBatchNorm, add_shortcut, grid_to_tokens, tokens_to_grid
from binaryvit.models.layers.unit import BinaryUnit

__all__ = [
    "POOLING_WINDOWS",
    "Affine",
    "AttentionBinarizer",
    "BinaryActivation",
    "BinaryAttention",
    "BinaryBlock",
    "BinaryConv2d",
    "BinaryLinear",
    "BinaryMlp",
    "BinaryPatchMerging",
    "BinaryUnit",
    "FullPrecisionPatchMerging",
    "PatchEmbedding",
    "PoolingBranches",
    "RPReLU",
    "TokenBatchNorm",
    "add_shortcut",
    "attention_binarizers",
    "attention_levels",
    "binary_layers",
    "grid_to_tokens",
    "prepare_binary_weights",
    "tokens_to_grid",
]

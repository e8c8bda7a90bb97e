"""BinaryViT without its binary products: stem, shortcuts, poolings, norms and activations alone.

A control: do binary networks with real-valued shortcuts need their one-bit part at all? Each product is left out; of
its batch norm, the learnable beta stays.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from binaryvit.models.ladder import arguments_of
from binaryvit.models.ladder import default_cfgs as ladder_cfgs
from binaryvit.models.layers import (
    BinaryAttention,
    BinaryPatchMerging,
    BinaryUnit,
    RPReLU,
    add_shortcut,
    grid_to_tokens,
    tokens_to_grid,
)
from binaryvit.models.vision_transformer import BinaryVisionTransformer


class ShortcutUnit(nn.Module):
    """What is left of a binary unit: RPReLU(beta + shortcut(x))."""

    def __init__(self, out_features: int):
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(out_features))
        self.act = RPReLU(out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(add_shortcut(self.beta.expand(*x.shape[:-1], -1), x))


class ShortcutMerging(nn.Module):
    """What is left of binary patch merging: BN, the 2x2 average with concatenated channels, RPReLU."""

    def __init__(self, merging: BinaryPatchMerging):
        super().__init__()
        self.grid_size = merging.grid_size
        self.norm_in = merging.norm_in
        self.shortcut = ShortcutUnit(merging.proj.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(grid_to_tokens(F.avg_pool2d(tokens_to_grid(self.norm_in(x), self.grid_size), 2)))


class ShortcutAttention(BinaryAttention):
    """What is left of binary attention: the sum of queries, keys and values, each in its own place."""

    def __init__(self, attention: BinaryAttention):
        dim = attention.norm.batch_norm.num_features
        super().__init__(dim, attention.num_heads, attention.grid_size, attention.reduction)
        for name in ("binarize_q", "binarize_k", "binarize_v", "binarize_attn", "attn_drop", "norm"):
            delattr(self, name)
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        z = self._reduced(x)
        q, k, v = self.q(x), self.k(z), self.v(z)
        return self.proj(self.act(self.beta + q + self._upsampled(k + v)))


def without_products(model: BinaryVisionTransformer) -> BinaryVisionTransformer:
    """Replaces, in place, every binary layer by what is left of it without its product."""
    rules = {
        BinaryAttention: ShortcutAttention,
        BinaryPatchMerging: ShortcutMerging,
        BinaryUnit: lambda unit: ShortcutUnit(unit.linear.out_features),
    }
    for kind, left_of in rules.items():
        for parent in [*model.modules()]:
            for name, child in [*parent.named_children()]:
                if type(child) is kind:
                    setattr(parent, name, left_of(child))
    return model


class ShortcutsOnly(BinaryVisionTransformer):
    """`BinaryVisionTransformer` without its products; the same arguments."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        without_products(self)


default_cfgs = generate_default_cfgs({
    "binaryvit_micro_patch2_32_shortcuts": ladder_cfgs["binaryvit_micro_patch2_32"].default.to_dict()
})  # fmt: skip


@register_model
def binaryvit_micro_patch2_32_shortcuts(pretrained: bool = False, **model_args: Any) -> ShortcutsOnly:
    """binaryvit_micro_patch2_32 without its binary products."""
    name = "binaryvit_micro_patch2_32"
    return build_model_with_cfg(ShortcutsOnly, f"{name}_shortcuts", pretrained, **arguments_of(name) | model_args)

"""Small models whose parameters are not their initial ones."""

import torch
import torch.nn.functional as F
from helpers.scattered import scattered

SHAPE = dict(img_size=8, patch_size=2, num_classes=4)
COLUMNAR = SHAPE | dict(embed_dims=12, depths=2, num_heads=3)
PYRAMID = SHAPE | dict(embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), mlp_ratios=(2, 2), reductions=(2, 1))
VARIANTS = {"reactdeit_micro_patch4_32": COLUMNAR, "binaryvit_micro_patch2_32": PYRAMID}


def model_of(variant="binaryvit_micro_patch2_32", dtype=torch.float64, **arguments):
    """A small model in evaluation mode; see `scattered`."""
    return scattered(variant, 1, **VARIANTS[variant] | arguments).to(dtype)


def images(count=6, dtype=torch.float64):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind)]


def resampled(positions, side):
    """Position embeddings (1, n * n, C) of a square grid as timm resamples them to another side: bicubic."""
    n = round(positions.shape[1] ** 0.5)
    grid = positions.detach().unflatten(1, (n, n)).permute(0, 3, 1, 2)
    return F.interpolate(grid, (side, side), mode="bicubic", antialias=True).flatten(2).mT

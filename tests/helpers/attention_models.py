"""Small models whose attention is not what training would start from."""

import timm
import torch
from torch import nn

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.layers import AttentionBinarizer

COLUMNAR = ("reactdeit_micro_patch4_32", dict(img_size=16, embed_dims=24, depths=2, num_classes=3))
PYRAMID = (
    "binaryvit_micro_patch2_32",
    dict(img_size=16, embed_dims=(8, 16), depths=(1, 2), num_heads=(1, 2), mlp_ratios=2, reductions=(2, 1)),
)
TEACHER = ("deit_micro_patch4_32", dict(img_size=16, embed_dim=24, depth=2, num_classes=3))


def create(variant):
    """A model with statistics and attention levels that training would not start from: rows differ, some are empty."""
    name, arguments = variant
    model = timm.create_model(name, **arguments).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.1)
            module.weight.data.uniform_(0.5, 1.5)
    binarizers = [module for module in model.modules() if isinstance(module, AttentionBinarizer)]
    for module, level in zip(binarizers, (0.3, 0.8, 0.1), strict=False):
        module.level.data.fill_(level)
    return model


def images_of(number, size=16):
    return torch.randn(number, 3, size, size)

"""Models whose every parameter and statistic is far from its initial value, gammas of zero and below among them."""

import timm
import torch
from torch import nn

import binaryvit  # noqa: F401 - registers the models


def scattered(variant, seed=0, **arguments):
    """A model in evaluation mode whose statistics are those of random images under random parameters."""
    torch.manual_seed(seed)
    model = timm.create_model(variant, **arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "weight" not in name:
                parameter.normal_(std=0.5 if name.endswith("slope") else 0.3)
            if name.endswith("level"):
                parameter.uniform_(0, 0.1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1.0
                module.weight.normal_()
                module.weight[0] = 0
        model(images_for(model, 4))
    return model.eval()


def images_for(model, count):
    return torch.randn(count, model.in_chans, model.img_size, model.img_size)

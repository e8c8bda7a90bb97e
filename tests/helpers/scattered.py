"""Models whose parameters and statistics are far from their initial values, where some terms would vanish."""

import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.shapes import image_size, input_channels


def scattered(variant, seed=0, **arguments):
    """A model in evaluation mode whose statistics are those of random images under random parameters.

    Negative gammas, alphas and slopes are among them, and a gamma of zero in each norm.
    """
    torch.manual_seed(seed)
    model = timm.create_model(variant, **arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "weight" not in name:
                parameter.normal_(std=0.5 if name.endswith("slope") else 0.3)
            if name.endswith("level"):
                parameter.uniform_(0, 0.1)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = 1.0
                module.weight.normal_()
                module.weight[0] = 0
        model(images_for(model, 4))
    return model.eval()


def images_for(model, count):
    return torch.randn(count, input_channels(model), *image_size(model))

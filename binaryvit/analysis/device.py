"""Where models are measured: on the GPU where there is one."""

import torch
from torch import nn


def on_best_device(model: nn.Module) -> nn.Module:
    """The model, moved to the CUDA device where there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """The device that a model's images have to be on."""
    return next(model.parameters()).device

"""Batch-norm statistics re-estimated for a model that was changed after its training."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from binaryvit.analysis.device import device_of
from binaryvit.errors import BinaryViTError


@contextmanager
def reestimated_statistics(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[None]:
    """Within this context the batch norms use statistics of `batches`; afterwards, those they had, bit for bit.

    Running means and variances become the averages of each batch's mean and unbiased variance, where the layers below
    normalize with the batch's own, as in training. PyTorch's `update_bn` does the same but turns dropout on.

    Args:
        model: in evaluation mode.
        batches: tuples whose first entry is images (batch, 3, height, width). Each batch counts the same, so they
            should have the same size.

    Raises:
        BinaryViTError: there is no batch, or one has one image.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    try:
        _estimate(model, norms, batches)
        yield
    finally:
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.load_state_dict(state)
            norm.eval()


@torch.no_grad()
def _estimate(model: nn.Module, norms: list[_BatchNorm], batches: Iterable[tuple[Tensor, ...]]) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative averages
        norm.train()
    batches = list(batches)
    if not batches:
        raise BinaryViTError("There are no images to estimate batch-norm statistics on.")
    for images, *_ in batches:
        if len(images) < 2:
            raise BinaryViTError(
                "A batch of one image has no variance: choose a number of images that leaves no such rest."
            )
        model(images.to(device_of(model)))
    for norm in norms:
        norm.eval()

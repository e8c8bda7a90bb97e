"""Batch-norm statistics re-estimated for a model that was changed after its training."""

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

    Running means and variances become the averages, over the batches, of each batch's mean and unbiased variance, the
    layers below normalizing with the batch's own statistics meanwhile (as training does; PyTorch's `update_bn` with
    cumulative averages). Only the batch norms are put into training mode, so dropout stays off.

    Args:
        model: in evaluation mode.
        batches: tuples whose first entry is images (batch, 3, height, width). Each batch counts
            the same, so they should have the same size.

    Raises:
        BinaryViTError: the model has no batch norm with running statistics, there is no batch, or one has one image.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise BinaryViTError(f"{type(model).__name__} has no batch norm whose statistics could be re-estimated.")
    before = [
        (norm.momentum, norm.training, {name: buffer.clone() for name, buffer in norm.named_buffers()})
        for norm in norms
    ]
    try:
        _estimate(model, norms, batches)
        yield
    finally:
        for norm, (momentum, training, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.train(training)
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


@torch.no_grad()
def _estimate(model: nn.Module, norms: list[_BatchNorm], batches: Iterable[tuple[Tensor, ...]]) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative averages
        norm.train()
    count = 0
    for images, *_ in batches:
        if len(images) < 2:
            raise BinaryViTError(
                "A batch of one image has no variance: choose a number of images that leaves no such rest."
            )
        model(images.to(device_of(model)))
        count += 1
    if not count:
        raise BinaryViTError("There are no images to estimate batch-norm statistics on.")
    for norm in norms:
        norm.eval()

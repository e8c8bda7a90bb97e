"""Batch norm over the images of all training processes: several processes compute what one does with their images."""

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed._functional_collectives import all_reduce, wait_tensor
from torch.nn.modules.batchnorm import _BatchNorm


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm of (T, C) or (N, C, ...) whose statistics in training are those of all processes.

    Unlike PyTorch's, it compiles without graph breaks, works on CPUs, and several norms share one communication
    (`normalize`).
    """

    def _check_input_dim(self, input: Tensor) -> None:  # any will do
        pass

    def forward(self, x: Tensor) -> Tensor:
        return normalize([x], [self])[0] if self.training else super().forward(x)


def synchronize(model: nn.Module) -> nn.Module:
    """Replaces the batch norms of `model`, in place, by synchronized ones that have their parameters and buffers."""
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d):
                replacement = SynchronizedBatchNorm(norm.num_features, norm.eps, norm.momentum).train(norm.training)
                replacement._parameters.update(norm._parameters)
                replacement._buffers.update(norm._buffers)
                setattr(module, name, replacement)
    return model


class _SumOverProcesses(Function):
    """The sum of a tensor over all processes, each of which may depend on it: its gradient is summed as well."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return wait_tensor(all_reduce(x, "sum", torch.distributed.group.WORLD))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return wait_tensor(all_reduce(gradient.contiguous(), "sum", torch.distributed.group.WORLD))


def normalize(inputs: Sequence[Tensor], norms: Sequence[SynchronizedBatchNorm]) -> list[Tensor]:
    """Each norm of its input, in training, with one all-reduce for all of them, and one in the backward pass.

    What is added up over processes is, per norm, the sum of x, the sum of x^2 and the number of tokens, in float64: the
    variance is a small difference of them where the mean is large. (Subtracting a running mean first would save digits,
    too, but compiled code recomputes from it after it has changed.)

    Args:
        inputs: each (T, C) or (N, C, ...), float32 or float64, with any number of tokens.
        norms: as many.
    """
    inputs = [x.movedim(1, -1) for x in inputs]
    sums = []
    for x in inputs:
        tokens = x.flatten(0, -2)
        count = tokens.new_full((1,), len(tokens), dtype=torch.float64)
        # The norm's square, because a sum in float64 of squares would keep the tokens in float64, too.
        squares = torch.linalg.vector_norm(tokens, dim=0, dtype=torch.float64).square()
        sums += [tokens.sum(0, dtype=torch.float64), squares, count]
    reduced = _SumOverProcesses.apply(torch.cat(sums)).split([len(part) for part in sums])
    outputs = []
    for number, (x, norm) in enumerate(zip(inputs, norms, strict=True)):
        total, squares, count = reduced[3 * number : 3 * number + 3]
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0).to(x.dtype)
        mean, count = mean.to(x.dtype), count.to(x.dtype)
        factor = norm.weight * (variance + norm.eps).rsqrt()
        outputs.append(torch.addcmul(norm.bias - mean * factor, x, factor).movedim(-1, 1))
        track(norm, mean.detach(), variance.detach(), count)
    return outputs


@torch.no_grad()
def track(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor | int) -> None:
    """Moves the running statistics towards the mean and biased variance of `count` tokens, as BatchNorm does."""
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)

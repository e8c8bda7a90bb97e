"""A binary unit in training as a single step of automatic differentiation.

Composed of its modules, a unit spends most of its time moving memory: every shift, sign, norm and activation reads and
writes a tensor as large as the layer's output, and keeps one for the backward pass. This step keeps its input and its
integer product only, and recomputes the rest. The results are those of the modules, to rounding.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from binaryvit.models.ops.precision import is_exact, product_dtype, without_autocast
from binaryvit.models.ops.products import int8_sign, sign_product
from binaryvit.models.quantizers import centre_rows, weight_scale


class UnitParameters(NamedTuple):
    """The parameters of a binary unit from K to O channels, one of the two a multiple of the other.

    Attributes:
        shift: b of the activation's sign, (K,).
        weight: the latent weight, (O, K).
        gamma, beta: of the batch norm, (O,).
        shift_in, slope, shift_out: of the RPReLU, (O,).
    """

    shift: Tensor
    weight: Tensor
    gamma: Tensor
    beta: Tensor
    shift_in: Tensor
    slope: Tensor
    shift_out: Tensor


class UnitOutput(NamedTuple):
    """The output (T, O) of a unit, and the batch's mean and biased variance before its norm (O,), without gradients."""

    y: Tensor
    mean: Tensor
    variance: Tensor


def _add_shortcut(y: Tensor, x: Tensor) -> Tensor:
    """Adds x (T, K) to y (T, O) in place, as `layers.add_shortcut` does."""
    width, channels = x.shape[1], y.shape[1]
    if channels >= width:
        y.unflatten(1, (-1, width)).add_(x.unsqueeze(1))
    else:
        y.add_(x.unflatten(1, (channels, -1)).mean(2))
    return y


def _add_shortcut_gradient(gradient: Tensor, of_output: Tensor) -> Tensor:
    """Adds to the gradient of x (T, K), in place, what flows through the shortcut from that of the output (T, O)."""
    width, channels = gradient.shape[1], of_output.shape[1]
    if channels >= width:
        gradient.add_(of_output.unflatten(1, (-1, width)).sum(1))
    else:
        gradient.unflatten(1, (channels, -1)).add_((of_output * (channels / width)).unsqueeze(2))
    return gradient


class _BinaryUnit(Function):
    """RPReLU(BN(s * sign(x + b) @ sign(W - mean W).T) + shortcut(x)) with the batch's statistics.

    With p the integer product, the normalized value is (s p - mean) / sqrt(var + eps); the gradients are those that
    `quantizers` states for the signs, and the usual ones of batch norm and PReLU.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float, dtype: torch.dtype, *parameters: Tensor) -> UnitOutput:
        p = UnitParameters(*parameters)
        scale = weight_scale(p.weight).flatten()
        product = sign_product(int8_sign(x + p.shift), int8_sign(centre_rows(p.weight)))
        scaled = product * scale
        mean = scaled.mean(0)
        centred = scaled.sub_(mean)
        variance = centred.square().mean(0)
        inverse_deviation = (variance + eps).rsqrt()
        normalized = centred.mul_(inverse_deviation * p.gamma).add_(p.beta - p.shift_in)
        z = _add_shortcut(normalized, x)
        kept = torch.float16 if is_exact(torch.float16, p.weight.shape[1]) else torch.float32
        ctx.save_for_backward(x, product.to(kept), mean, inverse_deviation, *parameters)
        ctx.dtype = dtype
        ctx.mark_non_differentiable(mean, variance)
        return torch._prelu_kernel(z, p.slope).add_(p.shift_out), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _mean: Tensor, _variance: Tensor) -> tuple[Tensor | None, ...]:
        x, product, mean, inverse_deviation, *parameters = ctx.saved_tensors
        p, dtype, tokens = UnitParameters(*parameters), ctx.dtype, len(x)
        scale = weight_scale(p.weight).flatten()
        factor = p.gamma * inverse_deviation

        # Through RPReLU: the gradient is split into what comes from z > 0 and the rest.
        centred = product * scale - mean
        z = _add_shortcut((centred * factor).add_(p.beta - p.shift_in), x)
        from_positive = torch.ops.aten.threshold_backward(gradient, z, 0)
        from_rest = gradient - from_positive
        of_slope = z.mul_(from_rest).sum(0)
        of_z = from_positive.addcmul_(from_rest, p.slope)

        # Through batch norm.
        of_beta = of_z.sum(0)
        of_gamma = (of_z * centred).sum(0) * inverse_deviation
        through_variance = centred.mul_(-factor * inverse_deviation * of_gamma / tokens)
        of_product = through_variance.addcmul_(of_z, factor).sub_(factor * of_beta / tokens).to(dtype)

        # Through the product, with s * sign(W) as it is multiplied, to both signs' straight-through estimators.
        u, centred_weight = x + p.shift, centre_rows(p.weight)
        of_weight = (of_product.t() @ int8_sign(u).to(dtype)).to(x.dtype) * (centred_weight.abs() < 1)
        of_signs = of_product @ (scale.unsqueeze(1) * int8_sign(centred_weight)).to(dtype)
        of_u = of_signs * u.abs_().mul_(-2).add_(2).clamp_(min=0)
        of_shift = of_u.sum(0)
        of_parameters = UnitParameters(
            of_shift, centre_rows(of_weight), of_gamma, of_beta, -of_beta, of_slope, gradient.sum(0)
        )
        return _add_shortcut_gradient(of_u, of_z), None, None, *of_parameters


def binary_unit(x: Tensor, parameters: UnitParameters, eps: float) -> UnitOutput:
    """A binary unit (`layers.BinaryUnit`) in training, as one step.

    Under autocast the products of the backward pass run in its type; the forward product is exact in any case.

    Args:
        x: (T, K), float32 or float64.
        parameters: of the unit.
        eps: of its batch norm.
    """
    dtype = product_dtype(x)
    with without_autocast(x):
        return UnitOutput(*_BinaryUnit.apply(x, eps, dtype, *parameters))

"""The binary unit and the pooling branches as single steps of automatic differentiation.

Composed of their modules, both spend most of their time moving memory: every shift, sign, norm and activation reads and
writes a tensor as large as the layer's output, and keeps one for the backward pass. Here a step keeps its input and its
binary product only, and recomputes the rest. The results are those of the modules, to rounding.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from binaryvit.models.quantizers import centre_rows, weight_scale

# Integers up to this magnitude are exact in float16; a product of K signs is at most K.
_EXACT_IN_FLOAT16 = 2048


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which products of x run here: autocast's where it is on, else that of x."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which products of x run in its own type."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def sign_product(x: Tensor, weight: Tensor) -> Tensor:
    """The exact integers x @ weight.T of signs x (T, K) and weight (O, K), both int8 in {-1, +1}.

    On a CPU an int8 product (int32 result), elsewhere a float16 one, which tensor cores compute and which is exact as
    long as K is at most 2048, else a float32 one.
    """
    if x.device.type == "cpu" and weight.shape[1] > 1:  # with one term it returns memory it never wrote
        return torch._int_mm(x, weight.t())
    dtype = _exact_float(weight.shape[1])
    return F.linear(x.to(dtype), weight.to(dtype))


def _exact_float(terms: int) -> torch.dtype:
    """The smallest float type that holds every sum of so many signs."""
    return torch.float16 if terms <= _EXACT_IN_FLOAT16 else torch.float32


def int8_sign(x: Tensor) -> Tensor:
    """The sign of x as int8, with sign(0) = +1."""
    return (x >= 0).to(torch.int8).mul_(2).sub_(1)


def _add_shortcut(y: Tensor, x: Tensor) -> Tensor:
    """Adds x (T, K) to y (T, O) in place, as `layers.match_channels` brings it to O channels."""
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


class _SignLinear(Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        signs = x.to(torch.int8)
        ctx.save_for_backward(signs, weight)
        product = sign_product(signs.flatten(0, -2), int8_sign(weight)) * weight[:, 0].abs()
        return product.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        signs, weight = ctx.saved_tensors
        of_weight = gradient.flatten(0, -2).t() @ signs.flatten(0, -2).to(gradient.dtype)
        return gradient @ weight, of_weight


def sign_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear(x, weight) for signs x (..., K) and a binary weight (O, K) whose rows are +-s: s times exact integers.

    Keeps the signs as int8 for the backward pass. What is not +1 or -1 in x is cut to an integer.
    """
    return _SignLinear.apply(x, weight)


class _BinaryUnit(Function):
    """RPReLU(BN(s * sign(x + b) @ sign(W - mean W).T) + shortcut(x)) with the batch's statistics.

    With p the integer product, the normalized value is (s p - mean) / sqrt(var + eps); the gradients are those that
    `quantizers` states for the signs, and the usual ones of batch norm and PReLU.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, shift: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, shift_in: Tensor, slope: Tensor,
        shift_out: Tensor, eps: float, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        scale = weight_scale(weight).flatten()
        product = sign_product(int8_sign(x + shift), int8_sign(centre_rows(weight)))
        z = product * scale
        product = product.to(_exact_float(weight.shape[1]))
        mean = z.sum(0) / len(z)
        variance = torch.linalg.vector_norm(z.sub_(mean), dim=0).square() / len(z)
        inverse_deviation = (variance + eps).rsqrt()
        bias = beta - shift_in
        z = _add_shortcut(z.mul_(inverse_deviation * gamma).add_(bias), x)
        ctx.save_for_backward(x, shift, weight, product, mean, inverse_deviation, gamma, bias, slope)
        ctx.dtype = dtype
        ctx.mark_non_differentiable(mean, variance)
        return torch._prelu_kernel(z, slope).add_(shift_out), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _mean: Tensor, _variance: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, weight, product, mean, inverse_deviation, gamma, bias, slope = ctx.saved_tensors
        tokens, dtype = len(x), ctx.dtype
        scale = weight_scale(weight).flatten()
        centred_weight = centre_rows(weight)

        # Through RPReLU: the part of the gradient where z > 0, and the rest.
        centred = (product * scale).sub_(mean)
        z = _add_shortcut(torch.mul(centred, inverse_deviation * gamma).add_(bias), x)
        of_z = torch.ops.aten.threshold_backward(gradient, z, 0)
        rest = gradient - of_z
        of_shift_out = gradient.sum(0)
        of_slope = z.mul_(rest).sum(0)
        of_z = of_z.addcmul_(rest, slope)
        del z

        # Through batch norm.
        of_beta = of_z.sum(0)
        of_gamma = torch.mul(of_z, centred, out=rest).sum(0) * inverse_deviation
        factor = gamma * inverse_deviation
        of_output = centred.mul_(-factor * inverse_deviation * of_gamma / tokens).addcmul_(of_z, factor)
        of_output = of_output.sub_(factor * of_beta / tokens).to(dtype)

        # Through the product, with s * sign(W) as it is multiplied, to both signs' straight-through estimators.
        u = x + shift
        of_weight = (of_output.t() @ int8_sign(u).to(dtype)).to(x.dtype)
        of_x = of_output @ (scale.unsqueeze(1) * int8_sign(centred_weight)).to(dtype)
        of_x = of_x * u.abs_().mul_(-2).add_(2).clamp_(min=0)
        of_shift = of_x.sum(0)
        of_x = _add_shortcut_gradient(of_x, of_z)
        of_weight = centre_rows(of_weight * (centred_weight.abs() < 1))
        return of_x, of_shift, of_weight, of_gamma, of_beta, -of_beta, of_slope, of_shift_out, None, None


def binary_unit(
    x: Tensor, shift: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, shift_in: Tensor, slope: Tensor,
    shift_out: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A binary unit (`layers.BinaryUnit`) in training, as one step.

    Under autocast the products of the backward pass run in its type; the forward product is exact in any case.

    Args:
        x: (T, K), float32 or float64.
        shift: b of the activation's sign, (K,).
        weight: the latent weight, (O, K), one of O and K a multiple of the other.
        gamma, beta, eps: of the batch norm, (O,).
        shift_in, slope, shift_out: of the RPReLU, (O,).

    Returns:
        The output (T, O), and the batch's mean and (biased) variance before the norm, (O,), without gradients.
    """
    dtype = product_dtype(x)
    with without_autocast(x):
        return _BinaryUnit.apply(x, shift, weight, gamma, beta, shift_in, slope, shift_out, eps, dtype)


# The places (row, column) of a 5x5 kernel that a cross of one row and one column covers.
CROSS = tuple((2, column) for column in range(5)) + tuple((row, 2) for row in (0, 1, 3, 4))


def _cross_kernel(taps: Tensor) -> Tensor:
    """Taps (9, C) in the order of CROSS to a depthwise kernel (C, 1, 5, 5)."""
    kernel = taps.new_zeros(5, 5, taps.shape[1])
    rows, columns = (torch.tensor(places, device=taps.device) for places in zip(*CROSS, strict=True))
    return kernel.index_put((rows, columns), taps).permute(2, 0, 1).unsqueeze(1)


class _CrossConvolution(Function):
    @staticmethod
    def forward(ctx, grid: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(grid, taps)
        return F.conv2d(grid, _cross_kernel(taps), bias, padding=2, groups=grid.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grid, taps = ctx.saved_tensors
        # The transposed convolution turns the kernel around.
        of_grid = F.conv2d(gradient, _cross_kernel(taps).flip(2, 3), padding=2, groups=grid.shape[1])
        # In channels-last order, as tokens lie in memory.
        padded, g = F.pad(grid, (2, 2, 2, 2)).permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
        height, width = g.shape[1:3]
        of_taps = [(g * padded[:, i : i + height, j : j + width]).sum((0, 1, 2)) for i, j in CROSS]
        return of_grid, torch.stack(of_taps), g.sum((0, 1, 2))


def cross_convolution(grid: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """A depthwise 5x5 convolution with zero padding whose kernel is a cross, with a backward pass that knows it.

    In the type of its input, also under autocast.

    The general backward pass of a depthwise convolution computes all 25 places of the kernel's gradient, at several
    times the cost.

    Args:
        grid: (B, C, H, W), best in channels-last memory.
        taps: (9, C), the kernel at the places of `CROSS`.
        bias: (C,).
    """
    with without_autocast(grid):
        return _CrossConvolution.apply(grid, taps, bias)

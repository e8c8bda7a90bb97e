"""The binary unit of `fused` on a CPU in float32, its elementwise passes in C++ (unit.cpp).

Also within compiled code, where it is one opaque operation: Inductor's own loops take columns of sums through all
tokens, several times the memory traffic of the passes here.
"""

from pathlib import Path

import torch
from torch import Tensor

from binaryvit.fused import int8_sign, product_dtype, sign_product, without_autocast
from binaryvit.native.build import call, load
from binaryvit.quantizers import centre_rows

_SOURCE = Path(__file__).with_name("unit.cpp")
_BLOCK = 64  # tokens per partial sum, as in unit.cpp
# Squares of this many products, up to K each, fit an int32; so does a product an int16.
_MOST_INPUTS = 4096
_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@torch.compiler.assume_constant_result
def _is_available() -> bool:
    return load(_SOURCE) is not None


def fits(x: Tensor) -> bool:
    """Whether `binary_unit` can be used for x (..., K), with the products of the backward pass in autocast's type."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[-1] <= _MOST_INPUTS
        and product_dtype(x) in _SUFFIXES
        and _is_available()
    )


def binary_unit(
    x: Tensor, shift: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, shift_in: Tensor, slope: Tensor,
    shift_out: Tensor, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`fused.binary_unit`, for what `fits`. Keeps x and the products as int16 for the backward pass."""
    dtype = product_dtype(x)
    with without_autocast(x):
        output, _, mean, variance = _unit(x, shift, weight, gamma, beta, shift_in, slope, shift_out, eps, dtype)
    return output, mean, variance


@torch.library.custom_op("binaryvit::unit", mutates_args=())
def _unit(
    x: Tensor, shift: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, shift_in: Tensor, slope: Tensor,
    shift_out: Tensor, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (T, O), int16 products (T, O), mean and biased variance before the norm (O,)."""
    x, library = x.contiguous(), load(_SOURCE)
    tokens, inputs, outputs = *x.shape, len(weight)
    signs = torch.empty_like(x, dtype=torch.int8)
    call(library.signs_int8, x, shift, signs, tokens, inputs)
    wide = sign_product(signs, int8_sign(centre_rows(weight))).int()  # already so, but for a single input
    product = torch.empty_like(wide, dtype=torch.int16)
    sums = torch.empty(2, _blocks(tokens), outputs, dtype=torch.int32)
    call(library.keep_product, wide, product, sums, tokens, outputs)
    del wide
    of_products, of_squares = sums.sum(1, dtype=torch.int64).double() / tokens
    scale = weight.abs().mean(1)
    mean = (scale * of_products).float()
    variance = (scale.square() * (of_squares - of_products.square())).float()
    factor, offset, _ = _coefficients(scale, mean, variance, gamma, beta, shift_in, eps)
    output = torch.empty(tokens, outputs)
    call(library.output, product, x, factor, offset, slope, shift_out, output, tokens, inputs, outputs)
    return output, product, mean, variance


def _blocks(tokens: int) -> int:
    return -(-tokens // _BLOCK)


def _coefficients(
    scale: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, shift_in: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What a channel's product is multiplied with, what is added to it, and the inverse of its standard deviation."""
    inverse_deviation = (variance + eps).rsqrt()
    factor = gamma * inverse_deviation
    return factor * scale, beta - shift_in - factor * mean, inverse_deviation


@_unit.register_fake
def _(x, shift, weight, gamma, beta, shift_in, slope, shift_out, eps, dtype):
    output = x.new_empty(len(x), len(weight))
    return output, torch.empty_like(output, dtype=torch.int16), torch.empty_like(gamma), torch.empty_like(gamma)


def _keep(ctx, inputs, output) -> None:
    x, shift, weight, gamma, beta, shift_in, slope, _shift_out, ctx.eps, ctx.dtype = inputs
    _, product, mean, variance = output
    ctx.save_for_backward(x, shift, weight, gamma, beta, shift_in, slope, product, mean, variance)
    ctx.mark_non_differentiable(product, mean, variance)
    ctx.set_materialize_grads(False)


def _backward(ctx, gradient: Tensor, *_unused: None) -> tuple[Tensor | None, ...]:
    return *_unit_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.dtype), None, None


@torch.library.custom_op("binaryvit::unit_backward", mutates_args=())
def _unit_backward(
    gradient: Tensor, x: Tensor, shift: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, shift_in: Tensor,
    slope: Tensor, product: Tensor, mean: Tensor, variance: Tensor, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of `_unit`'s tensors, in their order."""
    gradient, x, library, suffix = gradient.contiguous(), x.contiguous(), load(_SOURCE), _SUFFIXES[dtype]
    tokens, inputs, outputs = *x.shape, len(weight)
    scale = weight.abs().mean(1)
    centred_weight = centre_rows(weight)
    factor, offset, inverse_deviation = _coefficients(scale, mean, variance, gamma, beta, shift_in, eps)

    # Through RPReLU and batch norm.
    sums = torch.empty(4, _blocks(tokens), outputs)
    sizes = (tokens, inputs, outputs)
    call(library.gradient_sums, gradient, product, x, factor, offset, slope, sums, *sizes)
    above, below, of_slope, times_product = sums.sum(1, dtype=torch.float64)
    of_beta = above + slope * below
    of_gamma = inverse_deviation * (scale * times_product - mean * of_beta)
    a = gamma * inverse_deviation
    b = -factor * inverse_deviation * of_gamma / tokens
    c = a * (mean * inverse_deviation * of_gamma - of_beta) / tokens
    of_product, of_x = torch.empty(tokens, outputs, dtype=dtype), torch.empty_like(x)
    channels = [channel.float() for channel in (factor, offset, slope, a, b, c)]
    call(library[f"product_gradient_{suffix}"], gradient, product, x, *channels, of_product, of_x, *sizes)

    # Through the product, with s * sign(W) as it is multiplied, to both signs' straight-through estimators.
    signs = torch.empty_like(x, dtype=dtype)
    call(library[f"signs_{suffix}"], x, shift, signs, tokens, inputs)
    of_weight = (of_product.t() @ signs).float() * (centred_weight.abs() < 1)
    of_signs = torch.mm(of_product, (scale.unsqueeze(1) * int8_sign(centred_weight)).to(dtype), out=signs)
    sums = torch.empty(_blocks(tokens), inputs)
    call(library[f"input_gradient_{suffix}"], of_signs, x, shift, of_x, sums, tokens, inputs)
    of_parameters = (of_gamma, of_beta, -of_beta, of_slope, above + below)
    return (
        of_x, sums.sum(0, dtype=torch.float64).float(), centre_rows(of_weight),
        *(of_parameter.float() for of_parameter in of_parameters),
    )  # fmt: skip


@_unit_backward.register_fake
def _(gradient, x, shift, weight, gamma, beta, shift_in, slope, product, mean, variance, eps, dtype):
    of_parameters = (torch.empty_like(gamma) for _ in range(5))
    return torch.empty_like(x), torch.empty_like(shift), torch.empty_like(weight), *of_parameters


_unit.register_autograd(_backward, setup_context=_keep)

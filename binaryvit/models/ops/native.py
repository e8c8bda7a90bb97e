"""The binary unit of `reference` on a CPU in float32, its elementwise passes in C++ (unit.cpp).

Also within compiled code, where it is one opaque operation: Inductor's own loops take columns of sums through all
tokens, several times the memory traffic of the passes here.
"""

from pathlib import Path

import torch
from torch import Tensor

from binaryvit.models.ops.compiler import call, compiler_of, load
from binaryvit.models.ops.precision import product_dtype
from binaryvit.models.ops.products import int8_sign, sign_product
from binaryvit.models.ops.reference import UnitOutput, UnitParameters
from binaryvit.models.quantizers import centre_rows, weight_scale

_SOURCE = Path(__file__).with_name("unit.cpp")
# The sums of squares in unit.cpp fit an int32: 64 * 4096 ** 2 < 2 ** 31; and a product an int16.
_MOST_INPUTS = 4096
_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@torch.compiler.assume_constant_result
def _is_available() -> bool:
    return load(_SOURCE) is not None


def compiled_by() -> str | None:
    """The compiler of the C++ steps, by its own words; None where they can't be used."""
    return compiler_of(_SOURCE)


def fits(x: Tensor, parameters: UnitParameters) -> bool:
    """Whether `binary_unit` can be used: x (..., K) and the parameters are float32 on the CPU, the parameters
    contiguous, K is at most 4096, autocast asks for bfloat16 or nothing, and there is a compiler.
    """
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in (x, *parameters))
        and all(parameter.is_contiguous() for parameter in parameters)
        and x.shape[-1] <= _MOST_INPUTS
        and product_dtype(x) in _SUFFIXES
        and _is_available()
    )


def binary_unit(x: Tensor, parameters: UnitParameters, eps: float) -> UnitOutput:
    """`reference.binary_unit`, for what `fits`. Keeps x and the products as int16 for the backward pass."""
    y, _, channels = _unit(x, *parameters, eps, product_dtype(x))
    _, mean, variance, *_ = channels.detach()
    return UnitOutput(y, mean, variance)


@torch.library.custom_op("binaryvit::unit", mutates_args=(), device_types="cpu")
def _unit(
    x: Tensor, shift: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, shift_in: Tensor, slope: Tensor,
    shift_out: Tensor, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output (T, O), int16 products (T, O), and what the norm amounts to in each channel (`Channels` in unit.cpp).

    `dtype` is that of the products in the backward pass, kept for it; this pass multiplies int8.
    """
    x, library = x.contiguous(), load(_SOURCE)
    tokens, inputs, outputs = *x.shape, len(weight)
    signs = torch.empty_like(x, dtype=torch.int8)
    call(library.signs_int8, x, shift, signs, tokens, inputs)
    wide = sign_product(signs, int8_sign(centre_rows(weight))).int()  # already so where int8 products are fast
    product = torch.empty_like(wide, dtype=torch.int16)
    channels = x.new_empty(5, outputs)
    channels[0] = weight_scale(weight).flatten()
    call(library.keep_and_normalize, wide, gamma, beta, shift_in, eps, product, channels, tokens, outputs)
    del wide
    output = x.new_empty(tokens, outputs)
    call(library.activate, product, x, channels, slope, shift_out, output, tokens, inputs, outputs)
    return output, product, channels


@_unit.register_fake
def _(x, shift, weight, gamma, beta, shift_in, slope, shift_out, eps, dtype):
    tokens, outputs = x.shape[0], weight.shape[0]
    return (
        x.new_empty(tokens, outputs), x.new_empty(tokens, outputs, dtype=torch.int16), x.new_empty(5, outputs),
    )  # fmt: skip


def _keep(ctx, inputs, output) -> None:
    x, shift, weight, gamma, _beta, _shift_in, slope, _shift_out, ctx.eps, ctx.dtype = inputs
    _, product, channels = output
    ctx.save_for_backward(x, shift, weight, gamma, slope, product, channels)
    ctx.mark_non_differentiable(product, channels)


def _backward(ctx, gradient: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    *of_inputs, of_channels = _unit_backward(gradient, *ctx.saved_tensors, ctx.eps, ctx.dtype)
    return *of_inputs, *of_channels, None, None


@torch.library.custom_op("binaryvit::unit_backward", mutates_args=(), device_types="cpu")
def _unit_backward(
    gradient: Tensor, x: Tensor, shift: Tensor, weight: Tensor, gamma: Tensor, slope: Tensor, product: Tensor,
    channels: Tensor, eps: float, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, shift, weight, and together (5, O) of gamma, beta, shift_in, slope and shift_out."""
    gradient, x, library, suffix = gradient.contiguous(), x.contiguous(), load(_SOURCE), _SUFFIXES[dtype]
    tokens, inputs, outputs = sizes = *x.shape, len(weight)

    # Through RPReLU and batch norm.
    of_channels, weights = x.new_empty(5, outputs), x.new_empty(3, outputs)
    given = (gradient, product, x, channels)
    call(library.channel_gradients, *given, gamma, slope, eps, of_channels, weights, *sizes)
    of_product, of_x = x.new_empty(tokens, outputs, dtype=dtype), torch.empty_like(x)
    call(library[f"product_gradient_{suffix}"], *given, slope, weights, of_product, of_x, *sizes)

    # Through the product, with s * sign(W) as it is multiplied, to both signs' straight-through estimators.
    centred_weight = centre_rows(weight)
    binary_weight = int8_sign(centred_weight) * channels[0].unsqueeze(1)
    signs = torch.empty_like(x, dtype=dtype)
    call(library[f"signs_{suffix}"], x, shift, signs, tokens, inputs)
    of_weight = centre_rows((of_product.t() @ signs).float() * (centred_weight.abs() < 1))
    of_signs = torch.mm(of_product, binary_weight.to(dtype), out=signs)
    of_shift = torch.empty_like(shift)
    call(library[f"input_gradient_{suffix}"], of_signs, x, shift, of_x, of_shift, tokens, inputs)
    return of_x, of_shift, of_weight, of_channels


@_unit_backward.register_fake
def _(gradient, x, shift, weight, gamma, slope, product, channels, eps, dtype):
    return (
        x.new_empty(x.shape),
        shift.new_empty(shift.shape),
        weight.new_empty(weight.shape),
        torch.empty_like(channels),
    )


_unit.register_autograd(_backward, setup_context=_keep)

"""Products of two binary factors: exact integers in every precision, scaled afterwards.

Under autocast the products of their backward passes, which have a real factor, run in its type.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from binaryvit.models.ops.precision import exact_dtype, is_exact, product_dtype, without_autocast

# Without AVX-512, PyTorch's int8 product on a CPU is a plain loop, thirty times slower than float32.
_HAS_FAST_INT8 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def int8_sign(x: Tensor) -> Tensor:
    """The sign of x as int8, with sign(0) = +1."""
    return (x >= 0).to(torch.int8).mul_(2).sub_(1)


def sign_product(x: Tensor, weight: Tensor) -> Tensor:
    """The exact integers x @ weight.T of signs x (T, K) and weight (O, K), both int8 in {-1, +1}.

    On a CPU an int8 product with an int32 result where that is fast, else float32. On a GPU float16, which tensor cores
    of every generation multiply and which is exact up to K = 2048, else float32: int8 products of PyTorch ask for
    shapes that the heads do not have.
    """
    terms, on_cpu = weight.shape[1], x.device.type == "cpu"
    if on_cpu and _HAS_FAST_INT8 and terms > 1:  # with one term it returns memory it never wrote
        return torch._int_mm(x, weight.t())
    dtype = torch.float16 if is_exact(torch.float16, terms) and not on_cpu else torch.float32
    with without_autocast(x):  # which would round it
        return F.linear(x.to(dtype), weight.to(dtype))


class _SignLinear(Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        signs = x.to(torch.int8)
        ctx.save_for_backward(signs, weight)
        ctx.dtype = dtype
        product = sign_product(signs.reshape(-1, weight.shape[1]), int8_sign(weight)) * weight[:, 0].abs()
        return product.reshape(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        signs, weight = ctx.saved_tensors
        of_output = gradient.to(ctx.dtype)
        outputs, inputs = weight.shape
        of_weight = of_output.reshape(-1, outputs).t() @ signs.reshape(-1, inputs).to(ctx.dtype)
        of_x = of_output @ weight.to(ctx.dtype)
        return of_x.to(gradient.dtype), of_weight.to(weight.dtype), None


def sign_linear(x: Tensor, weight: Tensor) -> Tensor:
    """F.linear(x, weight) for signs x (..., K) and a binary weight (O, K) whose rows are +-s: s times exact integers.

    Keeps the signs as int8 for the backward pass. What is not +1 or -1 in x is cut to an integer.
    """
    dtype = product_dtype(x)
    with without_autocast(x):
        return _SignLinear.apply(x, weight, dtype)


def sign_matmul(x: Tensor, y: Tensor) -> Tensor:
    """x @ y for signs x (..., N, K) and y (..., K, M), exact, in the type of x."""
    dtype = exact_dtype(x, x.shape[-1])
    with without_autocast(x):
        return (x.to(dtype) @ y.to(dtype)).to(x.dtype)


class _LevelMatmul(Function):
    @staticmethod
    def forward(ctx, x: Tensor, level: Tensor, y: Tensor, exact: torch.dtype, dtype: torch.dtype) -> Tensor:
        is_on = x != 0
        ctx.save_for_backward(is_on, level, y.to(torch.int8))
        ctx.dtype = dtype
        return (is_on.to(exact) @ y.to(exact)).to(x.dtype) * level

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        is_on, level, y = ctx.saved_tensors
        of_product = gradient.to(ctx.dtype)
        of_x = of_product @ y.to(ctx.dtype).transpose(-2, -1)
        of_y = (is_on.to(ctx.dtype).transpose(-2, -1) @ of_product).to(gradient.dtype) * level
        return of_x.to(gradient.dtype), None, of_y, None, None


def level_matmul(x: Tensor, level: Tensor, y: Tensor) -> Tensor:
    """x @ y for x (..., N, K) in {0, level} and signs y (..., K, M): the level times exact integers.

    The gradient of the level is that of x, whose elements it is: `level` itself gets none here.
    """
    exact, dtype = exact_dtype(y, y.shape[-2]), product_dtype(y)
    with without_autocast(y):
        return _LevelMatmul.apply(x, level.detach(), y, exact, dtype)

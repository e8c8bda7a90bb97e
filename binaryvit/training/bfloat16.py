"""Products of bfloat16 tensors on a CPU where PyTorch has only plain loops for them: in float32, ten times faster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import DispatchKeySet, Tensor
from torch.library import Library, get_kernel
from torch.utils._pytree import tree_leaves, tree_map

_MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_CONVOLUTIONS = ("convolution", "convolution_backward")
# Compiled code brings the memory for the result of a matrix product.
_OVERLOADS = (*_MATRIX_PRODUCTS, *_CONVOLUTIONS, *(f"{name}.out" for name in _MATRIX_PRODUCTS))
_overriding: list[Library] = []  # what each entered context overrides, for as long as it is in here


def multiplies_bfloat16() -> bool:
    """Whether PyTorch has fast products of bfloat16 tensors for this CPU."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def multiplies_in_float32() -> bool:
    """Whether products of bfloat16 tensors are now computed in float32."""
    return bool(_overriding)


@contextmanager
def bfloat16_products_in_float32() -> Iterator[None]:
    """Within it, PyTorch computes products of bfloat16 tensors on the CPU in float32, and rounds them once.

    CPUs with instructions for bfloat16 do nearly the same: factors of bfloat16, sums in float32, a result of bfloat16.
    Matrix products and convolutions are covered, fused attention is not. Other types are computed as before.
    """
    overrides = {overload: _in_float32(overload) for overload in _OVERLOADS}
    _overriding.append(Library("aten", "IMPL"))
    try:
        for overload, override in overrides.items():
            _overriding[-1].impl(overload, override, "CPU", with_keyset=True)
        yield
    finally:
        _overriding.pop()


def _in_float32(overload: str) -> Callable[..., Any]:
    original, product = (get_kernel(f"aten::{name}", "CPU") for name in (overload, overload.removesuffix(".out")))

    def override(keys: DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        types = {value.dtype for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        if types != {torch.bfloat16}:
            return original.call_boxed(keys, *args, **kwargs)
        out = kwargs.pop("out", None)
        result = tree_map(_narrow, product.call_boxed(keys, *tree_map(_widen, args), **kwargs))
        return result if out is None else out.resize_(result.shape).copy_(result)

    return override


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _narrow(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value

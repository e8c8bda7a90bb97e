"""Products of bfloat16 tensors on a CPU without instructions for them: in float32, ten times faster than PyTorch's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import DispatchKeySet, Tensor
from torch.library import Library, get_kernel
from torch.utils._pytree import tree_map

_MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_CONVOLUTIONS = ("convolution", "convolution_backward")


def multiplies_bfloat16() -> bool:
    """Whether PyTorch has fast products of bfloat16 tensors for this CPU."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def bfloat16_products_in_float32() -> Iterator[None]:
    """Within it, PyTorch computes products of bfloat16 tensors on the CPU in float32, and rounds them once.

    CPUs with instructions for bfloat16 do the same: factors of bfloat16, sums in float32, a result of bfloat16. Only
    the order of the sums differs. Products of other types are computed as before.
    """
    library = Library("aten", "IMPL")
    for name in _MATRIX_PRODUCTS + _CONVOLUTIONS:
        library.impl(name, _in_float32(name), "CPU", with_keyset=True)
    for name in _MATRIX_PRODUCTS:  # compiled code brings the memory for the result
        library.impl(f"{name}.out", _in_float32_into(name), "CPU", with_keyset=True)
    try:
        yield
    finally:
        del library  # and with it what it overrides


def _in_float32(name: str) -> Callable[..., Any]:
    product = get_kernel(f"aten::{name}", "CPU")

    def overriding(keys: DispatchKeySet, *args: Any, **kwargs: Any) -> Any:
        if args[0].dtype != torch.bfloat16:
            return product.call_boxed(keys, *args, **kwargs)
        return tree_map(_narrow, product.call_boxed(keys, *tree_map(_widen, args), **kwargs))

    return overriding


def _in_float32_into(name: str) -> Callable[..., Tensor]:
    product, product_into = get_kernel(f"aten::{name}", "CPU"), get_kernel(f"aten::{name}.out", "CPU")

    def overriding(keys: DispatchKeySet, *args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        if args[0].dtype != torch.bfloat16:
            return product_into.call_boxed(keys, *args, out=out, **kwargs)
        return out.copy_(product.call_boxed(keys, *tree_map(_widen, args), **kwargs))

    return overriding


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _narrow(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value

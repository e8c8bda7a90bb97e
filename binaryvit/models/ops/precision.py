"""The types in which products run, and which of them hold a product of signs exactly.

A sum of K signs is an integer of magnitude at most K. bfloat16 holds every integer up to 256, float16 up to 2,048,
float32 up to 2^24, and so does TF32, whose factors +-1 are exact and whose sums are float32. As every partial sum is
such an integer too, neither the order of a sum nor the accumulator's width changes it.

Under autocast, half precision rounds what has a real factor, and only this: the backward products of what is binary,
the full-precision merges of the "some-fp" variant, products with 32-bit weights or activations, and the teacher.
Products of two binary factors are computed as without autocast, and so are the stem, the pooling branches and the
classifier in both directions. So the logits of a model with 1-bit weights and activations do not depend on it.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

# The number of signs whose sum each type holds exactly.
_EXACT_TERMS = {torch.bfloat16: 2**8, torch.float16: 2**11}


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


def is_exact(dtype: torch.dtype, terms: int) -> bool:
    """Whether `dtype` holds every sum of that many signs."""
    return terms <= _EXACT_TERMS.get(dtype, 2**24)


def exact_dtype(x: Tensor, terms: int) -> torch.dtype:
    """The type for products of signs x with that many terms: autocast's if it is exact, else that of x."""
    dtype = product_dtype(x)
    return dtype if is_exact(dtype, terms) else x.dtype

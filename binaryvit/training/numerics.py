"""The numerical shortcuts that PyTorch's libraries may take: chosen here, and recorded with each run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from binaryvit.training.bfloat16 import bfloat16_products_in_float32, multiplies_bfloat16, multiplies_in_float32

# Where each setting lives, its name in the record, and the value that every run is trained with.
#
# float32 means float32: TensorFloat-32 keeps 10 of a factor's 23 bits, which in the stem alone would flip signs.
# Sums of half-precision products end in float32: cut short on the way, those with a real factor would be rounded.
# cuDNN computes little here (the stem), so it always takes the same algorithm rather than the fastest.
_SETTINGS: tuple[tuple[Any, str, str, bool], ...] = (
    (torch.backends.cuda.matmul, "allow_tf32", "cuda_matmul_tf32", False),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", "cuda_matmul_short_float16_sums", False),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", "cuda_matmul_short_bfloat16_sums", False),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation", "cuda_matmul_float16_accumulation", False),
    (torch.backends.cudnn, "allow_tf32", "cudnn_tf32", False),
    (torch.backends.cudnn, "benchmark", "cudnn_benchmark", False),
    (torch.backends.cudnn, "deterministic", "cudnn_deterministic", True),
)


# The precision of float32 can be set through two interfaces. After the newer one (`fp32_precision`) was used, PyTorch
# may refuse to read the older one, and what the older one leaves open follows the newer. So all is set and given back
# through both.
_FLOAT32 = (
    torch.backends.cuda.matmul,
    torch.backends.cudnn.conv,
    torch.backends.cudnn.rnn,
    torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
    torch.backends.mkldnn.rnn,
)


@contextmanager
def chosen_numerics() -> Iterator[None]:
    """Sets PyTorch to the numerics of every training, and restores what was set before."""
    before = [_read(lambda of=setting: getattr(of[0], of[1])) for setting in _SETTINGS]
    matmul = _read(torch.get_float32_matmul_precision)
    precisions = [owner.fp32_precision for owner in _FLOAT32]
    try:
        torch.set_float32_matmul_precision("highest")
        for owner, attribute, _, value in _SETTINGS:
            setattr(owner, attribute, value)
        for owner in _FLOAT32:
            owner.fp32_precision = "ieee"
        with nullcontext() if multiplies_bfloat16() else bfloat16_products_in_float32():
            yield
    finally:
        for (owner, attribute, _, _), value in zip(_SETTINGS, before, strict=True):
            if value is not None:
                setattr(owner, attribute, value)
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for owner, precision in zip(_FLOAT32, precisions, strict=True):
            owner.fp32_precision = "none"  # as its parent
            if owner.fp32_precision != precision:
                owner.fp32_precision = precision


def _read(setting: Callable[[], Any]) -> Any:
    """A setting of the older interface; None where the newer one has set it to what the older can't say."""
    try:
        return setting()
    except RuntimeError:
        return None


def current_numerics() -> dict[str, str | bool]:
    """The current settings, by their names in a run record."""
    settings = {name: getattr(owner, attribute) for owner, attribute, name, _ in _SETTINGS}
    return {
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cpu_bfloat16_products_in_float32": multiplies_in_float32(),
        **settings,
    }

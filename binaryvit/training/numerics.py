"""The numerical shortcuts that PyTorch's libraries may take: chosen here, and recorded with each run."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from binaryvit.training.bfloat16 import bfloat16_products_in_float32, multiplies_bfloat16, multiplies_in_float32

# Where each setting lives, its name in the record, and the value that every run is trained with.
#
# float32 means float32: TensorFloat-32 keeps 10 of a factor's 23 bits, which in the stem alone would flip signs.
# Sums of half-precision products end in float32: cut short on the way, those with a real factor would be rounded.
# cuDNN computes little here (the stem), so it always takes the same algorithm rather than the fastest.
_SETTINGS = (
    (torch.backends.cuda.matmul, "allow_tf32", "cuda_matmul_tf32", False),
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", "cuda_matmul_short_float16_sums", False),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", "cuda_matmul_short_bfloat16_sums", False),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation", "cuda_matmul_float16_accumulation", False),
    (torch.backends.cudnn, "allow_tf32", "cudnn_tf32", False),
    (torch.backends.cudnn, "benchmark", "cudnn_benchmark", False),
    (torch.backends.cudnn, "deterministic", "cudnn_deterministic", True),
)


@contextmanager
def chosen_numerics() -> Iterator[None]:
    """Sets PyTorch to the numerics of every training, and restores what was set before."""
    before = [getattr(owner, attribute) for owner, attribute, _, _ in _SETTINGS]
    matmul = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        for owner, attribute, _, value in _SETTINGS:
            setattr(owner, attribute, value)
        with nullcontext() if multiplies_bfloat16() else bfloat16_products_in_float32():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        for (owner, attribute, _, _), value in zip(_SETTINGS, before, strict=True):
            setattr(owner, attribute, value)


def current_numerics() -> dict[str, str | bool]:
    """The current settings, by their names in a run record."""
    settings = {name: getattr(owner, attribute) for owner, attribute, name, _ in _SETTINGS}
    return {
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cpu_bfloat16_products_in_float32": multiplies_in_float32(),
        **settings,
    }

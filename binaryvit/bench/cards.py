"""What share of a GPU's peak rate training uses."""

import functools
import re

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from binaryvit.training.build import input_settings

# Dense products, 1e12 operations (multiplications and additions) a second: in float32 without TensorFloat-32, and in
# half precision on tensor cores with float32 sums. From NVIDIA's data sheet of each card, where "with sparsity" means
# twice as much. Cards before Ampere have no bfloat16 there.
_PEAKS = {
    "NVIDIA H200 NVL": {"fp32": 60.0, "fp16": 835.5, "bf16": 835.5},
    "NVIDIA H200": {"fp32": 67.0, "fp16": 989.5, "bf16": 989.5},
    "NVIDIA H100 80GB HBM3": {"fp32": 67.0, "fp16": 989.5, "bf16": 989.5},  # SXM
    "NVIDIA H100 PCIe": {"fp32": 51.0, "fp16": 756.5, "bf16": 756.5},
    "NVIDIA A100": {"fp32": 19.5, "fp16": 312.0, "bf16": 312.0},
    "NVIDIA A10": {"fp32": 31.2, "fp16": 125.0, "bf16": 125.0},
    "NVIDIA L40S": {"fp32": 91.6, "fp16": 362.0, "bf16": 362.0},
    "NVIDIA L4": {"fp32": 30.3, "fp16": 121.0, "bf16": 121.0},
    "Tesla V100-SXM2": {"fp32": 15.7, "fp16": 125.0},
    "Tesla T4": {"fp32": 8.1, "fp16": 65.0},
}


def peak(card: str, precision: str) -> float | None:
    """The most operations a second of a card, by PyTorch's name for it; None where it is not known.

    A part of a card (MIG) is not known.
    """
    known = (rates for name, rates in _PEAKS.items() if re.match(rf"{re.escape(name)}\b", card))
    rate = {} if " MIG " in card else next(known, {})
    return 1e12 * rate[precision] if precision in rate else None


@functools.cache
def training_operations(variant: str) -> int:
    """Operations (multiplications and additions) of one image's products in a training step.

    The forward pass's products are counted, and the backward pass as twice as much. A binary product counts as any
    other: in training it is computed in floating point.
    """
    with torch.device("meta"):
        model = timm.create_model(variant)
        images = torch.empty(2, *input_settings(model)[0])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return 3 * counter.get_total_flops() // len(images)

"""Which implementation a binary unit runs: its modules, PyTorch's single step, or the C++ one.

The three compute the same unit; they differ in rounding and in the memory they move. The modules can be observed
and replaced, and then compute; a step is for plain training. Whoever changes a module's code
itself (a quantizer, its gradient) changes `reference.py`, `native.py` and `unit.cpp` with it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from binaryvit.models.ops import native, reference
from binaryvit.models.ops.reference import UnitOutput, UnitParameters
from binaryvit.models.quantizers import at_least_float32

Step = Callable[[Tensor, UnitParameters, float], UnitOutput]


def step_of(unit: nn.Module, parameters: UnitParameters, x: Tensor) -> Step | None:
    """The step that computes a `layers.BinaryUnit` on tokens x (..., K); None: its modules do."""
    if not (_is_binary_training(unit) and _has_usual_statistics(unit.norm.batch_norm, x)) or _is_watched(unit):
        return None
    if native.fits(at_least_float32(x), parameters):
        return native.binary_unit
    # Inductor fuses the modules into code that moves less memory than this step does.
    return None if torch.compiler.is_compiling() else reference.binary_unit


def _is_binary_training(unit: nn.Module) -> bool:
    """The steps are for training with both signs. Evaluation runs the modules, whose values analyses read."""
    return (
        unit.training
        and torch.is_grad_enabled()
        and not unit.linear.is_fixed  # its weight is binary already, and a step would centre and scale it again
        and unit.linear.weight_bits == unit.binarize.activation_bits == 1
        and not torch.compiler.is_exporting()
    )


def _has_usual_statistics(norm: nn.Module, x: Tensor) -> bool:
    """The steps normalize with the batch's own statistics, of more than one token, and track them with a momentum."""
    return (
        type(norm) is nn.BatchNorm1d
        and norm.affine
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and x.shape[:-1].numel() > 1
    )


def _is_watched(unit: nn.Module) -> bool:
    """A hook, of the unit or of all modules there are, sees, or changes, values that a step does not expose. PyTorch
    has no public way to ask."""
    if nn.modules.module._has_any_global_hook():
        return True
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in unit.modules() for kind in kinds)

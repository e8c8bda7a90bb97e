"""The learned levels a of binary attention, and when attention is off: one rule for all figures and sentences."""

from typing import Any

from torch import nn

from binaryvit.models.layers import AttentionBinarizer
from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL


def is_off(level: Any) -> Any:
    """Whether attention of a level a (a number, or a Series of them) is off.

    At or below zero the forward pass computes with MINIMUM_ATTENTION_LEVEL. Nearly every probability is above half of
    that, but the product with the values is as good as zero: nothing is attended.
    """
    return level <= MINIMUM_ATTENTION_LEVEL


def attention_levels(model: nn.Module) -> dict[str, float]:
    """The level of each binary attention, by its module path."""
    return {path: binarizer.level.item() for path, binarizer in _binarizers(model)}


def initial_levels(model: nn.Module) -> dict[str, float]:
    """Where training started the level of each binary attention, by its module path."""
    return {path: binarizer.initial_level for path, binarizer in _binarizers(model)}


def _binarizers(model: nn.Module) -> list[tuple[str, AttentionBinarizer]]:
    return [
        (path.rpartition(".")[0], module)
        for path, module in model.named_modules()
        if isinstance(module, AttentionBinarizer)
    ]

"""The learned levels a of binary attention, and when attention is off: one rule for all figures and sentences."""

from typing import Any

from torch import nn

from binaryvit.models.layers import AttentionBinarizer
from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL

INITIAL_LEVEL = AttentionBinarizer().level.item()


def is_off(level: Any) -> Any:
    """Whether attention of a level a (a number, or a Series of them) is off.

    At or below zero the forward pass computes with MINIMUM_ATTENTION_LEVEL. Nearly every probability is above half of
    that, but the product with the values is as good as zero: nothing is attended.
    """
    return level <= MINIMUM_ATTENTION_LEVEL


def attention_levels(model: nn.Module) -> dict[str, float]:
    """The level of each binary attention, by its module path."""
    return {
        path.rpartition(".")[0]: module.level.item()
        for path, module in model.named_modules()
        if isinstance(module, AttentionBinarizer)
    }

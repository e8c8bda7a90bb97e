"""When binary attention is off, and where its levels started: one rule for all figures and sentences."""

from typing import Any

from torch import nn

from binaryvit.models.layers import attention_binarizers
from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL


def is_off(level: Any) -> Any:
    """Whether attention of a level a (a number, or a Series of them) is off.

    At or below zero the forward pass computes with MINIMUM_ATTENTION_LEVEL. Nearly every probability is above half of
    that, but the product with the values is as good as zero: nothing is attended.
    """
    return level <= MINIMUM_ATTENTION_LEVEL


def initial_levels(model: nn.Module) -> dict[str, float]:
    """Where training started the level of each binary attention, by its module path."""
    return {path: binarizer.initial_level for path, binarizer in attention_binarizers(model).items()}

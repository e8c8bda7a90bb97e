"""Where attention looks, before and after its binarization."""

from binaryvit.analysis.attention.measure import (
    density,
    drawings,
    evenness,
    heads,
    heads_of_model,
    side_by_side,
)

__all__ = [
    "density",
    "drawings",
    "evenness",
    "heads",
    "heads_of_model",
    "side_by_side",
]

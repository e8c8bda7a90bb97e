"""Where attention looks, before and after its binarization."""

from binaryvit.analysis.attention.measure import (
    by_depth,
    density,
    drawings,
    evenness,
    heads,
    heads_of_model,
    levels,
    side_by_side,
    threshold,
)

__all__ = [
    "by_depth",
    "density",
    "drawings",
    "evenness",
    "heads",
    "heads_of_model",
    "levels",
    "side_by_side",
    "threshold",
]

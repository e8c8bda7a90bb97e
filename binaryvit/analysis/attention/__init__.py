"""Where attention looks, before and after its binarization."""

from binaryvit.analysis.attention.measure import (
    density,
    drawings,
    heads,
    heads_of_model,
    levels,
    side_by_side,
    threshold,
)

__all__ = ["density", "drawings", "heads", "heads_of_model", "levels", "side_by_side", "threshold"]

"""Where attention looks, before and after its binarization."""

from binaryvit.analysis.attention.measure import drawing_of_model, drawings, levels

__all__ = ["drawing_of_model", "drawings", "levels"]

"""What 1-bit weights and 1-bit activations cost, each alone and together."""

from binaryvit.analysis.precision.measure import drawings, missing, precisions

__all__ = ["drawings", "missing", "precisions"]

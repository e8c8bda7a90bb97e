"""Signs, weights, and how many values a layer can take."""

from binaryvit.analysis.activations.measure import drawings

__all__ = ["drawings"]

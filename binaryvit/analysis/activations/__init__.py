"""Signs, weights, and how many values a layer can take."""

from binaryvit.analysis.activations.measure import (
    drawings,
    histograms,
    sign_statistics,
    values,
    values_from_one_bit,
    weights,
)

__all__ = ["drawings", "histograms", "sign_statistics", "values", "values_from_one_bit", "weights"]

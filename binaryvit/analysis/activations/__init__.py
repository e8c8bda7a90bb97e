"""Signs, weights, and how many values a layer can take."""

from binaryvit.analysis.activations.measure import (
    drawings,
    flipped_signs,
    histograms,
    latent_weights,
    sign_statistics,
    values,
    values_from_one_bit,
    values_read,
)

__all__ = [
    "drawings",
    "flipped_signs",
    "histograms",
    "latent_weights",
    "sign_statistics",
    "values",
    "values_from_one_bit",
    "values_read",
]

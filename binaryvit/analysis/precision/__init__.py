"""What 1-bit weights and 1-bit activations cost, each alone and together."""

from binaryvit.analysis.precision.measure import (
    PRECISIONS,
    accuracy,
    agreement,
    drawings,
    missing,
    precisions,
    precisions_as_text,
)

__all__ = ["PRECISIONS", "accuracy", "agreement", "drawings", "missing", "precisions", "precisions_as_text"]

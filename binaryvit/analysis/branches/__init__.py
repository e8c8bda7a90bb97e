"""How much of the accuracy the binary branches carry, and how much the real-valued shortcuts."""

from binaryvit.analysis.branches.measure import (
    accuracies,
    accuracies_by_statistics,
    accuracy,
    accuracy_by_stage,
    drawings,
    norms,
)

__all__ = ["accuracies", "accuracies_by_statistics", "accuracy", "accuracy_by_stage", "drawings", "norms"]

"""How models learn, epoch by epoch: accuracy and loss, flipping weights, learned levels and shifts."""

from binaryvit.analysis.curves.measure import accuracy, drawings, flips, levels, metrics_of_others, shifts

__all__ = ["accuracy", "drawings", "flips", "levels", "metrics_of_others", "shifts"]

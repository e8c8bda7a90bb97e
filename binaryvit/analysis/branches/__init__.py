"""How much of the accuracy the binary branches carry, and how much the real-valued shortcuts."""

from binaryvit.analysis.branches.measure import drawings

__all__ = ["drawings"]

"""What each step of the ladder gains and costs: tables, and accuracy against operations."""

from binaryvit.analysis.ladder.measure import drawings, products

__all__ = ["drawings", "products"]

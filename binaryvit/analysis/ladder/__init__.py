"""What each step of the ladder gains and costs: tables, and accuracy against operations."""

from binaryvit.analysis.ladder.measure import accuracy_against_operations, products
from binaryvit.analysis.ladder.published import comparison
from binaryvit.analysis.ladder.tables import ablation, states

__all__ = ["ablation", "accuracy_against_operations", "comparison", "products", "states"]

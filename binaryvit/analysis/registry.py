"""Which notebook makes which tables and figures: the one list that `binaryvit verify` goes by."""

from collections.abc import Callable, Sequence

from binaryvit.analysis import activations, attention, branches, curves, ladder, precision
from binaryvit.analysis.ladder.tables import Table
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy

ANALYSES: dict[str, Callable[[OpenStudy], Sequence[Table | Drawing]]] = {
    "tables.ipynb": ladder.products,
    "curves.ipynb": curves.drawings,
    "attention.ipynb": attention.drawings,
    "activations.ipynb": activations.drawings,
    "branches.ipynb": branches.drawings,
    "precision.ipynb": precision.drawings,
}
"""By the notebook's file name, as a study's `analysis` lists it: what makes its products from what is stored."""

"""Which notebook makes which tables and figures: the one list that `binaryvit verify` goes by."""

from collections.abc import Callable, Sequence

from binaryvit.analysis import ladder
from binaryvit.analysis.product import Drawing
from binaryvit.study import Study
from binaryvit.tables import Table

ANALYSES: dict[str, Callable[[Study], Sequence[Table | Drawing]]] = {
    "tables.ipynb": ladder.products,
}
"""By the notebook's file name, as a study's `analysis` lists it: what makes its products from what is stored."""

"""How long each part of a model takes, packed and simulated."""

import pandas as pd
from matplotlib.figure import Figure

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.palette import GREY, VERMILION


@styled
def latency_by_part(table: pd.DataFrame) -> Figure:
    """Milliseconds of each part, from input to output: packed (left) and by the modules (right), each on its own scale.

    Args:
        table: columns part, packed, simulated.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.9 + 0.17 * len(table)))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, column, label, colour in zip(
        panels, ("packed", "simulated"), ("on packed bits", "by the modules, in floating point"), (VERMILION, GREY),
        strict=True,
    ):  # fmt: skip
        axes.barh(table["part"], table[column], color=colour)
        axes.set(title=f"{label}: {table[column].sum():.2f} ms", xlabel="milliseconds, one image")
        axes.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    return figure

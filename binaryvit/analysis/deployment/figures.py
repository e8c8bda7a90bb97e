"""How long each part of a model takes, packed and simulated."""

import pandas as pd
from matplotlib.figure import Figure

from binaryvit.analysis.style import DOUBLE_COLUMN, headline, styled
from binaryvit.palette import GREY, VERMILION


@styled
def latency_by_part(table: pd.DataFrame) -> Figure:
    """Milliseconds of each part, from input to output: packed (left) and by the modules (right), each on its own scale.

    Args:
        table: columns part, packed, simulated.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.2 + 0.17 * len(table)))
    packed, simulated = figure.subplots(1, 2, sharey=True)
    packed.barh(table["part"], table["packed"], color=VERMILION)
    packed.set(title="packed: on single bits", xlabel="milliseconds, one image")
    simulated.barh(table["part"], table["simulated"], color=GREY)
    simulated.set(title="simulated: the modules in floating point", xlabel="milliseconds, one image (another scale)")
    for axes in (packed, simulated):
        axes.grid(axis="y", visible=False)
    packed.invert_yaxis()
    total = table[["packed", "simulated"]].sum()
    headline(figure, f"All parts together take {total.packed:.2f} ms packed and {total.simulated:.1f} ms simulated")
    return figure

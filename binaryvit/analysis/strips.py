"""Strips: a band for each kind of thing, and in it a line for each series."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from binaryvit.models.ladder import VariantStyle
from binaryvit.palette import GREY


def strips(
    axes: Axes,
    table: pd.DataFrame,
    value: str,
    rows: Sequence[str],
    looks: Mapping[str, VariantStyle],
    absent: str = "",
) -> None:
    """Draws, for each row and series, the median of a value as a marker and its range as a line.

    Args:
        table: columns row, series, and the value; of several entries of a row and series, median and range are drawn.
        value: the column to draw.
        rows: from top to bottom.
        looks: how each series is drawn, from top to bottom within a row.
        absent: the text where series have no value in a row, with places for how many of how many.
    """
    for place in range(1, len(rows), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    missing: list[list[float]] = [[] for _ in rows]  # the places without a value
    for index, (name, look) in enumerate(looks.items()):
        values = table[table["series"] == name].groupby("row")[value]
        middle, least, most = (summed.reindex(rows) for summed in (values.median(), values.min(), values.max()))
        places = np.arange(len(rows)) + 0.84 * ((index + 0.5) / len(looks) - 0.5)
        axes.hlines(places, least, most, color=look.colour, linewidth=1)
        axes.plot(middle, places, look.marker, color=look.colour, markersize=3.5, label=name)
        for row in np.flatnonzero(middle.isna()):
            missing[row].append(places[row])
    for free in filter(None, missing if absent else ()):
        text, transform = absent.format(len(free), len(looks)), axes.get_yaxis_transform()
        axes.text(0.01, np.mean(free), text, transform=transform, va="center", fontsize=6, color=GREY)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def reference(axes: Axes, value: float, name: str) -> None:
    """A dashed line at a reference value, named above the panel."""
    axes.axvline(value, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    axes.text(
        value, 1.0, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=6.5, color=GREY
    )


def handles(looks: Iterable[tuple[str, VariantStyle]]) -> list[Line2D]:
    """Entries of a legend, one for each series."""
    return [
        Line2D([], [], color=look.colour, marker=look.marker, linewidth=1, markersize=4, label=name)
        for name, look in looks
    ]

"""One architecture at several precisions: what it reaches, what it costs, and where its features differ."""

import textwrap

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.palette import BLACK, GREY, VERMILION

# Colour, marker and line of a precision; W1A1 has the colour that BinaryViT has everywhere.
_STYLES = {
    "W1A1": (VERMILION, "v", "-"),
    "W1A32": (GREY, "s", "--"),
    "W32A1": (BLACK, "o", ":"),
    "W32A32": (BLACK, "*", "-"),
}


@styled
def accuracy_size_operations(table: pd.DataFrame, evaluated_on: str) -> Figure:
    """Top-1, size and operations, a line each precision.

    Args:
        table: columns precision, top1, low, high (percent; NaN where no run is finished), bytes, ops, ops_elementwise.
        evaluated_on: the images of the accuracies.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.0))
    accuracy, size, operations = figure.subplots(1, 3, sharey=True)
    for place, row in enumerate(table.itertuples()):
        colour, marker, _ = _STYLES[row.precision]
        drawn = dict(color=colour, marker=marker, linestyle="none", markersize=5.5)
        if pd.notna(row.top1):
            accuracy.errorbar(row.top1, place, xerr=[[row.top1 - row.low], [row.high - row.top1]], **drawn)
        else:
            accuracy.text(0.5, place, "not run", transform=accuracy.get_yaxis_transform(), ha="center", va="center")
        size.plot(row.bytes / 1e6, place, **drawn)
        operations.plot(row.ops / 1e6, place, **drawn)
        operations.plot(row.ops_elementwise / 1e6, place, **drawn, markerfacecolor="white")
    accuracy.set_yticks(range(len(table)), table["precision"])
    accuracy.set_ylim(len(table) - 0.5, -0.5)
    accuracy.set_xlabel(f"top-1 accuracy (%), 95 % intervals,\n{textwrap.fill(evaluated_on, 32)}")
    accuracy.margins(x=0.1)
    size.set_xlabel("size of the parameters (MB)")
    operations.set_xlabel("operations per image (M); filled: OPs,\nhollow: elementwise work as well")
    for axes in (size, operations):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12)
    return figure


@styled
def agreement(table: pd.DataFrame, evaluated_on: str) -> Figure:
    """Linear CKA and mean cosine with the features of W32A32, from input to output.

    Args:
        table: columns precision, layer (module path, in the order of computing), cka, cosine.
        evaluated_on: the images the features are of.
    """
    layers = list(dict.fromkeys(table["layer"]))
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.0))
    panels = figure.subplots(2, 1, sharex=True)
    for axes, column, label in zip(panels, ("cka", "cosine"), ("linear CKA", "mean cosine"), strict=True):
        for precision, own in table.groupby("precision", sort=False):
            colour, marker, line = _STYLES[precision]
            places = [layers.index(layer) for layer in own["layer"]]
            axes.plot(places, own[column], color=colour, marker=marker, linestyle=line, label=precision)
        axes.set_ylabel(f"{label}\nwith W32A32")
        axes.set_ylim(min(0, table[column].min()) - 0.03, 1.03)
    panels[0].legend(ncols=3)
    panels[1].set_xticks(range(len(layers)), [_short(layer) for layer in layers], rotation=90)
    panels[1].set_xlabel(f"output of the layer, from image to logits; {evaluated_on}")
    return figure


def _short(layer: str) -> str:
    """stages.2.blocks.1.attn as "2.1 attn": the stage and its block."""
    parts = [part for part in layer.split(".") if part not in ("stages", "blocks")]
    numbers = ".".join(part for part in parts if part.isdigit())
    return " ".join(filter(None, [numbers, *(part for part in parts if not part.isdigit())]))

"""One architecture at several precisions: what it reaches, what it costs, and where its features differ."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from binaryvit.analysis.style import DOUBLE_COLUMN, headline, in_lines, styled
from binaryvit.palette import BLACK, GREY, VERMILION

# Colour, marker and line of a precision; W1A1 has the colour that BinaryViT has everywhere.
_STYLES = {
    "W1A1": (VERMILION, "v", "-"),
    "W1A32": (GREY, "s", "--"),
    "W32A1": (BLACK, "o", ":"),
    "W32A32": (BLACK, "*", "-"),
}
_PARTS = {"attn": "attention branches", "mlp": "FFN branches"}


@styled
def accuracy_size_operations(table: pd.DataFrame, evaluated_on: str, claim: str) -> Figure:
    """Top-1, size and operations, one row per precision.

    Args:
        table: columns precision, seeds, top1, low, high (percent; NaN where no run is finished), bytes, ops,
            ops_elementwise.
        evaluated_on: the images of the accuracies.
        claim: what the figure says.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.4))
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
    seeds = table["seeds"].max()
    about = "one seed" if seeds == 1 else f"mean of up to {seeds} seeds"
    accuracy.set_xlabel(f"top-1 accuracy (%), {about}, 95 %\nintervals; {in_lines(evaluated_on, 34)}")
    accuracy.margins(x=0.1)
    size.set_xlabel("size of the parameters (MB)")
    operations.set_xlabel("operations per image (M): OPs;\nhollow: with elementwise work")
    for axes in (size, operations):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12)
    headline(figure, claim)
    return figure


@styled
def agreement(table: pd.DataFrame, evaluated_on: str, claim: str) -> Figure:
    """Linear CKA with the features of W32A32, from input to output: the residual stream, and the branches added to it.

    Args:
        table: columns precision (the reference's own for its other seeds), seed, layer (module path, in the order of
            computing), cka.
        evaluated_on: the images the features are of.
        claim: what the figure says.
    """
    part = table["layer"].str.rsplit(".", n=1).str[-1].map(_PARTS).fillna("residual stream")
    panels = {name: own for name, own in table.groupby(part) if len(own)}
    order = [name for name in ("residual stream", *_PARTS.values()) if name in panels]
    widths = [panels[name]["layer"].nunique() for name in order]
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.0))
    grid = figure.subplots(1, len(order), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axes, name in zip(grid, order, strict=True):
        _along_layers(axes, panels[name])
        axes.set_title(name)
    grid[0].set_ylabel("linear CKA with W32A32")
    grid[0].set_ylim(min(0, table["cka"].min()) - 0.03, 1.03)
    grid[0].set_xlabel(f"stage.block, from image to logits\n({evaluated_on})")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    headline(figure, claim)
    return figure


def _along_layers(axes: Axes, table: pd.DataFrame) -> None:
    """One line per precision over the layers, in their order, and one per further seed of the reference."""
    layers = list(dict.fromkeys(table["layer"]))
    for (precision, seed), own in table.groupby(["precision", "seed"], sort=False):
        colour, marker, line = _STYLES[precision]
        name = precision if precision != "W32A32" else f"W32A32, seed {seed}"
        places = [layers.index(layer) for layer in own["layer"]]
        axes.plot(places, own["cka"], color=colour, marker=marker, linestyle=line, label=name)
    axes.set_xticks(range(len(layers)), [_short(layer) for layer in layers], rotation=90)


def _short(layer: str) -> str:
    """stages.2.blocks.1.attn as "2.1", stages.2.embed as "2 embed"."""
    parts = [part for part in layer.split(".") if part not in ("stages", "blocks", *_PARTS)]
    numbers = ".".join(part for part in parts if part.isdigit())
    return " ".join(filter(None, [numbers, *(part for part in parts if not part.isdigit())]))

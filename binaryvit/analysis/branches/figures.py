"""Branches against shortcuts, and the accuracy without groups of them."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from binaryvit.analysis.branches.capture import GROUPS
from binaryvit.analysis.strips import handles, reference, strips
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, in_lines, styled
from binaryvit.models.ladder import VariantStyle, variant_style
from binaryvit.palette import BLACK, GREY

KINDS = (
    "attention linears", "attention products", "FFN linears", "merges",
    "attention branch", "FFN branch", "pooling branches",
)  # fmt: skip
_MARKERS = "oXsd"  # of precisions other than W1A1, which have the grey of no step of the ladder


@styled
def branch_norms(norms: pd.DataFrame, claim: str) -> Figure:
    """The norm of each branch over that of its shortcut: one row per kind of addition, one line per model.

    Args:
        norms: columns run, label, variant, bits, layer, kind and ratio (NaN where attention is off).
        claim: what the figure says.
    """
    looks = _looks(norms)
    pyramid = norms["layer"].str.startswith("stages.1.").groupby(norms["run"]).transform("any")
    shapes = {name: own for name, own in (("columnar", norms[~pyramid]), ("pyramids", norms[pyramid])) if len(own)}
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.7 + 0.5 * len(KINDS)))
    panels = figure.subplots(1, len(shapes), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (shape, own) in zip(panels, shapes.items(), strict=True):
        table = own.assign(row=own["kind"], series=own["label"])
        strips(axes, table, "ratio", KINDS, {name: looks[name] for name in own["label"].unique()}, absent="none")
        axes.set(xscale="log", xlabel=f"norm of the branch / norm of its shortcut\n({shape})")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        reference(axes, 1, "equal")
    figure.legend(handles=handles(looks.items()), loc="outside lower center", ncols=3)
    headline(figure, claim)
    return figure


@styled
def accuracy_without(accuracies: pd.DataFrame, chance: float, evaluated_on: str, claim: str) -> Figure:
    """The accuracy of each run without groups of branches: one row per group, one line per run, with 95 % intervals.

    Args:
        accuracies: columns run, label, variant, bits, removed, accuracy, low, high (percent, ends of the interval).
        chance: accuracy of guessing, in percent.
        evaluated_on: the images, "500 evaluation images of CIFAR-10".
        claim: what the figure says.
    """
    removals, looks = _in_order(accuracies["removed"]), _looks(accuracies)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.7 + 0.055 * len(removals) * max(5, len(looks))))
    axes = figure.subplots()
    table = accuracies.assign(row=accuracies["removed"], series=accuracies["label"])
    strips(axes, table, "accuracy", removals, looks, ends=("low", "high"), absent="has none")
    axes.set(xlabel=f"top-1 accuracy (%), 95 % intervals, {evaluated_on}", ylabel="removed")
    axes.set_xlim(0, min(100, 1.05 * table["high"].max()))
    reference(axes, chance, "chance")
    figure.legend(handles=handles(looks.items()), loc="outside lower center", ncols=3)
    headline(figure, claim)
    return figure


@styled
def accuracy_by_stage(accuracies: pd.DataFrame, evaluated_on: str, claim: str) -> Figure:
    """The accuracy of each run without groups of branches of one stage, as numbers on a coloured grid.

    A cell is coloured where its 95 % interval does not reach the intact model's accuracy.

    Args:
        accuracies: as in `accuracy_without`, with a column part: "stages.0" and so on, and "whole model" for the rows
            in which nothing is removed.
        evaluated_on, claim: as in `accuracy_without`.
    """
    removals = [name for name in _in_order(accuracies["removed"]) if name != "nothing"]
    runs = dict(list(accuracies.groupby("run", sort=False)))
    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.8 + (0.75 + 0.2 * len(removals)) * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, own in zip(grid.flat, runs.values(), strict=False):
        image = _stages(axes, own, removals)
    for axes in list(grid.flat)[len(runs) :]:
        axes.remove()
    grid[-1, 0].set_xlabel(f"stage in which it is removed\n(top-1 in %, {evaluated_on})", loc="left")
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label="change (points)", aspect=30)
    headline(figure, claim)
    return figure


def _stages(axes: Axes, table: pd.DataFrame, removals: list[str]):
    """The grid of one run; returns what its colours are mapped by."""
    intact = table[table["removed"] == "nothing"]["accuracy"].iloc[0]
    parts = sorted(set(table["part"]) - {"whole model"})
    accuracy, low, high = (
        table.pivot(index="removed", columns="part", values=name).reindex(removals, columns=parts).to_numpy()
        for name in ("accuracy", "low", "high")
    )
    change = np.where((low <= intact) & (intact <= high), 0, accuracy - intact)
    image = axes.imshow(change, cmap="RdBu", vmin=-60, vmax=60, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        text = "none" if np.isnan(value) else f"{value:.0f}"
        colour = GREY if np.isnan(value) else "white" if abs(change[row, column]) > 38 else BLACK
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_title(f"{in_lines(table['label'].iloc[0], 24)}\nnothing removed: {intact:.0f} %")
    axes.set_xticks(range(len(parts)), [part.removeprefix("stages.") for part in parts])
    axes.set_yticks(range(len(removals)), removals)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _looks(table: pd.DataFrame) -> dict[str, VariantStyle]:
    """How each run is drawn: as its variant, or in grey where it is of another precision than the ladder's."""
    others = [label for label, bits in table.groupby("label", sort=False)["bits"].first().items() if bits != "W1A1"]
    grey = {label: VariantStyle(label, GREY, _MARKERS[place % len(_MARKERS)]) for place, label in enumerate(others)}
    return {
        label: grey.get(label) or variant_style(variant)
        for label, variant in table.groupby("label", sort=False)["variant"].first().items()
    }


def _in_order(removed: pd.Series) -> list[str]:
    """What is removed, each once: nothing, the groups in their order, all of a kind."""
    order = ["nothing", *GROUPS]
    return sorted(dict.fromkeys(removed), key=lambda name: order.index(name) if name in order else len(order))

"""Branches against shortcuts, and the accuracy without groups of them."""

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from binaryvit.analysis.branches.capture import ADDED_TO_SHORTCUTS, ADDED_TO_STREAM, GROUPS
from binaryvit.analysis.intervals import wilson_interval
from binaryvit.analysis.labels import is_pyramid
from binaryvit.analysis.strips import handles, reference, strips
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, in_lines, precision_style, styled
from binaryvit.palette import BLACK, GREY, VERMILION

KINDS = (*ADDED_TO_SHORTCUTS, *ADDED_TO_STREAM)
_LEFT = LinearSegmentedColormap.from_list("left", [VERMILION, "white"]).with_extremes(bad="#EEEEEE")
_AT_CHANCE = ListedColormap(["#404040"])


@styled
def branch_norms(norms: pd.DataFrame, evaluated_on: str, claim: str) -> Figure:
    """The norm of each branch over that of what it is added to: a band per kind of addition, a line per model.

    Args:
        norms: columns run, label, variant, bits, layer, kind and ratio (NaN where attention is off).
        evaluated_on: the images, "500 evaluation images of CIFAR-10".
        claim: the figure's title.
    """
    first = norms.groupby("label", sort=False)[["variant", "bits"]].first()
    looks = {label: precision_style(row.variant, row.bits) for label, row in first.iterrows()}
    pyramid = is_pyramid(norms["run"], norms["layer"])
    shapes = {name: own for name, own in (("columnar", norms[~pyramid]), ("pyramids", norms[pyramid])) if len(own)}
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.9 + 0.5 * len(KINDS)))
    panels = figure.subplots(1, len(shapes), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (shape, own) in zip(panels, shapes.items(), strict=True):
        table = own.assign(row=own["kind"], series=own["label"])
        strips(
            axes,
            table,
            "ratio",
            KINDS,
            {name: looks[name] for name in own["label"].unique()},
            absent="{} of {} have none",
        )
        axes.set_yticks(range(len(KINDS)), [f"whole {kind}" if kind.endswith("branch") else kind for kind in KINDS])
        axes.set(xscale="log", xlabel=f"branch / what it is added to (norms)\n{shape}")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter("{x:g}")
        reference(axes, 1, "equal")
        axes.axhline(len(ADDED_TO_SHORTCUTS) - 0.5, color=GREY, linewidth=0.8)
    for kinds, text in (
        (ADDED_TO_SHORTCUTS, "against their own shortcut"),
        (ADDED_TO_STREAM, "against the residual stream"),
    ):
        middle = (KINDS.index(kinds[0]) + KINDS.index(kinds[-1])) / 2
        beside = dict(transform=panels[-1].get_yaxis_transform(), rotation=270, va="center", fontsize=7)
        panels[-1].text(1.02, middle, text, **beside)
    explained = (
        "marker: median of a model's additions of one kind, bar: their range\n"
        f"attention products: attention times values; {evaluated_on}"
    )
    figure.legend(handles=handles(looks.items()), loc="outside lower center", ncols=3, title=explained)
    headline(figure, claim)
    return figure


@styled
def accuracy_without(accuracies: pd.DataFrame, evaluated_on: str, reestimated: str, claim: str) -> Figure:
    """The accuracy without groups of branches: a row for each removal, a column for each model (or stage of one).

    A cell is dark where the 95% interval holds chance.

    Args:
        accuracies: columns column (its name), removed, accuracy (percent), images, chance (accuracy of guessing, in
            percent); of several seeds of a model means are drawn.
        evaluated_on, claim: as in `branch_norms`.
        reestimated: what batch-norm statistics were re-estimated on.
    """
    columns, removals = list(accuracies["column"].unique()), _in_order(accuracies["removed"])
    cells = accuracies.pivot_table("accuracy", "removed", "column").reindex(removals, columns=columns)
    accuracy, chance, images = cells.to_numpy(), accuracies["chance"].iloc[0], accuracies["images"].iloc[0]
    low, high = np.vectorize(wilson_interval)(accuracy / 100 * images, images)
    at_chance = (low <= chance) & (chance <= high)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.0 + 0.27 * len(removals)))
    axes = figure.subplots()
    left = axes.imshow(accuracy, cmap=_LEFT, vmin=chance, vmax=max(chance + 1, np.nanmax(accuracy)), aspect="auto")
    axes.imshow(np.where(at_chance, 1, np.nan), cmap=_AT_CHANCE, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        text, colour = ("none", GREY) if np.isnan(value) else (f"{value:.0f}", BLACK)
        colour = "white" if at_chance[row, column] else colour
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(removals)), removals)
    axes.set_ylabel("removed")
    for edge in (0.5, len(removals) - 2.5):  # between nothing, single groups, and all of a kind
        axes.axhline(edge, color=GREY, linewidth=0.6)
    names = [in_lines(name, 20) for name in columns]
    axes.set_xticks(range(len(columns)), names, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        f"cells: top-1 in %, {evaluated_on}; none: no such part\n"
        "inner shortcuts lie around single products, residual ones around attention and FFN\n"
        f"parts are removed from trained models; no training after, but {reestimated}\n"
        f"dark: at chance, its 95% interval holds {chance:g}%",
        fontsize=7,
    )
    figure.colorbar(left, ax=axes, shrink=0.8, aspect=30, label="top-1 that is left (%)")
    headline(figure, claim)
    return figure


def _in_order(removed: pd.Series) -> list[str]:
    """What is removed, each once: nothing, the groups in their order, all of a kind."""
    order = ["nothing", *GROUPS]
    return sorted(dict.fromkeys(removed), key=lambda name: order.index(name) if name in order else len(order))

"""Branches against shortcuts, and the accuracy without groups of them: one panel a run."""

import textwrap
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from binaryvit.analysis.branches.capture import GROUPS
from binaryvit.analysis.style import (
    DOUBLE_COLUMN,
    styled,
)
from binaryvit.models.ladder import variant_style
from binaryvit.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

_COLUMNS = 3  # of panels

# Kinds of additions: colour, marker, and where beside the block's place they stand.
_KINDS = {
    "attention linears": (SKY, "o", -0.3),
    "attention products": (BLUE, "s", -0.18),
    "FFN linears": (GREEN, "^", -0.06),
    "merges": (PURPLE, "D", -0.5),
    "attention branch": (ORANGE, "v", 0.06),
    "FFN branch": (VERMILION, "P", 0.18),
    "pooling branches": (BLACK, "x", 0.3),
}


@styled
def branch_norms(norms: pd.DataFrame) -> Figure:
    """Norm of each branch over that of its shortcut, by depth.

    `norms` has columns run, label, layer (module path), kind and ratio, as `analysis.branches.norms_of` measures them.
    """
    figure, panels = _panels(norms, height=1.75, sharey=True)
    for axes, table in panels:
        blocks = list(dict.fromkeys(table["layer"].str.extract(r"^(stages\.\d+\.blocks\.\d+)")[0].dropna()))
        for kind, (colour, marker, shift) in _KINDS.items():
            rows = table[table["kind"] == kind]
            places = [_place(layer, blocks) + shift for layer in rows["layer"]]
            axes.plot(places, rows["ratio"], marker, color=colour, markersize=3.5, markeredgewidth=0.9, label=kind)
        axes.axhline(1, color=GREY, linewidth=0.8)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        stages = len({block.split(".")[1] for block in blocks}) > 1
        axes.set_xticks(range(len(blocks)), [_block_name(block, stages) for block in blocks])
        axes.set_xlim(-0.7, len(blocks) - 0.3)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("stage.block" if stages else "block")
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("norm of the branch /\nnorm of its shortcut")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=4, label=kind)
        for kind, (colour, marker, _) in _KINDS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, title="what is added to its shortcut")
    return figure


def _place(layer: str, blocks: list[str]) -> int:
    """The number of the block an addition belongs to; a merge stands before the first block of its stage."""
    owner = f"{layer.removesuffix('.embed')}."
    return next(n for n, block in enumerate(blocks) if owner.startswith(f"{block}.") or f"{block}.".startswith(owner))


def _block_name(block: str, stages: bool) -> str:
    _, stage, _, number = block.split(".")
    return f"{stage}.{number}" if stages else number


@styled
def accuracy_without(accuracies: pd.DataFrame, chance: float, evaluated_on: str, estimated_on: str) -> Figure:
    """Accuracy of each run without groups of branches, with stored and with re-estimated batch-norm statistics.

    Args:
        accuracies: columns run, label, variant, removed, statistics ("stored", "re-estimated"), accuracy, low, high
            (percent, ends of the 95 % interval).
        chance: accuracy of guessing, in percent.
        evaluated_on: the images, "500 evaluation images of CIFAR-10".
        estimated_on: the images of the statistics, "200 training images without augmentation".
    """
    order = _in_order(accuracies["removed"])
    heights = {name: -(number + 0.6 * name.startswith("all ")) for number, name in enumerate(order)}
    figure, panels = _panels(accuracies, height=0.45 + 0.17 * len(order), sharey=True)
    for axes, table in panels:
        colour = variant_style(table["variant"].iloc[0]).colour
        axes.axvline(chance, color=GREY, linewidth=0.8, linestyle=":")
        intact = table[(table["removed"] == "nothing") & (table["statistics"] == "stored")]["accuracy"]
        axes.axvline(intact.iloc[0], color=GREY, linewidth=0.8, linestyle="--")
        for statistics, shift, face in (("stored", 0.18, "white"), ("re-estimated", -0.18, colour)):
            rows = table[table["statistics"] == statistics]
            axes.errorbar(
                rows["accuracy"], rows["removed"].map(heights) + shift, color=colour, marker="o", markersize=3.5,
                xerr=(rows["accuracy"] - rows["low"], rows["high"] - rows["accuracy"]), markerfacecolor=face,
                linestyle="none", linewidth=0.8, capsize=1.5, markeredgewidth=0.8,
            )  # fmt: skip
        axes.set_yticks(list(heights.values()), list(heights))
        axes.set_xlim(0, 100)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("removed")
    figure.supxlabel(f"top-1 accuracy (%), {evaluated_on}, 95 % intervals", fontsize=8)
    mark = dict(marker="o", linestyle="none", markersize=4)
    handles = [
        Line2D([], [], color=BLACK, markerfacecolor="white", label="batch-norm statistics of training", **mark),
        Line2D([], [], color=BLACK, label=f"re-estimated on {estimated_on}", **mark),
        Line2D([], [], color=GREY, linestyle="--", linewidth=0.8, label="nothing removed"),
        Line2D([], [], color=GREY, linestyle=":", linewidth=0.8, label="chance"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


@styled
def accuracy_by_stage(accuracies: pd.DataFrame, evaluated_on: str, estimated_on: str) -> Figure:
    """Accuracy of each run without groups of branches of one stage, as numbers on a coloured grid.

    Args:
        accuracies: as in `accuracy_without`, of re-estimated statistics, with a column part: "stages.0" and so on, and
            "whole model" for the rows in which nothing is removed.
        evaluated_on, estimated_on: as in `accuracy_without`.
    """
    removals = [name for name in _in_order(accuracies["removed"]) if name != "nothing"]
    parts = sorted(set(accuracies["part"]) - {"whole model"})
    figure, panels = _panels(accuracies, height=0.65 + 0.17 * len(removals), sharey=True)
    image = None
    for axes, table in panels:
        intact = table[table["removed"] == "nothing"]["accuracy"].iloc[0]
        grid = table.pivot(index="removed", columns="part", values="accuracy").reindex(removals, columns=parts)
        # Numbers are read; the colour is a change against the intact model, the same scale in all panels.
        image = axes.imshow(grid - intact, cmap="RdBu", vmin=-60, vmax=60, aspect="auto")
        for (row, column), accuracy in np.ndenumerate(grid.to_numpy()):
            dark = abs(accuracy - intact) > 38
            text = "-" if np.isnan(accuracy) else f"{accuracy:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else BLACK)
        axes.set_title(f"{textwrap.fill(axes.get_title(), 24)}\nnothing removed: {intact:.0f} %")
        axes.set_xticks(range(len(parts)), [part.removeprefix("stages.") for part in parts])
        axes.set_yticks(range(len(removals)), removals)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.supxlabel(
        f"stage in which it is removed; top-1 accuracy (%), {evaluated_on},\n"
        f"batch-norm statistics re-estimated on {estimated_on}", fontsize=8,
    )  # fmt: skip
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label="change (points)", aspect=30, extend="both")
    return figure


def _in_order(removed: pd.Series) -> list[str]:
    """What is removed, each once: nothing, the groups in their order, all of a kind."""
    order = ["nothing", *GROUPS]
    return sorted(dict.fromkeys(removed), key=lambda name: order.index(name) if name in order else len(order))


def _panels(
    table: pd.DataFrame, height: float, sharey: bool = False
) -> tuple[Figure, Iterator[tuple[Axes, pd.DataFrame]]]:
    """A figure with a panel for each run, titled, in the table's order; `height` of one in inches."""
    runs = list(dict.fromkeys(table["run"]))
    columns = min(_COLUMNS, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(DOUBLE_COLUMN, height * rows + 0.8))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat
    for axes in list(grid)[len(runs) :]:
        axes.remove()

    def panels() -> Iterator[tuple[Axes, pd.DataFrame]]:
        for axes, run in zip(figure.axes[: len(runs)], runs, strict=True):
            own = table[table["run"] == run]
            axes.set_title(own["label"].iloc[0])
            yield axes, own

    return figure, panels()

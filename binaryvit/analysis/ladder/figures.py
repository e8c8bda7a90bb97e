"""Accuracy against operations: what a study's models reach, and what that costs."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER, variant_style
from binaryvit.palette import GREY

# How a published figure is drawn by its certainty: filled where the authors themselves gave it.
_CERTAINTY_MARKERS = {
    "authors": ("o", GREY),
    "table": ("o", "white"),
    "second-hand": ("^", "white"),
    "doubtful": ("v", "white"),
}


@styled
def accuracy_against_operations(
    points: pd.DataFrame, evaluated_on: str, published: pd.DataFrame | None = None
) -> Figure:
    """Top-1 against the operations of one image, one point a model, the ladder's steps joined in their order.

    Args:
        points: columns variant (timm name), label, ops, top1 (percent), top1_std (NaN with one seed), seeds; in the
            order of the table.
        evaluated_on: the images the accuracies were measured on, "10,000 images of CIFAR-10".
        published: other models measured on the same data: columns ops, top1, certainty. Drawn grey, filled where
            the figure is the authors' own.

    Raises BinaryViTError when there is no point.
    """
    if points.empty:
        raise BinaryViTError("There is no accuracy to draw: no run of this study is finished.")
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.2))
    axes = figure.add_subplot()
    if published is not None:
        for certainty, (marker, face) in _CERTAINTY_MARKERS.items():
            group = published[published["certainty"] == certainty].dropna(subset=["ops", "top1"])
            if group.empty:
                continue
            axes.plot(
                group["ops"], group["top1"], marker, markersize=4, markeredgewidth=0.7, markerfacecolor=face,
                color=GREY, zorder=1, label=f"published: {certainty}",
            )  # fmt: skip
    binary = points[~points["variant"].isin([teacher for teacher, *_ in LADDER.values()])]
    axes.plot(binary["ops"], binary["top1"], color=GREY, linewidth=0.7, linestyle=":", zorder=1)
    for row in points.itertuples():
        drawn = variant_style(row.variant)
        axes.errorbar(
            row.ops, row.top1, yerr=row.top1_std if row.seeds > 1 else None, color=drawn.colour, marker=drawn.marker,
            markersize=7 if drawn.marker == "*" else 5, linestyle="none", label=row.label,
            markeredgecolor=drawn.colour, markerfacecolor=(drawn.colour, 0.5),  # close steps shine through
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="operations per image (BOPs / 64 + FLOPs)", ylabel=f"top-1 accuracy (%)\n{evaluated_on}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.1)
    few, many = points["seeds"].min(), points["seeds"].max()
    count = f"{few}" if few == many else f"{few} to {many}"
    figure.legend(loc="outside right upper", title="one seed" if many == 1 else f"mean ± std of {count} seeds")
    return figure

"""Accuracy against operations: what a study's models reach, and what that costs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER, variant_style
from binaryvit.palette import GREY

_TEACHERS = [teacher for teacher, *_ in LADDER.values()]
_HEIGHT = 3.4  # of the figure, in inches
_LINE = 0.055  # of a label, as a share of the axes' height
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
    """Top-1 against the operations of one image, one point a model, each with its name and accuracy next to it.

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
    figure = Figure(figsize=(DOUBLE_COLUMN, _HEIGHT))
    axes = figure.add_subplot(title=_claim(points))
    if published is not None:
        _draw_published(axes, published)
    binary = points[~points["variant"].isin(_TEACHERS)]
    axes.plot(binary["ops"], binary["top1"], color=GREY, linewidth=0.7, linestyle=":", zorder=1)
    for row in points.itertuples():
        drawn = variant_style(row.variant)
        axes.errorbar(
            row.ops, row.top1, yerr=row.top1_std if row.seeds > 1 else None, color=drawn.colour, marker=drawn.marker,
            markersize=7 if drawn.marker == "*" else 5, linestyle="none", label=row.label,
        )  # fmt: skip
    few, many = points["seeds"].min(), points["seeds"].max()
    spread = "one seed each" if many == 1 else f"mean ± std of {few if few == many else f'{few} to {many}'} seeds"
    axes.set_xscale("log")
    axes.set(xlabel="operations per image (BOPs / 64 + FLOPs)", ylabel=f"top-1 accuracy (%)\n{evaluated_on}")
    axes.text(0.01, 0.98, spread, transform=axes.transAxes, va="top", color=GREY)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.1, y=0.1)
    _name_points(axes, points)
    return figure


def _claim(points: pd.DataFrame) -> str:
    """What the figure shows: what the best binary model gives up, and what it saves."""
    is_teacher = points["variant"].isin(_TEACHERS)
    if is_teacher.all() or not is_teacher.any():
        return "Accuracy and operations of each model"
    best, teacher = points[~is_teacher].nlargest(1, "top1").iloc[0], points[is_teacher].iloc[0]
    gap, saved = teacher["top1"] - best["top1"], teacher["ops"] / best["ops"]
    side = "below" if gap > 0 else "above"
    return f"The best binary model is {abs(gap):.1f} points {side} its teacher, with {saved:.0f} times fewer operations"


def _draw_published(axes: Axes, published: pd.DataFrame) -> None:
    for certainty, (marker, face) in _CERTAINTY_MARKERS.items():
        group = published[published["certainty"] == certainty].dropna(subset=["ops", "top1"])
        if not group.empty:
            axes.plot(
                group["ops"], group["top1"], marker, markersize=4, markeredgewidth=0.7, markerfacecolor=face,
                color=GREY, zorder=1, label=f"published: {certainty}",
            )  # fmt: skip
    axes.legend(
        [line for line in axes.lines if not line.get_label().startswith("_")],
        [line.get_label() for line in axes.lines if not line.get_label().startswith("_")],
        loc="lower right",
    )


def _name_points(axes: Axes, points: pd.DataFrame) -> None:
    """Name and accuracy of each point at its side, moved up or down where names would lie on each other."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # the places of the names hold for these
    across, up = (scale.transform for scale in (axes.transScale, axes.transLimits))
    places = np.array([up(across((row.ops, row.top1))) for row in points.itertuples()])
    for is_left in (True, False):  # the names of points far to the right stand to the left of them
        side = (places[:, 0] > 0.6) == is_left
        heights = _spread(places[side, 1], _LINE)
        for row, (x, y), height in zip(points[side].itertuples(), places[side], heights, strict=True):
            axes.annotate(
                f"{row.label}  {row.top1:.1f} %", (x, y), (x - 0.03 if is_left else x + 0.05, height),
                xycoords="axes fraction", va="center", ha="right" if is_left else "left",
                bbox=dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.5),
                arrowprops=dict(arrowstyle="-", color=GREY, linewidth=0.5, shrinkA=0, shrinkB=4),
            )  # fmt: skip


def _spread(heights: Sequence[float], distance: float) -> np.ndarray:
    """Heights moved as little as needed to keep a distance: groups that touch are spread around their middle."""
    groups = [[index] for index in np.argsort(heights)]

    def ends(group: list[int]) -> tuple[float, float]:
        middle, half = np.mean([heights[index] for index in group]), (len(group) - 1) * distance / 2
        return middle - half, middle + half

    touching = True
    while touching:
        touching = False
        for number in range(len(groups) - 1):
            if ends(groups[number])[1] + distance > ends(groups[number + 1])[0]:
                groups[number : number + 2] = [groups[number] + groups[number + 1]]
                touching = True
                break
    spread = np.empty(len(heights))
    for group in groups:
        spread[group] = np.linspace(*ends(group), len(group)) if len(group) > 1 else ends(group)[0]
    return spread

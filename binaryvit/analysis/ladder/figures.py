"""Accuracy against cost: what a study's models reach, and what that takes."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from binaryvit.analysis.style import DOUBLE_COLUMN, headline, styled
from binaryvit.analysis.wording import span
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import BINARY_VARIANTS, TEACHERS, variant_style
from binaryvit.palette import GREY

_COSTS = {
    "ops": "OPs per image: multiply-accumulates,\nbinary ones / 64; no elementwise work",
    "bytes": "bytes of the weights",
}
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
    """Top-1 against the operations of one image and against the size of the weights, one point a model.

    Args:
        points: columns variant (timm name), label, bops, ops, bytes, top1 (percent), top1_std (NaN with one seed),
            seeds; in the order of the table.
        evaluated_on: the images the accuracies were measured on, "10,000 images of CIFAR-10".
        published: other models measured on the same data: columns ops, bytes, top1, certainty. Drawn grey, filled where
            the figure is the authors' own.

    Raises BinaryViTError when there is no point.
    """
    if points.empty:
        raise BinaryViTError("There is no accuracy to draw: no run of this study is finished.")
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.0))
    headline(figure, _claim(points))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (cost, title) in zip(panels, _COSTS.items(), strict=True):
        if published is not None:
            _draw_published(axes, published.dropna(subset=[cost, "top1"]), cost)
        _draw_points(axes, points, cost)
        axes.set(xscale="log", xlabel=title)
        ratio = points[cost].max() / points[cost].min()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 30 else (1, 3) if ratio < 300 else (1,)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.12, y=0.1)
    few, many = points["seeds"].min(), points["seeds"].max()
    spread = "one seed each" if many == 1 else f"mean and standard deviation of {_range(few, many)} seeds"
    panels[0].set_ylabel("top-1 accuracy (%)")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        title=f"{evaluated_on}; {spread}; dotted: the ladder, in order",
    )
    return figure


def _is_step(points: pd.DataFrame) -> pd.Series:
    """Which points are binary models of the ladder; the rest are teachers and other architectures."""
    return points["variant"].isin(BINARY_VARIANTS)


def _range(few: int, many: int) -> str:
    return str(few) if few == many else f"{few} to {many}"


def _draw_points(axes: Axes, points: pd.DataFrame, cost: str) -> None:
    ladder = points[_is_step(points)]
    axes.plot(ladder[cost], ladder["top1"], color=GREY, linewidth=0.7, linestyle=":", zorder=1)
    for row in points.itertuples():
        drawn = variant_style(row.variant)
        axes.errorbar(
            getattr(row, cost), row.top1, yerr=row.top1_std if row.seeds > 1 else None, color=drawn.colour,
            marker=drawn.marker, markersize=7 if drawn.marker == "*" else 5, linestyle="none",
            label=f"{row.label}  {row.top1:.1f}%, {row.ops / 1e6:,.2f} M OPs",
        )  # fmt: skip


def _claim(points: pd.DataFrame) -> str:
    """What the figure shows: what the ladder's binary models reach, and what they save."""
    steps, teachers = points[_is_step(points) & (points["bops"] > 0)], points[points["variant"].isin(TEACHERS.values())]
    if steps.empty or teachers.empty:
        return "Accuracy and cost of each model"
    teacher = teachers.iloc[0]
    fewer = span(teacher["ops"] / steps["ops"], "{:.0f}")
    others = points[~_is_step(points) & (points["bops"] > 0) & (points["top1"] > steps["top1"].max())]
    more = "".join(f"; the {other.label} reaches {other.top1:.1f}%" for other in others.itertuples())
    return (
        f"The ladder's binary models reach {span(steps['top1'], '{:.1f}')}% with {fewer} times fewer OPs than "
        f"their teacher ({teacher['top1']:.1f}%){more}"
    )


def _draw_published(axes: Axes, published: pd.DataFrame, cost: str) -> None:
    for certainty, (marker, face) in _CERTAINTY_MARKERS.items():
        group = published[published["certainty"] == certainty]
        if not group.empty:
            axes.plot(
                group[cost], group["top1"], marker, markersize=4, markeredgewidth=0.7, markerfacecolor=face,
                color=GREY, zorder=1, label=f"published: {certainty}",
            )  # fmt: skip

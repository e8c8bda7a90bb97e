"""Curves over the epochs of training: of one run, of all models of a study, and of the blocks inside of them."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER, variant_style
from binaryvit.palette import BLACK, BLUE, GREY, SKY, VERMILION

_OFF = 1e-4  # where a level at or below zero is drawn
_OTHERS = "thin lines: evaluation of the best other run of each variant"
_SHADES = LinearSegmentedColormap.from_list("depth", [SKY, BLUE, BLACK])
_TEACHERS = {teacher for teacher, *_ in LADDER.values()}


@styled
def training_curves(metrics: pd.DataFrame, others: pd.DataFrame | None = None) -> Figure:
    """Loss, top-1, flip rate of the binary weights and learning rate over the epochs of one run.

    What the run has no numbers for (flips of a full-precision model) gets no panel.

    Args:
        metrics: a row an epoch, as `records.run.read_metrics` returns it.
        others: those of other runs with their variant, to draw thinly behind this one's evaluation.

    Raises BinaryViTError when there is no epoch at all.
    """
    empty = pd.Series(dtype=float)
    if metrics.empty:
        raise BinaryViTError("There are no metrics to draw: the run has not finished its first epoch.")
    panels = [
        ("loss", {"train_loss": "training", "eval_loss": "evaluation"}, 1),
        ("top-1 accuracy (%)", {"train_top1": "training (augmented)", "top1": "evaluation"}, 1),
        ("binary weights flipped (%)", {"flip_rate": "all binary layers"}, 100),
        ("learning rate", {"lr": "learning rate"}, 1),
    ]
    panels = [
        (label, {column: name for column, name in columns.items() if metrics.get(column, empty).notna().any()}, factor)
        for label, columns, factor in panels
    ]
    panels = [panel for panel in panels if panel[1]]
    columns_of_panels = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns_of_panels
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.1 * rows))
    grid = figure.subplots(rows, columns_of_panels, squeeze=False)
    marker = "o" if len(metrics) <= 40 else ""
    for axes, (label, columns, factor) in zip(grid.flat, panels, strict=True):
        for column, name in columns.items():
            axes.plot(metrics["epoch"], metrics[column] * factor, marker=marker, markersize=3, label=name)
        axes.set(xlabel="epoch", ylabel=label, xlim=(metrics["epoch"].min() - 0.5, metrics["epoch"].max() + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.margins(y=0.15)
        if len(columns) > 1:
            axes.legend()
    if others is not None and len(others):
        _draw_others(figure, {"top1": grid.flat[1]}, others)
    return figure


def _draw_others(figure: Figure, panels: dict[str, Axes], others: pd.DataFrame) -> None:
    """Curves of other runs behind those of one, each in the colour of its variant."""
    for column, axes in panels.items():
        lines = []
        for variant, run in others.groupby("variant", sort=False):
            drawn = variant_style(variant)
            lines += axes.plot(
                run["epoch"], run[column], color=drawn.colour, linewidth=0.8, alpha=0.6, zorder=1, label=drawn.label
            )
    figure.legend(handles=lines, loc="outside lower center", ncols=3, title=_OTHERS)


@styled
def all_curves(table: pd.DataFrame, evaluated_on: str) -> Figure:
    """Top-1 and loss on the evaluation images over the epochs: a line a model, the mean over seeds with their range.

    Args:
        table: columns label, variant, seed, epoch, top1 (percent), eval_loss.
        evaluated_on: the images, "10,000 images of CIFAR-10".
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.3))
    panels = figure.subplots(1, 2)
    figure.suptitle(_leader(table), fontsize="medium")
    for axes, (column, name) in zip(panels, {"top1": "top-1 accuracy (%)", "eval_loss": "loss"}.items(), strict=True):
        for (label, variant), model in table.groupby(["label", "variant"], sort=False):
            _draw_seeds(axes, model, column, variant_style(variant).colour, label, variant_style(variant).marker)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    many = table.groupby("label")["seed"].nunique().max() > 1
    title = f"{evaluated_on}, {'mean and range of seeds' if many else 'one seed each'}"
    figure.legend(handles=panels[0].lines, loc="outside lower center", ncols=3, title=title)
    return figure


def _draw_seeds(axes: Axes, model: pd.DataFrame, column: str, colour: str, label: str, marker: str) -> None:
    """The mean over seeds at each epoch, and a band from the lowest to the highest seed."""
    by_epoch = model.groupby("epoch")[column]
    few = by_epoch.ngroups <= 40
    axes.plot(by_epoch.mean(), color=colour, label=label, marker=marker if few else "", markersize=4)
    if model["seed"].nunique() > 1:
        axes.fill_between(by_epoch.mean().index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.2, linewidth=0)


def _leader(table: pd.DataFrame) -> str:
    """The claim: which binary model ends highest, and from which epoch on it leads."""
    binary = table[~table["variant"].isin(_TEACHERS)]
    if binary["label"].nunique() < 2:
        return "Accuracy and loss over training"
    means = binary.groupby(["epoch", "label"], sort=False)["top1"].mean().unstack()
    leaders = means.dropna().idxmax(axis=1)
    best = leaders.iloc[-1]
    others = leaders.index[leaders != best]
    since = "from the first epoch on" if others.empty else f"only after epoch {others.max()}"
    return f"Of the binary models, {best} leads {since}"


@styled
def flips_by_block(table: pd.DataFrame) -> Figure:
    """Flip rates of each block over the epochs, a panel a model, and the learning rate's course in grey.

    `table`: columns label, variant, seed, block (in the order of the model), epoch, flip_rate, lr.
    """
    figure = _panels_by_block(table.assign(flip_rate=100 * table["flip_rate"]), "flip_rate", "weights flipped (%)")
    together = table[["flip_rate", "lr"]].corr(method="spearman").iloc[0, 1]
    claim = "Weights flip as the learning rate lets them" if together > 0.5 else "Flips of binary weights over training"
    figure.suptitle(claim, fontsize="medium")
    for axes, (_, model) in zip(figure.axes.copy(), table.groupby("label", sort=False), strict=False):
        rate = model.groupby("epoch")["lr"].mean()
        axes.set_ylim(bottom=0)
        other = axes.twinx()
        other.plot(rate.index, rate, color=GREY, linestyle="--", zorder=0)
        other.set(ylim=(0, None), yticks=[])
        other.grid(False)
    return _with_legend(figure, Line2D([], [], color=GREY, linestyle="--", label="learning rate"))


@styled
def levels_by_block(table: pd.DataFrame) -> Figure:
    """The learned level a of each block over the epochs, from its start at 0, a panel a model; off at or below zero.

    `table`: columns run, label, variant, seed, block, epoch, level.
    """
    is_off = table["level"] <= 0
    figure = _panels_by_block(table.assign(level=table["level"].clip(lower=_OFF)), "level", "level a")
    last = table["epoch"] == table.groupby("run")["epoch"].transform("max")
    claim = f"{(is_off & last).sum()} of {last.sum()} levels a end at zero or below, where attention is off"
    figure.suptitle(claim, fontsize="medium")
    for axes, (label, _) in zip(figure.axes, table.groupby("label", sort=False), strict=False):
        off = table["epoch"][is_off & (table["label"] == label)]
        axes.plot(off, [_OFF] * len(off), "x", color=VERMILION, clip_on=False)
        axes.set(yscale="log")
    return _with_legend(figure, Line2D([], [], color=VERMILION, marker="x", linestyle="", label="off"))


@styled
def shifts_by_block(table: pd.DataFrame) -> Figure:
    """How far the learned shifts are from 0, where they start, over the epochs: a panel a model, a line a block.

    `table`: columns label, variant, seed, block, epoch, mean_absolute_shift.
    """
    figure = _panels_by_block(table, "mean_absolute_shift", "mean |shift|")
    figure.suptitle("Learned shifts move away from 0, where they start", fontsize="medium")
    return _with_legend(figure)


def _panels_by_block(table: pd.DataFrame, column: str, name: str) -> Figure:
    """A panel a model, in it a line a block, from light (first) to dark (last), the mean over seeds."""
    models = list(table.groupby("label", sort=False))
    across = min(3, len(models))
    down = -(-len(models) // across)
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.9 + 1.7 * down))
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes, (label, model) in zip(grid.flat, models, strict=False):
        blocks = model["block"].unique()
        shades = _SHADES(np.linspace(0, 1, len(blocks)))
        few = model["epoch"].nunique() <= 40
        for block, shade in zip(blocks, shades, strict=True):
            curve = model[model["block"] == block].groupby("epoch")[column].mean()
            axes.plot(curve, color=shade, marker="." if few else "", label=block)
        axes.set(title=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in grid.flat[len(models) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    figure.supylabel(name, fontsize="medium")
    return figure


def _with_legend(figure: Figure, *further: Line2D) -> Figure:
    ends = [
        Line2D([], [], color=_SHADES(share), label=f"{end} block") for share, end in ((0.0, "first"), (1.0, "last"))
    ]
    figure.legend(handles=[*ends, *further], loc="outside lower center", ncols=4)
    return figure

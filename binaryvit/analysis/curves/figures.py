"""Curves over the epochs of training: of one run, of all models of a study, and of the blocks inside of them."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from binaryvit.analysis.labels import most_seeds
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, styled
from binaryvit.analysis.wording import two_digits
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import TEACHERS, variant_style
from binaryvit.palette import BLACK, BLUE, GREY, SKY, VERMILION

_OTHERS = "thin lines: evaluation of the best other run of each variant, trained alike"
_SHADES = LinearSegmentedColormap.from_list("depth", [SKY, BLUE, BLACK])
_ABOUT_LEVELS = "binarized attention takes the values 0 and a, with a learned level a per block; at a ≤ 0 it is off"
_ABOUT_SHIFTS = "a shift b, learned per channel, moves the threshold of sign(x + b) to x = -b; mean of a block's layers"
_MARKED = 40  # epochs up to which each has a marker
_NAME_HEIGHT = 0.08  # of a line's name, as a share of its panel


@styled
def training_curves(metrics: pd.DataFrame, others: pd.DataFrame | None = None) -> Figure:
    """Loss, top-1, flip rate of the binary weights and learning rate over the epochs of one run.

    What the run has no numbers for (flips of a full-precision model) gets no panel.

    Args:
        metrics: a row an epoch, as `records.run_record.read_metrics` returns it.
        others: those of other runs with their variant, drawn as thin lines under this one's evaluation.

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
    across = 2 if len(panels) == 4 else len(panels)
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.1 * len(panels) / across))
    grid = figure.subplots(len(panels) // across, across, squeeze=False)
    marker = "o" if len(metrics) <= _MARKED else ""
    for axes, (label, columns, factor) in zip(grid.flat, panels, strict=True):
        for column, name in columns.items():
            axes.plot(metrics["epoch"], metrics[column] * factor, marker=marker, markersize=3, label=name)
        axes.set(ylabel=label, xlim=(metrics["epoch"].min() - 0.5, metrics["epoch"].max() + 0.5))
        _along_epochs(axes)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.margins(y=0.15)
        if len(columns) > 1:
            axes.legend()
    if others is not None and len(others):
        _draw_others(figure, grid.flat[1], others)
    return figure


def _draw_others(figure: Figure, axes: Axes, others: pd.DataFrame) -> None:
    """Top-1 of other runs as thin lines, each in the colour of its variant."""
    lines = []
    for variant, run in others.groupby("variant", sort=False):
        look = variant_style(variant)
        lines += axes.plot(
            run["epoch"], run["top1"], color=look.colour, linewidth=0.8, alpha=0.6, zorder=1, label=look.label
        )
    figure.legend(handles=lines, loc="outside lower center", ncols=3, title=_OTHERS)


@styled
def all_curves(table: pd.DataFrame, claim: str) -> Figure:
    """Top-1 and loss on the evaluation images over the epochs, one line per model.

    A teacher that trains longer than the binary models is a dashed line at what it reaches, so that they get the room.

    `table`: columns label, variant, seed, epoch, top1 (percent), eval_loss, evaluated_on ("10,000 images of CIFAR-10").
    """
    longest = table.loc[~table["variant"].isin(TEACHERS.values()), "epoch"].max()
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.3))
    panels = figure.subplots(1, 2)
    for axes, (column, name) in zip(
        panels, {"top1": "top-1 accuracy (%)", "eval_loss": "evaluation loss"}.items(), strict=True
    ):
        for (label, variant), model in table.groupby(["label", "variant"], sort=False):
            look = variant_style(variant)
            if (epochs := model["epoch"].max()) > longest:  # never, if no other model is drawn and `longest` is NaN
                reached = model.loc[model["epoch"] == epochs, column].mean()
                axes.axhline(reached, color=look.colour, linestyle="--", label=f"{label}, after {epochs} epochs")
            else:
                _draw_seeds(axes, model, column, look.colour, label, look.marker)
        axes.set_ylabel(name)
        _along_epochs(axes)
    title = f"{table['evaluated_on'].iloc[0]}; line: {_about_seeds(table)}"
    figure.legend(handles=panels[0].lines, loc="outside lower center", ncols=3, title=title)
    headline(figure, claim)
    return figure


@styled
def flips_by_block(table: pd.DataFrame, claim: str) -> Figure:
    """Flip rates of each block over the epochs, and the learning rate's course in grey.

    `table`: columns label, variant, seed, block (in the order of the model), epoch, flip_rate, model_flip_rate (of all
    its binary weights), lr.
    """
    table = table.assign(flip_rate=100 * table["flip_rate"])
    whole = table.groupby(["label", "epoch"])["model_flip_rate"].median().groupby("label").agg(["first", "last"])
    rate = Line2D([], [], color=GREY, linestyle="--", label="learning rate (top of the panel: its peak)")
    figure, panels = _panels_by_block(table, "flip_rate", "binary weights flipped\nin the epoch (%)", claim, rate)
    for label, axes in panels.items():
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(f"{label}\nall blocks: {whole['first'][label]:.0%}, in the end {whole['last'][label]:.1%}")
        other = axes.twinx()
        other.plot(table[table["label"] == label].groupby("epoch")["lr"].mean(), color=GREY, linestyle="--", zorder=0)
        other.set(ylim=(0, table["lr"].max()), yticks=[])
        other.grid(False)
    return figure


@styled
def levels_by_block(table: pd.DataFrame, claim: str) -> Figure:
    """The learned level a of each block over the epochs, as a multiple of its start; crosses where attention is off.

    Of several seeds a line is the median of those whose attention is on.

    `table`: columns run, label, variant, seed, block, epoch, level, initial.
    """
    off = is_off(table["level"])
    ratio = table["level"] / table["initial"]
    floor = ratio[~off].min() / 2
    cross = Line2D([], [], color=VERMILION, marker="x", linestyle="", label="a ≤ 0: attention is off")
    table, legend = table.assign(ratio=ratio.mask(off)), [cross] if off.any() else []
    figure, panels = _panels_by_block(
        table, "ratio", "attention level a\n/ its start", claim, *legend, about=_ABOUT_LEVELS
    )
    for label, axes in panels.items():
        epochs = table["epoch"][off & (table["label"] == label)].unique()
        axes.plot(epochs, [floor] * len(epochs), "x", color=VERMILION, zorder=3)
        axes.axhline(1, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    _name_ends(table, "ratio", panels, lambda ratio: f"{two_digits(ratio)}×")
    return figure


@styled
def shifts_by_block(table: pd.DataFrame, claim: str) -> Figure:
    """How far the learned shifts move the thresholds of signs from 0, where they start, over the epochs.

    `table`: columns run, label, variant, seed, block, epoch, mean_absolute_shift.
    """
    figure, panels = _panels_by_block(table, "mean_absolute_shift", "mean |b|", claim, about=_ABOUT_SHIFTS)
    _name_ends(table, "mean_absolute_shift", panels, "{:.2f}".format)
    return figure


def _panels_by_block(
    table: pd.DataFrame, column: str, name: str, claim: str, *further: Line2D, about: str = ""
) -> tuple[Figure, dict[str, Axes]]:
    """A panel per model, by label, in it a line per block, from light (first) to dark (last)."""
    models = dict(iter(table.groupby("label", sort=False)))
    across = min(3, len(models))
    down = -(-len(models) // across)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.1 + 1.6 * down))
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    panels = dict(zip(models, grid.flat, strict=False))
    for label, axes in panels.items():
        blocks = models[label].groupby("block", sort=False)
        for (block, curve), shade in zip(blocks, _SHADES(np.linspace(0, 1, len(blocks))), strict=True):
            line = ":" if block.startswith("merge") else "-"
            _draw_seeds(axes, curve, column, shade, block, ".", line, middle="median")
        axes.set_title(label)
        _along_epochs(axes)
        axes.label_outer()
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(models) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(name)
    first, last = (" or ".join(table.groupby("label", sort=False)["block"].nth(end).unique()) for end in (0, -1))
    shades = {f"first block ({first})": 0.0, "between, in order": 0.5, f"last block ({last})": 1.0}
    lines = [Line2D([], [], color=_SHADES(share), label=name) for name, share in shades.items()]
    if table["block"].str.startswith("merge").any():
        lines.append(Line2D([], [], color=_SHADES(0.5), linestyle=":", label="merges"))
    title = "\n".join(
        filter(None, [about, f"a line for each block (stage.block, from 0), {_about_seeds(table, 'median')}"])
    )
    figure.legend(handles=[*lines, *further], loc="outside lower center", ncols=4, title=title)
    headline(figure, claim)
    return figure, panels


def _name_ends(table: pd.DataFrame, column: str, panels: dict[str, Axes], write: Callable[[float], str]) -> None:
    """Each block's name and last value at the end of its line; names that would overlap move apart."""
    last = table[table["epoch"] == table.groupby("run")["epoch"].transform("max")]
    for label, axes in panels.items():
        ends = last[last["label"] == label].groupby("block")[column].median().dropna().sort_values()
        axes.get_ylim()  # the limits are made when they are asked for
        data = np.column_stack([np.ones(len(ends)), ends])
        ends_at = on_axes = (axes.transScale + axes.transLimits).transform(data)[:, 1]
        height = min(_NAME_HEIGHT, 1 / max(1, len(ends)))
        for _ in range(100):
            overlap = (height - np.diff(on_axes)).clip(0) / 2
            on_axes = (on_axes + np.append(0, overlap) - np.append(overlap, 0)).clip(0, 1)
        colours = {line.get_label(): line.get_color() for line in axes.lines}
        beside = dict(transform=axes.transAxes, clip_on=False)
        for (block, value), end, place in zip(ends.items(), ends_at, on_axes, strict=True):
            axes.plot([1, 1.03], [end, place], color=colours[block], linewidth=0.6, **beside)
            name = f"{block}: {write(value)}"
            axes.text(1.04, place, name, color=colours[block], va="center", fontsize=5.5, **beside)


def _draw_seeds(
    axes: Axes,
    model: pd.DataFrame,
    column: str,
    colour: str,
    label: str,
    marker: str,
    line: str = "-",
    middle: str = "mean",
) -> None:
    """Mean or median of the seeds at each epoch, and a band from the lowest to the highest of them."""
    by_epoch = model.groupby("epoch")[column]
    drawn = by_epoch.agg(middle)
    axes.plot(
        drawn, color=colour, label=label, marker=marker if len(drawn) <= _MARKED else "", markersize=3, linestyle=line
    )
    if model["seed"].nunique() > 1:
        axes.fill_between(drawn.index, by_epoch.min(), by_epoch.max(), color=colour, alpha=0.2, linewidth=0)


def _about_seeds(table: pd.DataFrame, middle: str = "mean") -> str:
    seeds = most_seeds(table)
    return f"{middle} of up to {seeds} seeds, band: their range" if seeds > 1 else "one seed of each model"


def _along_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

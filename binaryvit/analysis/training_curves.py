"""The course of one training run."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.errors import BinaryViTError


@styled
def training_curves(metrics: pd.DataFrame) -> Figure:
    """Loss, top-1, flip rate of the binary weights and learning rate over the epochs of one run.

    `metrics` has a row an epoch, as `runs.read_metrics` returns it. What the run has no numbers for (flips of a
    full-precision model) gets no panel. Raises BinaryViTError when there is no epoch at all.
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
    return figure

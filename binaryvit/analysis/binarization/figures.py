"""How the notebook on binarization draws what its cells compute. Nothing is computed here."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator
from torch import Tensor

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.models.ladder import LADDER, variant_style
from binaryvit.palette import BLACK, BLUE, GREY, ORANGE, VERMILION

_RUNGS = [variant_style(variant) for variant in LADDER["micro"][1:6]]
_LIGHT = "#E4E4E4"
_NARROW = 4.6  # inches, for a figure of one panel with few lines


@styled
def stand_ins(u: Tensor, forward: Mapping[str, Tensor], slopes: Mapping[str, Tensor]) -> Figure:
    """The sign and what stands in for it backward (left), and the slopes that come of it (right), over u."""
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.3))
    left, right = figure.subplots(1, 2)
    for axes, lines in ((left, forward), (right, slopes)):
        for (name, line), colour in zip(lines.items(), (BLACK, ORANGE, BLUE), strict=True):
            dashed = axes is left and colour != BLACK
            axes.plot(u, line, color=colour, linestyle="--" if dashed else "-", label=name)
    left.set(title="forward: always the sign (dashed: what backward pretends)", xlabel="u", ylabel="value")
    right.set(title="backward: three slopes", xlabel="u", ylabel="d sign(u) / du")
    left.legend(loc="upper left")
    right.legend(loc="upper left")
    return figure


@styled
def staircases(x: Tensor, target: Tensor, fits: Mapping[str, tuple[Tensor, float]]) -> Figure:
    """A curve and the staircase that each kind of gradient fitted to it; each fit with its mean squared error."""
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.2))
    panels = figure.subplots(1, len(fits), sharex=True, sharey=True)
    for axes, (name, (fit, error)) in zip(panels, fits.items(), strict=True):
        axes.plot(x, target, color=GREY, linewidth=2.5, alpha=0.5, label="target")
        axes.plot(x, fit, color=BLUE, label="fit")
        axes.set(title=f"{name}\nmean squared error {error:.2f}", xlabel="x")
    panels[0].legend(loc="best")
    return figure


@styled
def scale_error(scales: Tensor, errors: Tensor, best: float) -> Figure:
    """How far a scaled row of signs is from the row it stands for, over the scale; `best` is where theory has it."""
    figure = Figure(figsize=(_NARROW, 2.1))
    axes = figure.subplots()
    axes.plot(scales, errors, color=BLUE)
    axes.axvline(best, color=VERMILION, linestyle="--", linewidth=0.9, label="mean |w|")
    axes.set(
        xlabel="scale s", ylabel="|w - s sign(w)|² / |w|²", ylim=(0, None), title="The best scale is the mean of |w|"
    )
    axes.legend(loc="upper left")
    return figure


@styled
def latent_paths(paths: Tensor) -> Figure:
    """Latent weights (steps, weights) while they learn: blue where the bit is +1, orange where -1, dots at flips."""
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.4))
    axes = figure.subplots()
    steps = np.arange(len(paths))
    for path in paths.T.numpy():
        axes.plot(steps, np.where(path >= 0, path, np.nan), color=BLUE, linewidth=0.9)
        axes.plot(steps, np.where(path < 0, path, np.nan), color=ORANGE, linewidth=0.9)
        flips = 1 + np.flatnonzero((path[1:] >= 0) != (path[:-1] >= 0))
        axes.plot(flips, np.zeros(len(flips)), "o", color=BLACK, markersize=3, zorder=3)
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set(
        xlabel="training step",
        ylabel="centred latent weight",
        title="Every latent weight moves at every step; the layer sees only the flips (dots)",
        xlim=(0, len(paths) - 1),
    )
    return figure


@styled
def readable_values(counts: pd.DataFrame, inputs: int) -> Figure:
    """How many values one channel of the classifier's input takes, for each rung of the ladder.

    Args:
        counts: columns rung (in the order of the ladder), positions ("none" or "embedded"), lowest, median, highest
            (over the channels of some models).
        inputs: how many inputs there are, so that no count can be larger.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.9))
    axes = figure.subplots()
    none, embedded = (counts[counts["positions"] == kind] for kind in ("none", "embedded"))
    places = np.arange(len(none))
    colours = [rung.colour for rung in _RUNGS]
    axes.bar(places, none["median"], 0.6, color=colours, label="median, without position embeddings")
    axes.vlines(places, none["lowest"], none["highest"], color=BLACK, linewidth=1, label="lowest to highest channel")
    axes.plot(
        places, embedded["median"], "D", color=BLACK, markerfacecolor="white", label="median, with position embeddings"
    )
    axes.axhline(inputs, color=GREY, linestyle="--", linewidth=0.9, label=f"all {inputs:,} inputs told apart")
    axes.set_yscale("log")
    axes.set_ylim(10, inputs * 5)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xticks(places, [f"{rung}\n{count:,}" for rung, count in zip(none["rung"], none["median"], strict=True)])
    axes.set(
        ylabel="values of one channel",
        title="The mean over tokens tells inputs apart; without positions, branches and pyramid tell more",
    )
    axes.grid(axis="x", visible=False)
    axes.legend(loc="upper left", ncols=2)
    return figure


@styled
def attention_at(probabilities: Tensor, levels: Sequence[float]) -> Figure:
    """A small attention matrix (queries, keys), once for each level a: framed and dark what the threshold leaves on."""
    figure = Figure(figsize=(1.0 + 1.55 * len(levels), 1.95))
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for axes, level in zip(panels, levels, strict=True):
        on = probabilities > level / 2
        axes.imshow(np.where(on, 1.0, 0.0), cmap="Blues", vmin=0, vmax=1.4)
        for (query, key), p in np.ndenumerate(probabilities.numpy()):
            axes.text(key, query, f"{p:.2f}", ha="center", va="center", color="white" if on[query, key] else GREY)
        axes.set(title=f"a = {level:g}: P > {level / 2:g}\n{int(on.sum())} of {on.numel()} on", xticks=[], yticks=[])
        axes.set_xlabel("key")
        axes.grid(False)
    panels[0].set_ylabel("query")
    return figure


@styled
def attended(
    levels: Tensor, on: Tensor, learning: Tensor, all_on_below: float, none_on_above: float, initial: float
) -> Figure:
    """Over the level a: the shares of the probabilities that are on, and of those that pass a gradient to q and k.

    Below `all_on_below` all are on, above `none_on_above` none is: attention says the same whatever the tokens are.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.3))
    axes = figure.subplots()
    first, last = float(levels[0]), float(levels[-1])
    axes.plot(levels, on, color=BLUE, label="on: P > a / 2")
    axes.plot(levels, learning, color=ORANGE, label="pass a gradient: P ≤ a")
    for left, right, text in ((first, all_on_below, "all on"), (none_on_above, last, "none on")):
        axes.axvspan(left, right, color=_LIGHT, zorder=0)
        middle = (left * right) ** 0.5  # on the logarithmic axis
        axes.text(middle, 0.5, text, ha="center", va="center", backgroundcolor=_LIGHT)
    axes.axvline(initial, zorder=1, color=VERMILION, linestyle="--", linewidth=0.9, label=f"initial level, {initial:g}")
    axes.set_xscale("log")
    axes.set(
        xlabel="level a",
        ylabel="share of the probabilities",
        xlim=(first, last),
        title="Too small a level or too large a one, and all queries get the same",
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def error_over_depth(errors: Mapping[str, Sequence[float]]) -> Figure:
    """How far the stream of a binary model is from that of the same weights in full precision, after each block."""
    figure = Figure(figsize=(_NARROW, 2.3))
    axes = figure.subplots()
    for (name, error), colour in zip(errors.items(), (GREY, _RUNGS[3].colour), strict=True):
        axes.plot(range(1, len(error) + 1), error, color=colour, marker="o", markersize=3, label=name)
    axes.set(
        xlabel="block",
        ylabel="relative error of the stream",
        ylim=(0, 0.95),
        title="With affines at 0.1 one bit does about half the damage",
    )
    axes.xaxis.set_major_locator(MultipleLocator(2))
    axes.legend(loc="upper left")
    return figure

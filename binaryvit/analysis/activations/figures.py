"""Figures of what one bit does to activations and weights: pre-sign histograms, signs, weights, distinct values."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import variant_style
from binaryvit.palette import GREY

_NOTHING = "There is nothing to draw: the selected runs gave no numbers."
_WINDOW = dict(color="white", linewidth=0.8, linestyle="--")
_CEILING = dict(color=GREY, linewidth=0.8, linestyle="--")


@styled
def pre_sign_histograms(histograms: pd.DataFrame, images: str) -> Figure:
    """The distribution of the pre-sign activation u of every binary layer against the window (-1, 1), a panel a run.

    Args:
        histograms: columns run, label, layer (in order of computation), bin_left, bin_right, count.
        images: what was counted on, "1,000 images of CIFAR-10".
    """
    panels = _groups(histograms, "run")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.6 + 2.3 * rows))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    shares = {run: _shares(frame) for run, frame in panels.items()}
    highest = max(share.to_numpy().max() for share in shares.values())
    for axes, (run, frame) in zip(grid.flat, panels.items(), strict=False):
        share = shares[run]
        inner = share.columns[1:].to_numpy(float)
        width = inner[1] - inner[0]
        edges = [inner[0] - width, *inner, inner[-1] + width]  # the unbounded bins as wide as the others
        mesh = axes.pcolormesh(
            edges, np.arange(len(share) + 1), share, norm=PowerNorm(0.5, 0, highest), cmap="viridis", rasterized=True
        )
        for side in (-1, 1):
            axes.axvline(side, **_WINDOW)
        axes.grid(False)
        axes.set(title=frame["label"].iloc[0], ylim=(len(share), 0))
        _name_blocks(axes, axes.yaxis, list(share.index), color="white")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.colorbar(mesh, ax=grid, label="share of the layer's values per bin (%)", fraction=0.03, aspect=40)
    figure.supxlabel(f"pre-sign activation u = x + b, bins of {width:g}, outermost: all beyond  ({images})", fontsize=8)
    figure.supylabel("stage.block of the binary layer (top: input)", fontsize=8)
    return figure


@styled
def sign_statistics(signs: pd.DataFrame, images: str) -> Figure:
    """Window share, sign balance, dead channels, entropy and shift of every binary layer over depth.

    Runs on one grid (columnar) and on several (pyramid) have columns of their own; a line a run.

    Args:
        signs: columns run, label, variant, and those of `statistics.sign_layers`.
        images: what was counted on.
    """
    signs = signs.assign(
        inside=100 * signs["share_inside"],
        positive=100 * signs["share_positive"],
        low=100 * signs["share_positive_low"],
        high=100 * signs["share_positive_high"],
        dead_share=100 * signs["dead"] / signs["channels"],
        kind=signs.groupby("run")["layer"].transform(_is_pyramid),
    )
    measures = {
        "inside": "u in (-1, 1)\n(% of values)",
        "positive": "sign +1 (% of values)\nband: 80% of channels",
        "dead_share": "dead channels\n(%)",
        "entropy": "bit entropy (bits,\nmean of channels)",
        "mean_absolute_shift": "|shift b|\n(mean of channels)",
    }
    kinds = _groups(signs, "kind")
    figure = Figure(figsize=(DOUBLE_COLUMN, 7.4))
    grid = figure.subplots(
        len(measures), len(kinds), squeeze=False, sharex="col", sharey="row", width_ratios=[1] * len(kinds)
    )
    for column, frame in enumerate(kinds.values()):
        runs = _groups(frame, "run")
        layers = list(max((run["layer"] for run in runs.values()), key=len))
        for axes, (name, label) in zip(grid[:, column], measures.items(), strict=True):
            for run in runs.values():
                drawn = variant_style(run["variant"].iloc[0])
                depth = [layers.index(layer) + 0.5 for layer in run["layer"]]
                axes.plot(depth, run[name], color=drawn.colour, marker=drawn.marker, markersize=2.5, linewidth=0.8)
                if name == "positive":
                    axes.fill_between(depth, run["low"], run["high"], color=drawn.colour, alpha=0.12, linewidth=0)
            _name_blocks(axes, axes.xaxis, layers)
            axes.grid(axis="x", visible=False)
            if column == 0:
                axes.set_ylabel(label)
            if name == "dead_share":
                axes.set_ylim(-0.02 * (top := max(1, 1.1 * signs[name].max())), top)
        grid[-1, column].set_xlabel(f"stage.block of the binary layer, input to output\n({images})")
    _legend(figure, signs)
    return figure


@styled
def weight_statistics(latent: pd.DataFrame, flips: pd.DataFrame, scales: pd.DataFrame) -> Figure:
    """Latent weights at the end of training, how many signs flipped in each epoch, and the scales; a line a run.

    Args:
        latent: columns run, label, variant, bin_left, bin_right (of W / s, the latent weight in units of its row's
            scale; outermost unbounded), share (of all binary weights).
        flips: columns run, epoch, flip_rate (of all binary weights).
        scales: columns run, layer, weights (their number), mean_scale, scale_low, scale_high.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.2))
    (distribution, distance), (flipping, scaling) = figure.subplots(2, 2)
    for run, frame in _groups(latent, "run").items():
        drawn = variant_style(frame["variant"].iloc[0])
        colour = drawn.colour
        inner = frame[np.isfinite(frame["bin_left"]) & np.isfinite(frame["bin_right"])]
        centres = (inner["bin_left"] + inner["bin_right"]) / 2
        distribution.plot(centres, 100 * inner["share"], color=colour, linewidth=1)
        nearer = within(frame)
        distance.plot(nearer.index, 100 * nearer, color=colour, marker=drawn.marker, markersize=2.5, linewidth=1)
        flip = flips[flips["run"] == run]
        flipping.plot(flip["epoch"], 100 * flip["flip_rate"], color=colour, marker=drawn.marker)
        scale = scales[scales["run"] == run]
        depth = np.linspace(0, 1, len(scale))
        scaling.plot(depth, scale["mean_scale"], color=colour, marker=drawn.marker, markersize=2.5, linewidth=0.8)
        scaling.fill_between(depth, scale["scale_low"], scale["scale_high"], color=colour, alpha=0.1, linewidth=0)
    width = inner["bin_right"].iloc[0] - inner["bin_left"].iloc[0]
    numbers = scales.groupby("run")["weights"].sum()
    counted = " to ".join(f"{number:,}" for number in sorted({numbers.min(), numbers.max()}))
    distribution.set(xlabel="latent weight W / scale s of its row", ylabel=f"binary weights (% per {width:g})")
    distribution.axvline(0, **_CEILING)
    distance.set(xlabel="distance to the threshold d", ylabel="binary weights with |W| / s < d (%)", ylim=(0, 102))
    flipping.set(xlabel="epoch", ylabel="signs flipped in the epoch (%)", ylim=(0, None))
    flipping.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scaling.set(
        xlabel="depth (first to last binary layer)", ylabel="scale s\nband: 80% of a layer's rows", ylim=(0, None)
    )
    for axes in (distribution, distance, flipping, scaling):
        axes.margins(x=0.03)
    figure.supxlabel(f"{counted} binary weights a model", fontsize=8)
    _legend(figure, latent)
    return figure


@styled
def distinct_values(values: pd.DataFrame, steps: Sequence[str], counted: str) -> Figure:
    """How many distinct values a channel takes at each step inside a block.

    Runs whose blocks all work on grids of one size share a panel, a line a run, over the median of their blocks; each
    other run has its own, a line a block. Dashed: how many values were looked at.

    Args:
        values: columns run, label, variant, block, step, observations (per channel), bound (of a binary product), and
            median (distinct values, median of channels).
        steps: the order of the steps; those without values are left out.
        counted: what was counted on, "256 images of CIFAR-10, 8 channels".
    """
    if values.empty:
        raise BinaryViTError(_NOTHING)
    steps = [step for step in steps if step in set(values["step"])]
    inside = values[~values["step"].str.startswith("head")]
    grids = inside.groupby("run", sort=False)["observations"].nunique()
    together = [run for run in grids.index if grids[run] == 1]
    panels = ([together] if together else []) + [[run] for run in grids.index if grids[run] > 1]
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.9 + 1.75 * len(panels)))
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, runs in zip(grid, panels, strict=True):
        for run, offset in zip(runs, _offsets(len(runs)), strict=True):
            _draw_steps(axes, values[values["run"] == run], steps, offset, by_block=runs != together)
        axes.set_yscale("log")
        axes.set(ylabel="distinct values\n(median channel)", xlim=(-0.5, len(steps) - 0.5))
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        for part in _parts(steps)[1:]:
            axes.axvline(part.start - 0.5, color=GREY, linewidth=0.6)
    grid[-1].set_xticks(range(len(steps)), steps, rotation=90)
    figure.supxlabel(f"{counted}; dashed: values looked at; bars: the most a product can take", fontsize=8)
    return figure


def within(latent: pd.DataFrame) -> pd.Series:
    """Share of weights whose distance |W| / s to the threshold is below d, by d: the finite edges above zero."""
    edges = sorted(edge for edge in latent["bin_right"] if 0 < edge < np.inf)
    inside = [latent[(latent["bin_left"] >= -edge) & (latent["bin_right"] <= edge)]["share"].sum() for edge in edges]
    return pd.Series(inside, index=edges)


def _draw_steps(axes: Axes, values: pd.DataFrame, steps: Sequence[str], offset: float, by_block: bool) -> None:
    """One run, moved sideways by `offset`: a line a block, lighter with depth, or one of the blocks' median."""
    drawn = variant_style(values["variant"].iloc[0])
    groups = _groups(values, "block") if by_block else {values["label"].iloc[0]: values}
    blocks = [block for block in groups if block != "head"]
    places = np.arange(len(steps)) + offset
    for name, frame in groups.items():
        medians = frame.groupby("step")[["median", "observations", "bound"]].median().reindex(steps)
        fade = 1 - 0.6 * blocks.index(name) / max(1, len(blocks) - 1) if by_block and name in blocks else 1
        look = dict(color=drawn.colour, alpha=fade, marker=drawn.marker, markersize=3.5, linewidth=0.9)
        ceiling = _CEILING | (dict(color=drawn.colour, alpha=fade) if by_block else {})
        for part in _parts(steps):  # no line from the end of one part to the beginning of another
            axes.plot(places[part], medians["median"].iloc[part], **look)
        axes.hlines(medians["observations"], np.arange(len(steps)) - 0.5, np.arange(len(steps)) + 0.5, **ceiling)
        axes.plot(places, medians["bound"], linestyle="none", marker="_", markersize=8, color=drawn.colour, alpha=fade)
        if name != "head":
            axes.plot([], [], label=_block_label(name) if by_block else name, **look)
    if by_block:
        axes.set_title(f"{values['label'].iloc[0]}, by stage.block", loc="left")


def _offsets(number: int) -> np.ndarray:
    """Places beside each other within a step's unit of width, around 0."""
    return (np.arange(number) - (number - 1) / 2) * 0.6 / number


def _parts(steps: Sequence[str]) -> list[slice]:
    """Where the parts of a block stand among the steps: neighbours with the same words before the colon."""
    names = [re.split(":| \\+", step)[0] for step in steps]
    starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(names)], strict=True)]


def _shares(histogram: pd.DataFrame) -> pd.DataFrame:
    """Percent of each layer's values per bin: a row a layer, in their order, a column a left edge."""
    counts = histogram.pivot(index="layer", columns="bin_left", values="count").loc[histogram["layer"].unique()]
    return 100 * counts.div(counts.sum(axis=1), axis=0)


def _is_pyramid(layers: pd.Series) -> bool:
    return layers.str.startswith("stages.1.").any()


def _groups(frame: pd.DataFrame, by: str) -> dict[str, pd.DataFrame]:
    """The frame's parts in the order they stand in. Raises BinaryViTError for an empty frame."""
    if frame.empty:
        raise BinaryViTError(_NOTHING)
    return dict(list(frame.groupby(by, sort=False)))


def _name_blocks(axes: Axes, axis: Axis, layers: Sequence[str], color: str = "#BBBBBB") -> None:
    """Ticks in the middle of each block's layers along an axis of layers, and lines between the blocks."""
    names = [_block_label(layer) for layer in layers]
    starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    ends = [*starts[1:], len(names)]
    line = axes.axhline if isinstance(axis, YAxis) else axes.axvline
    for start in starts[1:]:
        line(start, color=color, linewidth=0.5)
    named = [(start, end) for start, end in zip(starts, ends, strict=True) if end - start > 1]  # a merge is one layer
    axis.set_ticks([(start + end) / 2 for start, end in named], [names[start] for start, _ in named])
    axis.set_tick_params(length=0)


def _block_label(path: str) -> str:
    """Short for a path in a model: "stages.2.blocks.1.attn.q" is "2.1"."""
    found = re.match(r"stages\.(\d+)\.(?:blocks\.(\d+))?", path)
    if not found:
        return path
    stage, block = found.groups()
    return f"merge {stage}" if block is None else f"{stage}.{block}"


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    """The variants above the panels, each once, whatever the number of its seeds."""
    handles = {}
    for row in frame.drop_duplicates("run").itertuples():
        drawn = variant_style(row.variant)
        label = re.sub(r", seed \d+$", "", row.label)
        handles.setdefault(label, Line2D([], [], color=drawn.colour, marker=drawn.marker, label=label))
    figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=3)

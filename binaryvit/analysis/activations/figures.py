"""Figures of what one bit does to activations and weights: pre-sign histograms, signs, weights, distinct values."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from binaryvit.analysis.activations.layer_kinds import KINDS, kind_of
from binaryvit.analysis.strips import handles, reference, strips
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, in_lines, styled
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import VariantStyle, variant_style
from binaryvit.palette import BLACK, GREY, ORANGE, VERMILION

_ONE_TO_ONE = ("batch norm", "RPReLU", "affine")  # steps that give each value another, and add none
_WINDOW = dict(color="#EFEFEF", linewidth=0, zorder=0)
# Blocks of one grid and of several: within each, no variant can be told from another.
_SHAPES = {"columnar": VariantStyle("", ORANGE, "o"), "pyramid": VariantStyle("", VERMILION, "v")}


@styled
def pre_sign_histograms(histograms: pd.DataFrame, images: str, claim: str) -> Figure:
    """The distribution of pre-sign activations u against the estimator's window (-1, 1), one panel per kind of layer.

    Args:
        histograms: columns label, variant, layer, bin_left, bin_right, count. A line is the mean of the layers' shares.
        images: what was counted on, "1,000 images of CIFAR-10".
        claim: what the figure says.
    """
    table = _of_kinds(histograms)
    table["share"] = 100 * table["count"] / table.groupby(["run", "layer"])["count"].transform("sum")
    kinds = _kinds_in(table)
    columns = min(3, len(kinds))
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.0 + 1.5 * -(-len(kinds) // columns)))
    grid = figure.subplots(-(-len(kinds) // columns), columns, squeeze=False, sharex=True, sharey=True)
    finite = table[np.isfinite(table["bin_left"]) & np.isfinite(table["bin_right"])]
    edges = np.unique(finite[["bin_left", "bin_right"]])
    for axes, kind in zip(grid.flat, kinds, strict=False):
        axes.axvspan(-1, 1, **_WINDOW)
        for name, look in _looks(table).items():
            own = finite[(finite["row"] == kind) & (finite["series"] == name)]
            if len(own):
                axes.stairs(own.groupby("bin_left")["share"].mean(), edges, color=look.colour, baseline=None)
        inside = table[table["bin_left"].ge(-1) & table["bin_right"].le(1) & table["row"].eq(kind)]
        share = inside.groupby(["run", "layer"])["share"].sum().mean()
        axes.set_title(f"{kind}\n{share:.0f} % inside")
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(f"% of values per {edges[1] - edges[0]:g}")
    grid[-1, columns // 2].set_xlabel(f"u = x + b, before its sign; shaded: the window ({images})")
    figure.legend(handles=handles(_looks(table).items()), loc="outside lower center", ncols=3)
    headline(figure, claim)
    return figure


@styled
def sign_statistics(signs: pd.DataFrame, images: str, claim: str) -> Figure:
    """The entropy of signs and the size of the learned shifts: one row per kind of layer, one line per model.

    Args:
        signs: columns run, label, variant, and those of `signs.sign_layers`.
        images: what was counted on.
        claim: what the figure says.
    """
    table = _of_kinds(signs)
    kinds, looks = _kinds_in(table), _looks(table)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.4 + 0.5 * len(kinds)))
    entropy, shift = figure.subplots(1, 2, sharey=True)
    strips(entropy, table, "entropy", kinds, looks, absent="none")
    entropy.set_xlabel(f"entropy of a channel's sign (bits)\n{images}")
    entropy.set_xlim(right=1 + 0.04 * (1 - entropy.get_xlim()[0]))
    reference(entropy, 1, "balanced")
    strips(shift, table, "mean_absolute_shift", kinds, looks)
    shift.set_xlabel("size of the learned shift |b|, mean of channels\n(the window is -1 to 1)")
    reference(shift, 0, "before training")
    figure.legend(handles=handles(looks.items()), loc="outside lower center", ncols=3)
    headline(figure, claim)
    return figure


@styled
def weight_statistics(latent: pd.DataFrame, flips: pd.DataFrame, layers: pd.DataFrame, claim: str) -> Figure:
    """How far training moved binary weights from where PyTorch's initialiser put them.

    Args:
        latent: columns run, label, variant, when ("trained", "initial"), bin_left, bin_right (of the latent weight in
            units of its row's scale; outermost unbounded), share (of all binary weights).
        flips: columns run, label, variant, epoch, flip_rate (of all binary weights).
        layers: columns run, label, variant, layer, flipped (share of signs that differ from the initial ones),
            scale_ratio (mean scale over the initial one).
        claim: what the figure says.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 5.6))
    (distribution, flipping), (flipped, scale) = figure.subplots(2, 2)
    _latent_distribution(distribution, latent)
    looks = _looks(_of_kinds(layers))
    for _, own in _present(flips).groupby("run", sort=False):
        look = variant_style(own["variant"].iloc[0])
        flipping.plot(own["epoch"], 100 * own["flip_rate"], color=look.colour, marker=look.marker)
    flipping.set(xlabel="epoch", ylabel="signs flipped in the epoch (%)", ylim=(0, None))
    flipping.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    table = _of_kinds(layers).assign(flipped=100 * layers["flipped"])
    strips(flipped, table, "flipped", _kinds_in(table), looks, absent="none")
    flipped.set(xlabel="signs unlike the initial ones (%)", xlim=(0, None))
    strips(scale, table, "scale_ratio", _kinds_in(table), looks)
    scale.set_xlabel("scale s / its initial value")
    scale.set_yticklabels([])
    reference(scale, 1, "before training")
    figure.legend(handles=handles(looks.items()), loc="outside lower center", ncols=3)
    headline(figure, claim)
    return figure


@styled
def distinct_values(values: pd.DataFrame, steps: Sequence[str], counted: str, claim: str) -> Figure:
    """How many of the values looked at are different ones, at each step inside a block.

    Left out are the steps that only rescale, one value to one: batch norm, RPReLU and affine.

    Args:
        values: columns run, label, variant, block, step, observations (per channel), and median (distinct values,
            median of channels).
        steps: the order of the steps; those without values are left out.
        counted: what was counted on, "256 images of CIFAR-10, 8 channels".
        claim: what the figure says.
    """
    table = _of_shapes(values).assign(share=100 * values["median"] / values["observations"])
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.2))
    axes = figure.subplots()
    _steps(axes, table, "share", steps)
    axes.set(xscale="log", xlabel=f"distinct values in a channel (% of the values looked at)\n{counted}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(right=250)
    reference(axes, 100, "all different")
    figure.legend(handles=_shape_handles(table), loc="outside lower center", ncols=2)
    headline(figure, claim)
    return figure


@styled
def distinct_values_from_one_bit(values: pd.DataFrame, steps: Sequence[str], counted: str, claim: str) -> Figure:
    """How many values each half of a block makes of one bit a channel, and how many the classifier reads.

    Args:
        values, steps, counted, claim: as in `distinct_values`.
    """
    table = _of_shapes(values)
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.2))
    inside, read = figure.subplots(1, 2, width_ratios=(2, 1.4))
    _steps(inside, table[~table["row"].str.startswith("head")], "median", steps)
    inside.set(xscale="log", xlabel=f"distinct values in a channel\n{counted}")
    inside.xaxis.set_major_formatter("{x:,.0f}")
    _read_by_classifier(read, values[values["step"] == "head: pooled"])
    figure.legend(handles=_shape_handles(table), loc="outside lower center", ncols=2)
    headline(figure, claim)
    return figure


def _read_by_classifier(axes: Axes, pooled: pd.DataFrame) -> None:
    """One bar per model: the distinct values in a channel of what the classifier is given."""
    models = pooled.groupby("label", sort=False)
    for place, (_, own) in enumerate(models):
        count, look = own["median"].median(), variant_style(own["variant"].iloc[0])
        axes.barh(place, count, color=look.colour, height=0.6)
        axes.text(count, place, f" {count:,.0f}", va="center")
    axes.set_yticks(range(len(models)), [in_lines(name, 16) for name in models.groups])
    axes.set(xlim=(0, 1.2 * pooled["median"].max()), ylim=(len(models) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("values the classifier reads\n(mean of N tokens: ≤ N + 1)")


def _latent_distribution(axes: Axes, latent: pd.DataFrame) -> None:
    """The initial distribution as an area; the trained ones, which hardly differ, as the band between them."""
    inner = _present(latent)[np.isfinite(latent["bin_left"]) & np.isfinite(latent["bin_right"])]
    centres = (inner["bin_left"] + inner["bin_right"]) / 2
    shares = (100 * inner["share"]).groupby([inner["when"], centres]).agg(["min", "median", "max"])
    width = (inner["bin_right"] - inner["bin_left"]).iloc[0]
    initial, trained = shares.loc["initial"], shares.loc["trained"]
    axes.fill_between(initial.index, initial["median"], color="#DDDDDD", label="before training")
    axes.fill_between(trained.index, trained["min"], trained["max"], color=GREY, alpha=0.5, linewidth=0)
    models = inner["run"].nunique()
    axes.plot(
        trained["median"], color=BLACK, label=f"trained (median and\nrange of {models} model{'s' * (models > 1)})"
    )
    axes.set(xlabel="latent weight / scale s of its row", ylabel=f"binary weights (% per {width:g})", ylim=(0, None))
    axes.set_ylim(top=1.45 * shares.to_numpy().max())
    axes.legend(loc="upper center")


def _steps(axes: Axes, table: pd.DataFrame, value: str, steps: Sequence[str]) -> None:
    """One row per step, one line per shape of model: the median and range over blocks and models."""
    present = [step for step in steps if step in set(table["row"]) and not step.endswith(_ONE_TO_ONE)]
    strips(axes, table, value, present, {shape: _SHAPES[shape] for shape in _SHAPES if shape in set(table["series"])})


def _shape_handles(table: pd.DataFrame) -> list[Line2D]:
    models = table.groupby("series")["run"].nunique().to_dict()
    return handles(
        (f"{shape} ({models[shape]} model{'s' * (models[shape] > 1)})", look)
        for shape, look in _SHAPES.items() if shape in models
    )  # fmt: skip


def _of_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a row's name, its kind of layer, and a series' name, the model's."""
    return _present(table).assign(row=table["layer"].map(kind_of), series=table["label"])


def _of_shapes(values: pd.DataFrame) -> pd.DataFrame:
    """The table with the step as the row, and as the series whether the model is a pyramid."""
    pyramid = _present(values)["block"].str.startswith("stages.1.").groupby(values["run"]).transform("any")
    return values.assign(row=values["step"], series=np.where(pyramid, "pyramid", "columnar"))


def _kinds_in(table: pd.DataFrame) -> list[str]:
    """The kinds of layers in the order of computation."""
    present = list(dict.fromkeys(table["row"]))
    return sorted(present, key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))


def _looks(table: pd.DataFrame) -> dict[str, VariantStyle]:
    """How each series is drawn: as its variant everywhere."""
    return {name: variant_style(own["variant"].iloc[0]) for name, own in table.groupby("series", sort=False)}


def _present(frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty:
        raise BinaryViTError("There is nothing to draw: the selected runs gave no numbers.")
    return frame

"""Figures of what one bit does to activations and weights: pre-sign histograms, signs, weights, distinct values."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from binaryvit.analysis.activations.distinct_values import STEPS
from binaryvit.analysis.activations.findings import NEAR, shares_inside, shares_near
from binaryvit.analysis.activations.layer_kinds import KINDS, kind_of
from binaryvit.analysis.labels import is_pyramid
from binaryvit.analysis.strips import handles, reference, strips
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, styled
from binaryvit.analysis.wording import span
from binaryvit.models.ladder import VariantStyle, variant_style
from binaryvit.palette import BLACK, GREY, SKY, VERMILION

_ONE_TO_ONE = ("batch norm", "RPReLU", "affine")  # steps that give each value another, and add none
_MENTIONED = 0.05  # share of activations or weights beyond what is drawn, from which it is mentioned
_LAYERS = "marker: median of a model's layers of a kind, bar: their range"
# Blocks of one grid and of several: within each, no variant can be told from another.
_SHAPES = {"columnar": VariantStyle("", GREY, "o"), "pyramid": VariantStyle("", BLACK, "X")}


@styled
def pre_sign_histograms(histograms: pd.DataFrame, claim: str) -> Figure:
    """The distribution of pre-sign activations u against the estimator's window (-1, 1), one panel per kind of layer.

    `histograms`: columns run, label, variant, layer, bin_left, bin_right, count, counted_on ("1,000 images of
    CIFAR-10"). A line is the mean of the layers' shares.
    """
    table = _of_kinds(histograms)
    table["share"] = 100 * table["count"] / table.groupby(["run", "layer"])["count"].transform("sum")
    kinds, by = _kinds_in(table), ["row", "series"]
    inside = shares_inside(table, by)
    columns = min(3, len(kinds))
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.0 + 1.5 * -(-len(kinds) // columns)))
    grid = figure.subplots(-(-len(kinds) // columns), columns, squeeze=False, sharex=True, sharey=True)
    finite = table[np.isfinite(table["bin_left"]) & np.isfinite(table["bin_right"])]
    edges = np.unique(finite[["bin_left", "bin_right"]])
    outside = 1 - shares_inside(table, by, edges[-1])
    for axes, kind in zip(grid.flat, kinds, strict=False):
        axes.axvspan(-1, 1, color="#EFEFEF", linewidth=0, zorder=0)
        for name, look in _looks(table).items():
            own = finite[(finite["row"] == kind) & (finite["series"] == name)]
            if len(own):
                axes.stairs(own.groupby("bin_left")["share"].mean(), edges, color=look.colour, baseline=None)
        beyond = outside[kind].max()
        far = f"\nup to {beyond:.0%} beyond ±{edges[-1]:g}" * bool(beyond >= _MENTIONED)
        axes.set_title(f"{kind}\n{span(inside[kind], '{:.0%}')} inside{far}")
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(f"% per {edges[1] - edges[0]:g}")
    grid[-1, columns // 2].set_xlabel(
        f"u = x + b, before its sign; shaded: ±1, where a gradient passes\n{table['counted_on'].iloc[0]}"
    )
    lines = [Line2D([], [], color=look.colour, label=name) for name, look in _looks(table).items()]
    title = "line: mean of a model's layers; inside: the least and the most of all models"
    figure.legend(handles=lines, loc="outside lower center", ncols=3, title=title)
    headline(figure, claim)
    return figure


@styled
def sign_statistics(signs: pd.DataFrame, claim: str) -> Figure:
    """The entropy of signs: one row per kind of layer, one strip per model.

    `signs`: columns run, label, variant, counted_on, and those of `signs.sign_layers`.
    """
    figure, axes = _strips_of_kinds(signs, "entropy", claim, "ringed: a model's lowest")
    for marker in list(axes.lines):
        lowest = np.nanargmin(marker.get_xdata())
        x, y = (along[lowest] for along in marker.get_data())
        axes.plot(x, y, "o", markersize=7, markerfacecolor="none", markeredgecolor=BLACK, markeredgewidth=0.8)
    axes.set_xlabel(
        "entropy of the signs at a layer's input (bits), mean of its channels\n"
        f"0.88 bits: 30% are of one sign, 0.61 bits: 15%; {signs['counted_on'].iloc[0]}"
    )
    axes.set_xlim(right=1 + 0.04 * (1 - axes.get_xlim()[0]))
    reference(axes, 1, "balanced")
    return figure


@styled
def latent_weights(latent: pd.DataFrame, claim: str) -> Figure:
    """Where latent weights lie: the initial distribution as an area, the trained ones as the band between them.

    `latent`: columns run, label, variant, when ("trained", "initial"), bin_left, bin_right (of the latent weight in
    units of its layer's initial scale; outermost unbounded), share (of all binary weights).
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.6))
    axes = figure.subplots()
    inner = latent[np.isfinite(latent["bin_left"]) & np.isfinite(latent["bin_right"])]
    centres = (inner["bin_left"] + inner["bin_right"]) / 2
    shares = (100 * inner["share"]).groupby([inner["when"], centres]).agg(["min", "median", "max"])
    initial, trained, runs = shares.loc["initial"], shares.loc["trained"], inner["label"].nunique()
    axes.fill_between(initial.index, initial["median"], color="#DDDDDD", label="before training")
    axes.fill_between(trained.index, trained["min"], trained["max"], color=GREY, alpha=0.5, linewidth=0)
    near, beyond = shares_near(latent), 1 - inner[inner["when"] == "trained"].groupby("run")["share"].sum().min()
    far = f", up to {beyond:.0%} beyond ±{inner['bin_right'].max():g}" * bool(beyond >= _MENTIONED)
    axes.plot(trained["median"], color=BLACK, label=f"trained (median of {runs} models, band: range{far})")
    label = f"nearer than {NEAR}: {near['initial']:.0%} before, {near['trained']:.0%} trained"
    axes.axvspan(-NEAR, NEAR, facecolor="none", edgecolor=VERMILION, hatch="////", linewidth=0, label=label)
    reference(axes, 0, "sign flips")
    width = (inner["bin_right"] - inner["bin_left"]).iloc[0]
    axes.set(
        xlabel="latent weight (the real number whose sign is used) / mean |latent weight| of its layer before training",
        ylabel=f"latent weights (% per {width:g})",
        ylim=(0, None),
    )
    figure.legend(handles=axes.get_legend_handles_labels()[0], loc="outside lower center", ncols=2)
    headline(figure, claim)
    return figure


@styled
def flipped_signs(layers: pd.DataFrame, claim: str) -> Figure:
    """How many signs differ from the initial ones: one row per kind of layer, one strip per model.

    `layers`: columns run, label, variant, layer, flipped (share of the layer's weights).
    """
    figure, axes = _strips_of_kinds(layers.assign(flipped=100 * layers["flipped"]), "flipped", claim)
    axes.set_xlabel("weights of a layer that end with another sign than they were initialized with (%)")
    axes.set_xlim(0, max(55, axes.get_xlim()[1]))
    reference(axes, 50, "as by chance")
    return figure


@styled
def distinct_values(values: pd.DataFrame, fed: str, claim: str) -> Figure:
    """How many values are different ones, at each step inside a block; `fed` says what entered it.

    Left out are the steps that only rescale, one value to one: batch norm, RPReLU and affine.

    `values`: columns run, label, variant, block, step (of STEPS), observations (per channel), median (distinct values,
    median of channels), counted_on.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 4.3))
    axes = figure.subplots()
    _steps(axes, values, f"fed: {fed}; {values['counted_on'].iloc[0]}")
    axes.set_xlabel("distinct values of a channel, over all tokens and images")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    headline(figure, claim)
    return figure


@styled
def values_read(pooled: pd.DataFrame, claim: str) -> Figure:
    """How many distinct values a channel takes of what the classifier is given, where final tokens are signs.

    `pooled`: columns run, label, variant, tokens, median, counted_on.
    """
    models = pooled.groupby("label", sort=False)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.0 + 0.38 * len(models)))
    axes = figure.subplots()
    for place, (_, own) in enumerate(models):
        count, look = own["median"].median(), variant_style(own["variant"].iloc[0])
        axes.barh(place, count, color=look.colour, height=0.6)
        tokens = own["tokens"].iloc[0]
        of_tokens = "one CLS token" if tokens == 1 else f"mean of {tokens:,.0f} tokens"
        axes.text(count, place, f" {count:,g} of {tokens + 1:,.0f} possible ({of_tokens})", va="center", fontsize=7)
    axes.set_yticks(range(len(models)), list(models.groups))
    axes.set(xlim=(0, 1.6 * pooled["median"].max()), ylim=(len(models) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(
        "distinct values that the classifier reads in the median channel; final tokens replaced by signs\n"
        f"{pooled['counted_on'].iloc[0]}"
    )
    headline(figure, claim)
    return figure


def _strips_of_kinds(table: pd.DataFrame, value: str, claim: str, note: str = "") -> tuple[Figure, Axes]:
    table = _of_kinds(table)
    kinds, looks = _kinds_in(table), _looks(table)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.5 + 0.45 * len(kinds)))
    axes = figure.subplots()
    strips(axes, table, value, kinds, looks, absent="{} of {} have none")
    title = "; ".join(filter(None, [_LAYERS, note]))
    figure.legend(handles=handles(looks.items()), loc="outside lower center", ncols=3, title=title)
    headline(figure, claim)
    return figure, axes


def _steps(axes: Axes, values: pd.DataFrame, fed: str) -> None:
    """One row per step inside a block, one strip per shape of model; shaded is the most there can be."""
    pyramid = is_pyramid(values["run"], values["block"])
    table = values.assign(row=values["step"], series=np.where(pyramid, "pyramid", "columnar"))
    present = [step for step in STEPS if step in set(table["row"]) and not step.endswith(_ONE_TO_ONE)]
    models = table.groupby("series")["label"].nunique()
    looks = {shape: look for shape, look in _SHAPES.items() if shape in models}
    limits = table["observations"]
    strips(axes, table, "median", present, looks)
    axes.axvspan(limits.min(), limits.max(), color=SKY, alpha=0.25, linewidth=0, zorder=0)
    axes.set_xscale("log")
    axes.set_xlim(right=1.3 * limits.max())
    names = [(f"{shape} (n = {models[shape]})", look) for shape, look in looks.items()]
    title = (
        f"{fed}\nmarker: median of blocks and models, bar: their range\n"
        "shaded: as many values as are looked at, the most there can be"
    )
    axes.figure.legend(handles=handles(names), loc="outside lower center", ncols=3, title=title)


def _of_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """The table with a row's name, its kind of layer, and a series' name, the model's."""
    return table.assign(row=table["layer"].map(kind_of), series=table["label"])


def _kinds_in(table: pd.DataFrame) -> list[str]:
    """The kinds of layers in the order of computation."""
    return sorted(set(table["row"]), key=KINDS.index)


def _looks(table: pd.DataFrame) -> dict[str, VariantStyle]:
    """How each series is drawn: as its variant everywhere."""
    return {name: variant_style(own["variant"].iloc[0]) for name, own in table.groupby("series", sort=False)}

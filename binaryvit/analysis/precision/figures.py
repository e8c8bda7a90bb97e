"""One architecture at several precisions: what it reaches, what it costs, and where its features differ."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from binaryvit.analysis.labels import block_of
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, precision_style, styled

_LINES = {"W1A1": "-", "W1A32": "--", "W32A1": ":", "W32A32": "-."}
_PARTS = {"attn": "attention branches", "mlp": "FFN branches"}


@styled
def accuracy_size_operations(table: pd.DataFrame, variant: str, evaluated_on: str, claim: str) -> Figure:
    """Top-1 against full precision, size and operations, one row per precision, each number next to its marker.

    Args:
        table: columns precision, top1 (percent; NaN where no run is finished), seeds, difference, low,
            high (points; NaN where nothing is compared), difference_seeds, bytes, ops, ops_elementwise.
        variant: whose precisions they are.
        evaluated_on: the images of the accuracies.
        claim: the figure's title.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.7))
    accuracy, size, operations = figure.subplots(1, 3, sharey=True)
    for place, row in enumerate(table.itertuples()):
        look = precision_style(variant, row.precision)
        drawn = dict(color=look.colour, marker=look.marker, linestyle="none", markersize=5.5)
        if pd.notna(row.difference):
            bar = [[row.difference - row.low], [row.high - row.difference]]
            line = accuracy.errorbar(row.difference, place, xerr=bar, **drawn).lines[2][0]
            line.set_linestyle("-" if row.difference_seeds > 1 else (0, (1, 1)))
            compared = f"{row.difference:+.2f} (n = {row.difference_seeds})"
            _number(accuracy, row.difference, place, compared if row.difference_seeds else "")
        else:
            state = "not compared" if pd.notna(row.top1) else "not run"
            accuracy.text(0.5, place, state, transform=accuracy.get_yaxis_transform(), ha="center", va="center")
        size.plot(row.bytes / 1e6, place, **drawn)
        _number(size, row.bytes / 1e6, place, f"{row.bytes / 1e6:.2f}")
        for ops, height, fill in ((row.ops, place - 0.18, look.colour), (row.ops_elementwise, place + 0.22, "white")):
            operations.plot(ops / 1e6, height, **drawn, markerfacecolor=fill)
            _number(operations, ops / 1e6, height, f"{ops / 1e6:.2f}", offset=(-17, -3.5))
    reached = [f"\n{row.top1:.2f}% (n = {row.seeds})" if row.seeds else "" for row in table.itertuples()]
    accuracy.set_yticks(range(len(table)), table["precision"] + reached)
    accuracy.set_ylim(len(table) - 0.5, -0.6)
    accuracy.set_xlabel("top-1 against W32A32 (points)")
    size.set_xlabel("size of the parameters (MB)")
    operations.set_xlabel("OPs per image (M); hollow: with\nelementwise work")
    for axes in (size, operations):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in (accuracy, size, operations):
        axes.margins(x=0.35)
    about = (
        "W1A32: weights of 1 bit, activations of 32; left: top-1, mean of n seeds\n"
        "bar: 95% interval of the difference over the n seeds that both have (dotted: one, so chance in training is "
        f"left out)\n{evaluated_on}"
    )
    figure.legend(handles=[], loc="outside lower center", title=about)
    headline(figure, claim)
    return figure


def _number(axes: Axes, value: float, place: float, text: str, offset: tuple[float, float] = (0, 4)) -> None:
    axes.annotate(text, (value, place), offset, textcoords="offset points", ha="center", fontsize=6.5)


@styled
def agreement(table: pd.DataFrame, variant: str, evaluated_on: str, claim: str) -> Figure:
    """Linear CKA with the features of W32A32, from input to output: the residual stream, and the branches added to it.

    Args:
        table: columns precision (the reference's own for its other seeds), seed, layer (module path, in the order of
            computing), cka.
        variant: whose precisions they are.
        evaluated_on: the images the features are of.
        claim: the figure's title.
    """
    part = table["layer"].str.rsplit(".", n=1).str[-1].map(_PARTS).fillna("residual stream")
    panels = {name: table[part == name] for name in ("residual stream", *_PARTS.values()) if (part == name).any()}
    widths = [own["layer"].nunique() for own in panels.values()]
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.2))
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=widths)[0]
    for axes, (name, own) in zip(grid, panels.items(), strict=True):
        _along_layers(axes, own, variant)
        axes.set_title(name)
    grid[0].set_ylabel("linear centred kernel alignment\n(CKA) with W32A32 (1: equal)")
    title = (
        "W1A1: weights and activations of 1 bit; across: stage.block, from image to logits\n"
        f"one run of each precision, and its mean in the residual stream; features of {evaluated_on}"
    )
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, title=title)
    headline(figure, claim)
    return figure


def _along_layers(axes: Axes, table: pd.DataFrame, variant: str) -> None:
    """One line per precision over the layers, in their order, and one per further seed of the reference."""
    layers = list(dict.fromkeys(table["layer"]))
    models = table.groupby(["precision", "seed"], sort=False)
    for index, ((precision, seed), own) in enumerate(models):
        look = precision_style(variant, precision)
        name = precision if precision != "W32A32" else f"another seed of W32A32 ({seed})"
        dodge = 0.3 * ((index + 0.5) / len(models) - 0.5)
        axes.plot(
            [layers.index(layer) + dodge for layer in own["layer"]], own["cka"], color=look.colour, marker=look.marker,
            linestyle=_LINES[precision], label=f"{name}: {own['cka'].mean():.2f}",
        )  # fmt: skip
    axes.set_xticks(range(len(layers)), [block_of(layer) or layer for layer in layers], rotation=90)

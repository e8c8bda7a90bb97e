"""Attention laid over the images it is of, and statistics of heads over the blocks.

All maps of a figure are drawn into one axes, whose unit is the side of a map.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from binaryvit.analysis.attention.rollout import common_side, comparable_areas
from binaryvit.analysis.images import ExampleImages
from binaryvit.analysis.labels import block_of, most_seeds
from binaryvit.analysis.levels import is_off
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, in_lines, styled
from binaryvit.models.ladder import variant_style
from binaryvit.palette import BLUE, GREY, VERMILION

SHARES = "viridis"  # from little to much attention: equally large steps to the eye, also in grey
# Over a pale grey image: blue where a place gets less than its even share, orange where it gets more.
_TINTS = [to_rgba(BLUE, 0.9), (1, 1, 1, 0), to_rgba(VERMILION, 0.9)]
_TINT = LinearSegmentedColormap.from_list("tint", _TINTS, N=257)  # an odd number of colours has a middle
_NARROW, _WIDE = Normalize(-1, 1), Normalize(-3, 3)  # of log2 of the ratio: means over many queries, a single one
_VEIL = "#6E6E6E"
_STEP = 1.12  # from one map to the next, in sides of a map
_BELOW = 0.72  # inches for colour bar and legend


@styled
def side_by_side(places: pd.DataFrame, images: ExampleImages, claim: str, note: str = "") -> Figure:
    """A map over each image for each model, its most attended of `comparable_areas` outlined; `note` says which runs.

    `places`: columns label (of the model), image, row, column, ratio: how much of the attention falls on a place, as a
    multiple of what it would be if all places had the same; NaN where attention is off; keys_side: see there.
    """
    figure, axes = _canvas()
    peaks, side = comparable_areas(places).set_index(["image", "label"]), common_side(places)
    columns = {label: place * _STEP for place, label in enumerate(["image", *places["label"].unique()])}
    for row, (image, pixels) in enumerate(zip(images.names, images.pixels, strict=True)):
        _draw(axes, pixels, left=0, top=row * _STEP)
        for label, own in places[places["image"] == image].groupby("label"):
            _tint(axes, pixels, _square(own, "ratio"), columns[label], row * _STEP, _NARROW)
            if side > 1 and (image, label) in peaks.index:
                peak = peaks.loc[(image, label)]
                corner = columns[label] + peak["column"] / side, row * _STEP + peak["row"] / side
                if peak["ratio"] > 1.005:  # of areas that are all alike, none is the most attended
                    _outline(axes, *corner, 1 / side, width=0.5)
                beside = 0.1 if peak["row"] >= side / 2 else 0.9  # the half without the outline
                _note(axes, f"{peak['ratio']:.1f}×", columns[label] + 0.96, row * _STEP + beside, ha="right")
    _label_columns(axes, {left + 0.5: label for label, left in columns.items()}, 11)
    axes.set_yticks([])
    _fit(figure, axes, claim, len(columns) * _STEP, len(images.names) * _STEP)
    _tint_bar(figure, _NARROW, "attention on a place / its even share", images.credit)
    notes = [f"outlined, with its mean: the most attended of {side * side} areas" * (side > 1), note]
    figure.legend(handles=[], title="\n".join(filter(None, notes)), loc="lower right")
    return figure


@styled
def heads(maps: pd.DataFrame, images: ExampleImages, patch: tuple[float, float, float], claim: str) -> Figure:
    """What one patch of each image attends to in one model: a row for each block, a map for each head.

    On the left the probabilities; on the right, where there is a threshold, the keys it leaves. The number that ends a
    row is the mean share of the keys that its heads attend to; without a threshold, the highest ratio, marked by a dot.

    Args:
        maps: columns image, layer, head, row, column, ratio (probability times number of keys), attended (1 or 0 after
            the threshold; NaN in a model without one), off (whether the block's attention is).
        images: the images.
        patch: (top, left, side) of the attending patch in the first block, as shares of the image's sides.
        claim: what the figure says.
    """
    figure, axes = _canvas()
    layers, most = list(maps["layer"].unique()), (maps["head"].max() + 1) * _STEP
    height = len(layers) * _STEP + 0.25  # of one image's maps
    side = min(2.0, height - 0.5)
    left, right = side + 0.8, side + 1.5 + most
    binary = maps["attended"].notna().any()
    for top, image, pixels in zip(np.arange(len(images.names)) * height, images.names, images.pixels, strict=True):
        _draw(axes, pixels, 0, top, side)
        _outline(axes, patch[1] * side, top + patch[0] * side, patch[2] * side)
        for row, layer in enumerate(layers):
            down, own = top + row * _STEP, maps[(maps["image"] == image) & (maps["layer"] == layer)]
            _note(axes, block_of(layer) or layer, left - 0.12, down + 0.5, ha="right")
            for head, of_head in own.groupby("head"):
                _tint(axes, pixels, _square(of_head, "ratio"), left + head * _STEP, down, _WIDE)
                if binary:
                    _cut_out(axes, pixels, of_head, right + head * _STEP, down)
            if not binary:
                _mark_highest(axes, own, left, down)
            number = f"{own['attended'].mean():.0%}" if binary else f"{own['ratio'].max():.1f}×"
            end = (right if binary else left) + (own["head"].max() + 1) * _STEP
            _note(axes, "" if own["off"].any() else number, end, down + 0.5, ha="left")
    titles = {side / 2: "image", left - 0.35: "block", left + most / 2: "probabilities"}
    titles |= {right + most / 2: "attended: above the learned threshold"} if binary else {}
    _label_columns(axes, titles, 20)
    axes.set_yticks([])
    _fit(figure, axes, claim, (right if binary else left) + most + 0.8, len(images.names) * height)
    _tint_bar(figure, _WIDE, "probability × number of keys", images.credit)
    number = "share of keys kept, mean of the row's heads" if binary else "the row's highest ratio, at the dot"
    cells = sorted(set(maps.groupby("layer")["row"].max() + 1), reverse=True)
    pooled = cells[0] < round(1 / patch[2])
    later = " (later: the token it is merged into)" * bool(len(cells) > 1 or pooled)
    grids = " or ".join(f"{side} x {side}" for side in cells)
    keys = f"square: the patch that asks{later}\ncells: its keys, {grids}{' (pooled or merged tokens)' * pooled}"
    figure.legend(
        handles=[Patch(color=_VEIL, label="not attended")] if binary else [],
        title=f"{keys}\nrow: block, column: head\nnumber: {number}",
        loc="lower right",
        bbox_to_anchor=(1, 0.1 / figure.get_figheight()),
    )
    return figure


@styled
def by_block(
    statistics: pd.DataFrame,
    quantities: Mapping[str, str],
    claim: str,
    compared: tuple[str, str] | None = None,
    note: str = "",
) -> Figure:
    """Shares of attention heads over the blocks of all models: a panel per quantity, a point per head.

    A line and a number are a model's mean over the heads that are on. Bars span the seeds, where there are several.

    Args:
        statistics: columns label, variant, seed, layer, block, head, level, images, and those of the quantities.
        quantities: columns to draw, and what their axes are called.
        claim: what the figure says.
        compared: a quantity, and the column whose mean is drawn beside the model's own (NaN: it has none).
        note: what else the reader must know.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.3 + 1.3 * len(quantities)))
    panels = dict(zip(quantities, figure.subplots(len(quantities), 1, squeeze=False, sharex=True)[:, 0], strict=True))
    drawn = statistics.loc[~is_off(statistics["level"]), list(quantities)]
    low = 0.5 if drawn.min(axis=None) > 0.5 else 0.0
    left, ticks, titles = 0.0, {}, {}
    for label, of_model in statistics.groupby("label", sort=False):
        names = (
            of_model.drop_duplicates("block").set_index("block")["layer"].map(lambda layer: block_of(layer) or layer)
        )
        for column, axes in panels.items():
            _heads_of(axes, of_model, column, left, len(names), low)
            if compared and column == compared[0]:
                other = of_model.loc[~is_off(of_model["level"]), compared[1]].mean()
                axes.hlines(other, left - 0.45, left + len(names) - 0.55, color=GREY, linestyle=(0, (2, 1)), zorder=3)
            if left:
                axes.axvline(left - 0.8, color=GREY, linewidth=0.5, linestyle=":")
        ticks |= {left + block: names[block] for block in range(0, len(names), -(-len(names) // 5))}
        titles[left + (len(names) - 1) / 2] = label
        left += len(names) + 0.6
    for column, axes in panels.items():
        axes.set(ylabel=quantities[column], ylim=(low, _above(low, 0.25)), yticks=(low, (low + 1) / 2, 1))
        axes.yaxis.set_major_formatter("{x:.0%}")
        axes.grid(False, axis="x")
    top, bottom = panels[next(iter(panels))], axes
    bottom.set_xticks(list(ticks), list(ticks.values()))
    bottom.set_xlim(-0.8, left - 0.8)
    names = top.secondary_xaxis("top")
    names.spines[:].set_visible(False)
    _label_columns(names, titles, 14)
    seeds = most_seeds(statistics)
    about = "one seed" if seeds == 1 else f"bar: range of up to {seeds} seeds"
    on = " that are on" * bool(is_off(statistics["level"]).any())
    first = f"block (point: a head; line and number: mean of the heads{on}; {about})"
    second = "; ".join(filter(None, [f"{statistics['images'].max():,} evaluation images", note]))
    bottom.set_xlabel(f"{first}\n{second}")
    headline(figure, claim)
    return figure


def _above(low: float, share: float) -> float:
    """A place above a panel from `low` to 1, by a share of its height."""
    return 1 + share * (1 - low)


def _heads_of(axes: Axes, of_model: pd.DataFrame, column: str, left: float, blocks: int, low: float) -> None:
    """Draws one model's heads and their mean, its block 0 at `left`."""
    off = is_off(of_model["level"])
    for block, seeds_off in off.groupby([of_model["block"], of_model["seed"]]).all().groupby("block"):
        if seeds_off.any():
            part = "off" if seeds_off.all() else f"off in {seeds_off.sum()}\nof {len(seeds_off)}"
            axes.text(left + block, (low + 1) / 2, part, ha="center", va="center", color=GREY, fontsize=7)
    look = variant_style(of_model["variant"].iloc[0])
    on = of_model[~off].groupby(["block", "head"])[column].agg(["mean", "min", "max"]).reset_index()
    last = on.groupby("block")["head"].transform("max")
    places = left + on["block"] + (on["head"] - last / 2) * (0.6 / last.clip(lower=1)).clip(upper=0.25)
    axes.vlines(places, on["min"], on["max"], color=look.colour, linewidth=0.6)
    axes.plot(places, on["mean"], color=look.colour, marker=look.marker, markersize=2.8, linestyle="none")
    mean = of_model.loc[~off, column].mean()
    if len(on):
        axes.hlines(mean, left - 0.45, left + blocks - 0.55, color=look.colour, linewidth=0.8)
        axes.text(left + (blocks - 1) / 2, _above(low, 0.16), f"{mean:.0%}", ha="center", va="center", fontsize=7)


def _canvas() -> tuple[Figure, Axes]:
    """A figure with one bare axes, y downwards."""
    figure = Figure()
    figure.set_layout_engine("none")  # `_fit` knows all sizes
    axes = figure.add_axes((0, 0, 1, 1))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _fit(figure: Figure, axes: Axes, claim: str, width: float, height: float) -> None:
    """Sizes the figure for axes of width x height units."""
    margin = 0.1  # inches at the left
    lines = max(label.get_text().count("\n") + 1 for label in axes.get_xticklabels())
    figure.set_size_inches(DOUBLE_COLUMN, 1)
    headline(figure, claim)
    above = 0.2 + 0.125 * lines + 0.16 * (figure.get_suptitle().count("\n") + 1)
    unit = min((DOUBLE_COLUMN - margin) / width, (9 - above - _BELOW) / height, 0.95)
    total = above + unit * height + _BELOW
    figure.set_size_inches(DOUBLE_COLUMN, total)
    axes.set_position((margin / DOUBLE_COLUMN, _BELOW / total, unit * width / DOUBLE_COLUMN, unit * height / total))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")


def _label_columns(axes: Axes, titles: Mapping[float, str], width: int) -> None:
    """Titles above columns, in lines of `width` characters."""
    axes.set_xticks(list(titles), [in_lines(title, width) for title in titles.values()])
    axes.tick_params(axis="x", top=False, labeltop=True, bottom=False, labelbottom=False, length=0)


def _draw(axes: Axes, values: np.ndarray, left: float, top: float, side: float = 1.0, **look: object) -> None:
    """A map or an image over a square of the axes."""
    axes.imshow(values, extent=(left, left + side, top + side, top), interpolation="nearest", **look)


def _tint(axes: Axes, pixels: np.ndarray, ratio: np.ndarray, left: float, top: float, norm: Normalize) -> None:
    """The image in pale grey, tinted by what each place gets over its even share; NaN: attention is off."""
    if np.isnan(ratio).any():
        _say_off(axes, pixels, left, top)
        return
    _draw(axes, pixels.mean(-1), left, top, cmap="gray", vmin=-500, vmax=255)
    _draw(axes, np.log2(ratio.clip(2.0**norm.vmin)), left, top, cmap=_TINT, norm=norm)


def _cut_out(axes: Axes, pixels: np.ndarray, of_head: pd.DataFrame, left: float, top: float) -> None:
    """The image where it is attended."""
    if of_head["off"].any():
        _say_off(axes, pixels, left, top)
        return
    _draw(axes, pixels, left, top)
    veil = ListedColormap([_VEIL, (0, 0, 0, 0)])
    _draw(axes, _square(of_head, "attended"), left, top, cmap=veil, vmin=0, vmax=1)


def _say_off(axes: Axes, pixels: np.ndarray, left: float, top: float) -> None:
    """The image veiled, and the word."""
    _draw(axes, pixels, left, top, alpha=0.15)
    _note(axes, "off", left + 0.5, top + 0.5, ha="center")


def _note(axes: Axes, text: str, x: float, y: float, ha: str) -> None:
    """A word or number in or next to a map."""
    axes.text(
        x, y, text, ha=ha, va="center", fontsize=6.5, path_effects=[withStroke(linewidth=1.5, foreground="white")]
    )


def _mark_highest(axes: Axes, of_block: pd.DataFrame, left: float, top: float) -> None:
    """A dot on the place with the highest ratio of a block's maps."""
    highest = of_block.loc[of_block["ratio"].idxmax()]
    down, across = ((highest[side] + 0.5) / (of_block[side].max() + 1) for side in ("row", "column"))
    axes.plot(left + highest["head"] * _STEP + across, top + down, "o", color="black", mec="white", mew=0.6, ms=3)


def _outline(axes: Axes, left: float, top: float, side: float, width: float = 1.2) -> None:
    """Frames a patch of an image, bright or dark."""
    effects = [withStroke(linewidth=2.5 * width, foreground="black")]
    axes.add_patch(
        Rectangle(
            (left, top), side, side, fill=False, edgecolor="white", linewidth=width, zorder=3, path_effects=effects
        )
    )


def _square(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The values of a map as a picture."""
    return frame.pivot(index="row", columns="column", values=column).to_numpy()


def _tint_bar(figure: Figure, norm: Normalize, label: str, credit: str) -> None:
    """What the tints mean and whose the images are, at the bottom left, in the inches that `_fit` left there."""
    width, height = figure.get_size_inches()
    figure.text(0.012, 0.04 / height, f"Images: {credit}", fontsize=5.5, color=GREY)
    axes = figure.add_axes((0.3 / width, 0.5 / height, 3.3 / width, 0.09 / height))
    bar = figure.colorbar(ScalarMappable(norm, _TINT), cax=axes, orientation="horizontal", extend="both")
    bar.set_label(label)
    bar.set_ticks([norm.vmin, 0, norm.vmax], labels=[f"1/{2**norm.vmax:.0f}", "1 (even)", f"{2**norm.vmax:.0f}"])

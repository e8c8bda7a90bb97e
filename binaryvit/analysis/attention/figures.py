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
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from binaryvit.analysis.levels import is_off
from binaryvit.analysis.style import DOUBLE_COLUMN, headline, in_lines, styled
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import variant_style
from binaryvit.palette import BLUE, GREY, VERMILION

SHARES = "viridis"  # from little to much attention: equally large steps to the eye, also in grey
_OFF, _ON = "#E4E4E4", "#222222"
ON_OFF = dict(cmap=ListedColormap([_OFF, _ON]), norm=Normalize(0, 1))
# Over a grey image: blue where a place gets less than its even share, red where it gets more, nothing where as much.
_TINTS = [to_rgba(BLUE, 0.8), (1, 1, 1, 0), to_rgba(VERMILION, 0.8)]
_TINT = LinearSegmentedColormap.from_list("tint", _TINTS, N=257)  # an odd number of colours has a middle
_NARROW, _WIDE = Normalize(-1, 1), Normalize(-2, 2)  # of log2 of the ratio: means over many queries, a single one
_VEIL = "#6E6E6E"
_STEP = 1.12  # from one map to the next, in sides of a map
_BELOW = 0.72  # inches for colour bar and legend


@styled
def side_by_side(places: pd.DataFrame, pictures: Mapping[str, np.ndarray], credit: str, claim: str) -> Figure:
    """Maps of several models over each image, one column per model.

    Args:
        places: columns label (of the model), image, map (what is shown), row, column, ratio: how much of it falls on a
            place, as a multiple of what it would be if all places had the same; NaN where attention is off. Maps may be
            finer or coarser; all cover the whole image.
        pictures: the images by name, uint8 (height, width, 3).
        credit: whose they are.
        claim: what the figure says.

    Raises BinaryViTError when there is no map.
    """
    _check(places)
    labels, kinds = list(places["label"].unique()), list(places["map"].unique())
    figure, axes = _canvas()
    maps = dict(iter(places.groupby(["image", "map", "label"])))
    top, rows = 0.0, {}
    for image, pixels in pictures.items():
        _draw(axes, pixels, left=0, top=top + (len(kinds) - 1) / 2 * _STEP)
        for kind in kinds:
            for column, label in enumerate(labels, start=1):
                _tint(axes, pixels, _square(maps[image, kind, label], "ratio"), column * _STEP, top, _NARROW)
            rows[top + 0.5] = in_lines(kind, 12) if len(kinds) > 1 else ""
            top += _STEP
    _label_columns(axes, {column * _STEP + 0.5: label for column, label in enumerate(["image", *labels])}, 11)
    axes.set_yticks(list(rows), list(rows.values()))
    _fit(figure, axes, claim, (1 + len(labels)) * _STEP, top, margin=0.75 if len(kinds) > 1 else 0.1)
    _tint_bar(figure, _NARROW, "attention on a place / its even share", credit)
    return figure


@styled
def heads(
    maps: pd.DataFrame, pictures: Mapping[str, np.ndarray], credit: str, place: tuple[float, float], claim: str
) -> Figure:
    """What one patch of each image attends to in one model: a row for each block, a map for each head.

    On the left the probabilities; on the right, where there is a threshold, the keys it leaves.

    Args:
        maps: columns image, block, head, row, column, ratio (probability times number of keys), attended (1 or 0 after
            the threshold; NaN in a model without one), off (whether the block's attention is).
        pictures: the images by name, uint8 (height, width, 3).
        credit: whose they are.
        place: of the attending patch, as shares (down, right) of the image's sides; marked in the images.
        claim: what the figure says.

    Raises BinaryViTError when there is no map.
    """
    _check(maps)
    figure, axes = _canvas()
    height = (maps["block"].max() + 1) * _STEP + 0.25  # of one image's maps
    most = (maps["head"].max() + 1) * _STEP
    side = min(2.0, height - 0.5)
    left, right = side + 0.5, side + 0.5 + most + 0.7
    binary = maps["attended"].notna().any()
    for top, (image, pixels) in zip(np.arange(len(pictures)) * height, pictures.items(), strict=True):
        _draw(axes, pixels, 0, top, side)
        ring(axes, place[1] * side, top + place[0] * side)
        for (block, head), own in maps[maps["image"] == image].groupby(["block", "head"]):
            down, across = top + block * _STEP, head * _STEP
            if head == 0:
                axes.text(left - 0.12, down + 0.5, block, ha="right", va="center", color=GREY)
            _tint(axes, pixels, _square(own, "ratio"), left + across, down, _WIDE)
            if binary:
                _cut_out(axes, pixels, np.full((1, 1), np.nan) if own["off"].any() else _square(own, "attended"),
                         right + across, down)  # fmt: skip
    titles = {side / 2: "image", left + most / 2: "probabilities"}
    titles |= {right + most / 2: "attended after the threshold"} if binary else {}
    _label_columns(axes, titles, 20)
    axes.set_yticks([])
    _fit(figure, axes, claim, (right + most if binary else left + most) - 0.1, len(pictures) * height, margin=0.1)
    _tint_bar(figure, _WIDE, "probability × number of keys", credit)
    legend = [Patch(color=_VEIL, label="not attended")] if binary else []
    figure.legend(
        handles=legend,
        title="rows: blocks, columns: heads",
        loc="lower right",
        bbox_to_anchor=(1, 0.1 / figure.get_figheight()),
    )
    return figure


@styled
def by_block(
    statistics: pd.DataFrame,
    quantities: Mapping[str, str],
    claim: str,
    logarithmic: frozenset[str] | set[str] = frozenset(),
    initial: Mapping[str, str] | None = None,
) -> Figure:
    """Statistics of attention heads over the blocks of all models: one panel per quantity, one point per head.

    Points are means over the seeds, with their standard deviation where there are several; the line joins the means of
    the blocks' heads. Where attention is off, or a model has no threshold, the figure says so.

    Args:
        statistics: columns label, variant, seed, block, head, level, images, and those of the quantities.
        quantities: columns to draw, and what their axes are called.
        claim: what the figure says.
        logarithmic: those with a logarithmic axis; all others are shares.
        initial: for a quantity, the column with its value before training, drawn as a grey dash.

    Raises BinaryViTError when there is nothing to draw.
    """
    _check(statistics)
    figure = Figure(figsize=(DOUBLE_COLUMN, 1.2 + 1.4 * len(quantities)))
    panels = dict(zip(quantities, figure.subplots(len(quantities), 1, squeeze=False, sharex=True)[:, 0], strict=True))
    left, ticks, titles = 0.0, {}, {}
    for label, of_model in statistics.groupby("label", sort=False):
        blocks = int(of_model["block"].max()) + 1
        for column, axes in panels.items():
            _heads_of(axes, of_model, column, left)
            if column in (initial or {}):
                start = of_model.drop_duplicates("block")
                axes.plot(left + start["block"], start[initial[column]], "_", color=GREY, markersize=9)
            if left:
                axes.axvline(left - 0.8, color=GREY, linewidth=0.5, linestyle=":")
        ticks |= {left + block: block for block in range(0, blocks, -(-blocks // 5))}
        titles[left + (blocks - 1) / 2] = label
        left += blocks + 0.6
    for column, axes in panels.items():
        axes.set_ylabel(quantities[column])
        axes.grid(False, axis="x")
        if column in logarithmic:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.05 * axes.get_ylim()[1]))
    top, bottom = panels[next(iter(panels))], axes
    bottom.set_xticks(list(ticks), list(ticks.values()))
    bottom.set_xlim(-0.8, left - 0.8)
    names = top.secondary_xaxis("top")
    names.spines[:].set_visible(False)
    _label_columns(names, titles, 14)
    seeds = statistics["seed"].nunique()
    about = "one seed" if seeds == 1 else f"mean ± std of {seeds} seeds"
    bottom.set_xlabel(f"block (a point is a head, the line their mean; {statistics['images'].max():,} images, {about})")
    if initial:
        start = Line2D([], [], color=GREY, marker="_", linestyle="none", markersize=9, label="before training")
        axes.legend(handles=[start], loc="lower left")
    headline(figure, claim)
    return figure


def _heads_of(axes: Axes, of_model: pd.DataFrame, column: str, left: float) -> None:
    """One model's heads, its block 0 at `left`."""
    words = dict(transform=axes.get_xaxis_transform(), ha="center", va="center", color=GREY, fontsize=7)
    if of_model[column].isna().all():
        axes.text(left + of_model["block"].max() / 2, 0.5, "no\nthreshold", **words)
        return
    off = is_off(of_model["level"])
    for block in of_model["block"][off].unique():
        axes.text(left + block, 0.5, "off", **words)
    colour = variant_style(of_model["variant"].iloc[0]).colour
    over_seeds = of_model[~off].groupby(["block", "head"])[column].agg(["mean", "std"]).reset_index()
    last = over_seeds.groupby("block")["head"].transform("max")
    offsets = (over_seeds["head"] - last / 2) * (0.6 / last.clip(lower=1))
    error = over_seeds["std"] if of_model["seed"].nunique() > 1 else None
    axes.errorbar(
        left + over_seeds["block"] + offsets, over_seeds["mean"], yerr=error, color=colour, marker="o", markersize=2.6,
        linestyle="none", elinewidth=0.6, capsize=0,
    )  # fmt: skip
    means = over_seeds.groupby("block")["mean"].mean().reindex(range(of_model["block"].max() + 1))
    axes.plot(left + means.index, means, color=colour, linewidth=0.8)


def _check(frame: pd.DataFrame) -> None:
    if frame.empty:
        raise BinaryViTError("There is no attention to draw: choose at least one run and one image.")


def _canvas() -> tuple[Figure, Axes]:
    """A figure with one bare axes, y downwards."""
    figure = Figure()
    figure.set_layout_engine("none")  # `_fit` knows all sizes
    axes = figure.add_axes((0, 0, 1, 1))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _fit(figure: Figure, axes: Axes, claim: str, width: float, height: float, margin: float) -> None:
    """Sizes the figure for axes of width x height units, with `margin` inches for labels at the left."""
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
    """The image in grey, tinted by what each place gets over its even share; NaN: attention is off."""
    if np.isnan(ratio).any():
        _say_off(axes, pixels, left, top)
        return
    _draw(axes, pixels.mean(-1), left, top, cmap="gray", vmin=0, vmax=255)
    _draw(axes, np.log2(ratio.clip(2.0**norm.vmin)), left, top, cmap=_TINT, norm=norm)


def _cut_out(axes: Axes, pixels: np.ndarray, attended: np.ndarray, left: float, top: float) -> None:
    """The image where it is attended; NaN: attention is off."""
    if np.isnan(attended).any():
        _say_off(axes, pixels, left, top)
        return
    _draw(axes, pixels, left, top)
    _draw(axes, attended, left, top, cmap=ListedColormap([_VEIL, (0, 0, 0, 0)]), vmin=0, vmax=1)


def _say_off(axes: Axes, pixels: np.ndarray, left: float, top: float) -> None:
    """The image veiled, and the word."""
    _draw(axes, pixels, left, top, alpha=0.15)
    axes.text(left + 0.5, top + 0.5, "off", ha="center", va="center", color=GREY)


def ring(axes: Axes, x: float, y: float) -> None:
    """Marks a place of an image, bright or dark."""
    axes.plot(
        x, y, "o", markersize=5, markerfacecolor="none", markeredgecolor="white",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )  # fmt: skip


def _square(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The values of a map as a picture."""
    return frame.pivot(index="row", columns="column", values=column).to_numpy()


def _tint_bar(figure: Figure, norm: Normalize, label: str, credit: str) -> None:
    """What the tints mean and whose the images are, at the bottom left, in the inches that `_fit` left there."""
    width, height = figure.get_size_inches()
    figure.text(0.012, 0.04 / height, f"Images: {credit}", fontsize=5.5, color=GREY)
    axes = figure.add_axes((0.3 / width, 0.5 / height, 3.6 / width, 0.09 / height))
    bar = figure.colorbar(ScalarMappable(norm, _TINT), cax=axes, orientation="horizontal", extend="both")
    bar.set_label(label)
    bar.set_ticks([norm.vmin, 0, norm.vmax], labels=[f"1/{2**norm.vmax:.0f}", "1 (even)", f"{2**norm.vmax:.0f}"])

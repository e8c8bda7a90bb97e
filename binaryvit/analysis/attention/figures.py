"""Attention as pictures: what a patch attends to, all models side by side, and statistics of heads over the blocks.

All maps of a figure are drawn into one axes, whose unit is the side of a map.
"""

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import variant_style
from binaryvit.palette import GREY

SHARES = "viridis"  # from little to much attention: equally large steps to the eye, also in grey
_OFF, _ON = "#E4E4E4", "#222222"
ON_OFF = dict(cmap=ListedColormap([_OFF, _ON]), norm=Normalize(0, 1))
_STEP = 1.12  # from one map to the next, in sides of a map
_BELOW = 0.62  # inches for colour bar and legend


@styled
def side_by_side(places: pd.DataFrame, pictures: Mapping[str, np.ndarray]) -> Figure:
    """Maps over the image of several models, one column a model, beside the images.

    Args:
        places: columns label (of the model), image, map (what is shown), row, column, ratio: how much of it falls on a
            place, as a multiple of what it would be if all places had the same. Maps of different models may be finer
            or coarser; all cover the whole image.
        pictures: the images by name, uint8 (height, width, 3).

    Raises BinaryViTError when there is no map.
    """
    _check(places)
    labels, kinds = list(places["label"].unique()), list(places["map"].unique())
    figure, axes = _canvas()
    norm = _norm(places["ratio"])
    maps = dict(iter(places.groupby(["image", "map", "label"])))
    top, rows = 0.0, {}
    for image, pixels in pictures.items():
        _draw(axes, pixels, left=0, top=top + (len(kinds) - 1) / 2 * _STEP)
        for kind in kinds:
            for column, label in enumerate(labels, start=1):
                values = _square(maps[image, kind, label], "ratio")
                _draw(axes, values, column * _STEP, top, cmap=SHARES, norm=norm)
            rows[top + 0.5] = textwrap.fill(kind, 12)
            top += _STEP
        top += 0.15
    _label_columns(axes, {column * _STEP + 0.5: label for column, label in enumerate(["image", *labels])}, 11)
    axes.set_yticks(list(rows), list(rows.values()))
    _fit(figure, axes, width=(1 + len(labels)) * _STEP, height=top, beside=0.75)
    _colour_bar(figure, norm, "attention on a place / attention if it were the same everywhere")
    return figure


@styled
def heads(maps: pd.DataFrame, pictures: Mapping[str, np.ndarray], place: tuple[float, float]) -> Figure:
    """What one patch of each image attends to: a row for each image and block, a map for each head.

    Args:
        maps: columns label (of the model), image, block, head, row, column, ratio (probability times number of keys),
            attended (1 or 0 after the threshold; NaN in a model without one).
        pictures: the images by name, uint8 (height, width, 3).
        place: of the attending patch, as shares (down, right) of the image's sides; marked in the images.

    Raises BinaryViTError when there is no map.
    """
    _check(maps)
    figure, axes = _canvas()
    norm = _norm(maps["ratio"])
    blocks = maps["block"].max() + 1
    height_of_image = blocks * _STEP + 0.25
    tops = {image: index * height_of_image for index, image in enumerate(pictures)}
    side = min(2.0, height_of_image - 0.5)
    for image, top in tops.items():
        _draw(axes, pictures[image], 0, top, side)
        ring(axes, place[1] * side, top + place[0] * side)
    left, titles = side + 1.2, {side / 2: "image"}
    for label, of_model in maps.groupby("label", sort=False):
        columns = {"ratio": dict(cmap=SHARES, norm=norm)}
        if of_model["attended"].notna().any():
            columns["attended"] = ON_OFF
        most = of_model["head"].max() + 1
        for column, look in columns.items():
            for (image, block, head), of_head in of_model.groupby(["image", "block", "head"]):
                top = tops[image] + block * _STEP
                _draw(axes, _square(of_head, column), left + head * _STEP, top, **look)
                if head == 0:
                    axes.text(left - 0.15, top + 0.5, block, ha="right", va="center", fontsize=6, color=GREY)
            kind = "attended" if column == "attended" else "probabilities"
            titles[left + most * _STEP / 2] = f"{label}\n{kind}"
            left += most * _STEP + 0.7
    _label_columns(axes, titles, 20)
    axes.set_yticks([])
    _fit(figure, axes, width=left - 0.5, height=len(pictures) * height_of_image, beside=0.1)
    _colour_bar(figure, norm, "probability × number of keys (1: all keys alike)")
    levels = [Patch(color=_ON, label="a"), Patch(color=_OFF, label="0")]
    figure.legend(
        handles=levels if maps["attended"].notna().any() else [],
        title="rows: blocks, columns: heads", loc="lower right", ncols=2,
    )  # fmt: skip
    return figure


@styled
def by_block(
    statistics: pd.DataFrame, quantities: Mapping[str, str], logarithmic: frozenset[str] | set[str] = frozenset()
) -> Figure:
    """Statistics of attention heads over the blocks of all models: one panel a quantity, one point a head.

    Points are means over the seeds, with their standard deviation where there are several; the line joins the means of
    the blocks' heads. Where a model has no such quantity, it says so.

    Args:
        statistics: columns label, variant, seed, block, head, images, and those of the quantities.
        quantities: columns to draw, and what their axes are called.
        logarithmic: those with a logarithmic axis; all others are shares.

    Raises BinaryViTError when there is nothing to draw.
    """
    _check(statistics)
    figure = Figure(figsize=(DOUBLE_COLUMN, 0.75 + 1.25 * len(quantities)))
    panels = figure.subplots(len(quantities), 1, squeeze=False, sharex=True)[:, 0]
    left, ticks, titles, borders = 0.0, {}, {}, []
    for label, of_model in statistics.groupby("label", sort=False):
        blocks = int(of_model["block"].max()) + 1
        for axes, column in zip(panels, quantities, strict=True):
            _heads_of(axes, of_model, column, left)
        ticks |= {left + block: block for block in range(0, blocks, -(-blocks // 5))}
        titles[left + (blocks - 1) / 2] = label
        left += blocks + 0.6
        borders.append(left - 0.8)
    for axes, (column, name) in zip(panels, quantities.items(), strict=True):
        axes.set_ylabel(name)
        axes.grid(False, axis="x")
        if column in logarithmic:
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.05 * axes.get_ylim()[1]))
        for border in borders[:-1]:
            axes.axvline(border, color=GREY, linewidth=0.5, linestyle=":")
    panels[-1].set_xticks(list(ticks), list(ticks.values()))
    panels[-1].set_xlim(-0.8, borders[-1])
    top = panels[0].secondary_xaxis("top")
    top.spines[:].set_visible(False)
    _label_columns(top, titles, 14)
    seeds = statistics["seed"].nunique()
    about = "one seed" if seeds == 1 else f"mean ± std of {seeds} seeds"
    panels[-1].set_xlabel(f"block (a point is a head; {statistics['images'].max():,} images, {about})")
    return figure


def _heads_of(axes: Axes, of_model: pd.DataFrame, column: str, left: float) -> None:
    """One model's heads, its block 0 at `left`."""
    if of_model[column].isna().all():
        centre = left + of_model["block"].max() / 2
        look = dict(ha="center", va="center", color=GREY, fontsize=7)
        axes.text(centre, 0.5, "no\nthreshold", transform=axes.get_xaxis_transform(), **look)
        return
    colour = variant_style(of_model["variant"].iloc[0]).colour
    over_seeds = of_model.groupby(["block", "head"])[column].agg(["mean", "std"]).reset_index()
    last = over_seeds.groupby("block")["head"].transform("max")
    beside = (over_seeds["head"] - last / 2) * (0.6 / last.clip(lower=1))
    error = over_seeds["std"] if of_model["seed"].nunique() > 1 else None
    axes.errorbar(
        left + over_seeds["block"] + beside, over_seeds["mean"], yerr=error, color=colour, marker="o", markersize=2.2,
        linestyle="none", elinewidth=0.6, capsize=0,
    )  # fmt: skip
    means = over_seeds.groupby("block")["mean"].mean()
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


def _fit(figure: Figure, axes: Axes, width: float, height: float, beside: float) -> None:
    """Sizes the figure for axes of width x height units, with labels `beside` inches wide at the left."""
    lines = max(label.get_text().count("\n") + 1 for label in axes.get_xticklabels())
    above = 0.1 + 0.125 * lines
    unit = min((DOUBLE_COLUMN - beside) / width, (9 - above - _BELOW) / height, 0.95)
    total = above + unit * height + _BELOW
    figure.set_size_inches(DOUBLE_COLUMN, total)
    axes.set_position((beside / DOUBLE_COLUMN, _BELOW / total, unit * width / DOUBLE_COLUMN, unit * height / total))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")


def _label_columns(axes: Axes, titles: Mapping[float, str], width: int) -> None:
    """Titles above columns, in lines of `width` characters; what is in brackets begins a new one."""
    lines = [title.replace(" (", "\n(").split("\n") for title in titles.values()]
    axes.set_xticks(list(titles), ["\n".join(textwrap.fill(part, width) for part in parts) for parts in lines])
    axes.tick_params(axis="x", top=False, labeltop=True, bottom=False, labelbottom=False, length=0)


def _draw(axes: Axes, values: np.ndarray, left: float, top: float, side: float = 1.0, **look: object) -> None:
    """A map or an image over a square of the axes."""
    axes.imshow(values, extent=(left, left + side, top + side, top), interpolation="nearest", **look)


def ring(axes: Axes, x: float, y: float) -> None:
    """Marks a place of an image, bright or dark."""
    axes.plot(
        x, y, "o", markersize=5, markerfacecolor="none", markeredgecolor="white",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )  # fmt: skip


def _square(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The values of a map as a picture."""
    return frame.pivot(index="row", columns="column", values=column).to_numpy()


def _norm(ratios: pd.Series) -> Normalize:
    """Colours from 0 to nearly the largest ratio, so that a few extreme places don't darken all others."""
    return Normalize(0, max(2.0, float(ratios.quantile(0.98))))


def _colour_bar(figure: Figure, norm: Normalize, label: str) -> None:
    """At the bottom left, in the inches that `_fit` left there."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.3 / width, 0.4 / height, 3.6 / width, 0.09 / height))
    figure.colorbar(ScalarMappable(norm, SHARES), cax=axes, orientation="horizontal", extend="max", label=label)

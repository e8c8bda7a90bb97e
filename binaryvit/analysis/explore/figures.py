"""One head and one channel of one or two models on an image: what a patch attends to, and what the sign is taken of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from binaryvit.analysis.attention.figures import SHARES
from binaryvit.analysis.style import styled
from binaryvit.palette import BLUE, GREY, ORANGE

WIDTH = 9.7  # inches: as wide as a notebook
_ROW, _SIDE = 2.5, 1.6  # inches: of a row, and of a map in it
_EXTENT = dict(extent=(0, 1, 1, 0), interpolation="nearest")
_BINS = np.linspace(-4, 4, 49)
_NOT_ATTENDED = LinearSegmentedColormap.from_list("veil", [(1, 1, 1, 0.85), (1, 1, 1, 0)])  # over the image


@dataclass(frozen=True, eq=False)
class Panels:
    """One head and one channel of one model; maps are (row, column)."""

    title: str
    pixels: np.ndarray  # the image, uint8 (height, width, 3)
    ratio: np.ndarray  # probability of each key times the number of keys
    attended: np.ndarray | None  # whether the key is attended; None in a model without a threshold
    rollout: np.ndarray | None  # the output's attention to a place over the even share; None where it cannot follow
    channel: np.ndarray | None  # what the sign is taken of in one channel, at all tokens; None where no sign is taken
    layer: np.ndarray | None  # the same in all channels of the layer


@styled
def head_and_channel(models: Sequence[Panels], place: tuple[float, float]) -> Figure:
    """A row for each model: the image with the patch that attends, its attention before and after the threshold, the
    rollout from the output, and the values before the sign.

    `place`: of the patch, (down, right) as shares of the image's sides.
    """
    figure = Figure(figsize=(WIDTH, _ROW * len(models)))
    figure.set_layout_engine("none")  # it would take longer than all else
    for row, panels in enumerate(models):
        bottom = _ROW * (len(models) - 1 - row)
        figure.text(0.01, (bottom + _ROW - 0.1) / (_ROW * len(models)), panels.title, va="top", weight="bold")
        image, ratio, attended, rollout = (
            _axes(figure, 0.1 + 1.85 * column, bottom + 0.45, _SIDE) for column in range(4)
        )
        _show(image, "image and patch", panels.pixels)
        _ring(image, place[1], place[0])
        _show_shares(ratio, "probability × keys", panels.ratio)
        if panels.attended is None:
            _say(attended, "no threshold")
        else:
            _show(attended, "attended keys", panels.pixels)
            attended.imshow(panels.attended, cmap=_NOT_ATTENDED, vmin=0, vmax=1, **_EXTENT)
        if panels.rollout is None:
            _say(rollout, "no rollout")
        else:
            _show_shares(rollout, "rollout × places", panels.rollout)
        values = _axes(figure, 7.85, bottom + 0.85, 1.75, 1.2)
        values.set(title="before the sign", xlim=(_BINS[0], _BINS[-1]))
        if panels.channel is None:
            _say(values, "no sign is taken")
        else:
            _histograms(values, panels.channel, panels.layer)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float | None = None) -> Axes:
    """Axes at a place in inches, a square without a height."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, (height or width) / up))


def _show(axes: Axes, title: str, values: np.ndarray, **look: Any) -> AxesImage:
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return axes.imshow(values, **look, **_EXTENT)


def _ring(axes: Axes, x: float, y: float) -> None:
    """Marks a place of an image, bright or dark."""
    axes.plot(
        x, y, "o", markersize=5, markerfacecolor="none", markeredgecolor="white",
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )  # fmt: skip


def _show_shares(axes: Axes, title: str, ratio: np.ndarray) -> None:
    shown = _show(axes, title, ratio, cmap=SHARES, vmin=0, vmax=max(2.0, float(ratio.max())))
    axes.figure.colorbar(shown, cax=axes.inset_axes((0, -0.1, 1, 0.05)), orientation="horizontal")


def _histograms(axes: Axes, channel: np.ndarray, layer: np.ndarray) -> None:
    """Shares of the values in bins; those outside are counted in the outermost."""
    axes.axvspan(-1, 1, color="#F2F2F2", zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.6)
    for values, colour, name in ((layer, GREY, "layer"), (channel, BLUE, "channel")):
        shares = np.histogram(values.clip(_BINS[0], _BINS[-1]), _BINS)[0] / values.size
        axes.stairs(
            shares, _BINS, color=colour, fill=name == "channel", alpha=0.7, label=f"{name}, n = {values.size:,}"
        )
    axes.axvline(float(channel.mean()), color=ORANGE, linewidth=1, label="channel's mean")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=1, labelspacing=0.2, handlelength=1)


def _say(axes: Axes, text: str) -> None:
    """Words where there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)

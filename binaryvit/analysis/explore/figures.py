"""One head and one channel of a model on one image: what a patch attends to, and what the sign is taken of."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from binaryvit.analysis.attention.figures import ON_OFF, SHARES, ring
from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.palette import BLUE, GREY, ORANGE

_BINS = np.linspace(-4, 4, 49)


@styled
def head_and_channel(
    pixels: np.ndarray,
    place: tuple[float, float],
    ratio: np.ndarray,
    attended: np.ndarray | None,
    channel: np.ndarray | None,
    layer: np.ndarray | None,
) -> Figure:
    """The image with the patch that attends, its attention before and after the threshold, and two histograms.

    Args:
        pixels: the image, uint8 (height, width, 3).
        place: of the patch, (down, right) as shares of the image's sides.
        ratio: (row, column), probability of each key times the number of keys.
        attended: (row, column), 1 where the key is attended, else 0; None in a model without a threshold.
        channel: what the sign is taken of in one channel, at all tokens; None where no sign is taken.
        layer: the same in all channels of the layer.
    """
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.0))
    figure.set_layout_engine("none")
    maps = [_axes(figure, 0.08 + 1.28 * column, 0.54, 1.15, 1.15) for column in range(3)]
    for axes, title in zip(maps, ("image and patch", "probability × keys", "attended keys"), strict=True):
        axes.set(title=title, xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    look = dict(extent=(0, 1, 1, 0), interpolation="nearest")
    maps[0].imshow(pixels, **look)
    ring(maps[0], place[1], place[0])
    shown = maps[1].imshow(ratio, cmap=SHARES, vmin=0, vmax=max(2.0, float(ratio.max())), **look)
    figure.colorbar(shown, cax=_axes(figure, 1.36, 0.4, 1.15, 0.06), orientation="horizontal")
    if attended is None:
        _say(maps[2], "no threshold")
    else:
        maps[2].imshow(attended, **ON_OFF, **look)
    distribution = _axes(figure, 4.32, 0.54, 1.45, 1.15)
    distribution.set(title="what the sign is taken of", xlabel="value", xlim=(_BINS[0], _BINS[-1]))
    if channel is None:
        _say(distribution, "no sign is taken")
    else:
        _histograms(distribution, channel, layer)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _histograms(axes: Axes, channel: np.ndarray, layer: np.ndarray) -> None:
    """Shares of the values in bins; those outside are counted in the outermost."""
    axes.axvspan(-1, 1, color="#F2F2F2", zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.6)
    for values, colour, name in ((layer, GREY, "layer"), (channel, BLUE, "channel")):
        shares = np.histogram(values.clip(_BINS[0], _BINS[-1]), _BINS)[0] / values.size
        axes.stairs(
            shares, _BINS, color=colour, fill=name == "channel", alpha=0.7, label=f"{name}\n(n = {values.size:,})"
        )
    axes.axvline(float(channel.mean()), color=ORANGE, linewidth=1, label="channel's mean")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1)


def _say(axes: Axes, text: str) -> None:
    """Words where there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)

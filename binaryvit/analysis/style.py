"""One look for every figure: palette, widths on the page, and how each variant is called and drawn."""

import functools
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from binaryvit.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

SINGLE_COLUMN, DOUBLE_COLUMN = 3.25, 6.875  # widths in inches on a two-column page

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK]),
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "figure.dpi": 150,
    "pdf.fonttype": 42,  # real fonts: text in the PDF can be searched, and publishers accept it
}


def style() -> AbstractContextManager[None]:
    """The style, as a context: `with style(): ...` around all that draws."""
    return matplotlib.rc_context(_STYLE)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: a function that draws a figure draws it in the style."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return wrapper


def in_lines(name: str, width: int) -> str:
    """A name in lines of at most `width` characters; what is in brackets begins a new one."""
    return "\n".join(textwrap.fill(part, width) for part in name.replace(" (", "\n(").split("\n"))


def headline(figure: Figure, claim: str) -> None:
    """What the figure says, above its panels."""
    figure.suptitle(textwrap.fill(claim, 92), x=0.012, ha="left", fontsize=8.5, fontweight="bold")

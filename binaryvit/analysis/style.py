"""One look for every figure: its style, its width on the page, and how a variant is drawn at each precision."""

import functools
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from binaryvit.models.ladder import VariantStyle, variant_style
from binaryvit.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

DOUBLE_COLUMN = 6.875  # width in inches of a two-column page
_OTHER_PRECISIONS = {"W1A32": "#B0B0B0", "W32A1": GREY, "W32A32": BLACK}

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
    "savefig.dpi": 200,
    "figure.dpi": 150,
    "image.composite_image": False,  # pasting a figure's pictures into one takes most of a PDF's time
    "pdf.fonttype": 42,  # real fonts: text in the PDF can be searched, and publishers accept it
}


def style() -> AbstractContextManager[None]:
    """The style, as a context: `with style(): ...` around the drawing code."""
    return matplotlib.rc_context(_STYLE)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: the function draws its figure in this style."""

    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return wrapper


def precision_style(variant: str, bits: str) -> VariantStyle:
    """How a variant is drawn at a precision ("W1A32"): always with its own marker, at W1A1 also in its own colour."""
    look = variant_style(variant)
    return replace(look, colour=_OTHER_PRECISIONS.get(bits, look.colour))


def in_lines(name: str, width: int) -> str:
    """A name in lines of at most `width` characters; a bracket starts a new line."""
    return "\n".join(textwrap.fill(part, width) for part in name.replace(" (", "\n(").split("\n"))


def headline(figure: Figure, claim: str) -> None:
    """The figure's claim, as its title above the panels."""
    figure.suptitle(textwrap.fill(claim, 92), x=0.012, ha="left", fontsize=8.5, fontweight="bold")

"""The ladder as a drawing: five steps, what each adds, and the teacher of all.

python -m binaryvit.analysis.ladder.diagram docs/ladder
"""

import sys
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from binaryvit.analysis.figure_files import save
from binaryvit.analysis.style import DOUBLE_COLUMN, styled
from binaryvit.models.ladder import LADDER, VariantStyle, variant_style
from binaryvit.palette import BLACK, GREY

_HEIGHT = 2.65
_CARD_WIDTH, _CARD_HEIGHT, _GAP, _RISE = 1.28, 1.62, 0.1, 0.23  # inches, as all coordinates here
_PALE = "#EBEBEB"


def steps() -> dict[str, str]:
    """What each model of the ladder adds, by its label: the paper's five steps, then the variant of the last."""
    styles = [variant_style(name) for name in LADDER["small"][1:]]
    return {style.label: style.adds for style in styles}


@styled
def ladder_diagram() -> Figure:
    """The staircase from the ReActNet-style DeiT to BinaryViT, one card a step."""
    teacher, *rungs, variant = (variant_style(name) for name in LADDER["small"])
    figure = Figure(figsize=(DOUBLE_COLUMN, _HEIGHT))
    axes = figure.add_subplot(xlim=(0, DOUBLE_COLUMN), ylim=(0, _HEIGHT), aspect="equal")
    axes.set_axis_off()
    for number, (rung, picture) in enumerate(zip(rungs, _PICTURES, strict=True)):
        left, bottom = 0.04 + number * (_CARD_WIDTH + _GAP), 0.06 + number * _RISE
        _card(axes, left, bottom, _CARD_HEIGHT, rung)
        picture(axes, left + _CARD_WIDTH / 2, bottom + 0.87, rung.colour)
    last = len(rungs) - 1
    below = 0.06 + last * _RISE - 0.16
    _card(axes, 0.04 + last * (_CARD_WIDTH + _GAP), 0.06, below, variant, linestyle=(0, (4, 2)))
    _teacher(axes, 0.04, 0.06 + _CARD_HEIGHT, teacher)
    return figure


def _card(axes: Axes, left: float, bottom: float, height: float, shown: VariantStyle, **edge: object) -> None:
    """A card with the variant's label on top and what it adds below."""
    top, centre = bottom + height, left + _CARD_WIDTH / 2
    axes.add_patch(
        Rectangle((left, bottom), _CARD_WIDTH, height, facecolor="white", edgecolor=shown.colour, linewidth=1, **edge)
    )
    axes.add_patch(Rectangle((left, top - 0.06), _CARD_WIDTH, 0.06, color=shown.colour, linewidth=0))
    label = shown.label.replace(" (", "\n(").replace(", ", ",\n")
    axes.text(centre, top - 0.12, label, ha="center", va="top", weight="bold", fontsize=7)
    adds = textwrap.fill(shown.adds, 23)
    axes.text(centre, bottom + 0.06, adds, ha="center", va="bottom", fontsize=6.5)


def _teacher(axes: Axes, left: float, cards_top: float, teacher: VariantStyle) -> None:
    """The teacher, in the room above the first steps."""
    y = cards_top + 0.72
    axes.plot(left + 0.1, y, teacher.marker, color=teacher.colour, markersize=8)
    axes.text(left + 0.24, y, teacher.label, va="center", weight="bold", fontsize=7)
    axes.text(left + 0.24, y - 0.15, "every step learns from its outputs", va="center", fontsize=6.5)
    _arrow(axes, (left + 0.1, y - 0.1), (left + 0.1, cards_top + 0.04))


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = GREY) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=7, color=colour, shrinkA=0, shrinkB=0))


def _grid(axes: Axes, x: float, y: float, cells: int, side: float, colour: str) -> None:
    """`cells` x `cells` squares around (x, y), together `side` wide."""
    size = side / cells
    for row in range(cells):
        for column in range(cells):
            corner = (x - side / 2 + column * size, y - side / 2 + row * size)
            axes.add_patch(Rectangle(corner, size, size, facecolor=colour, edgecolor="white", linewidth=0.8))


def _class_token(axes: Axes, x: float, y: float, colour: str) -> None:
    """One extra token, before those of the image, is what is classified."""
    _grid(axes, x - 0.4, y + 0.17, 1, 0.13, colour)
    _grid(axes, x - 0.05, y, 4, 0.5, _PALE)
    axes.plot([x - 0.4, x - 0.4, x + 0.38], [y + 0.26, y + 0.34, y + 0.34], color=GREY, linewidth=0.9)
    _arrow(axes, (x + 0.38, y + 0.345), (x + 0.38, y + 0.09))
    _grid(axes, x + 0.38, y, 1, 0.13, colour)


def _mean_of_tokens(axes: Axes, x: float, y: float, colour: str) -> None:
    """All tokens of the image together are what is classified."""
    _grid(axes, x - 0.2, y, 4, 0.5, colour)
    _arrow(axes, (x + 0.09, y), (x + 0.28, y))
    _grid(axes, x + 0.38, y, 1, 0.13, colour)


def _cross_of_poolings(axes: Axes, x: float, y: float, colour: str) -> None:
    """Windows of 1x3, 3x1, 1x5 and 5x1 tokens: together a cross, darkest in its centre, where all four meet."""
    _grid(axes, x, y, 5, 0.58, _PALE)
    size = 0.58 / 5
    for length, alpha in ((5, 0.35), (3, 0.45)):
        for width, height in ((length, 1), (1, length)):
            corner = (x - width * size / 2, y - height * size / 2)
            axes.add_patch(Rectangle(corner, width * size, height * size, color=colour, alpha=alpha, linewidth=0))


def _affine(axes: Axes, x: float, y: float, colour: str) -> None:
    """A branch is scaled and shifted, then added to the stream of tokens."""
    axes.plot([x - 0.5, x + 0.5], [y - 0.22, y - 0.22], color=GREY, linewidth=1.2, zorder=1)
    axes.add_patch(Rectangle((x - 0.42, y), 0.6, 0.26, facecolor=(colour, 0.35), edgecolor=colour, linewidth=0.8))
    axes.text(x - 0.12, y + 0.13, r"$\alpha\, x + \beta$", ha="center", va="center", fontsize=8)
    axes.plot([x + 0.18, x + 0.32], [y + 0.13, y + 0.13], color=GREY, linewidth=0.9)
    _arrow(axes, (x + 0.32, y + 0.135), (x + 0.32, y - 0.14))
    axes.add_patch(Circle((x + 0.32, y - 0.22), 0.075, facecolor="white", edgecolor=BLACK, linewidth=0.8, zorder=2))
    axes.text(x + 0.32, y - 0.225, "+", ha="center", va="center", fontsize=7, zorder=3)


def _pyramid(axes: Axes, x: float, y: float, colour: str) -> None:
    """Grids of tokens that shrink from stage to stage, while the channels (the sheets) become more."""
    for centre, cells, sheets in ((x - 0.3, 8, 1), (x + 0.13, 4, 2), (x + 0.4, 2, 4)):
        for sheet in reversed(range(sheets)):
            shift = 0.03 * sheet
            _grid(axes, centre + shift, y + shift, cells, 0.065 * cells, colour)


_PICTURES = (_class_token, _mean_of_tokens, _cross_of_poolings, _affine, _pyramid)


def main(path: str | Path) -> None:
    """Writes the diagram as PDF and PNG, with the steps it shows in their metadata; `path` is without ending."""
    save(ladder_diagram(), path, {"steps": steps()})


if __name__ == "__main__":
    main(sys.argv[1])

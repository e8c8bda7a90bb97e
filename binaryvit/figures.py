"""One style for every figure, the figures themselves, and files that say where they come from.

A figure is drawn from tables of numbers, never from a training run, so any figure can be made again from the records.
"""

import functools
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically
from binaryvit.model import LADDER

SINGLE_COLUMN, DOUBLE_COLUMN = 3.25, 6.875  # widths in inches on a two-column page

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#777777"

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


@dataclass(frozen=True)
class VariantStyle:
    """How one variant is called and drawn, in every figure and table."""

    label: str
    colour: str
    marker: str


# In the order of the ladder: the teacher, then the paper's rows.
_LADDER_STYLES = (
    VariantStyle("full-precision DeiT (teacher)", BLACK, "*"),
    VariantStyle("ReActNet-DeiT (baseline)", ORANGE, "o"),
    VariantStyle("+ average pooling", SKY, "s"),
    VariantStyle("+ pooling branches", GREEN, "^"),
    VariantStyle("+ affine", PURPLE, "D"),
    VariantStyle("BinaryViT (+ pyramid)", VERMILION, "v"),
    VariantStyle("BinaryViT, fp patch embeddings", BLUE, "P"),
)
_VARIANT_STYLES = {
    name: style for family in LADDER.values() for name, style in zip(family, _LADDER_STYLES, strict=True)
}


# How a published figure is drawn by its certainty: filled where the authors themselves gave it.
_CERTAINTY_MARKERS = {
    "authors": ("o", GREY),
    "table": ("o", "white"),
    "second-hand": ("^", "white"),
    "doubtful": ("v", "white"),
}


def variant_style(variant: str) -> VariantStyle:
    """Label, colour and marker of a variant by its timm name; a model outside the ladder is grey and keeps its name."""
    return _VARIANT_STYLES.get(variant, VariantStyle(variant, GREY, "h"))


def style() -> AbstractContextManager[None]:
    """The style, as a context: `with style(): ...` around all that draws."""
    return matplotlib.rc_context(_STYLE)


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def wrapper(*args: Any, **kwargs: Any) -> Figure:
        with style():
            return draw(*args, **kwargs)

    return wrapper


@_styled
def training_curves(metrics: pd.DataFrame) -> Figure:
    """Loss, top-1, flip rate of the binary weights and learning rate over the epochs of one run.

    `metrics` has a row an epoch, as `runs.read_metrics` returns it. What the run has no numbers for (flips of a
    full-precision model) gets no panel. Raises BinaryViTError when there is no epoch at all.
    """
    empty = pd.Series(dtype=float)
    if metrics.empty:
        raise BinaryViTError("There are no metrics to draw: the run has not finished its first epoch.")
    panels = [
        ("loss", {"train_loss": "training", "eval_loss": "evaluation"}, 1),
        ("top-1 accuracy (%)", {"train_top1": "training (augmented)", "top1": "evaluation"}, 1),
        ("binary weights flipped (%)", {"flip_rate": "all binary layers"}, 100),
        ("learning rate", {"lr": "learning rate"}, 1),
    ]
    panels = [
        (label, {column: name for column, name in columns.items() if metrics.get(column, empty).notna().any()}, factor)
        for label, columns, factor in panels
    ]
    panels = [panel for panel in panels if panel[1]]
    columns_of_panels = 2 if len(panels) == 4 else len(panels)
    rows = len(panels) // columns_of_panels
    figure = Figure(figsize=(DOUBLE_COLUMN, 2.1 * rows))
    grid = figure.subplots(rows, columns_of_panels, squeeze=False)
    marker = "o" if len(metrics) <= 40 else ""
    for axes, (label, columns, factor) in zip(grid.flat, panels, strict=True):
        for column, name in columns.items():
            axes.plot(metrics["epoch"], metrics[column] * factor, marker=marker, markersize=3, label=name)
        axes.set(xlabel="epoch", ylabel=label, xlim=(metrics["epoch"].min() - 0.5, metrics["epoch"].max() + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.margins(y=0.15)
        if len(columns) > 1:
            axes.legend()
    return figure


@_styled
def accuracy_against_operations(
    points: pd.DataFrame, evaluated_on: str, published: pd.DataFrame | None = None
) -> Figure:
    """Top-1 against the operations of one image, one point a model, the ladder's steps joined in their order.

    Args:
        points: columns variant (timm name), label, ops, top1 (percent), top1_std (NaN with one seed), seeds; in the
            order of the table.
        evaluated_on: the images the accuracies were measured on, "10,000 images of CIFAR-10".
        published: other models measured on the same data: columns ops, top1, certainty. Drawn grey, filled where
            the figure is the authors' own.

    Raises BinaryViTError when there is no point.
    """
    if points.empty:
        raise BinaryViTError("There is no accuracy to draw: no run of this study is finished.")
    figure = Figure(figsize=(DOUBLE_COLUMN, 3.2))
    axes = figure.add_subplot()
    if published is not None:
        for certainty, (marker, face) in _CERTAINTY_MARKERS.items():
            group = published[published["certainty"] == certainty].dropna(subset=["ops", "top1"])
            if group.empty:
                continue
            axes.plot(
                group["ops"], group["top1"], marker, markersize=4, markeredgewidth=0.7, markerfacecolor=face,
                color=GREY, zorder=1, label=f"published: {certainty}",
            )  # fmt: skip
    binary = points[~points["variant"].isin([teacher for teacher, *_ in LADDER.values()])]
    axes.plot(binary["ops"], binary["top1"], color=GREY, linewidth=0.7, linestyle=":", zorder=1)
    for row in points.itertuples():
        drawn = variant_style(row.variant)
        axes.errorbar(
            row.ops, row.top1, yerr=row.top1_std if row.seeds > 1 else None, color=drawn.colour, marker=drawn.marker,
            markersize=7 if drawn.marker == "*" else 5, linestyle="none", label=row.label,
            markeredgecolor=drawn.colour, markerfacecolor=(drawn.colour, 0.5),  # close steps shine through
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set(xlabel="operations per image (BOPs / 64 + FLOPs)", ylabel=f"top-1 accuracy (%)\n{evaluated_on}")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.1)
    few, many = points["seeds"].min(), points["seeds"].max()
    count = f"{few}" if few == many else f"{few} to {many}"
    figure.legend(loc="outside right upper", title="one seed" if many == 1 else f"mean ± std of {count} seeds")
    return figure


def save(figure: Figure, path: str | Path, provenance: dict[str, Any]) -> list[Path]:
    """Writes a figure as PDF and PNG beside each other, with its provenance (study, run ids, commits) inside the files.

    `path` is without ending. The same figure and provenance give the same bytes: the files hold no date. Returns the
    two paths; `read_provenance` reads back what was stored.
    """
    note = json.dumps(provenance, sort_keys=True)  # ASCII, as both formats' headers want it
    headers = {
        ".pdf": {"Creator": "binaryvit", "Keywords": note, "CreationDate": None, "ModDate": None},
        ".png": {"Software": "binaryvit", "Provenance": note},
    }
    paths = []
    with style():
        for ending, metadata in headers.items():
            target = Path(path).with_name(Path(path).name + ending)
            write_atomically(target, lambda file, e=ending, m=metadata: figure.savefig(file, format=e[1:], metadata=m))
            paths.append(target)
    return paths


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What `save` stored in a PDF or PNG. Raises BinaryViTError when the file is none of ours or cannot be read."""
    path = Path(path)
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                note = image.info["Provenance"]
        else:
            keywords = re.search(rb"/Keywords \((.*?)(?<!\\)\)", path.read_bytes(), re.DOTALL)
            note = re.sub(rb"\\(.)", rb"\1", keywords[1]).decode("ascii")
        return json.loads(note)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BinaryViTError(f"{path} holds no provenance: it is missing, damaged, or not a figure of ours.") from error

"""Tables and figures as a notebook shows them; equal ones give equal bytes."""

import io

import pandas as pd
from IPython.display import HTML, Image
from matplotlib.figure import Figure

from binaryvit.analysis.figure_files import write_png


def show_table(frame: pd.DataFrame, caption: str = "") -> HTML:
    """The whole table with its caption above; a long one scrolls."""
    styler = frame.style.set_caption(caption).format(thousands=",", na_rep="-")
    if isinstance(frame.index, pd.RangeIndex) or frame.index.name is None:
        styler = styler.hide(axis="index")
    table = styler.to_html(exclude_styles=True)  # with a class and an id per cell it is five times as long
    return HTML(f'<div style="max-height: 32em; overflow: auto">{table}</div>')


def show_figure(figure: Figure) -> Image:
    """A figure as a picture in the notebook."""
    content = io.BytesIO()
    write_png(figure, content, dpi=150)
    return Image(content.getvalue(), width=int(figure.get_figwidth() * 96))

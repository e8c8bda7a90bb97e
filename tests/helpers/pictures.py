"""Whether a figure can be read: nothing cut off, no labels on top of each other, a claim above."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg


def assert_readable(figure):
    """Asserts that a figure is legible and that its title says something."""
    assert_legible(figure)
    assert len(figure.get_suptitle()) > 10


def assert_legible(figure):
    """Asserts that all that is drawn lies inside the figure, no two labels of ticks or axes overlap, and no legend of
    the figure covers its axes."""
    renderer = assert_inside(figure)
    framed = [axes for axes in figure.axes if any(spine.get_visible() for spine in axes.spines.values())]
    for legend, axes in itertools.product(figure.legends, framed):
        assert not legend.get_window_extent(renderer).overlaps(axes.get_window_extent(renderer)), "a legend covers axes"
    names = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.label.get_text()]
    _assert_apart([name for name in names if name.get_visible()], renderer)
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        labels = [label for tick in ticks for label in (tick.label1, tick.label2) if label.get_visible()]
        _assert_apart([label for label in labels if label.get_text()], renderer)


def _assert_apart(labels, renderer):
    for one, two in itertools.combinations(labels, 2):
        overlap = one.get_window_extent(renderer).overlaps(two.get_window_extent(renderer))
        assert not overlap, f"{one.get_text()!r} and {two.get_text()!r} overlap"


def assert_inside(figure):
    """Asserts that nothing reaches out of the figure; returns the renderer it was drawn with."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, (width, height) = canvas.get_renderer(), canvas.get_width_height()
    parts = [*figure.axes, *figure.legends, *figure.texts, *filter(None, [figure._suptitle])]
    for part, box in [(part, part.get_tightbbox(renderer)) for part in parts]:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f"{part} reaches from {box.min} to {box.max} in a figure of {width} x {height}"
    return renderer

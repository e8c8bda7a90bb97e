"""The drawing of the ladder names every rung with what it adds, as the ladder itself does."""

from matplotlib.text import Text

from binaryvit.analysis.ladder.diagram import ladder_diagram
from binaryvit.models.ladder import LADDER, variant_style


def test_the_drawing_names_every_rung_and_what_it_adds():
    drawn = {" ".join(text.get_text().split()) for text in ladder_diagram().findobj(Text)}
    teacher, *rungs = (variant_style(name) for name in LADDER["small"])
    assert teacher.label in drawn
    assert all(rung.adds for rung in rungs)
    assert {text for rung in rungs for text in (rung.label, rung.adds)} <= drawn

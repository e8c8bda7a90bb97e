"""The README's sentences follow the numbers, whichever way these go."""

from types import SimpleNamespace

import pytest

from binaryvit.analysis.ladder.headline import put_into, take_away
from binaryvit.errors import BinaryViTError
from binaryvit.studies.rows import Measured

COLUMNAR, PYRAMID = SimpleNamespace(bytes=2e6, ops=4e6), SimpleNamespace(bytes=1e6, ops=1e6)


def row(label, top1, cost=COLUMNAR, is_teacher=False):
    record = SimpleNamespace(data=SimpleNamespace(eval_images=10_000))
    measured = lambda name: Measured.of([top1])  # noqa: E731
    return SimpleNamespace(label=label, values=(record,), is_teacher=is_teacher, model_cost=cost, measured=measured)


def ladder(*top1):
    teacher = row("teacher", 80.0, SimpleNamespace(bytes=20e6, ops=100e6), is_teacher=True)
    costs = [COLUMNAR] * 4 + [PYRAMID] * 2
    return [teacher, *(row(f"step {i}", *pair) for i, pair in enumerate(zip(top1, costs, strict=True)))]


def test_the_sentences_name_price_best_step_and_last_step():
    price, steps, last = take_away(ladder(50, 60, 60.2, 61, 65, 64))
    assert price == (
        "The best binary model, step 4, is 15.00 points below its full-precision teacher, "
        "with 20 times fewer bytes and 100 times fewer operations."
    )
    assert steps.startswith("The step that gains most is step 1 (+10.00 points); step 2 (+0.20) and step 3 (+0.80) are")
    assert last == "The last step, the pyramid, gains 4.00 points with 0.25 of the operations, as in the paper."


def test_a_pyramid_that_loses_is_named_with_its_share_of_operations():
    price, steps, last = take_away(ladder(50, 55, 60, 85, 80, 70))
    assert "step 3, is 5.00 points above its" in price
    assert steps == "The step that gains most is step 3 (+25.00 points)."
    assert "loses 5.00 points, where the paper gains: this small pyramid has 0.25 of the columnar" in last
    assert last.endswith("the paper's 0.54.")


def test_a_page_keeps_everything_outside_the_marks():
    page = "before <!-- made by binaryvit.analysis.ladder.headline --> old <!-- until here --> after"
    assert put_into(page, r"new \1").split("\n\n")[1] == r"new \1"
    assert put_into(page, "new").startswith("before ") and put_into(page, "new").endswith(" after")
    with pytest.raises(BinaryViTError, match="lacks the lines"):
        put_into("a page without them", "new")

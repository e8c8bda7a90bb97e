"""The README and the page of claims show what results/ and the ladder hold."""

import re

import pytest
from helpers.places import ROOT

from binaryvit.analysis.figure_files import read_provenance
from binaryvit.analysis.ladder.claims import claims
from binaryvit.analysis.ladder.diagram import steps
from binaryvit.analysis.ladder.headline import headline, put_into
from binaryvit.studies.study import load_study

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = "cifar10"  # the study whose table the README shows


@pytest.mark.parametrize(
    ("page", "maker", "study"), [("README.md", headline, SHOWN), ("docs/claims.md", claims, "cifar10")]
)
def test_what_is_made_from_results_is_current(page, maker, study):
    text, block = (ROOT / page).read_text(encoding="utf-8"), maker(load_study(ROOT / "results" / study))
    assert put_into(text, block) == text, (
        f"{page} should hold, in place of what it has:\n\n{block}\n\n"
        f"`python -m {maker.__module__} results/{study} {page}` puts it there."
    )


def test_the_same_numbers_stand_in_the_committed_table():
    full = (ROOT / f"results/{SHOWN}/tables/ablation.md").read_text(encoding="utf-8")
    row = r"^\| (.*?) \| (\d\d\.\d\d.*?) \| (.*?) \|"
    shown = re.findall(row, README, re.MULTILINE)
    assert shown == re.findall(row, full, re.MULTILINE) and len(shown) == 7


def test_its_drawing_is_of_todays_ladder():
    for picture in ("docs/ladder.png", "docs/ladder.pdf"):
        assert read_provenance(ROOT / picture) == {"steps": steps()}, (
            f"{picture} is outdated: run `python -m binaryvit.analysis.ladder.diagram docs/ladder`."
        )
    assert "](docs/ladder.png)" in README

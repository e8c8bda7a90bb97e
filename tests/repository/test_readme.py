"""The README shows what results/ and the ladder hold."""

import re

from helpers.places import ROOT

from binaryvit.analysis.figure_files import read_provenance
from binaryvit.analysis.ladder.diagram import steps
from binaryvit.analysis.ladder.headline import headline, put_into
from binaryvit.studies.study import load_study

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_table_and_what_to_take_away_are_those_of_cifar10():
    block = headline(load_study(ROOT / "results/cifar10"))
    assert put_into(README, block) == README, (
        f"README.md should hold, in place of what it has:\n\n{block}\n\n"
        "`python -m binaryvit.analysis.ladder.headline results/cifar10 README.md` puts it there."
    )


def test_the_same_numbers_stand_in_the_committed_table():
    full = (ROOT / "results/cifar10/tables/ablation.md").read_text(encoding="utf-8")
    accuracies = {tuple(row) for row in re.findall(r"^\| (.*?) \| (\d\d\.\d\d.*?) \|", full, re.MULTILINE)}
    shown = {tuple(row) for row in re.findall(r"^\| (.*?) \| (\d\d\.\d\d.*?) \|", README, re.MULTILINE)}
    assert shown == accuracies and len(shown) == 7


def test_its_drawing_is_of_todays_ladder():
    for picture in ("docs/ladder.png", "docs/ladder.pdf"):
        assert read_provenance(ROOT / picture) == {"steps": steps()}, (
            f"{picture} is outdated: run `python -m binaryvit.analysis.ladder.diagram docs/ladder`."
        )
    assert "](docs/ladder.png)" in README

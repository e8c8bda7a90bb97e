"""What is committed below results/ is what its own records, measurements and weights give."""

import re

import nbformat
import pytest
from helpers.pictures import assert_inside
from helpers.places import ROOT

from binaryvit.analysis.measurements import stored_ones_only
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.registry import ANALYSES
from binaryvit.analysis.stored import OpenStudy
from binaryvit.analysis.verify import Verdict, verify
from binaryvit.records.run_record import read_record
from binaryvit.studies.study import load_study

RESULTS = ROOT / "results"


STUDIES = sorted(path.parent.name for path in RESULTS.glob("*/tables"))


@pytest.mark.parametrize("name", STUDIES)
def test_committed_tables_figures_and_measurements_are_current(name):
    findings = verify(load_study(RESULTS / name))
    assert {"tables/ablation.md", "figures/accuracy_against_operations.png"} <= {finding.file for finding in findings}
    assert [finding for finding in findings if finding.verdict is not Verdict.CURRENT] == []


@pytest.mark.parametrize("name", STUDIES)
def test_nothing_is_cut_off_in_a_committed_figure(name):
    study = load_study(RESULTS / name)
    with stored_ones_only():
        products = [product for notebook in study.analysis for product in ANALYSES[notebook](OpenStudy(study))]
    drawings = [product for product in products if isinstance(product, Drawing)]
    for drawing in drawings:
        assert_inside(drawing.draw())
    assert drawings


def test_every_study_that_has_runs_has_its_tables():
    assert "smoke" in STUDIES and {path.parent.name for path in RESULTS.glob("*/runs")} <= set(STUDIES)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*.ipynb")), ids=lambda path: "-".join(path.parts[-2:]))
def test_executed_notebooks_are_those_of_today(path):
    source, executed = (nbformat.read(place, as_version=4) for place in (ROOT / "notebooks" / path.name, path))
    own = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    assert [(cell.cell_type, cell.source) for cell in own] == [(cell.cell_type, cell.source) for cell in source.cells]


def test_measurements_are_small():
    sizes = {path: path.stat().st_size for path in RESULTS.glob("*/measurements/*/*.csv")}
    assert {path.name: size for path, size in sizes.items() if size > 300_000} == {}


def test_what_was_tried_for_the_recipe_is_on_record():
    page = (RESULTS / "README.md").read_text(encoding="utf-8")
    shown = {f"{name}-seed0": top1 for top1, name in re.findall(r"\| (\d\d\.\d\d) \(`(\w\S*)`\)", page)}
    assert shown == {
        run.id: f"{read_record(run.folder).weights.top1:.2f}" for run in load_study(RESULTS / "recipe").runs
    }

"""What is committed below results/ is what its own records, measurements and weights give."""

import pytest
from helpers.places import ROOT

from binaryvit.analysis.verify import Verdict, verify
from binaryvit.studies.study import load_study

RESULTS = ROOT / "results"


@pytest.mark.parametrize("name", ["smoke", "cifar10"])
def test_committed_tables_figures_and_measurements_are_current(name):
    findings = verify(load_study(RESULTS / name))
    assert {"tables/ablation.md", "figures/accuracy_against_operations.png"} <= {finding.file for finding in findings}
    assert [finding for finding in findings if finding.verdict is not Verdict.CURRENT] == []


def test_measurements_are_small():
    sizes = {path: path.stat().st_size for path in RESULTS.glob("*/measurements/*/*.csv")}
    assert {path.name: size for path, size in sizes.items() if size > 300_000} == {}

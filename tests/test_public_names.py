"""What the package itself offers, and the Python that its documentation shows."""

import re

import pytest
from helpers.places import ROOT

import binaryvit
from binaryvit.config import TrainingConfig
from binaryvit.models import ladder, weights_file
from binaryvit.training import launch


def test_the_package_offers_its_main_names():
    assert binaryvit.LADDER is ladder.LADDER and binaryvit.load_model is weights_file.load_inference_weights
    assert binaryvit.TrainingConfig is TrainingConfig and binaryvit.train is launch.train
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = binaryvit.nothing


@pytest.mark.slow
def test_the_python_in_the_documentation_runs(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["record"].result.epochs == 1 and (tmp_path / "runs" / "mine" / "run.json").is_file()

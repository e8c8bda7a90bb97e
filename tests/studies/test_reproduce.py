"""A real study from start to end: the real notebooks, real training, and nothing of this machine in what it leaves."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from helpers.places import ROOT
from helpers.training_setup import PYRAMID, SHORT, VIT

from binaryvit.cli import main
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.records.run_record import read_metrics, read_record

TEXT = {".json", ".csv", ".ipynb", ".yaml", ".md", ".tex"}


@pytest.mark.slow
def test_a_tiny_study_trains_is_tabulated_and_is_not_trained_again(tmp_path, monkeypatch, capfd):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    folder = tmp_path / "results" / "tiny"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "results" / "published.csv", tmp_path / "results")
    recipe = {name: value for name, value in SHORT.items() if name != "threads"}
    study = {
        "name": "tiny",
        "title": "A tiny study",
        "recipe": recipe,
        "teacher": {"variant": VIT["variant"], "recipe": {"model_args": VIT["model_args"], "warmup_epochs": 1}},
        "variants": [{"variant": PYRAMID["variant"], "recipe": {"model_args": PYRAMID["model_args"]}}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    ids = [f"{name}-seed0" for name in (PYRAMID["variant"], VIT["variant"])]
    assert main(["reproduce", "results/tiny", "--threads", "1", "--only", ids[0]]) == 0, capfd.readouterr()
    assert sorted(path.name for path in (folder / "runs").iterdir() if path.is_dir()) == ids, "its teacher comes along"
    for run in (folder / "runs" / name for name in ids):
        record = read_record(run)
        assert (record.threads, record.study) == (1, "tiny")
        assert read_metrics(run)["epoch"].tolist() == [1, 2]
        assert load_inference_weights(run / "weights.safetensors").num_classes == 10

    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    capfd.readouterr()
    assert main(["reproduce", "results/tiny"]) == 0, capfd.readouterr()
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")} == before
    assert list((folder / "tables").glob("*.csv")) and (folder / "tables.ipynb").is_file()
    assert main(["status", "results/tiny"]) == 0
    assert capfd.readouterr().out.count("done") >= 4
    assert main(["verify", "results/tiny"]) == 0, capfd.readouterr()
    for file in folder.rglob("*"):
        if file.suffix in TEXT:
            text = file.read_text()
            for place in (tmp_path, ROOT, Path.home()):
                assert not re.search(rf"{re.escape(str(place))}\b", text), f"{file.relative_to(folder)} says {place}"

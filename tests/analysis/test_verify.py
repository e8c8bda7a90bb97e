"""Each way in which a table, figure or measurement can be wrong is told from the others, and nothing is touched."""

import shutil

import pandas as pd
import pytest
from helpers.places import ROOT
from helpers.run_ids import BASELINE, PYRAMID
from helpers.stored_study import STUDY, store, stored_study
from matplotlib.figure import Figure

from binaryvit.analysis import registry
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.analysis.verify import Verdict, verify
from binaryvit.cli import main
from binaryvit.files import write_text_atomically
from binaryvit.records.run_record import read_record
from binaryvit.studies.study import load_study

VERSION = {"norms": 1}
FIGURE, NORMS = "figures/accuracy_against_operations", "measurements/norms"


def norms(opened):
    """An analysis: the norm of each parameter, measured; drawn."""

    def measure(run):
        return pd.DataFrame([{"norm": parameter.norm().item()} for parameter in run.model().parameters()])

    runs = opened.runs()
    table = measured(opened, "norms", VERSION["norms"], {}, runs, measure)

    def draw():
        figure = Figure(figsize=(2, 2))
        figure.add_subplot().plot(table["norm"])
        return figure

    return [Drawing(opened, "norms", {"norms": table}, draw, tuple(run.id for run in runs), "Norms are positive.")]


def make(study):
    for notebook in study.analysis:
        for product in registry.ANALYSES[notebook](OpenStudy(study)):
            product.write()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    shutil.copy(ROOT / "results/published.csv", folder)
    study = stored_study(folder / "small", STUDY + "analysis: [tables.ipynb, norms.ipynb]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ANALYSES, "norms.ipynb", norms)
        make(study)
        yield study


@pytest.fixture
def study(original, tmp_path):
    shutil.copytree(original.output.parent, tmp_path, dirs_exist_ok=True)
    return load_study(tmp_path / "small")


def wrong(study):
    """The verdicts on all files that are not current."""
    before = {path: path.read_bytes() for path in study.output.rglob("*") if path.is_file()}
    findings = verify(study)
    assert {path: path.read_bytes() for path in study.output.rglob("*") if path.is_file()} == before
    assert len({finding.file for finding in findings}) == len(findings)
    return {finding.file: str(finding.verdict) for finding in findings if finding.verdict is not Verdict.CURRENT}


def test_what_was_just_made_is_current(study):
    assert wrong(study) == {}
    files = {finding.file for finding in verify(study)}
    there = {path.relative_to(study.output).as_posix() for path in study.output.rglob("*") if path.is_file()}
    assert files == {
        file for file in there if not file.startswith(("runs", "study.yaml")) and not file.endswith("json")
    }


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_edited_cell_is_called_so(study):
    for ending in ("csv", "md"):
        edit(study.output / "tables" / f"ablation.{ending}", "55.5", "65.5")
    assert wrong(study) == {"tables/ablation.csv": "hand-edited", "tables/ablation.md": "hand-edited"}


def test_a_touched_up_picture_is_called_so(study):
    picture = study.output / f"{FIGURE}.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert wrong(study) == {f"{FIGURE}.png": "hand-edited"}


def test_a_deleted_figure_and_a_deleted_note(study):
    (study.output / f"{FIGURE}.pdf").unlink()
    (study.output / "figures" / "norms.json").unlink()
    assert wrong(study) == {f"{FIGURE}.pdf": "missing", "figures/norms.pdf": "stale", "figures/norms.png": "stale"}


def test_a_replaced_record_makes_stale_what_was_made_from_it(study):
    run = study.runs[2]
    record = read_record(run.folder)
    record.model_copy(update={"weights": record.weights.model_copy(update={"top1": 60.0})}).write(run.folder)
    found = wrong(study)
    assert found == {f"tables/ablation.{end}": "stale" for end in ("csv", "md", "tex")} | {
        f"{FIGURE}.{end}": "stale" for end in ("pdf", "png")
    }
    make(study)
    assert wrong(study) == {}


def test_another_commit_of_a_run_shows_in_every_figure_it_is_in(study):
    run = study.runs[2]
    record = read_record(run.folder)
    record.model_copy(update={"git": record.git.model_copy(update={"commit": "1" * 40})}).write(run.folder)
    found = wrong(study)
    assert found == {f"figures/norms.{end}": "stale" for end in ("pdf", "png")} | {
        f"{FIGURE}.{end}": "stale" for end in ("pdf", "png")
    } | {"tables/ablation.sources.csv": "stale"}
    reason = next(finding.reason for finding in verify(study) if finding.file == "figures/norms.png")
    assert reason == f"made from other runs: {PYRAMID}"


def test_other_weights_or_measuring_code_make_measurement_and_figure_stale(study, monkeypatch):
    store(study, study.runs[1], stored_runs(study)[0].record.key.data)
    figure = {f"figures/norms.{end}": "stale" for end in ("pdf", "png", "json")}
    assert wrong(study) == {f"{NORMS}/{BASELINE}.csv": "stale", "norms.ipynb": "stale"} | figure
    make(study)
    assert wrong(study) == {}
    monkeypatch.setitem(VERSION, "norms", 2)
    assert wrong(study) == {"norms.ipynb": "stale"} | figure


def test_an_edited_measurement_and_one_that_is_gone(study):
    measurement = study.output / NORMS / f"{BASELINE}.csv"
    measurement.write_text(measurement.read_text() + "1.0\n")
    assert wrong(study)[f"{NORMS}/{BASELINE}.csv"] == "hand-edited"
    measurement.unlink()
    assert wrong(study)[f"{NORMS}/{BASELINE}.csv"] == "missing"


def test_what_nothing_makes_is_unknown(study):
    strangers = ["figures/mine.png", "tables/mine.csv", f"{NORMS}/resnet-seed0.csv", f"measurements/old/{BASELINE}.csv"]
    for name in strangers:
        write_text_atomically(study.output / name, "a\n")
    (study.output / "figures" / ".hidden").write_text("")
    assert wrong(study) == dict.fromkeys(strangers, "unknown")


def test_a_figure_that_is_not_made_any_more_is_unknown(study):
    edit(study.path, ", norms.ipynb", "")
    found = wrong(load_study(study.path))
    assert {f"figures/norms.{end}" for end in ("pdf", "png", "json")} <= found.keys()
    assert set(found.values()) == {"unknown"} and f"{NORMS}/{BASELINE}.json" in found


def test_a_notebook_that_is_not_registered_is_named(study):
    edit(study.path, "norms.ipynb", "mine.ipynb")
    assert wrong(load_study(study.path))["mine.ipynb"] == "stale"


def test_the_command_says_it_all_and_exits_accordingly(study, capsys):
    assert main(["verify", str(study.output)]) == 0
    assert "current     tables/ablation.csv" in capsys.readouterr().out
    (study.output / f"{FIGURE}.pdf").unlink()
    assert main(["verify", str(study.path)]) == 1
    assert f"MISSING     {FIGURE}.pdf" in capsys.readouterr().out
    assert main(["verify", str(study.output / "nowhere")]) == 2

"""Run records survive the disk, and damaged ones are refused by name."""

import json
import subprocess
from datetime import UTC, datetime

import pytest
from helpers.records import record_of

from binaryvit.errors import BinaryViTError
from binaryvit.records.provenance import describe_hardware, git_state, package_versions
from binaryvit.records.run_record import Failure, GitState, read_failure, read_metrics, read_record
from binaryvit.studies.study import load_study


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.yaml").write_text(
        "name: tiny\ntitle: t\nteacher: {variant: deit_micro_patch4_32}\n"
        "variants: [reactdeit_micro_patch4_32, binaryvit_micro_patch2_32]\nseeds: [0, 1]\n"
    )
    return load_study(tmp_path)


def test_a_record_comes_back_as_it_was_written_and_ends_a_failure(study):
    run = study.runs[1]
    record = record_of(study, run)
    Failure(error="No memory.", time=datetime.now(UTC)).write(run.folder)
    assert read_record(run.folder) is None and read_failure(run.folder).error == "No memory."
    record.write(run.folder)
    assert read_record(run.folder) == record
    assert read_failure(run.folder) is None


def _without_result(text):
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "result"})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        _without_result,
        lambda text: text.replace("55.5", "NaN"),
        lambda text: text.replace('"seed"', '"sead"'),
        lambda text: text + " " * 5_000_000,
    ],
)
def test_a_damaged_record_is_refused_by_name(study, damage):
    folder = study.runs[0].folder
    record_of(study, study.runs[0]).write(folder)
    file = folder / "run.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(BinaryViTError, match=r"run\.json is not a run record"):
        read_record(folder)


def test_metrics_keep_every_digit_and_missing_ones_are_said(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,top1\n1,0.1\n2,33.333333333333336\n")
    assert read_metrics(tmp_path)["top1"].tolist() == [0.1, 33.333333333333336]
    (tmp_path / "metrics.csv").write_text("")
    with pytest.raises(BinaryViTError, match="not a readable CSV"):
        read_metrics(tmp_path)
    with pytest.raises(BinaryViTError, match="missing"):
        read_metrics(tmp_path / "nowhere")


def test_dirty_means_tracked_files_outside_results(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_state(tmp_path).commit is None
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "run.json").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "of a hook in another repository"))
    assert len(git_state(tmp_path).commit) == 40
    assert git_state(tmp_path).dirty is False
    (tmp_path / "results" / "run.json").write_text("2")
    (tmp_path / "untracked").write_text("2")
    assert git_state(tmp_path / "results").dirty is False
    (tmp_path / "code.py").write_text("2")
    assert git_state(tmp_path / "results").dirty is True
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "package.py").write_text("1")
    assert git_state(tmp_path / "installed") == GitState(commit=None, dirty=None)


def test_the_machine_is_described():
    hardware = describe_hardware("cpu")
    assert hardware.device == "cpu" and hardware.cpu and hardware.cores >= 1 and hardware.memory_gb > 0
    assert hardware.gpus == []
    assert {"python", "torch", "timm"} <= package_versions().keys()

"""One shell command a run: executed anywhere, in any order, at the same time, each run is trained once."""

import errno
import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import standin
from helpers.child_processes import environment
from helpers.records import record_of
from helpers.run_ids import BASELINE, PYRAMID, TEACHER

from binaryvit.cli import main
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold, is_locked
from binaryvit.records.run_record import read_record
from binaryvit.studies.cluster import command_of, pending_runs
from binaryvit.studies.states import plan
from binaryvit.studies.study import State, load_study

TINY = """
name: tiny
title: A tiny study
recipe: {epochs: 1, warmup_epochs: 0}
teacher: {variant: deit_micro_patch4_32}
variants: [reactdeit_micro_patch4_32, binaryvit_micro_patch2_32]
analysis: []
"""


def words_of(lines):
    return [shlex.split(line) for line in lines.splitlines()]


def test_the_commands_are_those_of_the_missing_runs_teacher_first(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "a study's folder"
    folder.mkdir()
    (folder / "study.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    assert main(["commands", folder.name, "--workers", "4", "--output", "out"]) == 0
    words = words_of(capsys.readouterr().out)
    assert [line[line.index("--only") + 1] for line in words] == [TEACHER, BASELINE, PYRAMID]
    path = str(folder / "study.yaml")
    start = [sys.executable, "-P", "-m", "binaryvit.cli", "reproduce", path]
    assert words[1] == [*start, "--only", BASELINE, "--output", str(tmp_path / "out"), "--workers", "4"]
    study = load_study(folder)
    line = command_of(study, study.runs[0], {"data_dir": "data", "data_label": "with a blank"})
    assert shlex.split(line)[-4:] == ["--data-dir", str(tmp_path / "data"), "--data-label", "with a blank"]
    line = command_of(study, study.runs[0], {"data_dir": "~/data"})
    assert shlex.split(line)[-1] == str(Path.home() / "data")

    fingerprint = load_data(study.data_config).fingerprint
    record_of(study, study.runs[0], fingerprint).write(study.runs[0].folder)
    with hold(study.runs[1].lock):
        assert main(["commands", str(folder)]) == 0
        captured = capsys.readouterr()
    assert [line[line.index("--only") + 1] for line in words_of(captured.out)] == [PYRAMID]
    assert f"Left out: {TEACHER} is done" in captured.err and f"Left out: {BASELINE} is running" in captured.err


def test_the_stages_part_the_teacher_from_those_who_wait_for_it(tmp_path):
    (tmp_path / "study.yaml").write_text(TINY)
    runs = plan(load_study(tmp_path))
    assert [run.id for run in pending_runs(runs, "teacher")] == [TEACHER]
    assert [run.id for run in pending_runs(runs, "students")] == [BASELINE, PYRAMID]
    (tmp_path / "study.yaml").write_text(TINY.replace("teacher:", "#"))
    alone = plan(load_study(tmp_path))
    assert pending_runs(alone, "teacher") == [] and len(pending_runs(alone, "students")) == 2


@pytest.mark.slow
def test_a_shell_executes_two_at_a_time_and_the_folder_holds_the_study(tmp_path, capsys):
    """All at once, the student next to its teacher and twice, from another folder, as a scheduler might."""
    folder = tmp_path / "shared"
    folder.mkdir()
    standin.prepare(folder, load_study, TINY.replace(", binaryvit_micro_patch2_32", ""))
    assert main(["commands", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    script = "\n".join([*lines, lines[1]])
    ended = subprocess.run(
        ["xargs", "-P", "2", "-I", "{}", "-d", "\n", "sh", "-c", "{}"],
        input=script,
        cwd="/",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,  # a busy machine
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert sorted((folder / "executed.txt").read_text().split()) == sorted([TEACHER, BASELINE])
    assert "another process is training it; waiting for its result" in ended.stdout
    study = load_study(folder)
    assert [run.state for run in plan(study)] == [State.DONE] * 2
    assert [read_record(run.folder).id for run in study.runs] == [TEACHER, BASELINE]
    assert main(["commands", str(folder)]) == 0 and capsys.readouterr().out == ""
    assert main(["reproduce", str(folder)]) == 0, "collecting finds nothing left to train"


@pytest.mark.parametrize("take", [lambda path: hold(path).__enter__(), is_locked])
def test_a_file_system_without_locks_is_a_sentence(take, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / "run.lock").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(BinaryViTError, match=r"run\.lock cannot be locked \(No locks available\)"):
        take(tmp_path / "run.lock")

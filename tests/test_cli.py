"""The command line speaks in sentences, and its processes may be interrupted, killed and doubled."""

import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import product

import psutil
import pytest
from helpers import standin
from helpers.child_processes import environment, until
from helpers.places import ROOT
from helpers.training_setup import VIT

from binaryvit import cli
from binaryvit.cli import main
from binaryvit.locks import is_locked
from binaryvit.studies.states import plan
from binaryvit.studies.study import State, load_study

TEACHER, STUDENT = "deit_micro_patch4_32-seed0", "binaryvit_micro_patch2_32-seed0"
TINY = """
name: tiny
title: A tiny study
recipe: {epochs: 1, warmup_epochs: 0}
teacher: {variant: deit_micro_patch4_32}
variants: [binaryvit_micro_patch2_32]
analysis: []
"""

TWO_WAYS = f"""
name: tiny
title: A tiny study
recipe: {{epochs: 1, warmup_epochs: 0, batch_size: 16, max_train_images: 32, max_eval_images: 16}}
teacher: {{variant: deit_micro_patch4_32}}
variants: [binaryvit_micro_patch2_32]
controls:
  - variant: {VIT["variant"]}
    id: plain
    teacher: none
    seeds: [0, 1]
    recipe: {{epochs: 100000, model_args: {VIT["model_args"]}}}
notebooks: first_seed
analysis: []
"""


@pytest.fixture
def folder(tmp_path):
    """A study of two runs whose notebook needs a second or two and trains nothing."""
    standin.prepare(tmp_path, load_study, TINY)
    yield tmp_path
    for wait in tmp_path.glob("wait-*"):  # no process outlives its test
        wait.unlink()


def reproduce_in_process(folder, log):
    with open(log, "w", buffering=1) as sys.stdout:
        sys.exit(main(["reproduce", str(folder)]))


@pytest.fixture
def start(folder):
    """Starts `binaryvit reproduce` on the study in a process; what is left of it is ended with the test."""
    # Its processes come from one that has imported the library already, which takes seconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["binaryvit.cli", "binaryvit.studies.runner"])
    started = []

    def start():
        log = folder / f"log-{len(started)}"
        started.append(context.Process(target=reproduce_in_process, args=(folder, log)))
        started[-1].start()
        return started[-1], log

    yield start
    for process in started:
        process.kill()
        process.join()


def executed(folder):
    log = folder / "executed.txt"
    return log.read_text().split() if log.exists() else []


def states(folder):
    return [run.state for run in plan(load_study(folder))]


def test_ctrl_c_ends_all_jobs_in_order_and_the_same_command_goes_on(tmp_path):
    """Two at a time: the teacher through its notebook, and a run of another seed by the plain command."""
    standin.prepare(tmp_path, load_study, TWO_WAYS)
    waiting, plain = tmp_path / f"wait-{TEACHER}", tmp_path / "runs" / "plain-seed1"
    waiting.touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "binaryvit.cli", "reproduce", str(tmp_path), "--jobs", "2"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Also where the tests themselves run in the background, which shells start with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    begun = tmp_path / "runs" / TEACHER / "begun"
    until(lambda: begun.exists() and (plain / "metrics.csv").exists())
    family = psutil.Process(process.pid).children(recursive=True)
    assert states(tmp_path) == [State.RUNNING, State.MISSING, State.DONE, State.RUNNING]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 130
    printed = process.stdout.read()
    assert printed.endswith("binaryvit: interrupted; the same command goes on from here.\n")
    assert "plain-seed1: epoch 1/100000" in printed
    assert not psutil.wait_procs(family, timeout=60)[1], "nothing may go on training"
    assert (begun.parent / "checkpoint").read_text() == "saved on the way out"
    assert (plain / "checkpoint.safetensors").exists(), "saved on the way out"
    assert not list(tmp_path.glob("runs/*/failure.json")) and not list(tmp_path.glob("runs/**/*.lock"))
    assert states(tmp_path) == [State.MISSING, State.MISSING, State.DONE, State.MISSING]
    waiting.unlink()
    assert main(["reproduce", str(tmp_path), "--only", STUDENT]) == 0
    assert [name for name in executed(tmp_path) if "plain" not in name] == [TEACHER, TEACHER, STUDENT]


def test_a_killed_runner_leaves_its_run_locked_until_that_ends_and_a_second_one_waits(folder, start):
    (folder / f"wait-{TEACHER}").touch()
    first, _ = start()
    until((folder / "runs" / TEACHER / "begun").exists)
    first.kill()
    first.join()
    lock = load_study(folder).runs[0].lock
    assert is_locked(lock), "the orphan still trains"
    second, log = start()
    until(lambda: log.exists() and "another process is training it" in log.read_text())
    (folder / f"wait-{TEACHER}").unlink()
    second.join(timeout=600)
    assert second.exitcode == 0
    assert executed(folder) == [TEACHER, STUDENT] and states(folder) == [State.DONE, State.DONE]


def test_two_at_once_train_every_run_once(folder, start):
    processes = [start()[0], start()[0]]
    for process in processes:
        process.join(timeout=600)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(executed(folder)) == sorted([TEACHER, STUDENT])


def test_status_lists_runs_with_reasons_and_its_exit_code_says_whether_all_are_done(folder, capsys):
    assert main(["status", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny: A tiny study"
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        ["missing", TEACHER, "not run yet"],
        ["missing", STUDENT, "not run yet"],
    ]
    for run in load_study(folder).runs:
        run.folder.mkdir(parents=True)
        (folder / "records" / f"{run.id}.json").rename(run.folder / "run.json")
    assert main(["status", str(folder / "study.yaml")]) == 0
    assert main(["figures", str(folder)]) == 0, "this study has none"
    (folder / "study.yaml").write_text(TINY.replace("epochs: 1", "epochs: 2"))
    assert main(["status", str(folder)]) == 1
    assert f"STALE   {TEACHER}" in capsys.readouterr().out
    assert main(["reproduce", str(folder)]) == 1
    captured = capsys.readouterr()
    assert f"NOT DONE: {TEACHER} is stale: epochs was 1 and is 2" in captured.err
    assert executed(folder) == []


def test_a_dry_run_changes_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert main(["reproduce", str(folder), "--dry-run"]) == 0
    assert sorted(folder.rglob("*")) == before
    assert f"{STUDENT}: would be trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "nowhere"], "nowhere cannot be read"),
        (["reproduce", "{folder}", "--only", "binaryvit_micro_patch2_32"], f"did you mean '{STUDENT}'"),
        (["reproduce", "{folder}", "--data-dir", "photos"], "leave data_dir out"),
        (["reproduce", "{folder}", "--workers", "-1"], "workers=-1"),
        (
            ["train", "{folder}/study.yaml", "--output", "{folder}/out"],
            "the recipe {'epochs': 1, 'warmup_epochs': 0} does not exist",
        ),
    ],
)
def test_a_mistake_is_a_sentence_without_traceback(folder, capsys, arguments, words):
    assert main([argument.format(folder=folder) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("binaryvit: ") and words in captured.err and "Traceback" not in captured.err
    assert executed(folder) == []


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (["classify", "x", "y"], ["--threads", "--top"]),
        (["reproduce", "x"], ["--threads", "--jobs"]),
        (["evaluate", "x"], ["--batch-size"]),
        (["bench", "load"], ["--images", "--repetitions", "--needs"]),
        (["bench", "train"], ["--threads", "--batch-size", "--repetitions", "--processes"]),
        (["bench", "infer"], ["--threads", "--batch-sizes", "--repetitions", "--seconds"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_counts_begin_at_one(command, options, capsys):
    for option, number in product(options, ["0", "-1", "many"]):
        with pytest.raises(SystemExit) as error:
            main([*command, option, number])
        assert error.value.code == 2
        said = capsys.readouterr().err
        assert f"argument {option}: give a " in said and f"not '{number}'." in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["reproduce", "x"], "binaryvit: interrupted; the same command goes on from here.\n"),
        (["classify", "x", "y"], "binaryvit: interrupted.\n"),
    ],
)
def test_only_what_stores_its_parts_says_that_it_goes_on(arguments, said, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, f"_{arguments[0]}", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("arguments", [[], ["reprodcue"], ["status"], ["reproduce", "x", "--workers", "many"]])
def test_bad_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: binaryvit" in capsys.readouterr().err


def test_whoever_reads_the_output_may_stop_reading():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "binaryvit.cli", "status", "results/smoke"]
    ended = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, b"")

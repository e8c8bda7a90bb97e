"""A run that was killed at any moment ends as if it had not been; a damaged or foreign checkpoint is refused."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.killed_runs import MOMENTS
from helpers.places import ROOT
from helpers.training_setup import TIMING, everything_with_state
from safetensors.torch import load_file, save_file

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.records.run_record import GitState
from binaryvit.training.checkpoint import CHECKPOINT_FILE, load_state, restore_module, save_state
from binaryvit.training.loop import Trainer
from binaryvit.training.train import train_in_process as train


def assert_same_outcome(one: Path, other: Path) -> None:
    """Weights, training state and metrics are the same to the last bit; only what a clock measured may differ."""
    assert (one / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()
    tensors, others = load_file(one / CHECKPOINT_FILE), load_file(other / CHECKPOINT_FILE)
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())
    tables = ("weight_flips", "attention_levels", "activation_shifts", "latent_weights", "latent_layers")
    for name in map("{}.csv".format, tables):
        assert (one / name).read_text() == (other / name).read_text()
    rows, other_rows = (pd.read_csv(folder / "metrics.csv", dtype=str).drop(columns=TIMING) for folder in (one, other))
    pd.testing.assert_frame_equal(rows, other_rows)
    results = [json.loads((folder / "run.json").read_text())["result"] for folder in (one, other)]
    assert results[0] | {"images_per_second": 0} == results[1] | {"images_per_second": 0}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[TrainingConfig, Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    config = everything_with_state(folder)
    train(config, folder / "run")
    return config, folder / "run"


@pytest.fixture(scope="module")
def killed(uninterrupted, tmp_path_factory) -> Path:
    """Folders of runs that were killed, one per moment."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "config.json").write_text(uninterrupted[0].model_dump_json())
    command = [sys.executable, "-m", "tests.helpers.killed_runs", str(folder / "config.json"), str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_goes_on_to_the_same_bits(moment, uninterrupted, killed):
    config, expected = uninterrupted
    run = killed / moment
    assert not (run / "run.json").exists()
    workers = 1 if moment == "mid-epoch" else 0  # their number changes nothing
    record = train(config.model_copy(update={"workers": workers}), run)
    assert_same_outcome(expected, run)
    assert record.result.epochs == 2 and (run / "run.json").exists()


def test_a_checkpoint_of_another_model_is_refused():
    with pytest.raises(BinaryViTError, match="does not fit the model"):
        restore_module(torch.nn.Linear(2, 3), torch.nn.Linear(3, 3).state_dict(), "checkpoint")


def test_resuming_repeats_no_step(uninterrupted, tmp_path, monkeypatch):
    """Else the tests above would pass for a run that always starts over."""
    config, _ = uninterrupted
    run = tmp_path / "run"
    steps = []
    step = Trainer._step

    def interrupted(self, epoch, number, batches):
        steps.append((epoch, number))
        if (epoch, number) == (1, 1) and steps.count((1, 1)) == 1:
            raise RuntimeError
        return step(self, epoch, number, batches)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(RuntimeError):
        train(config, run)
    train(config, run)
    assert steps == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 1), (1, 2)]


def test_an_evaluation_that_is_interrupted_is_made_again_without_its_epoch(uninterrupted, tmp_path, monkeypatch):
    config, expected = uninterrupted
    run, steps = tmp_path / "run", []
    evaluate, step = Trainer.evaluate, Trainer._step

    def interrupted(self, model, precision):
        if len(steps) == 3:
            steps.append("evaluation")
            raise KeyboardInterrupt
        return evaluate(self, model, precision)

    monkeypatch.setattr(Trainer, "evaluate", interrupted)
    monkeypatch.setattr(Trainer, "_step", lambda self, *at: steps.append(at[:2]) or step(self, *at))
    with pytest.raises(KeyboardInterrupt):
        train(config, run)
    train(config, run)
    assert steps == [(0, 0), (0, 1), (0, 2), "evaluation", (1, 0), (1, 1), (1, 2)]
    assert_same_outcome(expected, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_the_step_it_came_in(number, uninterrupted, tmp_path, monkeypatch):
    config, expected = uninterrupted
    config = config.model_copy(update={"checkpoint_minutes": 60.0})
    run = tmp_path / "run"
    backward = Trainer._backward
    calls = []

    def with_signal(self, images, labels):
        calls.append(1)
        if len(calls) == 3:  # the first part of the second step
            os.kill(os.getpid(), number)
        return backward(self, images, labels)

    monkeypatch.setattr(Trainer, "_backward", with_signal)
    with pytest.raises(KeyboardInterrupt):
        train(config, run)
    assert len(calls) == 4
    train(config, run)
    assert len(calls) == 12
    assert_same_outcome(expected, run)


def test_a_signal_to_the_whole_group_ends_no_worker(uninterrupted, tmp_path, monkeypatch):
    """Schedulers and torchrun send theirs to every process of a job."""
    config, expected = uninterrupted
    config = config.model_copy(update={"checkpoint_minutes": 60.0, "workers": 1})
    backward = Trainer._backward
    signalled = []

    def with_signals(self, images, labels):
        if not signalled:
            workers = [process.pid for process in multiprocessing.active_children()]
            subprocess.run(["kill", "-TERM", *map(str, (*workers, os.getpid()))], check=True)
            signalled.extend(workers)
        return backward(self, images, labels)

    monkeypatch.setattr(Trainer, "_backward", with_signals)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert signalled
    train(config, tmp_path / "run")
    assert_same_outcome(expected, tmp_path / "run")


def test_the_record_names_the_code_that_ran(uninterrupted, tmp_path, monkeypatch):
    """Not the code that lies there when the run ends; and each commit at which it went on."""
    config, _ = uninterrupted
    step = Trainer._step

    def stopped(self, epoch, number, batches):
        if (epoch, number) == (1, 0):
            raise RuntimeError
        return step(self, epoch, number, batches)

    commits = iter([GitState(commit="a" * 40, dirty=False), GitState(commit="b" * 40, dirty=True)])
    monkeypatch.setattr("binaryvit.training.loop.git_state", lambda: next(commits))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(Trainer, "_step", stopped)
        train(config, tmp_path / "run")
    record = train(config, tmp_path / "run")
    assert record.git == GitState(commit="a" * 40, dirty=True, resumed_at=["b" * 40])


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_truncated_checkpoint_is_refused_and_kept(size, uninterrupted, tmp_path):
    config, expected = uninterrupted
    content = (expected / CHECKPOINT_FILE).read_bytes()[:size]
    run = tmp_path / "run"
    run.mkdir()
    (run / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(BinaryViTError, match=f"{CHECKPOINT_FILE} is damaged"):
        train(config, run)
    assert (run / CHECKPOINT_FILE).read_bytes() == content
    assert [path.name for path in run.iterdir()] == [CHECKPOINT_FILE]


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"a": torch.zeros(2)}, None),
        ({"a": torch.zeros(2)}, {"format": "pt"}),
        ({"a": torch.zeros(2)}, {"binaryvit_training_state": "{"}),
        ({"a": torch.zeros(2)}, {"binaryvit_training_state": "[]"}),
        ({"a": torch.zeros(2)}, {"binaryvit_training_state": '{"format": 2}'}),
    ],
)
def test_foreign_file_is_refused(tensors, metadata, tmp_path):
    save_file(tensors, tmp_path / CHECKPOINT_FILE, metadata)
    with pytest.raises(BinaryViTError, match="not a training checkpoint of binaryvit"):
        load_state(tmp_path / CHECKPOINT_FILE, {"configuration": "x"})


def test_pickled_checkpoint_is_refused_unopened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"bomb": Bomb()}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(BinaryViTError, match="damaged or not a checkpoint"):
        load_state(tmp_path / CHECKPOINT_FILE, {})
    assert not (tmp_path / "exploded").exists()


def test_checkpoint_of_another_format_version_is_refused(tmp_path):
    save_state(tmp_path / CHECKPOINT_FILE, {"a": torch.zeros(1)}, {"identity": {}, "format": 0})
    with pytest.raises(BinaryViTError, match="has format 0"):
        load_state(tmp_path / CHECKPOINT_FILE, {})


def test_checkpoint_of_another_configuration_is_refused_and_kept(uninterrupted, tmp_path):
    config, expected = uninterrupted
    content = (expected / CHECKPOINT_FILE).read_bytes()
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(BinaryViTError, match="its configuration differ"):
        train(config.model_copy(update={"seed": 1}), tmp_path)
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == content


@pytest.mark.parametrize("part", ["data", "training version"])
def test_checkpoint_of_other_data_or_training_code_is_refused(part, uninterrupted):
    path = uninterrupted[1] / CHECKPOINT_FILE
    identity = load_state(path, {})[1]["identity"]
    load_state(path, identity)
    with pytest.raises(BinaryViTError, match=f"its {part} differ"):
        load_state(path, identity | {part: "other"})


def test_metrics_without_a_checkpoint_are_not_overwritten(uninterrupted, tmp_path):
    (tmp_path / "metrics.csv").write_text("someone's\n")
    with pytest.raises(BinaryViTError, match="without its checkpoint"):
        train(uninterrupted[0], tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == "someone's\n"


def test_finished_run_is_returned_untouched(uninterrupted):
    config, run = uninterrupted
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert train(config, run).id == "run"
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_finished_run_of_another_configuration_is_left_alone(uninterrupted):
    config, run = uninterrupted
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    with pytest.raises(BinaryViTError, match="finished run that differs in its config"):
        train(config.model_copy(update={"epochs": 3}), run)
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before

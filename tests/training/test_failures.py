"""What is wrong stops a training in a sentence, and nothing is lost."""

import dataclasses
import functools
import json
import math
import re

import numpy as np
import pytest
import torch
from helpers.training_setup import make_trainer, state_text, student

from binaryvit.errors import BinaryViTError
from binaryvit.training import loop as trainer_module
from binaryvit.training.checkpoint import CHECKPOINT_FILE
from binaryvit.training.loop import Trainer
from binaryvit.training.step_log import StepLog
from binaryvit.training.train import train_in_process as train


def test_an_evaluation_that_is_not_finite_stops_a_run_which_goes_on_from_before_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        evaluate = Trainer.evaluate
        patch.setattr(Trainer, "evaluate", lambda *args: dataclasses.replace(evaluate(*args), loss=math.inf))
        with pytest.raises(BinaryViTError, match=r"The evaluation loss became inf after epoch 1; .* learning_rate"):
            train(student(checkpoint_minutes=0.0), tmp_path)
    assert train(student(checkpoint_minutes=0.0), tmp_path).result.epochs == 2


def test_a_folder_that_not_all_processes_see_is_refused(tmp_path, monkeypatch):
    run = make_trainer(student(), tmp_path)
    monkeypatch.setattr(trainer_module, "gather_object", lambda found: [*found, not found[0]])
    with pytest.raises(BinaryViTError, match=r"Not all processes see .* one that all machines share"):
        run._restore()


@pytest.mark.parametrize("read_every", [1, 2, 10])
def test_loss_that_is_not_finite_stops_with_its_images(read_every, tmp_path, monkeypatch):
    """Also when later steps were done before it was read; a checkpoint only ever holds what was read."""
    backward, step = Trainer._backward, Trainer._step
    rows: list[list[int]] = []

    def with_nan(self, images, labels):
        if len(rows) == 2:
            images[3] = float("nan")
        return backward(self, images, labels)

    def noting(self, epoch, number, batches):
        batch = next(batches)
        rows.append(batch.rows.tolist())
        return step(self, epoch, number, iter([batch]))

    monkeypatch.setattr(Trainer, "_backward", with_nan)
    monkeypatch.setattr(Trainer, "_step", noting)
    monkeypatch.setattr(trainer_module, "StepLog", functools.partial(StepLog, read_every=read_every))
    minutes = 0.0 if read_every == 1 else 60.0
    config = student(checkpoint_minutes=minutes, epochs=2, max_train_images=32 * 7)
    with pytest.raises(BinaryViTError) as error:
        train(config, tmp_path)
    assert "loss became nan at step 2 of 7 in epoch 1" in str(error.value) and "clip_grad_norm" in str(error.value)
    assert json.loads(re.search(r"\[.*\]", str(error.value)).group()) == rows[1] and len(rows[1]) == 32
    assert len(rows) == {1: 2, 2: 3, 10: 7}[read_every]
    assert not (tmp_path / "run.json").exists() and (tmp_path / CHECKPOINT_FILE).exists() == (read_every == 1)
    if read_every == 1:
        kept = make_trainer(config, tmp_path / "fresh")
        kept.run_dir, kept.identity = tmp_path, json.loads(state_text(tmp_path))["identity"]
        kept._restore()
        assert kept.state["step"] == 1 and all(value.isfinite().all() for value in kept.model.state_dict().values())


def test_weights_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    config = student(learning_rate=3e38, checkpoint_minutes=0.0)
    with pytest.raises(BinaryViTError, match=r"at step [12] of 3 in epoch 1.*learning_rate"):
        train(config, tmp_path)
    assert not (tmp_path / CHECKPOINT_FILE).exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"processes": 2}, "accelerate launch --num_processes 2"),
        ({"batch_size": 128}, "100 images"),
        ({"model_args": {"reductions": 3}}, "reductions"),
        ({"model_args": {"bogus": 3}}, "bogus=3"),
        ({"variant": "vit_tiny_patch16_224", "model_args": {"act_layer": "nosuch"}}, "KeyError: 'nosuch'"),
        ({"teacher": "nowhere"}, "'nowhere' cannot be read"),
        ({"teacher": "timm:vit_tinny"}, "vit_tinny has no pretrained weights"),
    ],
)
def test_refused_before_anything_is_written(fields, words, tmp_path):
    with pytest.raises(BinaryViTError, match=words):
        train(student(**fields), tmp_path / "run")
    assert not list(tmp_path.glob("run/*"))


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    from binaryvit.locks import hold

    with hold(tmp_path / "training.lock"), pytest.raises(BinaryViTError, match="Another process"):
        train(student(), tmp_path)


def test_random_state_and_threads_of_the_caller_stay(tmp_path):
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    threads = torch.get_num_threads()
    assert train(student(epochs=1, threads=2), tmp_path).threads == 2
    assert (torch.rand(1), np.random.rand()) == expected and torch.get_num_threads() == threads


def test_compiled_training_on_a_cpu_says_that_it_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(BinaryViTError, match=r"compile: true on a CPU needs a C\+\+ compiler: .*no-such-compiler"):
        train(student(compile=True), tmp_path / "run")

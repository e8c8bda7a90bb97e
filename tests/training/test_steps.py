"""Steps of training: loss, schedule, optimizer, mixed precision, random numbers, and what is read of them when."""

import functools
import json
import math
from itertools import islice
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from accelerate import PartialState
from helpers.training_setup import TIMING, make_trainer, state_text, student, teacher, write_teacher
from torch.utils._python_dispatch import TorchDispatchMode

from binaryvit.records.run_record import read_metrics
from binaryvit.training import loop as trainer_module
from binaryvit.training.step_log import StepLog
from binaryvit.training.train import train_in_process as train


def test_training_loss_is_the_recipes():
    logits, other = torch.randn(2, 4, 7, dtype=torch.float64)
    labels = torch.tensor([0, 3, 6, 2])
    probabilities = other.exp() / other.exp().sum(1, keepdim=True)
    log_softmax = logits - logits.exp().sum(1, keepdim=True).log()
    soft = -(probabilities * log_softmax).sum(1).mean()
    mixed = torch.rand(4, 7, dtype=torch.float64)
    mixed /= mixed.sum(1, keepdim=True)
    label = -(mixed * log_softmax).sum(1).mean()

    def loss(config, *args):
        return trainer_module.training_loss(config, logits, *args)

    distilled = loss(student(teacher="x"), labels, probabilities)
    assert distilled.total == pytest.approx(soft) and distilled.label is None
    both = loss(student(teacher="x", mixup_alpha=1.0), mixed, probabilities)
    assert both.total == pytest.approx(0.9 * soft + 0.1 * label)
    assert (both.distillation, both.label) == (pytest.approx(soft), pytest.approx(label))
    alone = loss(student(label_smoothing=0.1), labels)
    target = 0.9 * F.one_hot(labels, 7) + 0.1 / 7
    assert alone.total == pytest.approx(-(target * log_softmax).sum(1).mean()) and alone.distillation is None
    assert loss(student(mixup_alpha=1.0), mixed).total == pytest.approx(label)


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_learning_rate_follows_the_formula(every, tmp_path):
    config = teacher(epochs=10, warmup_epochs=3, schedule_every=every, min_learning_rate=1e-4)
    run = make_trainer(config, tmp_path)
    for epoch in range(10):
        for step in range(run.steps):
            t = epoch + step / run.steps if every == "step" else epoch
            cosine = 1e-4 + (4e-3 - 1e-4) * (1 + math.cos(math.pi * t / 10)) / 2
            warm = 1e-6 + t / 3 * (4e-3 - 1e-6)
            assert run.learning_rate.set(epoch, step) == pytest.approx(warm if t < 3 else cosine)
            assert {group["lr"] for group in run.optimizer.param_groups} == {run.learning_rate.set(epoch, step)}


def test_weight_decay_spares_vectors_and_embeddings(tmp_path):
    run = make_trainer(student(weight_decay=0.05), tmp_path)
    decayed = {id(p) for group in run.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in run.model.named_parameters():
        assert (id(parameter) in decayed) == (parameter.ndim > 1 and "pos_embed" not in name), name


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    """For a model without batch norm; the random order of an epoch does not depend on the split."""
    runs = [
        make_trainer(teacher(mixup_alpha=0.0, cutmix_alpha=0.0, drop_path=0.0, accumulation_steps=n), tmp_path)
        for n in (1, 4)
    ]
    for run in runs:
        run.learning_rate.set(1, 0)
        run._step(0, 0, run.train_loader.epoch())
    [[one], [other]] = (run.log.exchange([False], at_once=True)[0] for run in runs)
    assert one.loss == pytest.approx(other.loss, rel=1e-5) and one.rows == other.rows and len(one.rows) == 32
    moments = [run.optimizer.state_dict()["state"] for run in runs]
    for number, state in moments[0].items():
        torch.testing.assert_close(state["exp_avg"], moments[1][number]["exp_avg"], rtol=1e-3, atol=1e-6)


def test_moving_average_is_what_is_kept(tmp_path):
    run = make_trainer(student(ema_decay=0.75), tmp_path)
    start = run.model.head.weight.detach().clone()
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    torch.testing.assert_close(run.trained_model.head.weight, 0.75 * start + 0.25 * run.model.head.weight)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradient_is_clipped(precision, tmp_path):
    """By its own norm, also where the loss is scaled."""
    run = make_trainer(student(clip_grad_norm=1e-3, precision=precision), tmp_path)
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    # After one step AdamW's first moment is 0.1 times the gradient.
    norms = [state["exp_avg"].norm() / 0.1 for state in run.optimizer.state_dict()["state"].values()]
    assert torch.stack(norms).norm() == pytest.approx(1e-3, rel=1e-3)


def test_bf16_rounds_gradients_and_trains(tmp_path):
    gradients = []
    for precision in ("fp32", "bf16"):
        run = make_trainer(student(precision=precision), tmp_path)
        run._backward(*run.to_device(next(run.train_loader.epoch())))
        gradients.append(run.model.stages[0].blocks[0].mlp.fc1.linear.weight.grad.clone())
    assert not torch.equal(*gradients)
    assert math.isfinite(train(student(precision="bf16"), tmp_path).result.eval_loss)


def test_fp16_trains_with_a_scaled_loss(tmp_path):
    assert math.isfinite(train(student(precision="fp16", clip_grad_norm=1.0), tmp_path).result.eval_loss)
    scaler = json.loads(state_text(tmp_path))["scaler"]
    assert scaler["scale"] > 1 and scaler["_growth_tracker"] == 6  # none of the six steps overflowed


def test_a_step_whose_scaled_gradient_overflows_is_left_out(tmp_path, monkeypatch):
    """The scale is halved until it fits; the run goes on, and no weight becomes infinite."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**40)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    run = make_trainer(student(precision="fp16"), tmp_path)
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    assert run.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in run.model.named_parameters())
    run.run()
    assert run.scaler.get_scale() < 2.0**39 and math.isfinite(run.state["history"][-1]["train_loss"])


def test_the_scale_of_the_loss_is_kept(tmp_path):
    run = make_trainer(student(precision="fp16"), tmp_path)
    run.learning_rate.set(0, 0)
    run._step(0, 0, run.train_loader.epoch())
    run.scaler.update(1024.0)
    run._save()
    assert make_trainer(student(precision="fp16"), tmp_path).scaler.get_scale() == 1024


def test_each_process_draws_its_own_random_numbers(tmp_path, monkeypatch):
    run, seeds, derived_seed = make_trainer(student(), tmp_path), [], trainer_module.derived_seed
    monkeypatch.setattr(
        trainer_module, "derived_seed", lambda *numbers: seeds.append(derived_seed(*numbers)) or seeds[-1]
    )
    run.learning_rate.set(0, 0)
    for rank in range(2):
        run.process = SimpleNamespace(process_index=rank)
        run._step(0, 0, run.train_loader.epoch())
    assert len(set(seeds)) == 2


def test_images_per_second_are_those_of_whole_batches(tmp_path):
    run = make_trainer(student(), tmp_path)
    run.state.update(timed_steps=4, timed_seconds=2.0)
    assert run._images_per_second() == 64


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_add_up_in_float32(precision, tmp_path):
    """Each micro-batch's gradient of a weight may come from half precision; their sum is not rounded to it."""
    run = make_trainer(student(precision=precision, accumulation_steps=2), tmp_path)
    parts = [run.to_device(batch) for batch in islice(run.train_loader.epoch(), 2)]
    gradients = []
    for chosen in (parts[:1], parts[1:], parts):
        run.model.zero_grad()
        for part in chosen:
            run._backward(*part)
        gradients.append([parameter.grad.clone() for parameter in run.model.parameters()])
    for one, other, both in zip(*gradients, strict=True):
        assert both.dtype == torch.float32 and torch.equal(both, one + other)


def test_when_losses_are_read_changes_no_number(tmp_path, monkeypatch):
    config = student(max_train_images=32 * 5)
    train(config, tmp_path / "each step")
    monkeypatch.setattr(trainer_module, "StepLog", functools.partial(StepLog, read_every=3))
    train(config, tmp_path / "every third")
    one, other = (read_metrics(tmp_path / run).drop(columns=TIMING) for run in ("each step", "every third"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    one, other = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("each step", "every third"))
    assert one == other


def test_what_steps_measured_arrives_one_call_late_and_all_of_it_at_the_end():
    log = StepLog(PartialState(cpu=True), batch_size=4, read_every=2)
    arrived = []
    for step in range(5):
        log.append(0, step, [torch.tensor([step])], torch.full((4,), 4.0 * step))
        results, agreed = log.exchange([step == 1, False], at_once=step == 4)
        arrived.append([result.step for result in results])
        assert all(result.loss == result.step and result.rows == [result.step] for result in results)
        assert agreed == [step == 2, False]
    assert arrived == [[], [], [0, 1], [], [2, 3, 4]]


class HostWork(TorchDispatchMode):
    """Notes what makes a tensor on the host or waits for the device's numbers."""

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if any(word in name for word in ("_local_scalar_dense", "lift_fresh", "nonzero", "is_all_true", "equal")):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_makes_no_tensor_on_the_host_and_reads_none(precision, tmp_path):
    weights = str(write_teacher(tmp_path / "teacher.safetensors"))
    config = student(teacher=weights, mixup_alpha=0.5, ema_decay=0.5, clip_grad_norm=1.0, precision=precision)
    run = make_trainer(config, tmp_path)
    run.learning_rate.set(0, 0)
    batches = run.train_loader.epoch()
    run._step(0, 0, batches)  # the first one makes the optimizer's state
    prepared = iter([next(batches)])
    with HostWork() as work:
        run._step(0, 1, prepared)
        assert work.seen == []
        run.log.exchange([False], at_once=True)
        torch.zeros(()).item()
        torch.tensor([1.0])
    assert work.seen == ["aten::_local_scalar_dense", "aten::lift_fresh"]

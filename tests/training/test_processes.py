"""Two processes together compute what they should, on CPUs with gloo; see two_processes.py for what they do."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers.places import TESTS
from helpers.training_setup import in_float64, make_trainer, student, write_teacher
from helpers.two_processes import ONE_BLOCK, TOGETHER, step
from safetensors.torch import load_file

from binaryvit.data.batches import eval_loader
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.records.run_record import read_record
from binaryvit.training.checkpoint import CHECKPOINT_FILE, load_state
from binaryvit.training.train import train_in_process as train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def left(tmp_path_factory) -> Path:
    """The folder with all that the two processes left."""
    folder = tmp_path_factory.mktemp("together")
    write_teacher(folder / "teacher.safetensors")
    command = [sys.executable, "-m", "helpers.two_processes", str(folder)]
    ended = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=400)
    (folder / "output.txt").write_text(ended.stdout + ended.stderr)
    if missing := [name for name in ("traced-1.safetensors", "evaluations-1.json") if not (folder / name).exists()]:
        pytest.fail(f"The processes left no {' and no '.join(missing)}:\n{ended.stdout}{ended.stderr}")
    return folder


def assert_equal_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and any(gradient.abs().max() > 1e-3 for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["labels", "traced"])
def test_gradients_and_statistics_are_those_of_one_process_with_the_doubled_batch(left, name):
    """Run as they are, and as the compiler traces them, without a graph break."""
    fields = {"teacher": str(left / "teacher.safetensors"), "model_args": ONE_BLOCK} if name == "traced" else {}
    alone = student(**fields)
    with in_float64():
        run = make_trainer(alone, "nowhere")
        expected = step(run)
    for rank in range(2):
        assert_equal_gradients(load_file(left / f"{name}-{rank}.safetensors"), expected)
        if name == "labels":
            buffers = load_file(left / f"buffers-{rank}.safetensors")
            assert buffers.keys() == dict(run.model.named_buffers()).keys()
            for buffer, tensor in run.model.named_buffers():
                torch.testing.assert_close(buffers[buffer], tensor, rtol=1e-9, atol=1e-12)


def test_an_odd_number_of_images_is_evaluated_exactly(left):
    """By both alike, with the weights after one step."""
    results = [json.loads((left / f"evaluations-{rank}.json").read_text()) for rank in range(2)]
    assert results[0][0] == results[1][0] and [result["images"] for result in results[0]] == [51, 1]
    assert results[0][1]["loss"] == results[1][1]["loss"]
    buffers = [load_file(left / f"buffers-{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(buffer, buffers[1][name]) for name, buffer in buffers[0].items())

    data = load_data(TOGETHER)
    with in_float64():
        run = make_trainer(TOGETHER, "nowhere")
    with torch.no_grad():
        for parameter, moment in zip(run.model.parameters(), load_file_in_order(left), strict=True):
            parameter.copy_(first_adamw_step(parameter, moment))
    run.model.load_state_dict(buffers[0], strict=False)
    predicted, right, loss = [], 0, 0.0
    for images, labels in map(run.to_device, eval_loader(data, TOGETHER, (3, 32, 32)).epoch()):
        with torch.no_grad():
            logits = run.model.eval()(images)
        predicted += logits.argmax(1).tolist()
        right += (logits.argmax(1) == labels).sum().item()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    assert results[0][0]["top1"] == 100 * right / 51 and results[0][0]["predicted"] == predicted
    assert results[0][0]["loss"] == pytest.approx(loss / 51, rel=1e-9)


def load_file_in_order(left: Path) -> list[torch.Tensor]:
    gradients = load_file(left / "labels-0.safetensors")
    return [gradients[str(number)] for number in range(len(gradients))]


def first_adamw_step(parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Both moments corrected for their start at zero: the first step is lr * g / (|g| + eps)."""
    return parameter - TOGETHER.peak_learning_rate * gradient / (gradient.abs() + 1e-8)


def test_one_process_writes_and_both_return_the_record(left):
    touched = [json.loads((left / f"touched-{rank}.json").read_text()) for rank in range(2)]
    assert any(path.endswith("training.lock") for path in touched[0]) and len(touched[0]) > 10
    assert touched[1] == []
    records = {(left / f"record-{rank}.json").read_text() for rank in range(2)}
    assert records == {read_record(left / "run").model_dump_json()}
    output = (left / "output.txt").read_text()
    assert output.count("epoch 2/2") == 3, "the whole run's and the interrupted ones', each once"
    assert [(left / f"fingerprints-{rank}").read_text() for rank in range(2)] == ["1", "0"], "once per machine"


@pytest.mark.parametrize(("name", "step"), [("interrupted", 2), ("late", 3)])
def test_one_process_that_is_asked_to_stop_stops_both_after_the_same_step_and_nothing_is_lost(name, step, left):
    assert (left / f"stopped-{name}-0").exists() and (left / f"stopped-{name}-1").exists()
    assert f"resumed after step {step} of epoch 1" in (left / "output.txt").read_text()
    whole, interrupted = (pd.read_csv(left / run / "metrics.csv") for run in ("run", name))
    assert list(whole["train_loss"]) == list(interrupted["train_loss"])
    assert list(whole["top1"]) == list(interrupted["top1"])


def test_machines_without_a_shared_folder_are_told_before_training(left):
    """The other process then loses its partner, and ends too."""
    assert "is not the folder that the first process writes to" in (left / "machine-1.txt").read_text()
    assert not (left / "machine-0.txt").exists() and not list(left.glob("machine-*/run/metrics.csv"))
    assert not list(left.glob("machine-*/run/training.lock"))


def test_a_checkpoint_of_two_processes_is_refused_by_one(left, tmp_path):
    content = (left / "run" / CHECKPOINT_FILE).read_bytes()
    (tmp_path / CHECKPOINT_FILE).write_bytes(content)
    with pytest.raises(BinaryViTError, match=r"written with processes=2, not 1.*set processes to 2 to go on"):
        train(TOGETHER.model_copy(update={"processes": 1}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == content
    identity = load_state(tmp_path / CHECKPOINT_FILE, {})[1]["identity"]
    assert identity["processes"] == 2
    assert load_state(tmp_path / CHECKPOINT_FILE, identity)

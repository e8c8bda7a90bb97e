"""The numbers of the first training steps belong to a version, for each precision and each implementation of a unit."""

import json

import pytest
import torch
from helpers.places import TESTS
from helpers.training_setup import PYRAMID, SHORT, write_teacher

from binaryvit.config import TrainingConfig
from binaryvit.models.ops import native
from binaryvit.models.ops.choice import step_of
from binaryvit.records.run_record import TRAINING_VERSION, read_metrics
from binaryvit.training.train import train_in_process as train

LOSSES = TESTS / "training" / "losses.json"
# Another order of sums moves these losses by a hundredth of it; a forward product in bfloat16 moves them by more.
TOLERANCE = 1e-4
WITHOUT = {  # what the choice of a step must not find, for each implementation
    "native": (),
    "pytorch": ("native",),
    "modules": ("native", "pytorch"),
}


def restricted_to(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "native" in WITHOUT[implementation]:
        monkeypatch.setattr(native, "fits", lambda *_: False)
    if "pytorch" in WITHOUT[implementation]:
        monkeypatch.setattr("binaryvit.models.layers.unit.step_of", lambda *_: None)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("implementation", WITHOUT)
def test_losses_change_only_with_the_training_version(implementation, precision, tmp_path, monkeypatch):
    """When this fails because the numbers changed on purpose: raise TRAINING_VERSION, delete tests/training/losses.json
    and run this file twice."""
    if implementation == "native" and native.compiled_by() is None:
        pytest.skip("there is no C++ compiler here, or this is not Linux")
    restricted_to(implementation, monkeypatch)
    teacher = str(write_teacher(tmp_path / "teacher.safetensors"))
    config = TrainingConfig.for_student(**PYRAMID | SHORT, teacher=teacher, precision=precision)
    train(config, tmp_path / "run")
    losses = read_metrics(tmp_path / "run")["train_loss"].tolist()
    stored = json.loads(LOSSES.read_text()) if LOSSES.exists() else {"version": TRAINING_VERSION}
    assert stored["version"] == TRAINING_VERSION, "TRAINING_VERSION was raised: store the new losses (see above)"
    name = f"{implementation} {precision}"
    if name not in stored:
        LOSSES.write_text(json.dumps(stored | {name: losses}, indent=1) + "\n")
        pytest.fail("the losses were stored: run the test again")
    assert losses == pytest.approx(stored[name], rel=TOLERANCE)


def test_the_implementations_are_the_ones_they_are_called(monkeypatch):
    from binaryvit.models.layers import unit as units

    unit, x = units.BinaryUnit(4, 4, 1, 1), torch.randn(2, 3, 4)
    chosen = {}
    for implementation in ("pytorch", "modules"):
        restricted_to(implementation, monkeypatch)
        step = units.step_of(unit, unit.parameters_in_order(), x)
        chosen[implementation] = None if step is None else step.__module__.rsplit(".", 1)[-1]
    assert chosen == {"pytorch": "reference", "modules": None}
    assert step_of is not units.step_of

"""The numbers of the first training steps belong to a version, for each precision and each implementation of a unit."""

import json

import pytest
from helpers.places import TESTS
from helpers.training_setup import PYRAMID, SHORT, write_teacher

from binaryvit.config import TrainingConfig
from binaryvit.models.ops import native, reference
from binaryvit.models.ops.choice import Step, step_of
from binaryvit.records.run_record import TRAINING_VERSION, read_metrics
from binaryvit.training.train import train_in_process as train

LOSSES = TESTS / "training" / "losses.json"
# Another order of sums moves these losses by a hundredth of it; a forward product in bfloat16 moves them by more.
TOLERANCE = 1e-4
STEPS = {"native": native.binary_unit, "pytorch": reference.binary_unit, "modules": None}


def restricted_to(implementation: str, monkeypatch: pytest.MonkeyPatch) -> set[Step | None]:
    """Lets units find no faster step than `implementation`; returns what will hold those they took in training."""
    taken = set()
    if implementation != "native":
        monkeypatch.setattr(native, "fits", lambda *_: False)

    def noted(unit, *inputs):
        step = None if implementation == "modules" else step_of(unit, *inputs)
        taken.update({step} if unit.training else ())
        return step

    monkeypatch.setattr("binaryvit.models.layers.unit.step_of", noted)
    return taken


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("implementation", STEPS)
def test_losses_change_only_with_the_training_version(implementation, precision, tmp_path, monkeypatch):
    """When this fails because the numbers changed on purpose: raise TRAINING_VERSION, delete tests/training/losses.json
    and run this file twice."""
    if implementation == "native" and native.compiled_by() is None:
        pytest.skip("there is no C++ compiler here, or this is not Linux")
    taken = restricted_to(implementation, monkeypatch)
    teacher = str(write_teacher(tmp_path / "teacher.safetensors"))
    config = TrainingConfig.for_student(**PYRAMID | SHORT, teacher=teacher, precision=precision)
    train(config, tmp_path / "run")
    assert taken == {STEPS[implementation]}
    losses = read_metrics(tmp_path / "run")["train_loss"].tolist()
    stored = json.loads(LOSSES.read_text()) if LOSSES.exists() else {"version": TRAINING_VERSION}
    assert stored["version"] == TRAINING_VERSION, "TRAINING_VERSION was raised: store the new losses (see above)"
    name = f"{implementation} {precision}"
    if name not in stored:
        LOSSES.write_text(json.dumps(stored | {name: losses}, indent=1) + "\n")
        pytest.fail("the losses were stored: run the test again")
    assert losses == pytest.approx(stored[name], rel=TOLERANCE)

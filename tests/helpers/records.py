"""Run records made by hand, for tests of what reads them."""

from datetime import UTC, datetime
from typing import Any

from binaryvit.records.run_record import (
    TRAINING_VERSION,
    DataRecord,
    GitState,
    Hardware,
    RunKey,
    RunRecord,
    RunResult,
    WeightsRecord,
)
from binaryvit.studies.study import PlannedRun, Study
from binaryvit.training.teacher import identity, run_identity

FINGERPRINT = "f" * 64


def record_of(study: Study, run: PlannedRun, fingerprint: str = FINGERPRINT, **changes: Any) -> RunRecord:
    """The record that training `run` of `study` would leave, with `changes`."""
    version = changes.pop("training_version", TRAINING_VERSION)
    teacher = next((other for other in study.runs if other.id == run.teacher_id), None)
    known = None
    if teacher is not None:
        known = run_identity(RunKey(config=teacher.config.key(), data=fingerprint, training_version=version))
    elif run.config.teacher is not None:
        known = identity(str(study.output / run.config.teacher))
    fields = {
        "id": run.id,
        "study": study.name,
        "key": RunKey(config=run.config.key(known), data=fingerprint, training_version=version),
        "config": run.config.resolved().model_dump(mode="json"),
        "git": GitState(commit="0" * 40, dirty=False),
        "data": DataRecord(
            name="digits",
            label="digits",
            source="embedded",
            fingerprint=fingerprint,
            train_split="train",
            eval_split="test",
            train_images=1437,
            eval_images=360,
            num_classes=10,
        ),
        "packages": {"torch": "2.14.1"},
        "hardware": Hardware(device="cpu", cpu="a CPU", cores=2, memory_gb=8.0),
        "threads": 2,
        "processes": 1,
        "seed": run.config.seed,
        "started": datetime(2025, 1, 2, tzinfo=UTC),
        "duration_seconds": 10.0 * run.config.epochs,
        "result": RunResult(top1=55.5, top5=99.0, eval_loss=1.5, epochs=run.config.epochs, images_per_second=400.0),
    }
    top1 = (fields | changes)["result"].top1
    fields["weights"] = WeightsRecord(file="weights.safetensors", bytes=1000, dtype="float32", top1=top1)
    return RunRecord(**fields | changes)

"""How long a run takes, from how long runs like it took."""

from binaryvit.errors import BinaryViTError
from binaryvit.records.run_record import read_record
from binaryvit.studies.study import PlannedRun, Study


def estimate(study: Study, run: PlannedRun) -> float | None:
    """Seconds the run will take, from what the same variant took before in this study, per epoch; None if unknown."""
    folders = [run.folder, study.path.parent / run.folder.relative_to(study.output)]
    folders += [other.folder for other in study.runs if other.config.variant == run.config.variant]
    folders += [archived for folder in folders for archived in folder.parent.glob(f"{folder.name}.stale-*")]
    for folder in folders:
        try:
            record = read_record(folder)
        except BinaryViTError:  # reported as the state of that run
            continue
        if record is not None and record.config.get("variant") == run.config.variant:
            return record.duration_seconds / record.result.epochs * run.config.epochs
    return None


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: "90 s", "45 min", "2.5 h", "unknown time"."""
    if seconds is None:
        return "unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

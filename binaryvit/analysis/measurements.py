"""What was measured on a run with data, kept as small tables beside the study: figures are made again without the data.

A measurement of a run is `measurements/<name>/<run id>.csv` in the study's folder; <run id>.json beside it says what it
was made from: the run's key, the weights file, the data, the settings, the version of the measuring code.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.records.notes import Note, csv_of, sha256_of
from binaryvit.records.provenance import git_state
from binaryvit.studies.rows import record_of
from binaryvit.studies.study import PlannedRun, State, Study

MEASUREMENTS_FOLDER = "measurements"
_OTHER_SETTINGS = "it was made with other settings"
_made: dict[Path, tuple[dict[str, Any], str]] = {}  # with other settings than the stored ones: their source, their CSV
# While nothing may be measured: the files that were asked for.
_asked_for: ContextVar[set[Path] | None] = ContextVar("asked_for", default=None)


def measured(
    opened: OpenStudy,
    name: str,
    version: int,
    settings: dict[str, Any],
    runs: Sequence[StoredRun],
    measure: Callable[[StoredRun], pd.DataFrame],
) -> pd.DataFrame:
    """A measurement of several runs, stored ones reused while they hold, the others made and stored.

    Where a stored one differs in its settings alone it stays, unless the study was opened to be written; the one made
    is then kept for this process.

    What comes back is always read from CSV, so a fresh measurement and a reused one are equal: floats have six
    significant digits, and columns the types that CSV gives them.

    Args:
        opened: the study whose folder the measurements lie in.
        name: of the measurement; it becomes a folder's name.
        version: of the measuring code; change it when its numbers change.
        settings: what else determines the numbers (how many images, which blocks), as JSON values.
        runs: which runs.
        measure: makes the tidy table of one run, without rows where the run has nothing to measure; it may raise
            BinaryViTError where the data are not at hand.

    Returns:
        The tables of all runs below each other, the run's id in the first column, "run".

    Raises:
        BinaryViTError: no run is given; a measurement that does not hold any more cannot be made here; none of the runs
            has anything to measure.
    """
    if not runs:
        raise BinaryViTError(f"The measurement {name!r} needs at least one run: none is selected.")
    settings = json.loads(json.dumps(settings))  # as they will be read back
    tables = []
    for run in runs:
        path = measurement_path(opened.study, name, run.id)
        source = {**source_of(run), "name": name, "version": version, "settings": settings}
        if (asked_for := _asked_for.get()) is not None:
            asked_for.add(path)
        reason = _why_not_current(path, source)
        # A look with other settings shall not cost the study its own measurement.
        stays = reason == _OTHER_SETTINGS and not opened.write
        if not reason:
            text = path.read_text(encoding="utf-8")
        elif stays and _made.get(path, (None,))[0] == source:
            text = _made[path][1]
        else:
            text = csv_of(_measured_anew(source, run, measure, reason))
            if stays:
                _made[path] = source, text
            else:
                _store(path, source, text)
        if text.count("\n") > 1:  # a run may have nothing to measure
            table = pd.read_csv(StringIO(text))
            table.insert(0, "run", run.id)
            tables.append(table)
    if not tables:
        raise BinaryViTError(f"The measurement {name!r} holds nothing for {', '.join(run.id for run in runs)}.")
    return pd.concat(tables, ignore_index=True)


def measurement_path(study: Study, name: str, run_id: str) -> Path:
    """The CSV file of a run's measurement."""
    return study.output / MEASUREMENTS_FOLDER / name / f"{run_id}.csv"


def stored_measurement(study: Study, name: str, run: PlannedRun) -> pd.DataFrame | None:
    """A measurement of a finished run as it is stored, whatever its settings.

    None where there is none, it is of another training of the run, or its file was changed since it was written.
    """
    path = measurement_path(study, name, run.id)
    note = Note.read(note_path(path))
    if note is None or run.state is not State.DONE or not path.is_file():
        return None
    is_current = note.source.get("key") == record_of(run).key.model_dump()
    return pd.read_csv(path) if is_current and note.files.get(path.name) == sha256_of(path) else None


def note_path(path: Path) -> Path:
    """The note beside a measurement's CSV file, on what it was made from."""
    return path.with_name(f"{path.name.removesuffix('.csv')}.json")


def source_of(run: StoredRun) -> dict[str, Any]:
    """What every measurement of a run depends on: the run's key with its data, and its weights file (sha256)."""
    return {"run": run.id, "key": run.record.key.model_dump(), "weights": sha256_of(run.weights)}


@contextmanager
def stored_ones_only() -> Iterator[set[Path]]:
    """Within, `measured` makes nothing: it raises BinaryViTError for a measurement that is missing or does not hold.

    Yields a set that comes to hold the CSV files that were asked for.
    """
    asked_for: set[Path] = set()
    token = _asked_for.set(asked_for)
    try:
        yield asked_for
    finally:
        _asked_for.reset(token)


def _why_not_current(path: Path, source: dict[str, Any]) -> str:
    """Why a stored measurement cannot be used for `source`; empty when it can."""
    note = Note.read(note_path(path))
    if note is None or not path.is_file():
        return "it is not stored"
    changed = [name for name, value in source.items() if note.source.get(name) != value]
    if changed == ["settings"]:
        return _OTHER_SETTINGS
    if changed:
        return f"it was made with another {', '.join(changed)}"
    return "" if note.files.get(path.name) == sha256_of(path) else "its file was changed since it was written"


def _measured_anew(
    source: dict[str, Any], run: StoredRun, measure: Callable[[StoredRun], pd.DataFrame], reason: str
) -> pd.DataFrame:
    wanted = f"The measurement {source['name']!r} of the run {run.id} cannot be used ({reason})"
    if _asked_for.get() is not None:
        raise BinaryViTError(f"{wanted}: execute the study's analysis again, with its data at hand.")
    try:
        return measure(run)
    except BinaryViTError as error:
        raise BinaryViTError(f"{wanted}, and it cannot be made here: {error}") from error


def _store(path: Path, source: dict[str, Any], text: str) -> None:
    write_text_atomically(path, text)
    state = git_state()
    made_at = {"commit": state.commit, "uncommitted_changes": state.dirty}
    Note.of(source | made_at, [path]).write(note_path(path))

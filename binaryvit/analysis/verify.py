"""Whether a study's tables, figures and measurements are what its records, measurements and weights give today.

Beside each product lies a note with the sha256 of its files as they were written and of what they were made from. Every
table is made again, and every figure's numbers; nothing is trained, measured, drawn or written. A file is then

- current: as it was written, from what is there today;
- stale: as it was written, from something else than what is there today (or no note says from what);
- hand-edited: not the bytes that were written;
- missing: not there;
- unknown: there, and none of the study's analyses makes it.

That a figure would be drawn otherwise today, by another version of the drawing code, is not seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from binaryvit.analysis.ladder.tables import TABLES_FOLDER, Table
from binaryvit.analysis.measurements import MEASUREMENTS_FOLDER, source_of, stored_ones_only
from binaryvit.analysis.product import FIGURES_FOLDER, Drawing
from binaryvit.analysis.registry import ANALYSES
from binaryvit.analysis.stored import OpenStudy, stored_runs
from binaryvit.errors import BinaryViTError
from binaryvit.records.notes import Note, sha256_of, sha256_of_text
from binaryvit.studies.study import Study


class Verdict(StrEnum):
    """What a derived file is; see the module's text."""

    CURRENT = "current"
    STALE = "stale"
    EDITED = "hand-edited"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """The verdict on one file, named relative to the study's folder, and the reason in words."""

    file: str
    verdict: Verdict
    reason: str = ""


def verify(study: Study) -> list[Finding]:
    """The verdict on every table, figure and measurement of a study, and on every other file in their folders.

    An analysis that cannot be made from what is stored is a finding of its own, and its files are stale.
    """
    findings: list[Finding] = []
    made: set[Path] = set()
    failed: list[str] = []
    with stored_ones_only() as read:
        for notebook in study.analysis:
            try:
                products = _products(study, notebook)
                judged = [finding for product in products for finding in _judge_product(study, product)]
            except BinaryViTError as error:
                findings.append(Finding(notebook, Verdict.STALE, str(error)))
                failed.append(notebook)
            else:
                findings += judged
                made |= {study.output / finding.file for finding in judged}
                made |= {_note_of(study, product) for product in products}
    findings += _judge_measurements(study, read, failed)
    for folder in (TABLES_FOLDER, FIGURES_FOLDER):
        findings += _judge_others(study, folder, made, failed)
    return findings


def _products(study: Study, notebook: str) -> Sequence[Table | Drawing]:
    if notebook not in ANALYSES:
        raise BinaryViTError(f"What {notebook} makes cannot be told: analysis/registry.py does not list it.")
    return ANALYSES[notebook](OpenStudy(study))


def _note_of(study: Study, product: Table | Drawing) -> Path:
    folder = TABLES_FOLDER if isinstance(product, Table) else FIGURES_FOLDER
    return study.output / folder / f"{product.name}.json"


def _judge_product(study: Study, product: Table | Drawing) -> list[Finding]:
    path = _note_of(study, product)
    note = _read(path)
    if isinstance(product, Table):
        contents = {name: sha256_of_text(text) for name, text in product.contents().items()}
        changes = {
            name: "" if note and note.files.get(name) == content else "the records give another content today"
            for name, content in contents.items()
        }
    else:
        changes = dict.fromkeys(product.file_names, note and _difference(product.source(), note.source))
    return [_judge(study, path.with_name(name), note, change) for name, change in changes.items()]


def _judge(study: Study, path: Path, note: Note | None, change: str | None) -> Finding:
    """The verdict on a file; `change` says what is other today than when it was made."""
    name = path.relative_to(study.output).as_posix()
    if not path.is_file():
        return Finding(name, Verdict.MISSING, "it is not there")
    if note is None or path.name not in note.files:
        return Finding(name, Verdict.STALE, "no note says what it was made from")
    if note.files[path.name] != sha256_of(path):
        return Finding(name, Verdict.EDITED, "its content is not the one that was written")
    return Finding(name, Verdict.STALE, change) if change else Finding(name, Verdict.CURRENT)


def _difference(today: dict[str, Any], then: dict[str, Any]) -> str:
    """What of a file's source is other today than it was, in words; empty when nothing is."""
    changed = []
    for name, value in today.items():
        before = then.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            parts = sorted(part for part in value | before if value.get(part) != before.get(part))
            changed += [f"{name}: {', '.join(parts)}"] if parts else []
        elif value != before:
            changed.append(name)
    return f"made from other {'; '.join(changed)}" if changed else ""


def _judge_measurements(study: Study, read: set[Path], failed: list[str]) -> Iterator[Finding]:
    ids = {run.id for run in study.runs}
    for path in _files(study, MEASUREMENTS_FOLDER):
        csv, note = path.with_name(f"{path.stem}.csv"), path.with_name(f"{path.stem}.json")
        name = path.relative_to(study.output).as_posix()
        if path not in (csv, note) or path.stem not in ids:
            yield Finding(name, Verdict.UNKNOWN, "it is no measurement of one of the study's runs")
        elif csv not in read and not failed:
            yield Finding(name, Verdict.UNKNOWN, "none of the study's analyses reads it")
        elif path == csv or not csv.is_file():
            try:
                (run,) = stored_runs(study, [path.stem])
                known = _read(note)
                yield _judge(study, csv, known, known and _difference(source_of(run), known.source))
            except BinaryViTError as error:
                yield Finding(name, Verdict.STALE, str(error))


def _judge_others(study: Study, folder: str, made: set[Path], failed: list[str]) -> Iterator[Finding]:
    """Files of a folder that no analysis makes; those of an analysis that could not be made again are stale."""
    paths = _files(study, folder)
    notes = {path: note for path in paths if path.suffix == ".json" and (note := _read(path))}
    noted = {path for note in notes for path in (note, *(note.with_name(name) for name in notes[note].files))}
    for path in paths:
        if path in made:
            continue
        name = path.relative_to(study.output).as_posix()
        if failed and path in noted:
            yield Finding(name, Verdict.STALE, f"it cannot be told, since {', '.join(failed)} cannot be made again")
        else:
            yield Finding(name, Verdict.UNKNOWN, "none of the study's analyses makes it")


def _files(study: Study, folder: str) -> list[Path]:
    return sorted(
        path for path in (study.output / folder).rglob("*") if path.is_file() and not path.name.startswith(".")
    )


def _read(path: Path) -> Note | None:
    try:
        return Note.read(path)
    except BinaryViTError:  # a damaged note says nothing
        return None

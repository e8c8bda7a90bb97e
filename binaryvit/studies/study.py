"""A study: a file that names runs, the configurations they resolve to, and the state each of them is in.

Nothing here trains or writes; `binaryvit.studies.runner` executes what is missing.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from binaryvit.config import (
    DATA_FIELDS,
    NOT_IN_KEY,
    PRETRAINED,
    RECIPES,
    TrainingConfig,
    completed,
    read_yaml,
    suggestion,
    without_place,
)
from binaryvit.errors import BinaryViTError
from binaryvit.locks import is_locked
from binaryvit.records.run_record import (
    LOCK_FILE,
    RUNS_FOLDER,
    TRAINING_VERSION,
    RunKey,
    RunRecord,
    read_failure,
    read_record,
)
from binaryvit.training.checkpoint import CHECKPOINT_FILE, stored_identity
from binaryvit.training.teacher import identity, run_identity

STUDY_FILE = "study.yaml"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]  # it becomes a file name


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Row(_Part):
    variant: str
    id: _Name | None = None  # default: the variant; needed where a variant occurs twice
    label: str | None = None  # how tables call the row; default: the id
    recipe: dict[str, Any] = {}


class _Teacher(_Row):
    seed: int = 0  # one teacher serves the students of all seeds


class _Student(_Row):
    seeds: list[int] | None = Field(None, min_length=1)  # default: the study's
    teacher: Literal["none"] | None = None  # "none": learns from the labels; default: the study's teacher


_Students = list[Annotated[_Student, BeforeValidator(lambda row: {"variant": row} if isinstance(row, str) else row)]]


class _StudyFile(_Part):
    name: _Name
    title: str
    data: str = "digits"
    data_label: str | None = None
    recipe: dict[str, Any] = {}
    teacher: _Teacher | None = None
    variants: _Students = Field(min_length=1)  # the steps of the ladder
    controls: _Students = []  # what a step is compared with; its recipe may be another
    seeds: list[int] = Field([0], min_length=1)
    notebooks: Literal["all", "first_seed"] = "all"  # the runs that keep an executed notebook
    analysis: list[str] = ["tables.ipynb"]

    @property
    def students(self) -> list[_Student]:
        return [*self.variants, *self.controls]

    def seeds_of(self, row: _Student) -> list[int]:
        return row.seeds or self.seeds


class State(StrEnum):
    """The state of a run, judged by its folder."""

    DONE = "done"
    STALE = "stale"  # finished, with another configuration, data or training code than today's
    FAILED = "failed"
    RUNNING = "running"  # a living process holds its lock
    MISSING = "missing"  # not started, or interrupted


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study: what it trains, where, and its state with the reason in words.

    A path inside `config` is relative to the study's output folder, which is where the run executes.

    Attributes:
        teacher_id: the run it learns from; None for a teacher, and for a student of the labels.
        is_control: not a step of the ladder, but something to compare a step with.
        has_notebook: trained by the notebook, which is kept; else by `binaryvit train`.
    """

    id: str
    label: str
    config: TrainingConfig
    teacher_id: str | None
    folder: Path
    state: State = State.MISSING
    reason: str = "not run yet"
    is_control: bool = False
    has_notebook: bool = True

    @property
    def model_id(self) -> str:
        """The id without the seed, which the runs of a model share."""
        return self.id.removesuffix(f"-seed{self.config.seed}")

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of the weights and of the activations of the model's binary layers: 1 unless its arguments differ."""
        return tuple(self.config.model_args.get(name, 1) for name in ("weight_bits", "activation_bits"))

    @property
    def lock(self) -> Path:
        """The lock file that is held while the run trains."""
        return self.folder.with_name(f"{self.folder.name}.lock")


@dataclass(frozen=True)
class Study:
    """A study file with its runs resolved, in the order they are trained and shown.

    The teacher comes first, then the ladder with the first seed, with the second, and so on, then the controls in the
    same way: a study that was cut short still holds a whole ladder.

    `output` is the folder everything is written to. `data_dir` is the local copy of the data, seen from the current
    folder; None when there is none.
    """

    name: str
    title: str
    path: Path
    output: Path
    data_dir: Path | None
    analysis: tuple[str, ...]
    runs: tuple[PlannedRun, ...] = field(repr=False)

    @property
    def data_config(self) -> TrainingConfig:
        """A configuration to load the study's data with, from the current folder. All rows share their data."""
        return self.runs[0].config.model_copy(update={"data_dir": self.data_dir and str(self.data_dir)})

    @property
    def ladder(self) -> tuple[PlannedRun, ...]:
        """The runs that are steps of the ladder: the teacher and its students, without the controls."""
        return tuple(run for run in self.runs if not run.is_control)


def load_study(path: str | Path, output: str | Path | None = None, **execution: Any) -> Study:
    """Reads a study file (or the study.yaml in the folder `path`) and resolves its runs.

    `output`: folder for all that the study produces; default: the file's own. `execution`: fields of TrainingConfig
    that change where and how fast runs happen, not their numbers: data_dir, data_label, workers, threads.

    Raises BinaryViTError, a sentence for each problem, when the file or a configuration it resolves to is wrong.
    """
    path = Path(path)
    path = path / STUDY_FILE if path.is_dir() else path
    output = path.parent if output is None else Path(output)
    try:
        file = _StudyFile(**read_yaml(path))
    except ValidationError as error:
        raise BinaryViTError("\n".join(f"{path}: {_sentence(problem)}" for problem in error.errors())) from None
    _check_recipes(path, file)
    if wrong := execution.keys() - NOT_IN_KEY:
        raise BinaryViTError(f"{', '.join(sorted(wrong))} would change the study's numbers: write it into {path}.")

    data_dir = execution.pop("data_dir", None)
    if data_dir is None and file.data != "digits" and os.path.isdir(file.data):
        data_dir = file.data  # a folder of that name here, which the runs would not see from theirs
    shared = {"data": file.data, "data_label": file.data_label} | file.recipe | execution
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
        shared["data_dir"] = _seen_from(output, data_dir)

    def resolve(row: _Row, seed: int, kind: str, **facts: Any) -> PlannedRun:
        name = row.id or row.variant
        folder = output / RUNS_FOLDER / f"{name}-seed{seed}"
        fields = RECIPES[kind] | shared | row.recipe | {"variant": row.variant, "seed": seed}
        for place_of in ("teacher", "init_from"):  # paths in the file start at the file
            if isinstance(place := fields.get(place_of), str) and not place.startswith(PRETRAINED):
                fields[place_of] = _seen_from(output, path.parent / place)
        if isinstance(row, _Student) and row.teacher == "none":
            facts["teacher_id"] = fields["teacher"] = fields["teacher_variant"] = None
        elif facts["teacher_id"] is not None:
            fields["teacher"] = f"{RUNS_FOLDER}/{facts['teacher_id']}"
        try:
            return PlannedRun(folder.name, row.label or name, TrainingConfig(**fields), folder=folder, **facts)
        except BinaryViTError as error:
            raise BinaryViTError("\n".join(f"{path}: {name}: {line}" for line in str(error).splitlines())) from None

    runs = [] if file.teacher is None else [resolve(file.teacher, file.teacher.seed, "teacher", teacher_id=None)]
    teacher_id = runs[0].id if runs else None
    for rows in (file.variants, file.controls):
        for seed in dict.fromkeys(seed for row in rows for seed in file.seeds_of(row)):
            runs += [
                resolve(
                    row,
                    seed,
                    "student",
                    teacher_id=teacher_id,
                    is_control=rows is file.controls,
                    has_notebook=file.notebooks == "all" or seed == file.seeds_of(row)[0],
                )
                for row in rows
                if seed in file.seeds_of(row)
            ]
    return Study(file.name, file.title, path, output, data_dir and Path(data_dir), tuple(file.analysis), tuple(runs))


def _seen_from(folder: Path, place: str | Path) -> str:
    """The path of a place for a process whose working folder is `folder`, also where that lies behind a link."""
    return os.path.relpath(place, os.path.realpath(folder))


def plan(study: Study, fingerprint: str | None = None) -> list[PlannedRun]:
    """The study's runs with their states, from what is on disk; nothing is loaded, trained or written.

    `fingerprint` is that of the available data. Without it the data are not checked, except that all runs must have
    used the same. A run that is done by its own record (`analysis.stored.study_of_folders`) stays so.
    """
    return [run if run.state is State.DONE else state_of(study, run, fingerprint) for run in study.runs]


def state_of(study: Study, run: PlannedRun, fingerprint: str | None = None, *, held: bool = False) -> PlannedRun:
    """The run with its state of this moment; see `plan`. `held`: the caller holds the run's lock."""
    # The second lock is training's own: it may outlive whoever started it.
    if (not held and is_locked(run.lock)) or is_locked(run.folder / LOCK_FILE):
        return replace(run, state=State.RUNNING, reason="a process is training it now")
    try:
        record = read_record(run.folder)
        failure = read_failure(run.folder)
    except BinaryViTError as error:
        return replace(run, state=State.STALE, reason=str(error))
    if record is not None:
        return _judge(study, run, record, fingerprint)
    if changes := _foreign_checkpoint(study, run, fingerprint):
        return replace(run, state=State.STALE, reason=f"it was interrupted, and {'; '.join(changes)}")
    if failure is not None:
        return replace(run, state=State.FAILED, reason=failure.error)
    if run.folder.exists():
        return replace(run, state=State.MISSING, reason="interrupted; it goes on from its last checkpoint")
    return replace(run, state=State.MISSING, reason="not run yet")


def _judge(study: Study, run: PlannedRun, record: RunRecord, fingerprint: str | None) -> PlannedRun:
    reference = fingerprint or _fingerprint_on_record(study) or record.key.data
    teacher = _teacher_of(study, run)
    config = run.config.resolved(record.config.get("compile"))
    now = config.model_dump(mode="json", exclude=NOT_IN_KEY) | {"data": without_place(run.config.data)}
    before = completed(record.config)
    changes = [f"{name} was {before[name]!r} and is {value!r}" for name, value in now.items() if before[name] != value]
    if record.key.training_version != TRAINING_VERSION:
        changes += [f"the training code was version {record.key.training_version} and is {TRAINING_VERSION}"]
    if record.key.data != reference:
        whose = "those at hand" if fingerprint else "those of the study's other runs"
        changes += [f"its data (fingerprint {record.key.data[:12]}) are not {whose} ({reference[:12]})"]
    if teacher is not None and state_of(study, teacher, fingerprint).state is State.STALE:
        changes += [f"its teacher {teacher.id} is stale"]
    try:
        if not changes and record.key.config != config.key(*_identities(study, run, reference)):
            outside = [name for name in ("teacher", "init_from") if getattr(config, name) is not None]
            changes += [f"its {' or '.join(outside)} was another one" if outside else "its record was changed by hand"]
    except BinaryViTError as error:  # a teacher from outside that is not there any more
        changes += [str(error)]
    if changes:
        return replace(run, state=State.STALE, reason="; ".join(changes))
    checked = "" if fingerprint else "; data not checked"
    reason = f"top-1 {record.weights.top1:.2f}%, trained on {record.started:%Y-%m-%d}{checked}"
    return replace(run, state=State.DONE, reason=reason)


def missing_weights(study: Study, run: PlannedRun) -> str | None:
    """Why the weights that the run takes from outside the study, its teacher's or its first, can't be read now."""
    try:
        _identities(study, run, "")
    except BinaryViTError as error:
        return str(error)
    return None


def _foreign_checkpoint(study: Study, run: PlannedRun, fingerprint: str | None) -> list[str]:
    """What changed since an unfinished run's checkpoint was written; training would refuse to go on from it."""
    identity = stored_identity(run.folder / CHECKPOINT_FILE)
    if identity is None:  # none, or damaged, which training says
        return []
    data = fingerprint or _fingerprint_on_record(study) or identity.get("data")
    changes = [] if identity.get("data") == data else ["its data are others"]
    if identity.get("training version") != TRAINING_VERSION:
        changes += [f"the training code was version {identity.get('training version')} and is {TRAINING_VERSION}"]
    try:
        identities = _identities(study, run, str(data))
        keys = {run.config.resolved(compiled).key(*identities) for compiled in (False, True)}
        if not changes and identity.get("configuration") not in keys:
            changes += ["its configuration or its teacher's has changed"]
    except BinaryViTError as error:
        changes += [str(error)]
    return changes


def _teacher_of(study: Study, run: PlannedRun) -> PlannedRun | None:
    return next((other for other in study.runs if other.id == run.teacher_id), None)


def _identities(study: Study, run: PlannedRun, fingerprint: str) -> tuple[str | None, str | None]:
    """The identity that the run's teacher has, or will have once trained as the study says; and that of its initial
    weights."""
    initial = _identity_outside(study, run.config.init_from, "init_from")
    teacher = _teacher_of(study, run)
    if teacher is None:
        return _identity_outside(study, run.config.teacher, "teacher"), initial
    record = read_record(teacher.folder)
    config = teacher.config.resolved(record and record.config.get("compile"))
    key = config.key(None, _identity_outside(study, config.init_from, "init_from"))
    return run_identity(RunKey(config=key, data=fingerprint, training_version=TRAINING_VERSION)), initial


def _identity_outside(study: Study, place: str | None, role: str) -> str | None:
    """The identity of weights that are not a run of the study."""
    if place is None or place.startswith(PRETRAINED):
        return place
    return identity(str(study.output / place), role)


def _fingerprint_on_record(study: Study) -> str | None:
    """The data of the first finished run, to which the others are compared when the data are not available."""
    for run in study.runs:
        try:
            record = read_record(run.folder)
        except BinaryViTError:  # reported as the state of that run
            continue
        if record is not None:
            return record.key.data
    return None


def _check_recipes(path: Path, file: _StudyFile) -> None:
    """Refuses recipe entries that belong elsewhere, and runs that would share a folder."""
    rows = [row for row in (file.teacher, *file.students) if row is not None]
    problems = []
    for where, recipe, elsewhere in [
        ("recipe", file.recipe, ("data", "data_label")),
        *((f"recipe of {row.id or row.variant}", row.recipe, DATA_FIELDS) for row in rows),
    ]:
        places = dict.fromkeys(elsewhere, "once for the whole study, next to its name or in its recipe")
        places |= {"variant": "as the row's variant", "seed": "in seeds, or as the teacher's seed"}
        places |= {"data_dir": "on the command line as --data-dir, since it belongs to one machine"}
        if file.teacher is not None:
            places |= {"teacher": "as the study's own teacher, which there is already"}
        problems += [
            f"{name} in the {where} is misplaced: give it {places[name]}." for name in recipe if name in places
        ]
    if file.data.startswith("."):
        problems.append(f"data: {file.data} is a place on one machine: name the data, and give --data-dir their place.")
    problems += [f"The {name} appears twice among {ids}: give one of them another id." for name, ids in _doubles(file)]
    if problems:
        raise BinaryViTError("\n".join(f"{path}: {problem}" for problem in problems))


def _doubles(file: _StudyFile) -> Iterable[tuple[str, list]]:
    """Ids and seeds that occur twice: which of the two they are, and the list they are in."""
    ids = [row.id or row.variant for row in file.students]
    if file.teacher is not None and any(file.teacher.seed in file.seeds_of(row) for row in file.students):
        ids.insert(0, file.teacher.id or file.teacher.variant)
    for name, values in (("id", ids), *(("seed", seeds) for seeds in map(file.seeds_of, file.students))):
        if len(set(values)) < len(values):
            yield name, values


def _sentence(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        parts = {"teacher": _Teacher, "variants": _Student, "controls": _Student}
        part = parts[place[0]] if len(place) > 1 else _StudyFile
        return f"{'.'.join(place)} is no entry of a study{suggestion(place[-1], list(part.model_fields))}"
    if problem["type"] == "missing":
        return f"The entry {'.'.join(place)} is missing."
    return f"{'.'.join(place)}={problem['input']!r} is refused: {problem['msg'][0].lower()}{problem['msg'][1:]}."

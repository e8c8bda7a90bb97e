"""Executing a study: what is missing through papermill, one process per run, then the analysis notebooks."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from binaryvit.config import suggestion
from binaryvit.data.batches import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.locks import hold
from binaryvit.records.run import Failure, read_failure, read_record
from binaryvit.studies.execution import (
    check_parameters,
    declared_parameters,
    execute,
    find_notebook,
    kernel_environment,
    training_parameters,
)
from binaryvit.studies.study import STUDY_FILE, PlannedRun, State, Study, load_study, plan, state_of

TRAIN_NOTEBOOK = "train.ipynb"
_POLL_SECONDS = 2.0

Say = Callable[[str], None]


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Outcome:
    """How a reproduction ended: the runs that are not as the study says, and the analysis notebooks that failed."""

    runs: tuple[PlannedRun, ...]
    failed_analysis: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every run is done and every notebook was executed."""
        return not self.failed_analysis and all(run.state is State.DONE for run in self.runs)


def select(study: Study, only: Iterable[str]) -> list[PlannedRun]:
    """The runs called `only` and the teachers they need, in the study's order; all runs when `only` is empty.

    Raises BinaryViTError for an id that the study does not have.
    """
    ids = [run.id for run in study.runs]
    chosen = set(only)
    for unknown in chosen.difference(ids):
        raise BinaryViTError(f"The study {study.name} has no run {unknown!r}{suggestion(unknown, ids)}")
    chosen |= {run.teacher_id for run in study.runs if run.id in chosen}
    return [run for run in study.runs if not only or run.id in chosen]


def fingerprint_if_needed(study: Study, runs: Sequence[PlannedRun], check_data: bool) -> str | None:
    """The data's fingerprint; they are loaded only to train a run, when asked for, or when always at hand."""
    if (
        check_data
        or study.data_config.data == "digits"
        or any(run.state in (State.MISSING, State.FAILED) for run in runs)
    ):
        return load_data(study.data_config).fingerprint
    return None


def reproduce(
    study: Study, *, only: Sequence[str] = (), rerun_stale: bool = False, check_data: bool = False, say: Say = _say
) -> Outcome:
    """Trains what is missing or failed before, the teacher first, then executes the analysis notebooks.

    A finished run is skipped; a stale one is left as it is and reported, or with `rerun_stale` moved aside and trained
    anew; a failed one is reported and the rest goes on. Several processes may do this at once. With `only` (ids; their
    teacher comes along) no analysis is executed.

    Raises BinaryViTError when nothing can start: an unknown id, no notebooks, data that cannot be loaded.
    """
    chosen = select(study, only)
    notebook = find_notebook(TRAIN_NOTEBOOK, study.path.parent)
    analysis = [] if only else _analysis_notebooks(study)
    for run in chosen:
        training_parameters(notebook, run.config, output="", study="", run_id="")
    _write_study_file(study)
    states = [state_of(study, run) for run in chosen]
    fingerprint = fingerprint_if_needed(study, states, check_data or rerun_stale)
    with kernel_environment() as environment:
        session = _Session(study, notebook, fingerprint, rerun_stale, environment, say)
        runs = session.train_all(chosen)
        failed = _analyse_all(study, analysis, environment, say)
    return Outcome(tuple(runs), failed)


def analyse(study: Study, *, say: Say = _say) -> tuple[str, ...]:
    """Executes the analysis notebooks alone, which makes the study's tables and figures again from what is stored.

    Nothing is trained. The data are needed only where a measurement is not stored or does not hold any more. Returns
    the names of the notebooks that failed. Raises BinaryViTError when there is no notebook of a name.
    """
    notebooks = _analysis_notebooks(study)
    _write_study_file(study)
    with kernel_environment() as environment:
        return _analyse_all(study, notebooks, environment, say)


def _analysis_notebooks(study: Study) -> list[Path]:
    """The study's analysis notebooks, each known to take the study as its parameter."""
    notebooks = [find_notebook(name, study.path.parent) for name in study.analysis]
    for notebook in notebooks:
        check_parameters(notebook, {"study": ""})
    return notebooks


def _analyse_all(study: Study, notebooks: Sequence[Path], environment: dict[str, str], say: Say) -> tuple[str, ...]:
    return tuple(notebook.name for notebook in notebooks if not _analyse(study, notebook, environment, say))


def _analyse(study: Study, notebook: Path, environment: dict[str, str], say: Say) -> bool:
    """Executes an analysis notebook into the study's folder; says so and returns False when it fails."""
    parameters, names = {"study": "."}, {}
    declared = declared_parameters(notebook)
    if "write" in declared:
        parameters["write"] = True
    data_dir = study.runs[0].config.data_dir  # seen from the study's folder, in which notebooks run
    if data_dir is not None and "data_dir" in declared:
        parameters["data_dir"] = data_dir
        names[data_dir] = Path(data_dir).name
    output = study.output / notebook.name
    waiting = False
    while True:
        with hold(study.output / f"{notebook.stem}.lock") as descriptor:
            if descriptor is not None:
                try:
                    execute(notebook, output, parameters, study.output, environment, (descriptor,), names)
                except BinaryViTError as error:
                    say(f"{notebook.name}: FAILED: {error}")
                    return False
                say(f"{notebook.name}: executed, see {os.path.relpath(output)}")
                return True
        if not waiting:
            waiting = True
            say(f"{notebook.name}: another process is executing it; waiting for it to end")
        time.sleep(_POLL_SECONDS)


def _write_study_file(study: Study) -> None:
    """Puts a copy of the study file beside what it produces, where that is another folder."""
    copy = study.output / STUDY_FILE
    if copy.exists():
        if copy.samefile(study.path):
            return
        if (other := load_study(copy).name) != study.name:
            raise BinaryViTError(
                f"{study.output} holds the study {other!r}: choose another --output for {study.name!r}."
            )
    write_text_atomically(copy, study.path.read_text(encoding="utf-8"))


@dataclass
class _Session:
    study: Study
    notebook: Path
    fingerprint: str | None
    rerun_stale: bool
    environment: dict[str, str]
    say: Say

    def __post_init__(self) -> None:
        self.started = datetime.now(UTC)

    def train_all(self, chosen: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Takes runs whose teacher is settled and that no other process holds, until all are settled."""
        settled: dict[str, PlannedRun] = {}
        waiting: set[str] = set()
        while len(settled) < len(chosen):
            before = len(settled)
            for run in chosen:
                if run.id in settled or (run.teacher_id is not None and run.teacher_id not in settled):
                    continue
                with hold(run.lock) as descriptor:
                    if descriptor is not None:
                        now = state_of(self.study, run, self.fingerprint, locked=False)
                        if now.state is not State.RUNNING:
                            settled[run.id] = self._settle(now, settled.get(run.teacher_id), descriptor)
                            continue
                if run.id not in waiting:
                    waiting.add(run.id)
                    self.say(f"{run.id}: another process is training it; waiting for its result")
            if len(settled) == before:
                time.sleep(_POLL_SECONDS)
        return [settled[run.id] for run in chosen]

    def _settle(self, run: PlannedRun, teacher: PlannedRun | None, descriptor: int) -> PlannedRun:
        """Brings one run, locked and freshly judged, to an end: done, stale, failed, or missing behind its teacher."""
        if run.state is State.STALE and self.rerun_stale and (teacher is None or teacher.state is State.DONE):
            self.say(f"{run.id}: stale, {run.reason}; kept as {archive(run.folder).name}, and trained anew")
            run = state_of(self.study, run, self.fingerprint, locked=False)
        if run.state is State.STALE:
            self.say(f"{run.id}: STALE, left as it is: {run.reason}")
        elif run.state is State.DONE:
            self.say(f"{run.id}: done, {run.reason}")
        elif teacher is not None and teacher.state is not State.DONE:
            run = replace(run, state=State.MISSING, reason=f"blocked: its teacher {teacher.id} is {teacher.state}")
            self.say(f"{run.id}: {run.reason}")
        elif run.state is State.FAILED and read_failure(run.folder).time > self.started:
            self.say(f"{run.id}: FAILED in another process: {run.reason}")
        else:
            run = self._train(run, descriptor)
        return run

    def _train(self, run: PlannedRun, descriptor: int) -> PlannedRun:
        self.say(f"{run.id}: {run.reason}; training, {_duration(estimate(self.study, run))} expected")
        started = datetime.now(UTC)
        relative = run.folder.relative_to(self.study.output).as_posix()
        parameters = training_parameters(
            self.notebook, run.config, output=relative, study=self.study.name, run_id=run.id
        )
        names = {run.config.data_dir: Path(run.config.data_dir).name} if run.config.data_dir else {}
        try:
            execute(
                self.notebook,
                run.folder / TRAIN_NOTEBOOK,
                parameters,
                self.study.output,
                self.environment,
                (descriptor,),
                names,
            )
            run = state_of(self.study, run, self.fingerprint, locked=False)
            if run.state is not State.DONE:
                raise BinaryViTError(f"{self.notebook.name} ended, but the run is {run.state}: {run.reason}.")
            self.say(f"{run.id}: done, {run.reason}")
        except BinaryViTError as error:
            noted = read_failure(run.folder)
            if noted is None or noted.time < started:  # the training itself had no chance to say why
                noted = Failure(error=str(error), time=datetime.now(UTC))
                noted.write(run.folder)
            run = replace(run, state=State.FAILED, reason=noted.error)
            self.say(f"{run.id}: FAILED: {run.reason}")
        return run


def archive(folder: Path) -> Path:
    """Renames a run's folder to one beside it that no study reads, and returns that."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    return folder.rename(folder.with_name(f"{folder.name}.stale-{stamp}"))


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


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def rehearse(
    study: Study, *, only: Sequence[str] = (), rerun_stale: bool = False, check_data: bool = False, say: Say = _say
) -> Outcome:
    """Says what `reproduce` would do and how long it would take, without doing it."""
    chosen = {run.id for run in select(study, only)}
    fingerprint = fingerprint_if_needed(study, (), check_data)
    total, unknown = 0.0, 0
    runs = [run for run in plan(study, fingerprint) if run.id in chosen]
    for run in runs:
        if run.state is State.STALE and not rerun_stale:
            say(f"{run.id}: STALE, would be left as it is: {run.reason}")
        elif run.state in (State.DONE, State.RUNNING):
            say(f"{run.id}: {run.state}, {run.reason}")
        else:
            seconds = estimate(study, run)
            total, unknown = total + (seconds or 0.0), unknown + (seconds is None)
            say(f"{run.id}: would be trained ({run.state}: {run.reason}), {_duration(seconds)}")
    say(
        f"Training would take {'at least ' * (unknown > 0)}{_duration(total)}"
        + f"; unknown: {unknown} runs." * (unknown > 0)
    )
    return Outcome(tuple(runs))

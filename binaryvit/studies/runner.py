"""Bringing a study to its end: what is missing is trained, then the analysis notebooks are executed."""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from binaryvit.config import suggestion
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically
from binaryvit.locks import hold
from binaryvit.records.run_record import Failure, read_failure
from binaryvit.studies.durations import duration, estimate
from binaryvit.studies.execution import Executor, process_environment
from binaryvit.studies.notebooks import check_parameters, declared_parameters, find_notebook, training_parameters
from binaryvit.studies.processes import Job, Processes, Say, Share, default_jobs, shares
from binaryvit.studies.study import STUDY_FILE, PlannedRun, State, Study, load_study, missing_weights, state_of

TRAIN_NOTEBOOK = "train.ipynb"
_POLL_SECONDS = 2.0


def say_aloud(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # in one piece, so that lines of several threads do not mix


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
    """The data's fingerprint. They are loaded only to train a run, on request, or if they come with a package."""
    if (
        check_data
        or study.data_config.data == "digits"
        or any(run.state in (State.MISSING, State.FAILED) for run in runs)
    ):
        return load_data(study.data_config).fingerprint
    return None


def reproduce(
    study: Study,
    *,
    only: Sequence[str] = (),
    rerun_stale: bool = False,
    check_data: bool = False,
    jobs: int | None = None,
    say: Say = say_aloud,
) -> Outcome:
    """Trains what is missing or failed before, the teacher first, then executes the analysis notebooks.

    A finished run is skipped; a stale one is left as it is and reported, or with `rerun_stale` moved aside and trained
    again, unless weights it needs from elsewhere cannot be read; a failed one is reported and the rest goes on. Several
    processes may do this at once.

    Args:
        only: ids of the runs to train; their teacher comes along, and no analysis is executed.
        check_data: whether to load the data and compare them with those on record, also when nothing is trained.
        jobs: how many runs, or notebooks, at a time; default: as many as there are GPUs for, 1 on a CPU.

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
    with _workshop(study, jobs, say) as workshop:
        training = _Training(workshop, notebook, chosen, fingerprint, rerun_stale)
        runs = training.settle_all(_trainable_at_once(states, rerun_stale))
        failed = _execute_analysis(workshop, analysis)
    return Outcome(tuple(runs), failed)


def analyse(study: Study, *, jobs: int | None = None, say: Say = say_aloud) -> tuple[str, ...]:
    """Executes the analysis notebooks alone, which makes the study's tables and figures again from what is stored.

    Nothing is trained. The data are needed only if a measurement is missing or outdated. `jobs`: as
    in `reproduce`. Returns the names of the notebooks that failed. Raises BinaryViTError when there is no notebook of a
    name.
    """
    notebooks = _analysis_notebooks(study)
    _write_study_file(study)
    with _workshop(study, jobs, say) as workshop:
        return _execute_analysis(workshop, notebooks)


def _analysis_notebooks(study: Study) -> list[Path]:
    """The study's analysis notebooks, each known to take the study as its parameter."""
    notebooks = [find_notebook(name, study.path.parent) for name in study.analysis]
    for notebook in notebooks:
        check_parameters(notebook, {"study": ""})
    return notebooks


def _write_study_file(study: Study) -> None:
    """Puts a copy of the study file next to what it produces, where that is another folder."""
    copy = study.output / STUDY_FILE
    if copy.exists():
        if copy.samefile(study.path):
            return
        if (other := load_study(copy).name) != study.name:
            raise BinaryViTError(
                f"{study.output} holds the study {other!r}: choose another --output for {study.name!r}."
            )
    write_text_atomically(copy, study.path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Workshop:
    """What training and analysis of a study share: how to execute jobs, and how to report."""

    study: Study
    executor: Executor
    environment: dict[str, str]
    jobs: int
    gpus_per_job: int
    say: Say

    def job(self, name: str, share: Share, lock: int) -> Job:
        """What a process called `name` uses; its lines start with the name where several processes print."""
        prefix = f"{name}: " if self.jobs > 1 else ""
        return Job(self.environment | share.environment, lock, lambda line: self.say(prefix + line))

    def shares(self, tasks: int) -> list[Share]:
        """The shares of the machine for at most `tasks` jobs."""
        return shares(max(1, min(self.jobs, tasks)), self.gpus_per_job)


@contextmanager
def _workshop(study: Study, jobs: int | None, say: Say) -> Iterator[_Workshop]:
    processes = max(run.config.processes for run in study.runs)
    data_dir = study.runs[0].config.data_dir
    names = {data_dir: Path(data_dir).name} if data_dir else {}
    with process_environment() as environment:
        executor = Executor(study.output, names, Processes())
        yield _Workshop(study, executor, environment, jobs or default_jobs(processes), processes, say)


def _execute_analysis(workshop: _Workshop, notebooks: Sequence[Path]) -> tuple[str, ...]:
    """Executes the analysis notebooks into the study's folder; returns the names of those that failed."""
    executed = set()

    def work(notebook: Path, share: Share) -> None:
        if _analyse(workshop, notebook, share):
            executed.add(notebook)

    workshop.executor.processes.in_parallel(partial(next, iter(notebooks), None), work, workshop.shares(len(notebooks)))
    return tuple(notebook.name for notebook in notebooks if notebook not in executed)


def _analyse(workshop: _Workshop, notebook: Path, share: Share) -> bool:
    """Executes an analysis notebook; says so and returns False when it fails."""
    study, say = workshop.study, workshop.say
    output = study.output / notebook.name
    waiting = False
    while True:
        with hold(study.output / f"{notebook.stem}.lock") as lock:
            if lock is not None:
                try:
                    job = workshop.job(notebook.name, share, lock)
                    workshop.executor.execute(notebook, output, _analysis_parameters(study, notebook), job)
                except BinaryViTError as error:
                    say(f"{notebook.name}: FAILED: {error}")
                    return False
                say(f"{notebook.name}: executed, see {os.path.relpath(output)}")
                return True
        if not waiting:
            waiting = True
            say(f"{notebook.name}: another process is executing it; waiting for it to end")
        workshop.executor.processes.check()
        time.sleep(_POLL_SECONDS)


def _analysis_parameters(study: Study, notebook: Path) -> dict[str, Any]:
    """The parameters a notebook gets, of those it takes; its working folder is the study's."""
    given = {"study": ".", "write": True, "data_dir": study.runs[0].config.data_dir}
    declared = declared_parameters(notebook)
    return {name: value for name, value in given.items() if name in declared and value is not None}


class _Training:
    """Trains the chosen runs of a study, each after its teacher and each once, even next to other runners."""

    def __init__(
        self,
        workshop: _Workshop,
        notebook: Path,
        chosen: Sequence[PlannedRun],
        fingerprint: str | None,
        rerun_stale: bool,
    ) -> None:
        self.workshop, self.study, self.say = workshop, workshop.study, workshop.say
        self.notebook, self.chosen = notebook, chosen
        self.fingerprint, self.rerun_stale = fingerprint, rerun_stale
        self.started = datetime.now(UTC)
        self._changed = threading.Condition()  # guards the three below
        self._waiting = {run.id for run in chosen}
        self._settled: dict[str, PlannedRun] = {}
        self._look_again: dict[str, float] = {}  # when to try again the runs that another process had locked

    def settle_all(self, tasks: int) -> list[PlannedRun]:
        """Returns the chosen runs, each brought to an end, at most `tasks` at a time."""
        self.workshop.executor.processes.in_parallel(self._take, self._settle_unlocked, self.workshop.shares(tasks))
        return [self._settled[run.id] for run in self.chosen]

    def _take(self) -> PlannedRun | None:
        """The first run that can start, as soon as there is one; None when all are settled."""
        with self._changed:
            while len(self._settled) < len(self.chosen):
                self.workshop.executor.processes.check()
                for run in self.chosen:
                    if run.id in self._waiting and self._can_start(run):
                        self._waiting.remove(run.id)
                        return run
                self._changed.wait(_POLL_SECONDS)
        return None

    def _can_start(self, run: PlannedRun) -> bool:
        teacher_is_settled = run.teacher_id is None or run.teacher_id in self._settled
        return teacher_is_settled and time.monotonic() >= self._look_again.get(run.id, 0.0)

    def _settle_unlocked(self, run: PlannedRun, share: Share) -> None:
        """Settles the run, or puts it back when another process trains it."""
        settled = None
        with hold(run.lock) as lock:
            if lock is not None:
                now = state_of(self.study, run, self.fingerprint, held=True)
                if now.state is not State.RUNNING:
                    settled = self._settle(now, self.workshop.job(run.id, share, lock))
        with self._changed:
            if settled is not None:
                self._settled[run.id] = settled
            else:
                if run.id not in self._look_again:
                    self.say(f"{run.id}: another process is training it; waiting for its result")
                self._look_again[run.id] = time.monotonic() + _POLL_SECONDS
                self._waiting.add(run.id)
            self._changed.notify_all()

    def _settle(self, run: PlannedRun, job: Job) -> PlannedRun:
        """Brings one run, locked and just judged, to an end: done, stale, failed, or missing without a teacher."""
        teacher = self._settled.get(run.teacher_id)
        is_blocked = teacher is not None and teacher.state is not State.DONE
        if run.state is State.STALE and self.rerun_stale and not is_blocked:
            run = self._set_aside(run)
        if run.state is State.STALE:
            self.say(f"{run.id}: STALE, left as it is: {run.reason}")
        elif run.state is State.DONE:
            self.say(f"{run.id}: done, {run.reason}")
        elif is_blocked:
            run = replace(run, state=State.MISSING, reason=f"blocked: its teacher {teacher.id} is {teacher.state}")
            self.say(f"{run.id}: {run.reason}")
        elif run.state is State.FAILED and read_failure(run.folder).time > self.started:
            self.say(f"{run.id}: FAILED in another process: {run.reason}")
        else:
            run = self._train(run, job)
        return run

    def _set_aside(self, run: PlannedRun) -> PlannedRun:
        """Moves a stale run away, to be trained again; one whose training would fail now stays, with the reason."""
        missing = missing_weights(self.study, run)
        if missing is None:
            self.say(f"{run.id}: stale, {run.reason}; kept as {archive(run.folder).name}, and trained again")
            return state_of(self.study, run, self.fingerprint, held=True)
        if missing in run.reason:
            return run
        return replace(run, reason=f"{run.reason}; it can't be trained again now: {missing}")

    def _train(self, run: PlannedRun, job: Job) -> PlannedRun:
        self.say(f"{run.id}: {run.reason}; training, {duration(estimate(self.study, run))} expected")
        try:
            self._execute(run, job)
            run = state_of(self.study, run, self.fingerprint, held=True)
            if run.state is not State.DONE:
                raise BinaryViTError(f"The training ended, but the run is {run.state}: {run.reason}.")
            self.say(f"{run.id}: done, {run.reason}")
        except BinaryViTError as error:
            now = state_of(self.study, run, self.fingerprint, held=True)
            if now.state is State.DONE:  # the notebook failed after its training
                self.say(f"{run.id}: done, {now.reason}; but its notebook failed: {error}")
                return now
            Failure(error=str(error), time=datetime.now(UTC)).write(run.folder)
            run = replace(run, state=State.FAILED, reason=str(error))
            self.say(f"{run.id}: FAILED: {run.reason}")
        return run

    def _execute(self, run: PlannedRun, job: Job) -> None:
        names = {
            "output": run.folder.relative_to(self.study.output).as_posix(), "study": self.study.name, "run_id": run.id,
        }  # fmt: skip
        if run.has_notebook:
            parameters = training_parameters(self.notebook, run.config, **names)
            self.workshop.executor.execute(self.notebook, run.folder / TRAIN_NOTEBOOK, parameters, job)
        else:
            self.workshop.executor.train(run.config, job, **names)


def _trainable_at_once(runs: Iterable[PlannedRun], rerun_stale: bool) -> int:
    """How many of the runs can be trained at the same time, at most: all but the teachers that others wait for."""
    settled = (State.DONE,) if rerun_stale else (State.DONE, State.STALE)
    pending = [run for run in runs if run.state not in settled]
    teachers = {run.teacher_id for run in pending}
    return sum(run.id not in teachers for run in pending)


def archive(folder: Path) -> Path:
    """Renames a run's folder to one next to it that no study reads, and returns that."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    return folder.rename(folder.with_name(f"{folder.name}.stale-{stamp}"))

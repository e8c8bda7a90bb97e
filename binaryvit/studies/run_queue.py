"""Training the runs of a study, each after its teacher and each once, even next to other runners."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from binaryvit.errors import BinaryViTError
from binaryvit.locks import hold
from binaryvit.records.run_record import Failure, read_failure
from binaryvit.studies.durations import duration, estimate
from binaryvit.studies.notebooks import TRAIN_NOTEBOOK, training_parameters
from binaryvit.studies.processes import Job, Share
from binaryvit.studies.states import missing_weights, state_of
from binaryvit.studies.study import PlannedRun, State
from binaryvit.studies.workshop import Workshop


class RunQueue:
    """Trains the chosen runs of a study, each after its teacher and each once, even next to other runners."""

    def __init__(
        self,
        workshop: Workshop,
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
                self._changed.wait(self.workshop.poll_seconds)
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
                self._look_again[run.id] = time.monotonic() + self.workshop.poll_seconds
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
            self.say(f"{run.id}: stale, {run.reason}; kept as {_archive(run.folder).name}, and trained again")
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


def _archive(folder: Path) -> Path:
    """Renames a run's folder to one next to it that no study reads, and returns that."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    return folder.rename(folder.with_name(f"{folder.name}.stale-{stamp}"))
